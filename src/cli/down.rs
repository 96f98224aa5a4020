//! `down`: end a session and wait until everything is undone.

use std::thread;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _};

use super::print::Printer;
use crate::config::SessionName;
use crate::control::client::{self, Fault};
use crate::error::{Exit, UserError};
use crate::session::registry::{self, Entry};

/// End a session and undo what it changed
#[derive(Debug, Args)]
#[command(after_help = "\
Without a name it ends the session \"default\", or the only one that runs.

Examples:
  ssm-proxy down
  ssm-proxy down --session-name prod-vpc
  ssm-proxy down --all")]
pub(super) struct Down {
    /// The session to end
    #[arg(long, value_name = "NAME", env = "SSM_PROXY_SESSION_NAME", hide_env = true)]
    session_name: Option<SessionName>,
    /// All running sessions
    #[arg(long)]
    all: bool,
}

impl Down {
    /// `--all` wins over a name from the environment, and excludes one on the command line.
    pub(super) fn prefer_flags(&mut self, is_flag: impl Fn(&str) -> bool) -> Result<(), clap::Error> {
        if self.all && is_flag("session_name") {
            let conflict = "the argument '--all' cannot be used with '--session-name <NAME>'";
            return Err(super::Cli::command().error(ErrorKind::ArgumentConflict, conflict));
        }
        let all = self.all;
        self.session_name.take_if(|_| all);
        Ok(())
    }
}

pub(super) fn run(args: Down, print: &Printer) -> anyhow::Result<Exit> {
    if let Some(name) = &args.session_name {
        end(&super::named(name), print)?;
        return Ok(Exit::Ok);
    }
    let running = super::running()?;
    if args.all {
        return end_all(&running, print);
    }
    end(choose(&running)?, print)?;
    Ok(Exit::Ok)
}

fn choose(running: &[Entry]) -> Result<&Entry, UserError> {
    super::the_one(running, |name| format!("ssm-proxy down --session-name {name}, or --all"))
}

/// Ends as many as it can; the first failure is the outcome.
fn end_all(running: &[Entry], print: &Printer) -> anyhow::Result<Exit> {
    if running.is_empty() {
        return Err(super::none_running().into());
    }
    let mut outcome = Exit::Ok;
    for entry in running {
        if let Err(failure) = end(entry, print) {
            let exit = print.failure(&failure.into());
            outcome = if outcome == Exit::Ok { exit } else { outcome };
        }
    }
    Ok(outcome)
}

fn end(entry: &Entry, print: &Printer) -> Result<(), UserError> {
    let name = &entry.name;
    let explain = |fault: Fault| fault.explain(name.as_str());
    let before = client::status(&entry.socket).map_err(explain)?;
    client::down(&entry.socket, CLEANUP_DEADLINE).map_err(|fault| match fault {
        Fault::Silent => UserError::new(Exit::Failure, format!("session {name} is still cleaning up"))
            .cause(format!(
                "it has not finished within {} s (process {})",
                CLEANUP_DEADLINE.as_secs(),
                before.pid
            ))
            .hint("ssm-proxy status"),
        other @ (Fault::Absent
        | Fault::Dead
        | Fault::Denied
        | Fault::Closed
        | Fault::Garbled(_)
        | Fault::Refused(_)
        | Fault::Failed(_)) => explain(other),
    })?;
    if !gone(entry) {
        return Err(UserError::new(
            Exit::Failure,
            format!("session {name} ended without finishing its clean-up"),
        )
        .hint("the next `sudo ssm-proxy up` undoes whatever it left behind"));
    }
    print.step(&format!("session {name} ended"));
    if !before.device.is_empty() {
        print.detail(&format!("routes removed: {}", before.cidr.join(", ")));
        print.detail(&format!("device removed: {}", before.device));
    }
    for id in before.lanes.iter().filter_map(|lane| lane.session_id.as_ref()) {
        print.detail(&format!("SSM session ended: {id}"));
    }
    Ok(())
}

const CLEANUP_DEADLINE: Duration = Duration::from_secs(30);
const GONE_PAUSE: Duration = Duration::from_millis(20);
const GONE_TRIES: u32 = 100;

/// The place in the registry is given free at about the time the connection ends.
fn gone(entry: &Entry) -> bool {
    (0..GONE_TRIES).any(|_| {
        let gone = !registry::is_listed(entry);
        if !gone {
            thread::sleep(GONE_PAUSE);
        }
        gone
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_name_it_takes_the_default_or_the_only_one() {
        assert_eq!(choose(&entries(&["b"])).unwrap().name.as_str(), "b");
        assert_eq!(choose(&entries(&["a", "default"])).unwrap().name.as_str(), "default");
        assert_eq!(choose(&entries(&["a", "b"])).unwrap_err().exit, Exit::Usage);
        assert_eq!(choose(&[]).unwrap_err().exit, Exit::NotRunning);
    }

    fn entries(names: &[&str]) -> Vec<Entry> {
        names
            .iter()
            .map(|name| Entry { name: name.parse().unwrap(), socket: "s".into(), meta: None })
            .collect()
    }
}
