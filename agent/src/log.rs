//! The agent's log: one line each to standard error, where systemd and the terminal find it.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};

/// How much is told. A library user hears nothing until [`set_level`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error = 1,
    Warn,
    Info,
    Debug,
}

impl Level {
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "error" => Self::Error,
            "warn" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            _ => return None,
        })
    }
}

/// Tells everything up to this level from now on.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

pub fn error(line: fmt::Arguments<'_>) {
    write(Level::Error, "error", line);
}

pub fn warn(line: fmt::Arguments<'_>) {
    write(Level::Warn, "warn", line);
}

pub fn info(line: fmt::Arguments<'_>) {
    write(Level::Info, "info", line);
}

pub fn debug(line: fmt::Arguments<'_>) {
    write(Level::Debug, "debug", line);
}

fn write(level: Level, name: &str, line: fmt::Arguments<'_>) {
    if level as u8 <= LEVEL.load(Ordering::Relaxed) {
        // A log that cannot be written is no reason to stop carrying bytes. Control characters that
        // came from outside must not make lines of their own.
        let line = line.to_string().replace(char::is_control, " ");
        let _ = std::io::stderr().lock().write_all(format!("{name}: {line}\n").as_bytes());
    }
}

static LEVEL: AtomicU8 = AtomicU8::new(0);
