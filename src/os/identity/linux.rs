//! Linux: processes and the boot as /proc tells them.

use std::ffi::CString;
use std::io;
use std::path::PathBuf;

use rustix::thread as rights;
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use super::Caller;

pub(super) const ROOT_RUN_DIR: &str = "/run/ssm-proxy";

/// Without XDG_RUNTIME_DIR there is no directory that is surely the user's own.
pub(super) fn per_user_dir() -> Option<PathBuf> {
    None
}

pub(super) fn single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

/// From now on the calling thread, and no other, meets files as this user does.
pub(super) fn lower_this_thread(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: none of these calls touches memory. The C library's `setgroups` would change every thread, the
    // bare system call changes this one.
    unsafe {
        if libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        // They return the value before, and an id that does not exist changes nothing.
        let done = libc::setfsgid(u32::MAX).cast_unsigned() == gid
            && libc::setfsuid(u32::MAX).cast_unsigned() == uid;
        done.then_some(()).ok_or_else(|| io::Error::other("the caller's rights could not be taken on"))
    }
}

/// From now on the calling thread, and no other, is this user, and so is what it starts. Of root's rights the thread
/// itself keeps the one to mark its sockets, without which they would go into our own device.
pub(super) fn become_caller(caller: &Caller) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(caller.uid), Gid::from_raw(caller.gid));
    let kept = rights::capabilities(None)?.permitted & CapabilitySet::NET_ADMIN;
    rights::set_keep_capabilities(true)?;
    rights::set_thread_groups(&groups(caller))?;
    rights::set_thread_res_gid(gid, gid, gid)?;
    rights::set_thread_res_uid(uid, uid, uid)?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(rights::set_capabilities(None, sets)?)
}

/// All groups of the user; at least the first where the user database does not tell.
fn groups(caller: &Caller) -> Vec<Gid> {
    let mut found = [caller.gid; 256];
    let mut count = found.len() as libc::c_int;
    let name = CString::new(caller.name.as_str()).unwrap_or_default();
    // SAFETY: the name has an end, and `count` says how many groups there is room for.
    let told = unsafe { libc::getgrouplist(name.as_ptr(), caller.gid, found.as_mut_ptr(), &mut count) };
    let count = usize::try_from(told).map_or(1, |count| count.clamp(1, found.len()));
    found[..count].iter().copied().map(Gid::from_raw).collect()
}

/// Clock ticks between the boot and the process's start.
pub(super) fn started(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    start_field(&stat)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat has changed its form"))
}

pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

pub(super) fn network_namespace() -> String {
    let link = std::fs::read_link("/proc/thread-self/ns/net");
    link.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The environments that our parent, its parent and so on were started with. sudo's own is what the caller's
/// shell exported, before sudo dropped anything.
pub(super) fn ancestors_environments() -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut pid = std::os::unix::process::parent_id();
    while pid > 1 && found.len() < GENERATIONS {
        found.push(std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default());
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        pid = field(&stat, PARENT).unwrap_or(0);
    }
    found
}

fn start_field(stat: &str) -> Option<u64> {
    field(stat, START)
}

/// A field of `/proc/PID/stat` by its number in proc(5). The second is a name that may hold spaces and brackets.
fn field<T: std::str::FromStr>(stat: &str, number: usize) -> Option<T> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(number - 3)?.parse().ok()
}

const PARENT: usize = 4;
const START: usize = 22;

/// sudo, its monitor, a shell, an editor's terminal...
const GENERATIONS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let stat = "42 (a ) b) S 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 1\n";
        assert_eq!(field::<u32>(stat, PARENT), Some(7));
        assert_eq!(start_field(stat), Some(987_654));
        assert_eq!(start_field("42 (cut"), None);
    }
}
