//! `up`: the flags of a session, and its run in the foreground.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use clap::builder::BoolishValueParser;

use super::print::Printer;
use super::{Global, log};
use crate::config::{Compress, Keepalive, LaneCount, Plan, SessionName, Wishes, parse_duration};
use crate::error::{Exit, UserError};
use crate::os::{descriptors, identity, secrets};
use crate::session::{self, Progress, Ready};

/// Bring networks of a VPC to this machine
#[derive(Debug, Args)]
#[command(
    override_usage = "ssm-proxy up <--instance ID | --instance-tag KEY=VALUE | --via tcp://HOST:PORT> --cidr CIDR... [OPTIONS]",
    after_help = "\
Every option NAME has a variable SSM_PROXY_NAME; an option on the command line wins.

Examples:
  sudo ssm-proxy up --instance i-0123456789abcdef0 --cidr 10.0.0.0/8
  sudo ssm-proxy up --instance-tag Name=bastion --cidr 10.0.0.0/8 --exclude 10.8.0.0/16
  sudo ssm-proxy up --profile prod --region eu-west-1 --session-name prod \\
      --instance i-0123456789abcdef0 --cidr 172.16.0.0/12 --cidr 10.64.0.0/10
  sudo ssm-proxy up --via tcp://192.0.2.10:742 --key-file lane.key --cidr 10.0.0.0/8

It stays in the foreground; Ctrl-C or `ssm-proxy down` ends it and undoes everything."
)]
pub(super) struct Up {
    /// EC2 instance that runs ssm-proxy-agent
    #[arg(
        long,
        visible_alias = "instance-id",
        value_name = "ID",
        env = "SSM_PROXY_INSTANCE",
        hide_env = true
    )]
    instance: Option<String>,
    /// Find the instance by a tag
    #[arg(long, value_name = "KEY=VALUE", env = "SSM_PROXY_INSTANCE_TAG", hide_env = true)]
    instance_tag: Option<String>,
    /// Reach the agent over plain TCP, which is not encrypted, instead of SSM
    #[arg(long, value_name = "tcp://HOST:PORT", env = "SSM_PROXY_VIA", hide_env = true)]
    via: Option<String>,
    /// The key both ends share; needed for --via beyond loopback
    #[arg(long, value_name = "FILE", env = "SSM_PROXY_KEY_FILE", hide_env = true)]
    key_file: Option<PathBuf>,
    /// Network to reach through the session; may be repeated
    #[arg(long, required = true, value_delimiter = ',', env = "SSM_PROXY_CIDR", hide_env = true)]
    cidr: Vec<String>,
    /// Part of a --cidr that stays local; may be repeated
    #[arg(long, value_name = "CIDR", value_delimiter = ',', env = "SSM_PROXY_EXCLUDE", hide_env = true)]
    exclude: Vec<String>,
    /// Name of the session [default: default]
    #[arg(long, value_name = "NAME", env = "SSM_PROXY_SESSION_NAME", hide_env = true)]
    session_name: Option<SessionName>,
    /// Address of the device; one per address family [default: a free 169.254.77.x/30]
    ///
    /// The default is link-local, which no router forwards, and lies outside 169.254.169.0/24 and
    /// 169.254.170.0/24, where AWS has instance and container metadata. With IPv6 networks the device also gets
    /// a unique-local fd5c:9a1e:77b2::x/128.
    #[arg(long, value_name = "ADDR/LEN", value_delimiter = ',', env = "SSM_PROXY_LOCAL_IP", hide_env = true)]
    local_ip: Vec<String>,
    /// MTU of the device, 576 to 65535 [default: best for this system]
    #[arg(long, value_name = "BYTES", env = "SSM_PROXY_MTU", hide_env = true)]
    mtu: Option<u32>,
    /// How long the first connection may take, such as 30s or 2m [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, env = "SSM_PROXY_TIMEOUT", hide_env = true)]
    timeout: Option<Duration>,
    /// How long a UDP socket may be silent before it is forgotten, 10m at most; 30s after one question and its answer
    /// [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, env = "SSM_PROXY_UDP_TIMEOUT", hide_env = true)]
    udp_timeout: Option<Duration>,
    /// SSM document for the port session [default: AWS-StartSSHSession]
    #[arg(long, value_name = "NAME", env = "SSM_PROXY_DOCUMENT", hide_env = true)]
    document: Option<String>,
    /// Port of the agent on the instance's loopback [default: 742]
    #[arg(long, value_name = "PORT", env = "SSM_PROXY_AGENT_PORT", hide_env = true)]
    agent_port: Option<u16>,
    /// How many SSM sessions carry the tunnel: auto (1 to 8, as they are of use) or a number up to 32 [default: auto]
    #[arg(long, value_name = "auto|N", env = "SSM_PROXY_LANES", hide_env = true)]
    lanes: Option<LaneCount>,
    /// Make the first SSM session when the first connection wants it, not before
    #[arg(long, value_parser = BoolishValueParser::new(), env = "SSM_PROXY_LAZY", hide_env = true)]
    lazy: bool,
    /// Close the tunnel after so long without a connection, until the next one [default: never]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, env = "SSM_PROXY_IDLE_TIMEOUT", hide_env = true)]
    idle_timeout: Option<Duration>,
    /// Which pings go out: auto (such as keep the session only while connections are open), always, never [default: auto]
    #[arg(long, value_name = "auto|always|never", env = "SSM_PROXY_KEEPALIVE", hide_env = true)]
    keepalive: Option<Keepalive>,
    /// Connect again when the connection is lost [default: true]
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = BoolishValueParser::new(),
        env = "SSM_PROXY_AUTO_RECONNECT",
        hide_env = true
    )]
    auto_reconnect: Option<bool>,
    /// The longest pause between two tries to connect again; the first ones are shorter [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, env = "SSM_PROXY_RECONNECT_DELAY", hide_env = true)]
    reconnect_delay: Option<Duration>,
    /// Give up after so many tries that failed in a row; 0: never [default: 0]
    #[arg(long, value_name = "N", env = "SSM_PROXY_MAX_RETRIES", hide_env = true)]
    max_retries: Option<u32>,
    /// The account's maximum session duration, so that sessions are replaced before it [default: learned]
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_duration,
        env = "SSM_PROXY_MAX_SESSION_DURATION",
        hide_env = true
    )]
    max_session_duration: Option<Duration>,
    #[arg(long, hide = true, value_parser = parse_duration, env = "SSM_PROXY_PING_INTERVAL", hide_env = true)]
    ping_interval: Option<Duration>,
    /// Compress TCP connections where that pays; auto: through SSM, not over plain TCP [default: auto]
    #[arg(long, value_name = "WHEN", value_enum, env = "SSM_PROXY_COMPRESS", hide_env = true)]
    compress: Option<Compress>,
}

