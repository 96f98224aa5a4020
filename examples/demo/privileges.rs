//! The right to make network namespaces: as root it is there, otherwise a user namespace of our own may give it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::Result;
use netstack_tests::bins::Bins;
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities, unshare_unsafe};
use ssm_proxy::error::{Exit, UserError};

use crate::netns::Netns;

/// Call it before any thread is started. Says what we work as.
pub(crate) fn obtain(bins: &Bins) -> Result<String> {
    if !Path::new(TUN).exists() {
        return Err(UserError::new(Exit::Failure, format!("this system has no {TUN}"))
            .cause("ssm-proxy captures packets with a TUN device")
            .hint("sudo modprobe tun; in a container, start it with --device /dev/net/tun")
            .into());
    }
    let was_root = geteuid().is_root();
    let able = was_root && may_administer();
    if !able {
        own_user_namespace().map_err(|error| refused(was_root, bins, &why_no_namespace(&error)))?;
    }
    Netns::new().map_err(|error| refused(was_root, bins, &why_no_namespace(&error)))?;
    File::options()
        .read(true)
        .write(true)
        .open(TUN)
        .map_err(|error| refused(was_root, bins, &format!("{TUN} cannot be opened: {error}")))?;
    Ok(match able {
        true => "working as root".to_owned(),
        false => "working without root, in a user namespace of its own".to_owned(),
    })
}

fn may_administer() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Where we are root, and nowhere else.
fn own_user_namespace() -> io::Result<()> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: the file table stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER)? };
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn why_no_namespace(error: &io::Error) -> String {
    let is = |file: &str, value: &str| fs::read_to_string(file).is_ok_and(|text| text.trim() == value);
    let setting = [
        ("kernel.unprivileged_userns_clone", "0"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1"),
        ("user.max_user_namespaces", "0"),
    ]
    .into_iter()
    .find(|(name, value)| is(&format!("/proc/sys/{}", name.replace('.', "/")), value));
    match setting {
        Some((name, value)) => {
            format!("this system allows users no namespaces of their own: {name} is {value} ({error})")
        }
        None => format!("no namespace can be made: {error}"),
    }
}

fn refused(was_root: bool, bins: &Bins, cause: &str) -> UserError {
    let error = UserError::new(Exit::Privileges, "the demo needs root on this system").cause(cause);
    if was_root {
        return error.hint("run it outside of the container, or start that with --privileged");
    }
    let (Ok(exe), Some(dir)) = (std::env::current_exe(), bins.client.parent()) else { return error };
    error.hint(format!("sudo {} --binaries {}", exe.display(), dir.display()))
}

const TUN: &str = "/dev/net/tun";
