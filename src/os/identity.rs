//! Who called us: the user behind sudo, whose AWS files we read and who owns the control socket. Also which
//! process we are, and where sessions keep their files.

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::secrets;

#[cfg(target_os = "linux")]
#[path = "identity/linux.rs"]
mod system;
#[cfg(target_os = "macos")]
#[path = "identity/macos.rs"]
mod system;

/// The person who runs the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub name: String,
    pub home: PathBuf,
    /// We are root because of sudo, and this is who typed it.
    pub via_sudo: bool,
}

impl Caller {
    /// The user behind sudo, or whoever we are. sudo's variables are believed only when we are root, and only
    /// if the user they name exists.
    pub fn detect() -> Self {
        let uid = rustix::process::geteuid();
        let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
        if uid.is_root()
            && let (Some(uid), Some(gid)) = (number("SUDO_UID"), number("SUDO_GID"))
            && uid != 0
            && let Some(user) = passwd(uid)
        {
            return Self { uid, gid, name: user.name, home: user.home, via_sudo: true };
        }
        let user = passwd(uid.as_raw());
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let (name, passwd_home) = user
            .map_or_else(|| (uid.as_raw().to_string(), PathBuf::from("/")), |user| (user.name, user.home));
        Self {
            uid: uid.as_raw(),
            gid: rustix::process::getegid().as_raw(),
            name,
            home: home.unwrap_or(passwd_home),
            via_sudo: false,
        }
    }
}

/// Points `HOME`, and with it the AWS files and the SSO cache, at the caller's home. Call it first in `main`:
/// it refuses once the process has a second thread.
pub fn adopt_home() -> io::Result<Caller> {
    let caller = Caller::detect();
    if caller.via_sudo {
        if !system::single_threaded() {
            return Err(io::Error::other("the home directory cannot change once threads run"));
        }
        // SAFETY: no other thread exists, so none can read the environment meanwhile.
        unsafe { std::env::set_var("HOME", &caller.home) };
    }
    Ok(caller)
}

