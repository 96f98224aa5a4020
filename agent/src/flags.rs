//! Pure: the agent's command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::admission::Admission;
use crate::dial::DialConfig;
use crate::dial::rules::Cidr;
use crate::log::Level;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    Serve(Box<Flags>),
    Version,
    Help,
}

/// The agent's settings with their defaults.
#[derive(Debug, PartialEq, Eq)]
pub struct Flags {
    /// Instead of the loopback's two families.
    pub listen: Vec<SocketAddr>,
    pub port: u16,
    pub key_file: Option<PathBuf>,
    pub allow: Vec<Cidr>,
    pub deny: Vec<Cidr>,
    pub admission: Admission,
    pub park: Duration,
    pub dial_timeout: Duration,
    pub max_flows: usize,
    pub dials_per_second: u32,
    pub compress: bool,
    pub state_dir: Option<PathBuf>,
    pub log_level: Level,
}

impl Default for Flags {
    fn default() -> Self {
        let dial = DialConfig::default();
        Self {
            listen: Vec::new(),
            port: PORT,
            key_file: None,
            allow: Vec::new(),
            deny: Vec::new(),
            admission: Admission::default(),
            park: Duration::from_secs(8 * 60 * 60),
            dial_timeout: dial.timeout,
            max_flows: dial.max_flows,
            dials_per_second: dial.dials_per_second,
            compress: true,
            state_dir: None,
            log_level: Level::Info,
        }
    }
}

/// Reads the arguments behind the program's name. The error is one line that names the flag.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, String> {
    let mut flags = Flags::default();
    let mut uids = Vec::new();
    let mut port = None;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let argument = text(argument)?;
        let (name, attached) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (argument.as_str(), None),
        };
        if !VALUED.contains(&name) {
            return match (name, attached) {
                ("--version" | "-V", None) => Ok(Request::Version),
                ("--help" | "-h", None) => Ok(Request::Help),
                ("--version" | "--help", Some(_)) => Err(format!("{name} takes no value")),
                _ => Err(format!("unknown argument '{argument}'")),
            };
        }
        let value = match attached {
            Some(value) => value,
            None => text(arguments.next().ok_or_else(|| format!("{name} needs a value"))?)?,
        };
        let wrong = |what: &str| format!("{name} '{value}': {what}");
        let number = |what: &str| value.parse::<u32>().map_err(|_| wrong(what));
        match name {
            "--listen" => flags.listen.push(value.parse().map_err(|_| wrong(LISTEN))?),
            "--port" => port = Some(value.parse().map_err(|_| wrong("not a port between 0 and 65535"))?),
            "--key-file" => flags.key_file = Some(value.into()),
            "--allow" => flags.allow.push(value.parse().map_err(|error| format!("--allow: {error}"))?),
            "--deny" => flags.deny.push(value.parse().map_err(|error| format!("--deny: {error}"))?),
            "--allow-uid" if value == "any" => flags.admission = Admission::Any,
            "--allow-uid" => uids.push(number("not a user id, nor 'any'")?),
            "--park" => flags.park = duration(&value).ok_or_else(|| wrong(DURATION))?,
            "--dial-timeout" => {
                let timeout = duration(&value).filter(|timeout| !timeout.is_zero());
                flags.dial_timeout = timeout.ok_or_else(|| wrong(DURATION))?;
            }
            "--max-flows" => {
                flags.max_flows = number("not a number of flows").map(|count| count as usize)?;
                if flags.max_flows == 0 {
                    return Err(wrong("at least one is needed"));
                }
            }
            "--dials-per-second" => {
                flags.dials_per_second = number("not a number of dials")?;
                if flags.dials_per_second == 0 {
                    return Err(wrong("at least one is needed"));
                }
            }
            "--compress" => {
                flags.compress = match value.as_str() {
                    "auto" => true,
                    "off" => false,
                    _ => return Err(wrong("not auto or off")),
                };
            }
            "--state-dir" => flags.state_dir = Some(value.into()),
            "--log-level" => {
                flags.log_level =
                    Level::parse(&value).ok_or_else(|| wrong("not error, warn, info or debug"))?;
            }
            _ => return Err(format!("unknown argument '{name}'")),
        }
    }
    match (&flags.admission, uids.is_empty()) {
        (Admission::Any, false) => {
            return Err("--allow-uid any and --allow-uid N exclude each other".to_owned());
        }
        (Admission::Any, true) | (Admission::Uids(_), true) => {}
        (Admission::Uids(_), false) => flags.admission = Admission::Uids(uids),
    }
    if port.is_some() && !flags.listen.is_empty() {
        return Err("--port is for the loopback; --listen names its port itself".to_owned());
    }
    if flags.key_file.is_none()
        && let Some(address) = flags.listen.iter().find(|address| !address.ip().to_canonical().is_loopback())
    {
        return Err(format!("--listen {address} is reachable from other machines and needs --key-file FILE"));
    }
    flags.port = port.unwrap_or(PORT);
    Ok(Request::Serve(Box::new(flags)))
}

