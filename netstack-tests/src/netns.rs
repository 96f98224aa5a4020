//! Network namespaces for tests as root: made with a name nobody else has, gone when the test ends or panics.
//!
//! A test that cannot run says so with [`require_netns!`](crate::require_netns), which `.ci/run` looks for.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace with its loopback device up, no duplicate address detection, and the same congestion control on
/// every machine.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    pub fn new(prefix: &str) -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{prefix}-{}-{number}", std::process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        for setting in ["all/accept_dad", "default/accept_dad", "default/router_solicitations"] {
            namespace.sysctl(&format!("net/ipv6/conf/{setting}"), "0")?;
        }
        // No kernel lacks it or forbids it. Where BBR is the default, its timers are half of what a fast link costs.
        namespace.sysctl("net/ipv4/tcp_congestion_control", "reno")?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `ip -n NAME ARGUMENTS` prints.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split_whitespace());
        ip(&all)
    }

    /// Writes a setting of this namespace, named by its path under `/proc/sys`.
    pub fn sysctl(&self, setting: &str, value: &str) -> Result<()> {
        self.enter(|| std::fs::write(Path::new("/proc/sys").join(setting), value))
            .with_context(|| format!("setting {setting}"))
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a command line, split at white space, to its end; a failure is an error with what it printed.
    pub fn run(&self, command: &str) -> Result<String> {
        let mut words = command.split_whitespace();
        let output = self.command(words.next().context("no command")?).args(words).output()?;
        text_of(output).with_context(|| format!("{command} in {}", self.name))
    }

    /// Starts a command line, split at white space; it is killed when the result is dropped.
    pub fn spawn(&self, command: &str) -> Result<Running> {
        let mut words = command.split_whitespace();
        let mut command = self.command(words.next().context("no command")?);
        Ok(Running(command.args(words).spawn()?))
    }

    /// Runs a closure on a thread of its own inside. Sockets made there stay inside wherever they go.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter_here(&self.name).expect("root may enter a namespace that exists while its owner does");
                inside()
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

/// Moves the calling thread, and what it starts, into the namespace of this name for good.
pub fn enter_here(name: &str) -> io::Result<()> {
    let namespace = File::open(Path::new("/run/netns").join(name))?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            tracing::warn!(%error, name = self.name, "a test's namespace stays");
        }
    }
}

/// A wire between two namespaces: devices of these names, with these addresses (`10.0.0.1/24`), both up.
pub fn veth(
    (a, device_a, addresses_a): (&Netns, &str, &[&str]),
    (b, device_b, addresses_b): (&Netns, &str, &[&str]),
) -> Result<()> {
    a.ip(&format!("link add {device_a} type veth peer name {device_b} netns {}", b.name))?;
    for (namespace, device, addresses) in [(a, device_a, addresses_a), (b, device_b, addresses_b)] {
        for address in addresses {
            let no_dad = if address.contains(':') { "nodad" } else { "" };
            namespace.ip(&format!("address add {address} dev {device} {no_dad}"))?;
        }
        namespace.ip(&format!("link set {device} up"))?;
    }
    Ok(())
}

/// A started command.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why this machine cannot run tests in namespaces; `None` if it can.
pub fn why_not() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("needs /dev/net/tun".to_owned());
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Some("needs ip from iproute2".to_owned());
    }
    match Netns::new("probe") {
        Ok(_) => None,
        Err(error) => Some(format!("cannot make a network namespace: {error:#}")),
    }
}

/// Why one of these programs cannot be used; `None` if all can.
pub fn missing(programs: &[&str]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let absent: Vec<&str> = programs.iter().copied().filter(|program| !found(program)).collect();
    (!absent.is_empty()).then(|| format!("needs {}", absent.join(", ")))
}

/// Leaves the test, saying so, where namespaces or one of the named programs are missing.
#[macro_export]
macro_rules! require_netns {
    // In a test with a result.
    (Ok $(, $program:literal)*) => {
        let programs: &[&str] = &[$($program),*];
        if let Some(reason) = $crate::netns::why_not().or_else(|| $crate::netns::missing(programs)) {
            $crate::netns::skipped(&reason);
            return Ok(());
        }
    };
    ($($program:literal),*) => {
        let programs: &[&str] = &[$($program),*];
        if let Some(reason) = $crate::netns::why_not().or_else(|| $crate::netns::missing(programs)) {
            $crate::netns::skipped(&reason);
            return;
        }
    };
}

/// Says which test is skipped, past the test harness's capture.
pub fn skipped(reason: &str) {
    use std::io::Write;
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // A test without a stderr has nobody to tell.
    let _ = writeln!(io::stderr(), "SKIPPED: {test}: {reason}");
}

fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(arguments).output()?;
    text_of(output).with_context(|| format!("ip {}", arguments.join(" ")))
}

fn text_of(output: Output) -> Result<String> {
    if !output.status.success() {
        let printed = [output.stdout, output.stderr].concat();
        bail!("{}: {}", output.status, String::from_utf8_lossy(&printed).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!text.contains('\u{fffd}'), "it printed what is no text");
    Ok(text)
}

static NEXT: AtomicU32 = AtomicU32::new(0);
