//! The only writer to stdout and stderr: data, tables, steps, warnings and errors.
//!
//! Data goes to stdout, everything else to stderr. A stdout that is closed ends the program without a
//! complaint; a stderr that is closed is not missed.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::error::{Exit, UserError, explain};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    Auto,
    Always,
    Never,
}

/// How much is said, and whether in colour.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    color: ColorChoice,
    quiet: bool,
    verbose: bool,
}

/// Nobody reads stdout any more. Not a failure: see [`Printer::failure`].
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("stdout is closed")]
pub struct ClosedPipe;

impl Printer {
    pub fn new(color: ColorWhen, quiet: bool, verbose: bool) -> Self {
        let color = match color {
            ColorWhen::Auto => ColorChoice::Auto,
            ColorWhen::Always => ColorChoice::Always,
            ColorWhen::Never => ColorChoice::Never,
        };
        Self { color, quiet, verbose }
    }

    /// Writes text and a line end to stdout.
    pub fn data(&self, text: &str) -> anyhow::Result<()> {
        let mut out = AutoStream::new(io::stdout(), self.color);
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ClosedPipe.into()),
            other => Ok(other?),
        }
    }

    /// Writes `value` as one line of JSON to stdout.
    pub fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.data(&serde_json::to_string(value)?)
    }

    /// Begins a new picture of a command that shows itself again and again.
    pub fn next_frame(&self) -> anyhow::Result<()> {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if io::stdout().is_terminal() && !dumb {
            // To the upper left, and everything from there erased.
            let mut out = io::stdout();
            Ok(out.write_all(b"\x1b[H\x1b[J").and_then(|()| out.flush())?)
        } else {
            self.data("")
        }
    }

    /// Something is done.
    pub fn step(&self, text: &str) {
        self.note(GOOD, "ok", text);
    }

    /// More about the step before; on a terminal or with `--verbose`.
    pub fn detail(&self, text: &str) {
        if self.verbose || io::stderr().is_terminal() {
            self.say(&format!("    {}", clean(text)));
        }
    }

    /// Odd, but it goes on.
    pub fn warn(&self, text: &str) {
        self.note(ODD, "warning:", text);
    }

    /// Lines that stand for themselves, after the steps.
    pub fn block(&self, rows: &[(&str, String)]) {
        let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
        self.say("");
        for (label, text) in rows {
            self.say(&format!("{STRONG}{label:width$}{STRONG:#}  {}", clean(text)));
        }
    }

    /// Says what failed, why and what to try, and returns the exit code that goes with it.
    pub fn failure(&self, error: &anyhow::Error) -> Exit {
        if error.downcast_ref::<ClosedPipe>().is_some() {
            return Exit::Ok;
        }
        let shown = explain(error);
        self.write_stderr(&failure_text(&shown));
        shown.exit
    }

    /// Whether log lines on stderr are coloured.
    pub fn stderr_color(&self) -> bool {
        match self.color {
            ColorChoice::Auto => AutoStream::choice(&io::stderr()) != ColorChoice::Never,
            ColorChoice::Always | ColorChoice::AlwaysAnsi => true,
            ColorChoice::Never => false,
        }
    }

    fn note(&self, style: Style, label: &str, text: &str) {
        self.say(&format!("{style}{label}{style:#} {}", clean(text)));
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            self.write_stderr(line);
        }
    }

    fn write_stderr(&self, line: &str) {
        let _ = writeln!(AutoStream::new(io::stderr(), self.color), "{line}");
    }
}

/// Shows what clap has to say: help and version on stdout, wrong usage on stderr.
pub fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8))
}

fn failure_text(shown: &UserError) -> String {
    let mut text = format!("{BAD}error:{BAD:#} {}", clean(&shown.what));
    for cause in &shown.causes {
        let _ = write!(text, "\n{STRONG}cause:{STRONG:#} {}", clean(cause));
    }
    if let Some(hint) = &shown.hint {
        let _ = write!(text, "\n{GOOD}try:{GOOD:#} {}", clean(hint));
    }
    text
}

/// Columns and rows of the terminal that stdout is.
pub fn screen() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}

/// Columns under headings, without lines. `right` names the columns of numbers.
pub fn table(headings: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(headings.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Names and messages come from far away: nothing in them may steer the terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `1.2MB`; powers of ten.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count}B");
    }
    let mut value = count as f64 / 1e3;
    let mut unit = 0;
    // 999.95 would be shown as 1000.0.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.1}{}", UNITS[unit])
}

/// `1.2MB/s`.
pub fn rate(count: u64, over: Duration) -> String {
    let per_second = if over.is_zero() { 0.0 } else { count as f64 / over.as_secs_f64() };
    format!("{}/s", bytes(per_second as u64))
}

/// The two largest units: `3d 4h`, `2h 34m`, `45m 10s`, `12s`.
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        (_, _, _) => format!("{days}d {hours}h"),
    }
}

const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const ODD: Style = AnsiColor::Yellow.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
const STRONG: Style = Style::new().bold();
pub(super) const PLAIN: Style = Style::new();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts() {
        for (count, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.0kB"),
            (1_288_490_188, "1.3GB"),
            (999_949, "999.9kB"),
            (999_950, "1.0MB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(bytes(count), text, "{count}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(rate(3_000_000, Duration::from_secs(2)), "1.5MB/s");
        assert_eq!(rate(1, Duration::ZERO), "0B/s");
    }

    #[test]
    fn durations() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m 0s"), (3599, "59m 59s"), (9240, "2h 34m"), (273_600, "3d 4h")]
        {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn tables_have_neither_lines_nor_trailing_blanks() {
        let rows =
            vec![vec!["a".into(), "12".into(), String::new()], vec!["long".into(), "3".into(), "x".into()]];

        let text = table(&["NAME", "N", "NOTE"], &[1], rows);

        assert_eq!(text, "NAME   N  NOTE\na     12\nlong   3  x");
    }

    #[test]
    fn nothing_from_afar_steers_the_terminal() {
        let text = table(&["NAME"], &[], vec![vec!["\u{1b}[2Jevil\r\n".into()]]);

        assert_eq!(text, "NAME\n?[2Jevil??");
    }

    #[test]
    fn an_error_is_shown_in_three_parts() {
        let error =
            UserError::new(Exit::Failure, "it failed").cause("one").cause("two").hint("ssm-proxy status");

        let text = anstream::adapter::strip_str(&failure_text(&error)).to_string();

        assert_eq!(text, "error: it failed\ncause: one\ncause: two\ntry: ssm-proxy status");
    }
}
