//! Pure: errors of the parts, in the words of a user of `up`.

use std::io;

use agent::wire::hello::{DenyReason, HelloError};

use super::Progress;
use super::known::Known;
use super::way::Way;
use crate::config::{DEFAULT_AGENT_PORT, Plan, Via};
use crate::error::{Exit, UserError, explain};
use crate::os::identity;
use crate::os::tun::TunError;
use crate::ssm::api_error::ApiError;
use crate::ssm::connect::ConnectError;
use crate::ssm::socket::LaneError as SsmError;
use crate::tunnel::greet::GreetError;
use crate::tunnel::health::Happening;
use crate::tunnel::lanes::{End, LaneError};
use crate::tunnel::path::OpenError;

pub(super) fn tun(error: &TunError) -> UserError {
    let exit = match error {
        TunError::NotRoot(_) => Exit::Privileges,
        TunError::AddressInUse { .. } | TunError::Busy(_) => Exit::Conflict,
        TunError::BadMtu(_) | TunError::BadName { .. } => Exit::Usage,
        TunError::NoDevice(_) | TunError::NoIpv6 { .. } | TunError::Other { .. } => Exit::Failure,
    };
    let told = with_sources(UserError::new(exit, error.to_string()), error);
    match error.hint() {
        Some(hint) => told.hint(hint),
        None => told,
    }
}

pub(super) fn routes(error: &io::Error) -> UserError {
    UserError::new(Exit::Failure, "the routes could not be made")
        .cause(error)
        .hint("ip rule; ip route show table all")
}

pub(super) fn network(error: &ConnectError) -> UserError {
    with_sources(UserError::new(Exit::Usage, error.to_string()), error).hint(error.hint())
}

pub(super) fn api(error: &ApiError) -> UserError {
    let exit = match error.exit_code() {
        4 => Exit::Credentials,
        5 => Exit::Unreachable,
        _ => Exit::Failure,
    };
    let told = error.causes().into_iter().fold(UserError::new(exit, error.to_string()), UserError::cause);
    match error {
        ApiError::NoRegion { .. } | ApiError::NoCredentials { .. } | ApiError::Expired { .. } => {
            match identity::dropped_environment_hint() {
                Some(command) => told.cause("sudo dropped the AWS variables of your shell").hint(command),
                None => told.hint(error.hint()),
            }
        }
        ApiError::AccessDenied { .. }
        | ApiError::TargetNotConnected { .. }
        | ApiError::NotFound { .. }
        | ApiError::InvalidDocument { .. }
        | ApiError::SessionGone { .. }
        | ApiError::Throttled { .. }
        | ApiError::Unreachable { .. }
        | ApiError::Timeout { .. }
        | ApiError::BadAnswer { .. }
        | ApiError::Other { .. } => told.hint(error.hint()),
    }
}

/// Why there is no lane.
pub(super) fn lane(error: &LaneError, plan: &Plan, known: &Known, way: &Way) -> UserError {
    match error {
        LaneError::Open(open) => self::open(open, plan),
        LaneError::NoGreeting { .. } | LaneError::Greet(GreetError::Ended) => no_agent(error, plan),
        LaneError::Greet(GreetError::Io(io)) => match SsmError::of(io) {
            Some(ssm) if !is_silent(ssm) => self::ssm(ssm),
            Some(_) | None => no_agent(error, plan),
        },
        LaneError::Greet(GreetError::Hello(hello)) => self::hello(hello, plan, known, way),
    }
}

