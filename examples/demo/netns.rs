//! A network namespace without a name: it lives as long as somebody holds it or runs in it.
//!
//! Unlike `ip netns` this leaves no file behind, and works in a user namespace of one's own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use tokio::process::Command;

#[derive(Clone)]
pub(crate) struct Netns(Arc<File>);

impl Netns {
    pub(crate) fn new() -> io::Result<Self> {
        on_own_thread(|| {
            // SAFETY: the file table stays shared; only this thread gets another network.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET)? };
            Ok(Self(Arc::new(File::open("/proc/thread-self/ns/net")?)))
        })
    }

    /// Moves the calling thread inside for good.
    pub(crate) fn enter_here(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Runs a closure on a thread of its own inside. Sockets made there stay inside wherever they go.
    pub(crate) fn inside<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_own_thread(|| {
            self.enter_here()?;
            act()
        })
    }

    /// A command that will run inside, without a terminal's signals and not longer than we do.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.shared_command(program);
        command.process_group(0).stdin(std::process::Stdio::null());
        command
    }

    /// The same in our own process group: for what the user talks to.
    pub(crate) fn shared_command(&self, program: impl AsRef<OsStr>) -> Command {
        let namespace = self.clone();
        let mut command = Command::new(program);
        command.kill_on_drop(true);
        // SAFETY: between fork and exec only two system calls are made; neither allocates nor locks.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
                namespace.enter_here()
            })
        };
        command
    }

    /// Runs `ip ARGUMENTS` inside.
    pub(crate) async fn ip(&self, arguments: &str) -> Result<()> {
        let output = self.command("ip").args(arguments.split_whitespace()).output().await?;
        let printed = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ip {arguments}: {}", printed.trim());
        Ok(())
    }

    /// The processes whose network this is. Ours is another, though some of our threads may be inside.
    pub(crate) fn processes(&self) -> Result<Vec<Pid>> {
        let own = self.0.metadata()?.ino();
        let entries = fs::read_dir("/proc").context("list the processes")?.flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        // Those of other users cannot be looked at, and cannot be inside.
        let inside = |pid: &i32| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|at| at.ino() == own);
        Ok(numbers.filter(inside).filter_map(Pid::from_raw).collect())
    }
}

fn on_own_thread<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(act).join().unwrap_or_else(|panic| resume_unwind(panic)))
}
