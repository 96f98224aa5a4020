//! A program of ours that keeps running, and what it prints.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use ssm_proxy::error::{Exit, UserError};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::show;

/// Killed when dropped.
pub(crate) struct Child {
    name: &'static str,
    child: tokio::process::Child,
    lines: mpsc::Receiver<String>,
}

impl Child {
    pub(crate) fn start(name: &'static str, mut command: Command) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let (sender, lines) = mpsc::channel(MOST_LINES);
        tokio::spawn(read(child.stdout.take().context("stdout is piped")?, sender.clone()));
        tokio::spawn(read(child.stderr.take().context("stderr is piped")?, sender));
        Ok(Self { name, child, lines })
    }

    /// Shows what it prints until the awaited line has come.
    pub(crate) async fn show_until(&mut self, awaited: impl Fn(&str) -> bool) -> Result<()> {
        self.follow(awaited, show::output).await.map_err(|(error, _)| error.into())
    }

    /// Waits for a line. When it does not come, the error holds what came instead.
    pub(crate) async fn wait_for(&mut self, awaited: impl Fn(&str) -> bool) -> Result<()> {
        let followed = self.follow(awaited, |_| ()).await;
        followed.map_err(|(error, last)| last.into_iter().fold(error, UserError::cause).into())
    }

    async fn follow(
        &mut self,
        awaited: impl Fn(&str) -> bool,
        mut each: impl FnMut(&str),
    ) -> Result<(), (UserError, Vec<String>)> {
        let mut seen = Vec::new();
        let waiting = async {
            while let Some(line) = self.lines.recv().await {
                each(&line);
                if awaited(&line) {
                    return true;
                }
                seen.push(line);
            }
            false
        };
        let what = match timeout(PATIENCE, waiting).await {
            Ok(true) => return Ok(()),
            Ok(false) => format!("{} ended before it was ready", self.name),
            Err(_) => format!("{} is not ready after {} s", self.name, PATIENCE.as_secs()),
        };
        let last = seen.split_off(seen.len().saturating_sub(5));
        Err((UserError::new(Exit::Failure, what), last))
    }

    /// Asks it to end; kills it when it does not. None when it had ended before.
    pub(crate) async fn end(&mut self, signal: Signal) -> Result<Option<ExitStatus>> {
        if self.child.try_wait()?.is_some() {
            return Ok(None);
        }
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // It may have ended at this very moment.
            let _ = kill_process(pid, signal);
        }
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => Ok(Some(status?)),
            Err(_) => {
                self.child.kill().await?;
                bail!("{} did not end by itself and was killed", self.name)
            }
        }
    }
}

/// Reads to the end even when nobody listens, so that the program never waits for us.
async fn read(from: impl AsyncRead + Unpin, to: mpsc::Sender<String>) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let _ = to.try_send(line);
    }
}

const PATIENCE: Duration = Duration::from_secs(60);
const MOST_LINES: usize = 256;
