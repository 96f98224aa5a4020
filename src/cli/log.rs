//! Where log lines go, and how many.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Mutex;

use anyhow::Context as _;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;

use super::Global;
use super::print::Printer;
use crate::os::identity;
use crate::session::Progress;

/// Starts logging for the rest of the process. Without `--log-file` to stderr, without times: a user reads along.
pub(super) fn start(global: &Global, print: &Printer) -> anyhow::Result<()> {
    let filter = EnvFilter::new(levels(global));
    match &global.log_file {
        Some(path) => {
            let file = append(path).with_context(|| format!("open the log file {}", path.display()))?;
            set(builder().with_env_filter(filter).with_ansi(false).with_writer(Mutex::new(file)).finish());
        }
        None => {
            let color = print.stderr_color();
            let lines =
                builder().with_env_filter(filter).with_ansi(color).without_time().with_target(global.debug);
            set(lines.with_writer(io::stderr).finish());
        }
    }
    Ok(())
}

/// What a user reads on the screen belongs into a log file too.
pub(super) fn record(progress: &Progress) {
    match progress {
        Progress::Step(text) | Progress::Detail(text) => info!("{text}"),
        Progress::Warn(text) => warn!("{text}"),
        Progress::Ready(ready) => info!("up through {} on {}", ready.via, ready.device),
    }
}

fn builder() -> SubscriberBuilder {
    // Its complaint about a closed stderr would panic.
    tracing_subscriber::fmt().log_internal_errors(false)
}

fn set(subscriber: impl tracing::Subscriber + Send + Sync) {
    // Fails only where the program that embeds us has set one of its own, which then holds.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Ours by the flags; what AWS and TLS libraries say below `info` is noise, and may hold tokens.
fn levels(global: &Global) -> &'static str {
    if global.debug {
        "info,ssm_proxy=debug,agent=debug"
    } else if global.verbose || global.log_file.is_some() {
        "warn,ssm_proxy=info,agent=info"
    } else if global.quiet {
        "error"
    } else {
        "warn"
    }
}

/// A new file is the caller's, also under sudo. Where only root may write it is root's.
fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    match identity::as_caller(|| options.open(path)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => options.open(path),
        opened => opened,
    }
}
