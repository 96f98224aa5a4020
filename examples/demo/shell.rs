//! The user's own turn: a shell on the laptop.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use ssm_proxy::error::Exit;
use tokio::time::timeout;

use crate::servers::{CLOSED_PORT, TARGET};
use crate::show;
use crate::signals::Signals;
use crate::world::{CIDR, INSTANCE, World};

/// Ctrl-C belongs to the shell while it runs.
pub(crate) async fn run(world: &World, signals: &mut Signals) -> Result<Exit> {
    let program = std::env::var_os("SHELL").filter(|shell| Path::new(shell).exists());
    let program = program.unwrap_or_else(|| OsString::from("/bin/sh"));
    settings(&world.home())?;
    invite();
    let mut command = world.on_laptop_for_user(&program);
    let mut shell = command
        .env("PS1", PROMPT)
        .spawn()
        .with_context(|| format!("start the shell {}", program.display()))?;
    tokio::select! {
        ended = shell.wait() => {
            // How its last command ended is the user's business.
            ended?;
            return Ok(Exit::Ok);
        }
        () = signals.but_interrupt() => {}
    }
    if let Some(pid) = shell.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        // It may have ended at this very moment.
        let _ = kill_process(pid, Signal::HUP);
    }
    if timeout(PATIENCE, shell.wait()).await.is_err() {
        shell.kill().await?;
    }
    Ok(Exit::Interrupted)
}

fn invite() {
    show::line("\nYour turn: this is a shell on the laptop; `exit` ends it and takes everything down.");
    for (command, what) in [
        (format!("curl http://{TARGET}/"), "the page again"),
        (
            format!("curl -o /dev/null http://{TARGET}/10MB"),
            "what does not compress, at the pace of SSM sessions",
        ),
        (format!("curl http://{TARGET}:{CLOSED_PORT}/"), "a closed port"),
        ("ssm-proxy flows --watch".to_owned(), "live, while a download runs in the background"),
        ("ssm-proxy status".to_owned(), "the session and its lanes"),
        ("ssm-proxy down".to_owned(), "end the session, and begin it again with:"),
        (format!("ssm-proxy up --instance {INSTANCE} --cidr {CIDR}"), ""),
    ] {
        show::line(format!("    {command:<40} {what}").trim_end());
    }
    show::line("");
}

/// The prompt, for shells that ask files rather than the environment.
fn settings(home: &Path) -> Result<()> {
    fs::write(home.join(".bashrc"), format!("PS1='{PROMPT}'\n"))?;
    fs::write(home.join(".zshrc"), format!("PS1='{PROMPT}'\n"))?;
    Ok(())
}

const PROMPT: &str = "laptop$ ";
const PATIENCE: Duration = Duration::from_secs(2);