/// A turn in the tunnel's life, in one line.
pub(super) fn happening(happening: &Happening, plan: &Plan, known: &Known, way: &Way) -> Progress {
    match happening {
        Happening::Reached(first) => {
            Progress::Step(format!("reached ssm-proxy-agent {}", first.agent_version))
        }
        Happening::Fault { reason } => {
            Progress::Step(format!("replacing a lane: {reason}; the others carry on"))
        }
        Happening::Asleep => Progress::Step(
            "closed the tunnel, no connection was open for long enough; the next one opens it".to_owned(),
        ),
        Happening::Lost { reason } => {
            Progress::Warn(format!("connection lost: {reason}; open connections wait for the next one"))
        }
        Happening::Trouble(error) => {
            let told = explain(&lane(error, plan, known, way).into());
            let cause = told.causes.first().map(|cause| format!(": {cause}")).unwrap_or_default();
            let now = match (told.exit, told.hint) {
                // What nobody but the user can mend.
                (Exit::Credentials | Exit::Conflict, Some(hint)) => format!("; try: {hint}"),
                (_, _) => String::new(),
            };
            Progress::Warn(format!("not reconnected yet: {}{cause}{now} (it keeps trying)", told.what))
        }
        Happening::Back { after, resumed } => {
            let seconds = after.as_secs_f64();
            let then = if *resumed { "; open connections went on" } else { "" };
            Progress::Step(format!("reconnected after {seconds:.1} s{then}"))
        }
        Happening::TrunkLost { reason } => Progress::Warn(format!("{reason}; open connections were reset")),
        Happening::SmallMessages => Progress::Warn(
            "something on the way to AWS takes no messages above 1 KiB; uploads are slower from here on"
                .to_owned(),
        ),
    }
}

/// Why a session ends that has lost its connection.
pub(super) fn gave_up(end: End, last: Option<UserError>, lost: Option<String>) -> UserError {
    let what = match end {
        End::Lost => {
            "the connection was lost, and --auto-reconnect=false says not to make it anew".to_owned()
        }
        End::Tries(tries) => {
            format!("the connection was lost, and {tries} tries to make it anew have failed (--max-retries)")
        }
    };
    // The last try tells more than the loss before it.
    let exit = last.as_ref().map_or(Exit::Unreachable, |last| last.exit);
    let told = UserError::new(exit, what);
    let told = lost.into_iter().fold(told, UserError::cause);
    match last {
        Some(last) => {
            let told = std::iter::once(last.what).chain(last.causes).fold(told, UserError::cause);
            last.hint.into_iter().fold(told, UserError::hint)
        }
        None => {
            told.hint("start it again; without --auto-reconnect=false it makes the connection anew by itself")
        }
    }
}

fn open(error: &OpenError, plan: &Plan) -> UserError {
    match error {
        OpenError::Api(error) => api(error),
        OpenError::TcpName { error: cause, .. } => UserError::new(Exit::Unreachable, error.to_string())
            .cause(cause)
            .hint("check the name in --via, and the network and its DNS"),
        OpenError::Tcp { error: cause, .. } => UserError::new(Exit::Unreachable, error.to_string())
            .cause(cause)
            .hint("start the agent there: ssm-proxy-agent --listen ADDR:PORT --key-file FILE"),
        OpenError::SlowTcp { .. } => UserError::new(Exit::Unreachable, error.to_string())
            .hint("check that a firewall lets this through; a longer --timeout waits longer"),
        OpenError::SlowStart { why, .. } => UserError::new(Exit::Unreachable, error.to_string())
            .cause(why.as_deref().unwrap_or("AWS or the way to it is slow"))
            .hint("check the network and its DNS; behind a company proxy set HTTPS_PROXY=http://proxy:port"),
        OpenError::Ssm(ssm) if is_silent(ssm) => no_agent(error, plan),
        OpenError::Ssm(ssm) => self::ssm(ssm),
        OpenError::Ending => UserError::new(Exit::Interrupted, error.to_string()),
    }
}

fn ssm(error: &SsmError) -> UserError {
    let told = UserError::new(Exit::Unreachable, error.to_string());
    error.causes().into_iter().fold(told, UserError::cause).hint(error.hint())
}

/// The session was there and ended before anybody behind it spoke: what a refused dial looks like.
fn is_silent(error: &SsmError) -> bool {
    matches!(
        error,
        SsmError::Closed { greeted: false, output } if output.is_empty() || output.contains("connect to specified port")
    ) || matches!(error, SsmError::Lost { greeted: false, .. })
}

