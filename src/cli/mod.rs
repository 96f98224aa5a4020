//! The command line: one file per command, and [`mod@print`], the only writer to stdout and stderr.

pub mod print;

mod down;
mod flows;
mod log;
mod silent;
mod status;
mod up;
mod version;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::config::SessionName;
use crate::control::client::{self, Fault};
use crate::error::{Exit, UserError};
use crate::os::identity;
use crate::session::registry::{self, Entry};
use print::{ColorWhen, Printer};

/// Reach private networks of an AWS VPC through Session Manager.
#[derive(Debug, Parser)]
#[command(name = "ssm-proxy", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    pub fn printer(&self) -> Printer {
        Printer::new(self.global.color, self.global.quiet, self.global.verbose || self.global.debug)
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// AWS profile [default: $AWS_PROFILE or "default"]
    #[arg(long, global = true, value_name = "NAME", env = "SSM_PROXY_PROFILE", hide_env = true)]
    profile: Option<String>,
    /// AWS region [default: $AWS_REGION or that of the profile]
    #[arg(long, global = true, value_name = "NAME", env = "SSM_PROXY_REGION", hide_env = true)]
    region: Option<String>,
    /// Say more
    #[arg(short, long, global = true, value_parser = BoolishValueParser::new(), env = "SSM_PROXY_VERBOSE", hide_env = true)]
    verbose: bool,
    /// Say everything that helps to find a fault
    #[arg(long, global = true, value_parser = BoolishValueParser::new(), env = "SSM_PROXY_DEBUG", hide_env = true)]
    debug: bool,
    /// Say errors only
    #[arg(short, long, global = true, value_parser = BoolishValueParser::new(), env = "SSM_PROXY_QUIET", hide_env = true)]
    quiet: bool,
    /// When to use colour; auto follows NO_COLOR, TERM and whether it is a terminal
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        value_enum,
        default_value_t = ColorWhen::Auto,
        env = "SSM_PROXY_COLOR",
        hide_env = true
    )]
    color: ColorWhen,
    /// Append the log to this file instead of writing it to stderr
    #[arg(long, global = true, value_name = "FILE", env = "SSM_PROXY_LOG_FILE", hide_env = true)]
    log_file: Option<PathBuf>,
}

impl Global {
    /// A word on the command line about how much is said wins over the variables that say otherwise.
    fn prefer_flags(&mut self, is_flag: impl Fn(&str) -> bool) -> Result<(), clap::Error> {
        let (quiet, loud) = (is_flag("quiet"), is_flag("verbose") || is_flag("debug"));
        if quiet && !loud {
            (self.verbose, self.debug) = (false, false);
        }
        // Of variables alone, those that say more.
        self.quiet &= quiet || !(loud || self.verbose || self.debug);
        if self.quiet && (self.verbose || self.debug) {
            let conflict = "the argument '--quiet' cannot be used with '--verbose' or '--debug'";
            return Err(Cli::command().error(ErrorKind::ArgumentConflict, conflict));
        }
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(visible_alias = "start")]
    Up(Box<up::Up>),
    #[command(visible_alias = "stop")]
    Down(down::Down),
    Status(status::Status),
    Flows(flows::Flows),
    Version(version::Version),
}

/// A variable that is set to nothing is none.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty =
        |option: &Arg| option.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    command
        .mut_args(|option| if is_empty(&option) { option.env(None::<&str>) } else { option })
        .mut_subcommands(without_empty_variables)
}

/// Reads the arguments and the environment; the error has clap's own text and exit code.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = without_empty_variables(Cli::command()).try_get_matches_from(args)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let Some((_, given)) = matches.subcommand() {
        let is_flag = |arg: &str| given.value_source(arg) == Some(ValueSource::CommandLine);
        cli.global.prefer_flags(is_flag)?;
        match &mut cli.command {
            Command::Up(up) => up.prefer_flags(is_flag),
            Command::Down(down) => down.prefer_flags(is_flag)?,
            Command::Status(_) | Command::Flows(_) | Command::Version(_) => {}
        }
    }
    Ok(cli)
}

/// Runs the command to its end.
pub fn run(cli: Cli, print: &Printer) -> anyhow::Result<Exit> {
    match cli.command {
        Command::Up(up) => up::run(*up, &cli.global, print),
        Command::Down(down) => down::run(down, print),
        Command::Status(status) => status::run(status, print),
        Command::Flows(flows) => flows::run(flows, print),
        Command::Version(version) => version::run(version, print),
    }
}