fn text(argument: OsString) -> Result<String, String> {
    argument.into_string().map_err(|argument| format!("'{}' is not UTF-8", argument.display()))
}

/// `90`, `90s`, `500ms`, `15m`, `8h` or `2d`, up to a year.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let duration = Duration::from_millis(number.checked_mul(milliseconds)?);
    (duration <= Duration::from_secs(366 * 86_400)).then_some(duration)
}

/// Below 1024, so that no ordinary local user can pose as the agent while it is away.
pub const PORT: u16 = 742;

const LISTEN: &str = "not an address with a port such as 10.0.0.5:7420 or [::1]:7420";
const DURATION: &str = "not a time such as 500ms, 10s, 30m or 8h";

const VALUED: &[&str] = &[
    "--listen",
    "--port",
    "--key-file",
    "--allow",
    "--deny",
    "--allow-uid",
    "--park",
    "--dial-timeout",
    "--max-flows",
    "--dials-per-second",
    "--compress",
    "--state-dir",
    "--log-level",
];

/// The text of `--help`.
pub const HELP: &str = "\
ssm-proxy-agent: the far end of ssm-proxy; dials targets inside the VPC

Usage: ssm-proxy-agent [FLAGS]

Without flags it listens on 127.0.0.1 and [::1], port 742, and lets in what root's
processes connect, which is how AWS's SSM agent comes.

  --port PORT           another port on the loopback
  --listen ADDR:PORT    listen there instead (repeatable); beyond the loopback --key-file
                        is required, and what passes is not encrypted
  --key-file FILE       key of at least 16 bytes that clients must know too; mode 0600
  --allow-uid UID|any   whose processes may connect over the loopback (repeatable; default 0)
  --allow CIDR          dial these although they are denied by default: loopback, link-local,
                        multicast, instance metadata and credentials (repeatable)
  --deny CIDR           never dial these (repeatable; the longest range decides, and of two
                        equal ones the denial)
  --dial-timeout TIME   how long a target may take to answer (default 10s)
  --max-flows N         flows at once (default 32768, less when the descriptor limit is lower)
  --dials-per-second N  flows that may begin in a second; more are refused (default 50000)
  --compress auto|off   whether clients may have TCP flows compressed (default auto)
  --park TIME           how long flows wait for a client that is gone (default 8h)
  --state-dir DIR       where the agent's own key is kept (default $STATE_DIRECTORY, else
                        /var/lib/ssm-proxy-agent)
  --log-level LEVEL     error, warn, info or debug (default info)
  -V, --version         print the version
  -h, --help            print this