/// The session opened, but nobody behind it speaks as our agent does.
fn no_agent(error: &dyn std::error::Error, plan: &Plan) -> UserError {
    UserError::new(Exit::Unreachable, format!("no ssm-proxy-agent answers {}", place(plan)))
        .cause(error)
        .cause(
            "most likely it is not installed or not running there; or it listens on another port (--agent-port), \
             and here something that waits to be spoken to, such as a web server",
        )
        .hint(install(plan))
}

fn place(plan: &Plan) -> String {
    match &plan.via {
        Via::Tcp { addr, .. } => format!("at {addr}"),
        Via::Instance(id) => format!("on port {} of {id}", plan.agent_port),
        Via::Tag { key, value } => format!("on port {} of the instance with {key}={value}", plan.agent_port),
    }
}

/// The command that brings the agent there.
fn install(plan: &Plan) -> String {
    let instance = match &plan.via {
        Via::Tcp { .. } => return "ssm-proxy-agent --listen ADDR:PORT --key-file FILE".to_owned(),
        Via::Instance(id) => id,
        Via::Tag { .. } => "INSTANCE_ID",
    };
    format!(
        "examples/agent/install.sh {instance} BUCKET    # puts the agent there through SSM and an S3 bucket"
    )
}

/// Something else spoke first.
fn not_agent(first: &[u8], plan: &Plan) -> UserError {
    let what = if first.starts_with(b"SSH-") {
        "an SSH server"
    } else if first.starts_with(b"HTTP/") {
        "a web server"
    } else if first.starts_with(b"220") {
        "a mail or FTP server"
    } else {
        "something else"
    };
    let told = UserError::new(Exit::Unreachable, format!("no ssm-proxy-agent answers {}", place(plan)))
        .cause(format!("{what} answers there: \"{}\"", first.escape_ascii()));
    match &plan.via {
        Via::Tcp { .. } => told.hint("name the port of ssm-proxy-agent in --via tcp://HOST:PORT"),
        Via::Instance(_) | Via::Tag { .. } => told.hint(format!(
            "name the agent's port with --agent-port (it listens on {DEFAULT_AGENT_PORT} unless told otherwise)"
        )),
    }
}

fn hello(error: &HelloError, plan: &Plan, known: &Known, way: &Way) -> UserError {
    let told = UserError::new(Exit::Unreachable, error.to_string());
    let over_tcp = matches!(plan.via, Via::Tcp { .. });
    match error {
        HelloError::KeyChanged { expected, got } => {
            UserError::new(Exit::Conflict, format!("the agent at {} has another key than before", way.place))
                .cause("it was installed anew, or something else poses as it")
                .cause(format!("expected {expected}, got {got}"))
                .hint(format!(
                    "if it was installed anew, forget its old key: sed -i.bak '\\|^{} |d' {}",
                    way.place,
                    known.path().display()
                ))
        }
        HelloError::NotAgent(first) => not_agent(first, plan),
        HelloError::AgentVersion { .. } | HelloError::Denied { reason: DenyReason::Version, .. } => {
            told.hint(install(plan))
        }
        HelloError::KeyRequired if over_tcp => {
            UserError::new(Exit::Unreachable, "the agent wants a shared key and none was given")
                .hint("name the key both ends share: --key-file FILE")
        }
        HelloError::KeyRequired => UserError::new(
            Exit::Unreachable,
            "the agent wants a shared key, which an SSM session does not carry",
        )
        .hint("start the agent on the instance without --key-file"),
        HelloError::KeyNotExpected => {
            UserError::new(Exit::Unreachable, "the agent has no shared key, but --key-file names one")
                .hint("leave --key-file out, or start the agent with the same key file")
        }
        HelloError::Denied { reason: DenyReason::Proof, .. } => {
            told.hint("give both ends the same --key-file")
        }
        HelloError::ClientVersion { .. }
        | HelloError::NotClient(_)
        | HelloError::AgentProof
        | HelloError::ClientProof { .. }
        | HelloError::UnknownTrunk
        | HelloError::Denied { .. }
        | HelloError::Malformed(_)
        | HelloError::Frame(_) => told,
    }
}

fn with_sources(told: UserError, error: &dyn std::error::Error) -> UserError {
    std::iter::successors(error.source(), |source| source.source()).fold(told, UserError::cause)
}