/// The session named, whether or not it exists, or all of them.
fn chosen(name: Option<&SessionName>) -> anyhow::Result<Vec<Entry>> {
    match name {
        Some(name) => Ok(vec![named(name)]),
        None => everywhere(),
    }
}

fn named(name: &SessionName) -> Entry {
    let mut places: Vec<_> = identity::run_dirs().iter().map(|dir| registry::entry(dir, name)).collect();
    let used = places.iter().position(|entry| registry::is_listed(entry) || entry.socket.exists());
    places.swap_remove(used.unwrap_or(0))
}

fn everywhere() -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for dir in identity::run_dirs() {
        entries.extend(registry::list(&dir)?);
    }
    Ok(entries)
}

/// Sessions whose process lives.
fn running() -> anyhow::Result<Vec<Entry>> {
    let mut entries = everywhere()?;
    entries.retain(|entry| !matches!(client::status(&entry.socket), Err(Fault::Absent | Fault::Dead)));
    Ok(entries)
}

/// The session that a command for one session means when no name is given.
fn the_one(running: &[Entry], hint: impl FnOnce(&SessionName) -> String) -> Result<&Entry, UserError> {
    let default = SessionName::default();
    match running {
        [] => Err(none_running()),
        [only] => Ok(only),
        several => several.iter().find(|entry| entry.name == default).ok_or_else(|| {
            let names: Vec<_> = several.iter().map(|entry| entry.name.as_str()).collect();
            UserError::new(Exit::Usage, format!("several sessions are running: {}", names.join(", ")))
                .hint(hint(&several[0].name))
        }),
    }
}

fn none_running() -> UserError {
    UserError::new(Exit::NotRunning, "no session is running")
        .hint("sudo ssm-proxy up --instance i-0123456789abcdef0 --cidr 10.0.0.0/8")
}

const EXIT_CODES: &str = "\
Exit codes:
    0  done                             5  the instance or its agent cannot be reached
    1  failed                           6  a session runs but is not connected at the moment
    2  wrong usage                      7  more privileges are needed
    3  no such session is running       8  a name, range or address is taken
    4  AWS credentials do not do      130  interrupted";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn names_of_the_specification_are_aliases() {
        for args in [
            ["up", "--instance", "i-0123456789abcdef0", "--cidr", "10.0.0.0/8"],
            ["start", "--instance-id", "i-0123456789abcdef0", "--cidr", "10.0.0.0/8"],
        ] {
            assert!(matches!(parsed(&args), Ok(Cli { command: Command::Up(_), .. })), "{args:?}");
        }
        assert!(matches!(parsed(&["stop"]), Ok(Cli { command: Command::Down(_), .. })));
    }

    #[test]
    fn global_flags_stand_on_either_side_of_the_command() {
        for args in [["--profile", "dev", "status"], ["status", "--profile", "dev"]] {
            assert_eq!(parsed(&args).unwrap().global.profile.as_deref(), Some("dev"));
        }
    }

    #[test]
    fn every_option_of_up_has_its_variable() {
        let mut cli = Cli::command();
        cli.build();
        let up = cli.find_subcommand("up").unwrap();
        let told =
            up.get_arguments().filter(|option| !["help", "version"].contains(&option.get_id().as_str()));
        for option in told {
            let name = option.get_long().unwrap();
            let variable = option.get_env().and_then(|name| name.to_str());
            let expected = format!("SSM_PROXY_{}", name.to_uppercase().replace('-', "_"));
            assert_eq!(variable, Some(expected.as_str()), "--{name}");
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for args in [
            &["up", "--instance", "i-0123456789abcdef0"][..],
            &["status", "--quiet", "--debug"],
            &["--verbose", "status", "-q"],
            &["status", "--nonsense"],
            &["status", "--session-name", "../x"],
            &["down", "--all", "--session-name", "a"],
            &["sideways"],
            &["status", "--color", "red"],
        ] {
            assert_eq!(parsed(args).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }

    fn parsed(args: &[&str]) -> Result<Cli, clap::Error> {
        parse(std::iter::once("ssm-proxy").chain(args.iter().copied()).map(OsString::from))
    }
}