impl Up {
    /// Where one way to the agent is on the command line, those from the environment do not count.
    pub(super) fn prefer_flags(&mut self, is_flag: impl Fn(&str) -> bool) {
        let (instance, tag, via) = (is_flag("instance"), is_flag("instance_tag"), is_flag("via"));
        if !(instance || tag || via) {
            return;
        }
        self.instance.take_if(|_| !instance);
        self.instance_tag.take_if(|_| !tag);
        self.via.take_if(|_| !via);
        let key_from_environment = !is_flag("key_file");
        self.key_file.take_if(|_| !via && key_from_environment);
    }

    fn wishes(self, global: &Global) -> Wishes {
        Wishes {
            name: self.session_name,
            instance: self.instance,
            instance_tag: self.instance_tag,
            via: self.via,
            key_file: self.key_file,
            cidrs: self.cidr,
            excludes: self.exclude,
            local: self.local_ip,
            mtu: self.mtu,
            timeout: self.timeout,
            udp_timeout: self.udp_timeout,
            document: self.document,
            agent_port: self.agent_port,
            ping_interval: self.ping_interval,
            compress: self.compress,
            lanes: self.lanes,
            keepalive: self.keepalive,
            lazy: self.lazy,
            idle_timeout: self.idle_timeout,
            auto_reconnect: self.auto_reconnect,
            reconnect_delay: self.reconnect_delay,
            max_retries: self.max_retries,
            max_session_duration: self.max_session_duration,
            profile: global.profile.clone(),
            region: global.region.clone(),
        }
    }
}

