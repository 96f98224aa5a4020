//! The demo as a user runs it: with and without root, with and without a terminal, and interrupted.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use netstack_tests::netns::{self, Netns};
use netstack_tests::vpc::{DEADLINE, Process};
use netstack_tests::{bins, require_netns};
use rustix::process::Signal;
use tempfile::TempDir;

const PAGE: &str = "<h1>Hello from the VPC</h1>";

#[test]
fn the_tour_shows_the_page_and_leaves_nothing() {
    require_netns!("curl");
    let machine = Machine::new().unwrap();

    let output = machine.demo().output().unwrap();

    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for shown in [PAGE, "ok up after", "anybody there?", "STATE", "10.20.1.5:7", "Connection refused"] {
        assert!(text.contains(shown), "no {shown:?} in:\n{text}");
    }
    assert!(text.contains("SSM sessions (1 started, 1 ended)"), "{text}");
    machine.assert_untouched();
}

#[test]
fn ctrl_c_at_any_step_leaves_nothing() {
    require_netns!("curl");
    for step in ["ssm-proxy-agent on instance", "laptop$ ssm-proxy up", "captured", "laptop$ curl"] {
        let machine = Machine::new().unwrap();
        let mut demo = Process::start(&mut machine.demo()).unwrap();
        demo.wait_for(step, DEADLINE).unwrap();

        let status = demo.end(Signal::INT).unwrap();

        let text = demo.seen.join("\n");
        assert_eq!(status.code(), Some(130), "at {step:?}:\n{text}");
        assert!(text.contains("nothing is left"), "at {step:?}:\n{text}");
        machine.assert_untouched();
    }
}

#[test]
fn a_step_that_fails_says_why_and_leaves_nothing() {
    require_netns!("curl");
    let machine = Machine::new().unwrap();
    let agent = machine.dir.path().join("bin/ssm-proxy-agent");
    fs::remove_file(&agent).unwrap();
    fs::write(&agent, "#!/bin/sh\necho the disk is full >&2\nexit 1\n").unwrap();
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).unwrap();

    let output = machine.demo().output().unwrap();

    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: ssm-proxy-agent ended before it was ready"), "{text}");
    assert!(text.contains("cause: the disk is full"), "{text}");
    machine.assert_untouched();
}

#[test]
fn in_a_terminal_it_ends_with_a_shell_on_the_laptop() {
    require_netns!("curl", "script");
    let machine = Machine::new().unwrap();
    let mut command = machine.command("script");
    let demo = format!("{} --binaries {}", machine.demo_path(), machine.binaries());
    command.args(["-qec", &demo, "/dev/null"]).env("SHELL", "/bin/sh");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());

    let mut child = command.spawn().unwrap();
    let typed = "ssm-proxy status --json\ncurl -s http://10.20.1.5/nothing\nsleep 1000 &\nexit\n";
    // Kept open: script would end at its end.
    let mut keyboard = child.stdin.take().unwrap();
    keyboard.write_all(typed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(keyboard);

    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for shown in [PAGE, "Your turn", "\"sessions\":[{", "there are / and /10MB", "(1 of yours ended)"] {
        assert!(text.contains(shown), "no {shown:?} in:\n{text}");
    }
    machine.assert_untouched();
}

#[test]
fn it_works_without_root() {
    require_netns!("curl", "setpriv", "unshare");
    if let Some(reason) = no_user_namespaces() {
        netns::skipped(&reason);
        return;
    }
    let machine = Machine::new().unwrap();

    let output = machine.as_nobody("666").output().unwrap();

    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("without root") && text.contains(PAGE), "{text}");
    assert!(text.contains("nothing is left"), "{text}");
    machine.assert_untouched();
}

#[test]
fn where_it_cannot_work_it_names_the_one_command_that_does() {
    require_netns!("curl", "setpriv", "unshare");
    let machine = Machine::new().unwrap();

    let output = machine.as_nobody("600").output().unwrap();

    let text = text(&output);
    assert_eq!(output.status.code(), Some(7), "{text}");
    let command = format!("try: sudo {} --binaries {}", machine.demo_path(), machine.binaries());
    assert!(text.contains(&command), "{text}");
    machine.assert_untouched();
}

/// Where the demo runs: a network of its own, to see what it changes there, and a directory that holds
/// the binaries and everything it makes.
struct Machine {
    network: Netns,
    dir: TempDir,
    /// Marks the environment of the demo and of all that it starts.
    mark: String,
    before: String,
}

impl Machine {
    fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir()?;
        let everyone = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        everyone(dir.path(), 0o755)?;
        let (bin, tmp) = (dir.path().join("bin"), dir.path().join("tmp"));
        fs::create_dir(&bin)?;
        fs::create_dir(&tmp)?;
        everyone(&tmp, 0o1777)?;
        // The target directory may be closed to other users.
        for (from, name) in
            [(bins::ssm_proxy(), "ssm-proxy"), (bins::agent(), "ssm-proxy-agent"), (bins::demo(), "demo")]
        {
            fs::copy(&from, bin.join(name)).with_context(|| format!("copy {}", from.display()))?;
        }
        let network = Netns::new("demo-host")?;
        let mark = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut machine = Self { network, dir, mark, before: String::new() };
        machine.before = machine.traces()?;
        Ok(machine)
    }

    fn demo(&self) -> Command {
        let mut command = self.command(&self.demo_path());
        command.args(["--binaries", &self.binaries()]);
        command
    }

    /// As an ordinary user, on a machine whose TUN driver has these permissions.
    fn as_nobody(&self, permissions: &str) -> Command {
        let script = "mount -t tmpfs tmpfs /mnt && mknod -m \"$0\" /mnt/tun c 10 200 &&
            mount --bind /mnt/tun /dev/net/tun && umount -l /mnt &&
            exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
        let mut command = self.command("unshare");
        command.args(["--mount", "sh", "-c", script, permissions]);
        command.args([&self.demo_path(), "--binaries", &self.binaries()]);
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.network.command(program);
        command.env("TMPDIR", self.dir.path().join("tmp")).env(MARK, &self.mark).stdin(Stdio::null());
        command
    }

    fn demo_path(&self) -> String {
        format!("{}/demo", self.binaries())
    }

    fn binaries(&self) -> String {
        self.dir.path().join("bin").display().to_string()
    }

    /// Everything the demo could have changed or left.
    fn traces(&self) -> Result<String> {
        let mut traces = String::new();
        for command in ["-br link", "-br address", "rule show", "route show table all"] {
            traces += &self.network.ip(command)?;
        }
        for file in fs::read_dir(self.dir.path().join("tmp"))? {
            traces += &format!("file {}\n", file?.path().display());
        }
        let mark = format!("{MARK}={}\0", self.mark);
        for process in fs::read_dir("/proc")? {
            let dir = process?.path();
            // Not a process, or one that has just ended.
            let environment = fs::read(dir.join("environ")).unwrap_or_default();
            if environment.windows(mark.len()).any(|window| window == mark.as_bytes()) {
                let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
                traces += &format!("process {} {name}", dir.display());
            }
        }
        Ok(traces)
    }

    #[track_caller]
    fn assert_untouched(&self) {
        assert_eq!(self.traces().expect("what is on the machine can be listed"), self.before);
    }
}

const MARK: &str = "SSM_DEMO_TEST";

fn no_user_namespaces() -> Option<String> {
    let allowed = || -> Result<()> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urn", "true"]);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", text(&output).trim());
        Ok(())
    };
    allowed().err().map(|error| format!("needs user namespaces for ordinary users: {error:#}"))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
