//! Where log lines go, and how many.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Mutex;

use anyhow::Context as _;
use tracing::{Event, Level, Subscriber, info, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, SubscriberBuilder};
use tracing_subscriber::registry::LookupSpan;

use super::Global;
use super::print::{self, Printer};
use crate::os::identity;
use crate::session::Progress;

/// Starts logging for the rest of the process. Without `--log-file` to stderr, in the words of [`Printer`]: a user
/// reads along.
pub(super) fn start(global: &Global, print: &Printer) -> anyhow::Result<()> {
    let filter = EnvFilter::new(levels(global));
    match &global.log_file {
        Some(path) => {
            let file = append(path).with_context(|| format!("open the log file {}", path.display()))?;
            set(builder().with_env_filter(filter).with_ansi(false).with_writer(Mutex::new(file)).finish());
        }
        None => {
            let color = print.stderr_color();
            let lines = builder().with_env_filter(filter).with_ansi(color).with_writer(io::stderr);
            set(lines.event_format(Screen { with_target: global.debug }).finish());
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

/// A log line as the other lines on the screen are: `warning: text`.
struct Screen {
    with_target: bool,
}

impl<S, N> FormatEvent<S, N> for Screen
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let (style, label) = match *event.metadata().level() {
            Level::ERROR => (print::BAD, "error:"),
            Level::WARN => (print::ODD, "warning:"),
            Level::INFO => (print::PLAIN, "info:"),
            Level::DEBUG => (print::PLAIN, "debug:"),
            Level::TRACE => (print::PLAIN, "trace:"),
        };
        let style = if line.has_ansi_escapes() { style } else { print::PLAIN };
        write!(line, "{style}{label}{style:#} ")?;
        if self.with_target {
            write!(line, "{}: ", event.metadata().target())?;
        }
        context.format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}

fn builder() -> SubscriberBuilder {
    // Its complaint about a closed stderr would panic.
    tracing_subscriber::fmt().log_internal_errors(false)
}

fn set(subscriber: impl Subscriber + Send + Sync) {
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, PoisonError};

    use super::*;

    #[test]
    fn a_log_line_on_the_screen_has_the_shape_of_a_warning() {
        for (ansi, expected) in [
            (false, "warning: no route via=\"eth0\"\ninfo: up\n"),
            (true, "\u{1b}[33mwarning:\u{1b}[0m no route"),
        ] {
            let screen = Page::default();
            let page = screen.clone();
            let lines = builder().with_ansi(ansi).with_writer(move || page.clone());
            let subscriber = lines.event_format(Screen { with_target: false }).finish();

            tracing::subscriber::with_default(subscriber, || {
                warn!(via = "eth0", "no route");
                info!("up");
            });

            let text = String::from_utf8(screen.0.lock().unwrap().clone()).unwrap();
            assert!(text.starts_with(expected), "{text:?}");
        }
    }

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