pub(super) fn run(up: Up, global: &Global, print: &Printer) -> anyhow::Result<Exit> {
    let plan = Plan::new(up.wishes(global))?;
    // Before there are any: tokens and keys belong into no core file.
    secrets::leave_no_core();
    if !rustix::process::geteuid().is_root() {
        return Err(needs_root().into());
    }
    // Before the first thread: the AWS files are those of the user behind sudo.
    identity::adopt_home().context("find the home directory of the user behind sudo")?;
    log::start(global, print)?;
    let descriptors = descriptors::raise_limit();
    tracing::debug!(?descriptors, "raised the limit");
    for note in &plan.notes {
        print.warn(note);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shown = plan.clone();
    let to_file = global.log_file.is_some();
    let tell = |progress| {
        if to_file {
            log::record(&progress);
        }
        show(progress, &shown, print);
    };
    let outcome = runtime.block_on(session::run(plan, &tell));
    if let (Err(error), true) = (&outcome, to_file) {
        tracing::error!("{error:#}");
    }
    // A name that is still being looked up must not hold up the end.
    runtime.shutdown_background();
    outcome
}

fn show(progress: Progress, plan: &Plan, print: &Printer) {
    match progress {
        Progress::Step(text) => print.step(&text),
        Progress::Detail(text) => print.detail(&text),
        Progress::Warn(text) => print.warn(&text),
        Progress::Ready(ready) => print.block(&summary(plan, &ready)),
    }
}

/// What a user must know of a session that is up: what goes through it, what does not, and how to end it.
fn summary(plan: &Plan, ready: &Ready) -> Vec<(&'static str, String)> {
    let routed = plan.cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut rows = vec![("Routed", format!("{routed} through {} ({})", ready.via, ready.device))];
    if !ready.stays_local.is_empty() {
        let local: Vec<_> = ready.stays_local.iter().map(|(net, whose)| format!("{net} ({whose})")).collect();
        rows.push(("Stays local", local.join(", ")));
    }
    rows.push(("Not yet", "private names (use addresses)".to_owned()));
    let name = &plan.name;
    let which =
        if *name == SessionName::default() { String::new() } else { format!(" --session-name {name}") };
    rows.push(("Stop", format!("Ctrl-C here, or ssm-proxy down{which} in another terminal")));
    rows
}

fn needs_root() -> UserError {
    let set: Vec<String> = env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    let args: Vec<_> = env::args_os().skip(1).collect();
    UserError::new(Exit::Privileges, "up needs root")
        .cause("it makes a network device and routes")
        .hint(sudo_command(&program(), args.iter().map(|arg| arg.to_string_lossy().into_owned()), &set))
}

/// The program as sudo finds it: by name only where sudo's own search path has it.
fn program() -> String {
    const NAME: &str = "ssm-proxy";
    let found = |exe: &Path| {
        let dir = exe.parent().and_then(Path::to_str);
        dir.is_some_and(|dir| SUDO_PATH.contains(&dir)) && exe.file_name() == Some(OsStr::new(NAME))
    };
    match env::current_exe() {
        Ok(exe) if !found(&exe) => exe.to_string_lossy().into_owned(),
        Ok(_) | Err(_) => NAME.to_owned(),
    }
}

const SUDO_PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The same command under sudo, with the variables it depends on and sudo would drop.
fn sudo_command(program: &str, args: impl Iterator<Item = String>, set: &[String]) -> String {
    let mut kept: Vec<&str> = set.iter().map(String::as_str).filter(|name| identity::matters(name)).collect();
    kept.sort_unstable();
    identity::sudo_command(&kept, std::iter::once(program.to_owned()).chain(args))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sudo_command_keeps_what_sudo_drops() {
        let args =
            ["up", "--instance-tag", "Name=my host", "--cidr", "10.0.0.0/8"].map(String::from).into_iter();
        let set = ["HOME", "AWS_REGION", "AWS_PROFILE", "no_proxy", "AWS_X;Y"].map(String::from);

        let command = sudo_command("ssm-proxy", args, &set);

        assert_eq!(
            command,
            "sudo --preserve-env=AWS_PROFILE,AWS_REGION,no_proxy ssm-proxy up --instance-tag 'Name=my host' --cidr 10.0.0.0/8"
        );
        assert_eq!(sudo_command("ssm-proxy", std::iter::empty(), &[]), "sudo ssm-proxy");
    }

    #[test]
    fn the_way_on_the_command_line_wins_over_the_environment() {
        let both = || Up {
            instance: Some("env".into()),
            via: Some("flag".into()),
            key_file: Some("k".into()),
            ..none()
        };

        let mut up = both();
        up.prefer_flags(|arg| arg == "via");
        assert_eq!((up.instance, up.via, up.key_file), (None, Some("flag".into()), Some("k".into())));

        let mut up = both();
        up.prefer_flags(|arg| arg == "instance");
        assert_eq!((up.instance, up.via, up.key_file), (Some("env".into()), None, None));

        let mut up = both();
        up.prefer_flags(|_| false);
        assert!(up.instance.is_some() && up.via.is_some(), "two of the same rank stay, to be refused");
    }

    #[test]
    fn the_summary_says_what_is_not_done_and_how_to_stop() {
        let plan = Plan::new(Wishes {
            name: Some("prod".parse().unwrap()),
            instance: Some("i-0123456789abcdef0".into()),
            cidrs: vec!["10.0.0.0/8".into()],
            ..Wishes::default()
        })
        .unwrap();
        let ready = Ready {
            via: "i-0123456789abcdef0".into(),
            device: "ssmp0".into(),
            stays_local: vec![("10.9.0.0/16".parse().unwrap(), "docker0".into())],
        };

        let rows = summary(&plan, &ready);

        let text: Vec<_> = rows.iter().map(|(label, text)| format!("{label}: {text}")).collect();
        assert_eq!(text[0], "Routed: 10.0.0.0/8 through i-0123456789abcdef0 (ssmp0)");
        assert_eq!(text[1], "Stays local: 10.9.0.0/16 (docker0)");
        assert!(text[2].contains("private names"));
        assert!(text[3].contains("ssm-proxy down --session-name prod"));
    }

    fn none() -> Up {
        Up {
            instance: None,
            instance_tag: None,
            via: None,
            key_file: None,
            cidr: Vec::new(),
            exclude: Vec::new(),
            session_name: None,
            local_ip: Vec::new(),
            mtu: None,
            timeout: None,
            udp_timeout: None,
            document: None,
            agent_port: None,
            ping_interval: None,
            compress: None,
            lanes: None,
            keepalive: None,
            lazy: false,
            idle_timeout: None,
            auto_reconnect: None,
            reconnect_delay: None,
            max_retries: None,
            max_session_duration: None,
        }
    }
}
