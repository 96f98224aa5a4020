//! What the demo says, on stdout: steps, commands and what they print.
//!
//! A stdout that is closed is no reason to stop halfway and leave things behind.

use std::io::Write as _;

use anstyle::{AnsiColor, Style};

pub(crate) fn title(text: &str) {
    line(&format!("{STRONG}{text}{STRONG:#}\n"));
}

/// Something is done.
pub(crate) fn ok(text: &str) {
    line(&format!("{GOOD}ok{GOOD:#} {text}"));
}

/// Something begins that takes a while.
pub(crate) fn doing(text: &str) {
    line(&format!("{FAINT}..{FAINT:#} {text}"));
}

/// A command as the user would type it on the laptop.
pub(crate) fn command(text: &str) {
    line(&format!("\n{STRONG}laptop$ {text}{STRONG:#}"));
}

/// What a command printed.
pub(crate) fn output(text: &str) {
    for printed in text.trim_end().lines() {
        line(format!("  {printed}").trim_end());
    }
}

pub(crate) fn line(text: &str) {
    let mut out = anstream::stdout();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

const GOOD: Style = AnsiColor::Green.on_default();
const FAINT: Style = Style::new().dimmed();
const STRONG: Style = Style::new().bold();