Exit codes: 0 ended by a signal or after printing, 1 could not start, 2 wrong flags.
";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Request, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn flags(line: &str) -> Flags {
        match read(line).unwrap() {
            Request::Serve(flags) => *flags,
            other @ (Request::Version | Request::Help) => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_gives_the_defaults() {
        assert_eq!(flags(""), Flags::default());
        assert_eq!(Flags::default().port, 742);
        assert_eq!(Flags::default().admission, Admission::Uids(vec![0]));
    }

    #[test]
    fn each_flag_is_read_with_a_space_and_with_an_equals_sign() {
        let expected = Flags {
            listen: vec!["10.0.0.5:7420".parse().unwrap(), "[::1]:7420".parse().unwrap()],
            key_file: Some("/etc/key".into()),
            allow: vec!["127.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()],
            deny: vec!["10.9.0.0/16".parse().unwrap()],
            admission: Admission::Uids(vec![0, 1000]),
            park: Duration::from_secs(1800),
            dial_timeout: Duration::from_millis(500),
            max_flows: 99,
            compress: false,
            dials_per_second: 500,
            state_dir: Some("/tmp/x".into()),
            log_level: Level::Debug,
            port: 742,
        };
        let spaced = "--listen 10.0.0.5:7420 --listen [::1]:7420 --key-file /etc/key --allow 127.0.0.0/8 --allow ::1 \
                      --deny 10.9.0.0/16 --allow-uid 0 --allow-uid 1000 --park 30m --dial-timeout 500ms \
                      --max-flows 99 --dials-per-second 500 --compress off --state-dir /tmp/x --log-level debug";
        assert_eq!(flags(spaced), expected);
        let mut joined = String::new();
        for (index, word) in spaced.split_whitespace().enumerate() {
            joined.push(if index % 2 == 0 { ' ' } else { '=' });
            joined.push_str(word);
        }
        assert_eq!(flags(&joined), expected);
        assert_eq!(flags("--port 9000").port, 9000);
        assert_eq!(flags("--allow-uid any").admission, Admission::Any);
    }

    #[test]
    fn version_and_help_win_over_what_follows() {
        assert_eq!(read("--version"), Ok(Request::Version));
        assert_eq!(read("-V"), Ok(Request::Version));
        assert_eq!(read("--port 1 --help --nonsense"), Ok(Request::Help));
        assert_eq!(read("-h"), Ok(Request::Help));
    }

    #[test]
    fn every_error_names_the_flag() {
        for (line, named) in [
            ("--nonsense", "--nonsense"),
            ("serve", "serve"),
            ("--help=x", "--help"),
            ("--port", "--port"),
            ("--port 65536", "--port"),
            ("--port x", "--port"),
            ("--listen 742", "--listen"),
            ("--listen 127.0.0.1", "--listen"),
            ("--listen localhost:742", "--listen"),
            ("--listen 10.0.0.5:742", "--key-file"),
            ("--listen 0.0.0.0:742", "--key-file"),
            ("--listen 127.0.0.1:742 --port 742", "--port"),
            ("--allow 10.0.0.0/33", "--allow"),
            ("--deny 10.0.0.1/8", "--deny"),
            ("--allow-uid root", "--allow-uid"),
            ("--allow-uid -1", "--allow-uid"),
            ("--allow-uid any --allow-uid 5", "--allow-uid"),
            ("--park 8x", "--park"),
            ("--park h", "--park"),
            ("--park 99999999999999999999s", "--park"),
            ("--park 18446744073709551615h", "--park"),
            ("--dial-timeout 0", "--dial-timeout"),
            ("--max-flows 0", "--max-flows"),
            ("--dials-per-second 0", "--dials-per-second"),
            ("--log-level loud", "--log-level"),
        ] {
            let error = read(line).expect_err(line);
            assert!(error.contains(named) && !error.contains('\n'), "{line}: {error}");
        }
        assert!(read("--listen 127.0.0.1:742").is_ok());
        assert!(read("--listen [::ffff:127.0.0.1]:742").is_ok());
    }

    #[test]
    fn the_help_names_every_flag() {
        for flag in VALUED {
            assert!(HELP.contains(flag), "{flag}");
        }
        let defaults = Flags::default();
        assert!(HELP.contains(&format!("default {},", defaults.max_flows)));
        assert!(HELP.contains(&format!("default {})", defaults.dials_per_second)));
    }
}