/// Does `work` with files as the caller may, who can then not make root follow a link to somewhere else. On a
/// thread of its own where we are root because of sudo.
pub fn as_caller<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let caller = Caller::detect();
    if !caller.via_sudo {
        return work();
    }
    let lowered = || {
        system::lower_this_thread(caller.uid, caller.gid)?;
        secrets::leave_no_core();
        work()
    };
    thread::scope(|scope| scope.spawn(lowered).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Does `work` with the rights of the caller and no others, so that what it starts has them too. In a thread and a
/// runtime of its own where we are root because of sudo.
pub async fn run_as_caller<T, F>(work: impl FnOnce() -> F + Send + 'static) -> io::Result<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send,
{
    let caller = Caller::detect();
    if !caller.via_sudo {
        return Ok(work().await);
    }
    let (mut sender, receiver) = oneshot::channel();
    let thread = thread::Builder::new().name("caller".to_owned());
    thread.spawn(move || {
        let done = alone(&caller, async {
            tokio::select! {
                done = work() => Some(done),
                () = sender.closed() => None,
            }
        });
        // Nobody waits any more where it was called off.
        let _ = sender.send(done.transpose());
    })?;
    let done = receiver.await.ok().flatten();
    done.unwrap_or_else(|| Err(io::Error::other("work with the caller's rights ended without a result")))
}

/// Runs a future with the caller's rights, which this thread keeps.
fn alone<T>(caller: &Caller, work: impl Future<Output = T>) -> io::Result<T> {
    system::become_caller(caller)?;
    // With its rights a thread also changes whether the memory that it shares may be looked at.
    secrets::leave_no_core();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(done)
}

/// Gives a file we made to the caller, for nobody else to use (mode 0600; a directory 0700).
pub fn chown_to_caller(path: &Path) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(path)?;
    if metadata.file_type().is_symlink() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a symbolic link is not given away"));
    }
    let mode = if metadata.is_dir() { 0o700 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    let caller = Caller::detect();
    if caller.via_sudo {
        std::os::unix::fs::lchown(path, Some(caller.uid), Some(caller.gid))?;
    }
    Ok(())
}

/// When sudo dropped AWS settings that the caller's shell had: the command line that keeps them. Holds names,
/// never values.
pub fn dropped_environment_hint() -> Option<String> {
    if !Caller::detect().via_sudo {
        return None;
    }
    let dropped = dropped_names(&system::ancestors_environments(), &|name| std::env::var_os(name).is_some());
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    (!dropped.is_empty()).then(|| sudo_command(&dropped, words))
}

/// The names that matter to us in the nearest ancestor that has any, without those we have too.
fn dropped_names(ancestors: &[Vec<u8>], have: &dyn Fn(&str) -> bool) -> Vec<String> {
    for environment in ancestors {
        let mut missing: Vec<String> = environment
            .split(|byte| *byte == 0)
            .filter_map(|entry| std::str::from_utf8(entry.split(|byte| *byte == b'=').next()?).ok())
            .filter(|name| matters(name) && !have(name))
            .map(str::to_owned)
            .collect();
        if missing.iter().any(|name| name.starts_with("AWS_")) {
            missing.sort();
            missing.dedup();
            return missing;
        }
    }
    Vec::new()
}

/// Whether a variable decides how we reach AWS.
pub fn matters(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let prefixed = name.starts_with("AWS_") || name.starts_with("SSM_PROXY_");
    plain && (prefixed || NETWORK_VARIABLES.contains(&name))
}

/// A command under sudo that keeps these variables, to be pasted into a shell.
pub fn sudo_command<N: AsRef<str>>(kept: &[N], words: impl Iterator<Item = String>) -> String {
    let kept: Vec<&str> = kept.iter().map(AsRef::as_ref).collect();
    let keep = (!kept.is_empty()).then(|| format!("--preserve-env={}", kept.join(",")));
    let words = words.map(|word| quoted(&word));
    std::iter::once("sudo".to_owned()).chain(keep).chain(words).collect::<Vec<_>>().join(" ")
}

/// As a POSIX shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Where this process keeps its journal and its control socket; made if missing. Root's is for everyone to
/// look into, so that `status` finds sessions; the sockets in it belong to their callers.
pub fn run_dir() -> io::Result<PathBuf> {
    let root = rustix::process::geteuid().is_root();
    let dir = if let Some(dir) = overridden_run_dir() {
        dir
    } else if root {
        PathBuf::from(system::ROOT_RUN_DIR)
    } else {
        own_run_dir().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "XDG_RUNTIME_DIR is not set, so there is no run directory",
            )
        })?
    };
    let mode = if root { 0o755 } else { 0o700 };
    if !dir.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(mode).create(&dir)?;
        // The umask may have taken the right to look away from others.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode))?;
    }
    let metadata = std::fs::symlink_metadata(&dir)?;
    let others_write = metadata.mode() & 0o022 != 0;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() || others_write {
        let reason = format!("{} must be a directory of ours that nobody else may write to", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    Ok(dir)
}

/// Where sessions may be found: ours and root's. None need exist.
pub fn run_dirs() -> Vec<PathBuf> {
    if let Some(dir) = overridden_run_dir() {
        return vec![dir];
    }
    let own = own_run_dir().filter(|_| !rustix::process::geteuid().is_root());
    own.into_iter().chain([PathBuf::from(system::ROOT_RUN_DIR)]).collect()
}

fn overridden_run_dir() -> Option<PathBuf> {
    std::env::var_os("SSM_PROXY_RUN_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

fn own_run_dir() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    base.or_else(system::per_user_dir).map(|dir| dir.join("ssm-proxy"))
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// When it started, in a unit of the system's own.
    pub started: u64,
}

impl Process {
    pub fn this() -> io::Result<Self> {
        let pid = std::process::id();
        Ok(Self { pid, started: system::started(pid)? })
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        system::started(self.pid).is_ok_and(|started| started == self.started)
    }
}

/// Differs after every start of the machine.
pub(super) fn boot_id() -> String {
    system::boot_id()
}

/// Which network namespace this thread is in; empty where there is only one.
pub(super) fn network_namespace() -> String {
    system::network_namespace()
}

struct Passwd {
    name: String,
    home: PathBuf,
}

/// Asks the system's user database, directory services included.
fn passwd(uid: u32) -> Option<Passwd> {
    let mut buffer = vec![0u8; 1024];
    loop {
        // SAFETY: an all-zero `passwd` is a valid value of that plain C struct.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: every pointer is valid for the call, and the length is the buffer's.
        let error = unsafe {
            libc::getpwuid_r(uid, &mut entry, buffer.as_mut_ptr().cast(), buffer.len(), &mut found)
        };
        if error == libc::ERANGE && buffer.len() < 1 << 20 {
            buffer.resize(buffer.len() * 2, 0);
            continue;
        }
        if error != 0 || found.is_null() {
            return None;
        }
        // SAFETY: the call succeeded, so both point at strings with an end inside `buffer`, which still lives.
        let (name, home) = unsafe { (CStr::from_ptr(entry.pw_name), CStr::from_ptr(entry.pw_dir)) };
        let (name, home) = (CString::from(name), CString::from(home));
        let home = PathBuf::from(OsString::from_vec(home.into_bytes()));
        if home.as_os_str().as_bytes().first() != Some(&b'/') {
            return None;
        }
        return Some(Passwd { name: name.to_string_lossy().into_owned(), home });
    }
}

/// What else a caller sets for us to reach AWS.
const NETWORK_VARIABLES: [&str; 8] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_the_nearest_ancestor_has_and_we_lack() {
        let sudo = b"PATH=/bin\0AWS_PROFILE=dev\0AWS_REGION=eu\0HTTPS_PROXY=http://p\0EVIL\n=1\0".to_vec();
        let shell = b"AWS_SECRET_ACCESS_KEY=x\0".to_vec();
        let names = dropped_names(&[b"PATH=/bin\0".to_vec(), sudo, shell], &|name| name == "AWS_REGION");
        assert_eq!(names, ["AWS_PROFILE", "HTTPS_PROXY"]);
    }

    #[test]
    fn nothing_is_dropped_when_we_have_it_all() {
        assert!(
            dropped_names(&[b"AWS_PROFILE=dev\0NO_PROXY=x\0".to_vec()], &|name| name == "AWS_PROFILE")
                .is_empty()
        );
    }

    #[test]
    fn the_command_can_be_pasted_into_a_shell() {
        let words = ["ssm-proxy", "up", "--session-name", "it's me"].map(str::to_owned);
        assert_eq!(
            sudo_command(&["AWS_PROFILE", "AWS_REGION"], words.into_iter()),
            r"sudo --preserve-env=AWS_PROFILE,AWS_REGION ssm-proxy up --session-name 'it'\''s me'"
        );
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        for (word, expected) in
            [("a-b", "a-b"), ("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("$x", "'$x'")]
        {
            assert_eq!(quoted(word), expected);
        }
    }

    #[test]
    fn root_is_in_the_user_database_and_nobody_has_the_last_number() {
        let root = passwd(0).unwrap();
        assert_eq!(root.name, "root");
        assert!(root.home.is_absolute());
        assert!(passwd(u32::MAX - 7).is_none());
    }

    #[test]
    fn this_process_is_alive_and_one_that_started_earlier_under_its_number_is_not() {
        let this = Process::this().unwrap();
        assert!(this.is_alive());
        assert!(!Process { started: this.started - 1, ..this }.is_alive());
    }
}
