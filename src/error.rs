//! Pure: an error as the user meets it: what failed, why, what to do next, and the exit code.
//!
//! It travels inside `anyhow::Error`; context may be added on the way. [`explain`] turns any error into
//! the three parts that `cli::print` shows.

use std::fmt;
use std::process::ExitCode;

/// How the program ends. The numbers are a promise to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Ok = 0,
    Failure = 1,
    /// A flag or value is wrong; nothing was tried.
    Usage = 2,
    NotRunning = 3,
    Credentials = 4,
    /// The instance, or the agent on it, is not to be reached.
    Unreachable = 5,
    /// A session runs but cannot carry anything at the moment.
    Degraded = 6,
    Privileges = 7,
    /// A name, a range or an address is taken.
    Conflict = 8,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What failed (`what`), why (`causes`, nearest first), and the next thing to try (`hint`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserError {
    pub what: String,
    pub causes: Vec<String>,
    pub hint: Option<String>,
    pub exit: Exit,
}

impl UserError {
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { what: what.into(), causes: Vec::new(), hint: None, exit }
    }

    /// Adds a cause below those already there.
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.causes.push(cause.to_string());
        self
    }

    /// Sets what to try next: a command, or one sentence.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for UserError {}

/// Everything `error` says, its whole chain in one value. Errors of other kinds end with [`Exit::Failure`].
pub fn explain(error: &anyhow::Error) -> UserError {
    let told = error.downcast_ref::<UserError>();
    let mut lines: Vec<String> = Vec::new();
    for link in error.chain() {
        let text = link.to_string();
        let own_causes = told.filter(|told| told.what == text).map(|told| told.causes.as_slice());
        add_unless_said(&mut lines, text);
        for cause in own_causes.unwrap_or_default() {
            add_unless_said(&mut lines, cause.clone());
        }
    }
    UserError {
        what: lines.remove(0),
        causes: lines,
        hint: told.and_then(|told| told.hint.clone()),
        exit: told.map_or(Exit::Failure, |told| told.exit),
    }
}

/// Many errors repeat their source in their own text; a line the one above already ends with says nothing.
fn add_unless_said(lines: &mut Vec<String>, text: String) {
    if !lines.last().is_some_and(|last| last.ends_with(&text)) {
        lines.push(text);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context as _;

    use super::*;

    #[test]
    fn keeps_code_and_hint_below_added_context() {
        let error = anyhow::Error::new(
            UserError::new(Exit::Credentials, "the token has expired")
                .cause("it ended at noon")
                .hint("aws sso login"),
        )
        .context("start the SSM session")
        .context("bring up session default");

        let shown = explain(&error);

        assert_eq!(shown.what, "bring up session default");
        assert_eq!(shown.causes, ["start the SSM session", "the token has expired", "it ended at noon"]);
        assert_eq!(shown.hint.as_deref(), Some("aws sso login"));
        assert_eq!(shown.exit, Exit::Credentials);
    }

    #[test]
    fn a_user_error_may_itself_be_the_context() {
        let error = Err::<(), _>(io::Error::other("no such file"))
            .context(UserError::new(Exit::Failure, "cannot read the key").hint("check --key-file"))
            .unwrap_err();

        let shown = explain(&error);

        assert_eq!(shown.what, "cannot read the key");
        assert_eq!(shown.causes, ["no such file"]);
        assert_eq!(shown.hint.as_deref(), Some("check --key-file"));
    }

    #[test]
    fn does_not_say_the_same_twice() {
        let error = anyhow::anyhow!("refused").context("connect to host: refused");

        let shown = explain(&error);

        assert_eq!(shown.what, "connect to host: refused");
        assert!(shown.causes.is_empty());
        assert_eq!(shown.exit, Exit::Failure);
    }
}
