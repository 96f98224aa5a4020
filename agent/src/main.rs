//! The agent's program: flags, keys, descriptors, then [`serve`](agent::serve) until a signal.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent::dial::DialConfig;
use agent::dial::rules::Rules;
use agent::flags::{self, Flags, Request};
use agent::keys::{self, KeyError};
use agent::log;
use agent::parked::Limits;
use agent::serve::{Config, Listen, Server};
use agent::wire::hello::AgentKey;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

fn main() -> ExitCode {
    match flags::parse(std::env::args_os().skip(1)) {
        Ok(Request::Version) => print(&format!(
            "ssm-proxy-agent {} (protocol {})\n",
            env!("CARGO_PKG_VERSION"),
            agent::wire::VERSION
        )),
        Ok(Request::Help) => print(flags::HELP),
        Ok(Request::Serve(flags)) => {
            log::set_level(flags.log_level);
            match serve(*flags) {
                Ok(()) => ExitCode::SUCCESS,
                Err(reason) => {
                    log::error(format_args!("{reason}"));
                    ExitCode::FAILURE
                }
            }
        }
        Err(reason) => {
            log::set_level(log::Level::Error);
            log::error(format_args!("{reason}; 'ssm-proxy-agent --help' shows the flags"));
            ExitCode::from(2)
        }
    }
}

fn print(text: &str) -> ExitCode {
    // A closed pipe is no error.
    let _ = io::stdout().lock().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn serve(flags: Flags) -> Result<(), String> {
    let psk = flags.key_file.as_deref().map(keys::shared_key).transpose();
    let psk = psk.map_err(|error| format!("--key-file: {error}"))?;
    let mut config = Config::new(own_key(flags.state_dir)?);
    config.psk = psk;
    config.admission = flags.admission;
    config.compress = flags.compress;
    config.limits = Limits { park: flags.park, ..Limits::default() };
    config.dial = DialConfig {
        rules: Rules::new(flags.allow, flags.deny),
        timeout: flags.dial_timeout,
        max_flows: flows_within_descriptors(flags.max_flows),
        dials_per_second: flags.dials_per_second,
        ..DialConfig::default()
    };
    let listen =
        if flags.listen.is_empty() { Listen::Loopback(flags.port) } else { Listen::Addresses(flags.listen) };

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(LOOKUP_THREADS)
        .build()
        .map_err(|error| format!("cannot set up the event loop: {error}"))?;
    let served = LocalSet::new().block_on(&runtime, run(&listen, config));
    // A name lookup that hangs must not hold up the end.
    runtime.shutdown_background();
    served
}

async fn run(listen: &Listen, config: Config) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot wait for signals: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let key = config.key.public();
    let server = Server::bind(listen, config).await.map_err(|error| error.to_string())?;
    for address in server.local_addrs() {
        if !address.ip().to_canonical().is_loopback() {
            log::warn(format_args!(
                "lanes over {address} are authenticated by the key file, but not encrypted"
            ));
        } else if address.port() >= FIRST_ORDINARY_PORT {
            log::warn(format_args!(
                "port {} is open to every local user: while this agent is away another program can take it",
                address.port()
            ));
        }
    }
    let addresses: Vec<_> = server.local_addrs().iter().map(ToString::to_string).collect();
    log::info(format_args!("listening on {}; agent key {key}", addresses.join(" and ")));
    server
        .run(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            log::info(format_args!("ending by a signal"));
        })
        .await;
    Ok(())
}

/// The key that clients pin: from the directory that was asked for or, when nobody asked, from the usual
/// one if that can be written.
fn own_key(asked: Option<PathBuf>) -> Result<AgentKey, String> {
    let systemd = || {
        let directories = std::env::var_os("STATE_DIRECTORY")?;
        std::env::split_paths(&directories).next().filter(|path| !path.as_os_str().is_empty())
    };
    if let Some(directory) = asked.or_else(systemd) {
        return keys::agent_key(&directory).map_err(|error| format!("the agent's own key: {error}"));
    }
    match keys::agent_key(Path::new(STATE_DIR)) {
        Ok(key) => Ok(key),
        Err(KeyError::Io { error, .. }) if cannot_write(&error) => {
            log::warn(format_args!(
                "{STATE_DIR} cannot be used ({error}): the agent's key lives as long as this process, and clients \
                 that pinned it will be warned; --state-dir DIR keeps it"
            ));
            keys::passing_agent_key().map_err(|error| error.to_string())
        }
        Err(error) => Err(format!("the agent's own key: {error}")),
    }
}

fn cannot_write(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotFound
    )
}

/// Raises the descriptor limit as far as the system allows, and fits the flows into it.
fn flows_within_descriptors(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    let Some(current) = current else { return wanted };
    let fits = usize::try_from(current.saturating_sub(RESERVED_DESCRIPTORS)).unwrap_or(usize::MAX).max(1);
    if fits < wanted {
        log::warn(format_args!(
            "the descriptor limit is {current}: at most {fits} flows at once instead of {wanted} (systemd: LimitNOFILE=)"
        ));
    }
    wanted.min(fits)
}

const STATE_DIR: &str = "/var/lib/ssm-proxy-agent";
/// Lanes, handshakes, listeners and lookups.
const RESERVED_DESCRIPTORS: u64 = 512;
const LOOKUP_THREADS: usize = 64;
const FIRST_ORDINARY_PORT: u16 = 1024;
