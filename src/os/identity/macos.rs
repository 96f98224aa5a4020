//! macOS: processes and the boot as libproc and sysctl tell them. Not yet run on a Mac.

use std::ffi::CStr;
use std::io;
use std::path::PathBuf;

use super::Caller;
use crate::os::route_socket::sysctl;

pub(super) const ROOT_RUN_DIR: &str = "/var/run/ssm-proxy";

/// The temporary directory is the user's own here.
pub(super) fn per_user_dir() -> Option<PathBuf> {
    std::env::var_os("TMPDIR").map(PathBuf::from)
}

pub(super) fn single_threaded() -> bool {
    // SAFETY: `proc_taskinfo` is the plain C struct that goes with this flavour.
    let info = unsafe { process_info::<libc::proc_taskinfo>(std::process::id(), libc::PROC_PIDTASKINFO) };
    info.is_ok_and(|info| info.pti_threadnum == 1)
}

/// From now on the calling thread, and no other, is this user.
pub(super) fn lower_this_thread(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: the signature is the one of the system's header.
    unsafe extern "C" {
        fn pthread_setugid_np(uid: libc::uid_t, gid: libc::gid_t) -> libc::c_int;
    }
    // SAFETY: the call takes two numbers and touches no memory.
    match unsafe { pthread_setugid_np(uid, gid) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// As [`lower_this_thread`]. What the thread starts is root's all the same: macOS knows a thread's rights for its own
/// calls alone.
pub(super) fn become_caller(caller: &Caller) -> io::Result<()> {
    lower_this_thread(caller.uid, caller.gid)
}

/// Microseconds since 1970.
pub(super) fn started(pid: u32) -> io::Result<u64> {
    let info = about(pid)?;
    Ok(info.pbi_start_tvsec.saturating_mul(1_000_000).saturating_add(info.pbi_start_tvusec))
}

pub(super) fn boot_id() -> String {
    let mut bytes = [0u8; 64];
    let mut length = bytes.len();
    let name: &CStr = c"kern.bootsessionuuid";
    // SAFETY: the name has an end, and `length` is the size of the buffer.
    let done = unsafe {
        let nothing = std::ptr::null_mut();
        libc::sysctlbyname(name.as_ptr(), bytes.as_mut_ptr().cast(), &mut length, nothing, 0)
    };
    if done != 0 {
        return String::new();
    }
    String::from_utf8_lossy(bytes[..length].split(|byte| *byte == 0).next().unwrap_or(&[])).into_owned()
}

/// There is only one.
pub(super) fn network_namespace() -> String {
    String::new()
}

/// The arguments and environments that our parent, its parent and so on were started with.
pub(super) fn ancestors_environments() -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut pid = std::os::unix::process::parent_id();
    while pid > 1 && found.len() < GENERATIONS {
        let name = [libc::CTL_KERN, libc::KERN_PROCARGS2, pid as libc::c_int];
        // In front stands the number of arguments, four bytes.
        found.push(sysctl(&name).unwrap_or_default().get(4..).unwrap_or(&[]).to_vec());
        pid = about(pid).map_or(0, |info| info.pbi_ppid);
    }
    found
}

fn about(pid: u32) -> io::Result<libc::proc_bsdinfo> {
    // SAFETY: `proc_bsdinfo` is the plain C struct that goes with this flavour.
    unsafe { process_info(pid, libc::PROC_PIDTBSDINFO) }
}

/// # Safety
/// `T` must be the C struct that `flavour` fills, and valid for every value of its bytes.
unsafe fn process_info<T>(pid: u32, flavour: libc::c_int) -> io::Result<T> {
    // SAFETY: the caller says that `T` is valid for every value of its bytes.
    let mut info: T = unsafe { std::mem::zeroed() };
    let size = size_of::<T>() as libc::c_int;
    // SAFETY: the buffer is as long as we say.
    let written = unsafe { libc::proc_pidinfo(pid as libc::c_int, flavour, 0, (&raw mut info).cast(), size) };
    if written == size { Ok(info) } else { Err(io::Error::last_os_error()) }
}

/// sudo, its monitor, a shell, an editor's terminal...
const GENERATIONS: usize = 8;
