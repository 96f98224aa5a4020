//! Driver: the run directory, where running sessions are known by name.
//!
//! | file          | what it is                                                                      |
//! |---------------|---------------------------------------------------------------------------------|
//! | `NAME.sock`   | the control socket                                                              |
//! | `NAME.json`   | [`Meta`]: what the session is                                                   |
//! | `NAME.lock`   | locked for as long as the session's process lives, however it dies              |
//! | `.lock`       | locked while the directory is changed, so that two `up` at once cannot both win |

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::lock;
use crate::config::{Plan, SLOTS, SessionName, overlap};
use crate::control::server::Owner;
use crate::error::{Exit, UserError};

/// What the registry knows of a session without asking it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub name: String,
    pub pid: u32,
    /// Uid of the user who may use the session besides root.
    pub owner: u32,
    pub via: String,
    pub cidr: Vec<IpNet>,
    pub local: Vec<IpNet>,
    /// Number among the sessions of this machine, for default addresses.
    pub slot: u8,
    pub device: Option<String>,
    /// Unix seconds.
    pub started_at: u64,
}

/// A session's place in the registry; dropping it gives the name and the ranges free.
#[derive(Debug)]
pub struct Claim {
    dir: PathBuf,
    name: SessionName,
    meta: Meta,
    owner: Owner,
    /// Sessions that died without giving their place free; they have lost it now.
    pub stale: Vec<Meta>,
    _alive: File,
}

impl Claim {
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Where the session's control socket belongs.
    pub fn socket(&self) -> PathBuf {
        socket(&self.dir, &self.name)
    }

    /// Records the device once it is known.
    pub fn set_device(&mut self, device: &str) -> anyhow::Result<()> {
        self.meta.device = Some(device.to_owned());
        write_meta(&self.dir, &self.meta, self.owner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The socket goes with its server, which may have to outlive this.
        let _guard = lock_dir(&self.dir);
        let _ = fs::remove_file(file(&self.dir, self.name.as_str(), "json"));
        let _ = fs::remove_file(file(&self.dir, self.name.as_str(), "lock"));
    }
}

/// Takes a place for the session of `plan`, or says who is in its way ([`Exit::Conflict`]).
///
/// May block for up to five seconds while another `up` does the same.
pub fn claim(dir: &Path, plan: &Plan, owner: Owner, started_at: u64) -> anyhow::Result<Claim> {
    prepare(dir).with_context(|| format!("prepare the run directory {}", dir.display()))?;
    let _guard = lock_dir(dir)?;
    let (running, stale) = sift(dir)?;
    let slot = free_slot(&running)?;
    let local = plan.local(slot);
    check_conflicts(plan, &local, &running)?;
    let alive = take_lock(&file(dir, plan.name.as_str(), "lock"))?
        .with_context(|| format!("session {} is being started by another process", plan.name))?;
    let meta = Meta {
        name: plan.name.to_string(),
        pid: std::process::id(),
        owner: owner.uid,
        via: plan.via.to_string(),
        cidr: plan.cidrs.clone(),
        local,
        slot,
        device: None,
        started_at,
    };
    write_meta(dir, &meta, owner)?;
    Ok(Claim { dir: dir.to_owned(), name: plan.name.clone(), meta, owner, stale, _alive: alive })
}

/// A session as the run directory shows it; it may be dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: SessionName,
    pub socket: PathBuf,
    /// `None` where it is another user's.
    pub meta: Option<Meta>,
}

/// All entries by name. An absent directory has none.
pub fn list(dir: &Path) -> anyhow::Result<Vec<Entry>> {
    let names = names(dir).with_context(|| format!("read the run directory {}", dir.display()))?;
    let entry =
        |name: SessionName| Entry { socket: socket(dir, &name), meta: read_meta(dir, name.as_str()), name };
    Ok(names.into_iter().map(entry).collect())
}

/// The entry of one session, whether or not it exists.
pub fn entry(dir: &Path, name: &SessionName) -> Entry {
    Entry { socket: socket(dir, name), meta: read_meta(dir, name.as_str()), name: name.clone() }
}

/// Whether the session still has its place.
pub fn is_listed(entry: &Entry) -> bool {
    entry.socket.with_extension("json").exists()
}

const MAX_META: u64 = 64 * 1024;

fn prepare(dir: &Path) -> anyhow::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    let meta = fs::metadata(dir)?;
    let ours = [0, rustix::process::geteuid().as_raw()].contains(&meta.uid());
    anyhow::ensure!(meta.is_dir() && ours && meta.mode() & 0o022 == 0, "other users can write to it");
    Ok(())
}

fn lock_dir(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(".lock");
    lock::wait_for(&path).with_context(|| format!("lock {}", path.display()))
}

/// `None` when another process holds it.
fn take_lock(path: &Path) -> anyhow::Result<Option<File>> {
    lock::take(path).with_context(|| format!("lock {}", path.display()))
}

/// The sessions that live, and what is known of those that do not, whose files are removed.
fn sift(dir: &Path) -> anyhow::Result<(Vec<Meta>, Vec<Meta>)> {
    let (mut running, mut stale) = (Vec::new(), Vec::new());
    for name in names(dir)? {
        let meta = read_meta(dir, name.as_str());
        match take_lock(&file(dir, name.as_str(), "lock"))? {
            None => running.extend(meta),
            Some(_dead) => {
                for kind in ["json", "sock", "lock"] {
                    let _ = fs::remove_file(file(dir, name.as_str(), kind));
                }
                stale.extend(meta);
            }
        }
    }
    Ok((running, stale))
}

fn free_slot(running: &[Meta]) -> Result<u8, UserError> {
    (0..=SLOTS).find(|slot| running.iter().all(|other| other.slot != *slot)).ok_or_else(|| {
        UserError::new(Exit::Conflict, "too many sessions are running").hint("ssm-proxy status")
    })
}

fn check_conflicts(plan: &Plan, local: &[IpNet], running: &[Meta]) -> Result<(), UserError> {
    let end = |name: &str| format!("ssm-proxy down --session-name {name}");
    for other in running {
        let name = &other.name;
        if *name == plan.name.as_str() {
            return Err(UserError::new(Exit::Conflict, format!("session {name} is already running"))
                .cause(format!("process {} has it, via {}", other.pid, other.via))
                .hint(format!("{}, or another --session-name", end(name))));
        }
        if let Some((mine, theirs)) = first_overlap(&plan.cidrs, &other.cidr) {
            return Err(UserError::new(
                Exit::Conflict,
                format!("--cidr {mine} overlaps {theirs} of session {name}"),
            )
            .cause("an address can be routed to one session only")
            .hint(format!("{}, or a range outside {theirs}", end(name))));
        }
        if let Some((mine, theirs)) = first_overlap(local, &other.local) {
            return Err(UserError::new(
                Exit::Conflict,
                format!("--local-ip {mine} overlaps {theirs}, the device's address of session {name}"),
            )
            .hint("leave --local-ip away to get a free address"));
        }
        let crossed = first_overlap(&plan.cidrs, &other.local).or_else(|| first_overlap(&other.cidr, local));
        if let Some((range, address)) = crossed {
            let what = format!("{address}, the address of a device, lies inside {range} (session {name})");
            return Err(UserError::new(Exit::Conflict, what).hint("choose another --local-ip"));
        }
    }
    Ok(())
}

fn first_overlap<'a>(a: &'a [IpNet], b: &'a [IpNet]) -> Option<(&'a IpNet, &'a IpNet)> {
    a.iter().find_map(|a| b.iter().find(|b| overlap(a, b)).map(|b| (a, b)))
}

/// Names of every session with a socket or a meta file.
fn names(dir: &Path) -> io::Result<Vec<SessionName>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?.file_name();
        let Some((name, "json" | "sock")) = entry.to_str().and_then(|file| file.rsplit_once('.')) else {
            continue;
        };
        names.extend(name.parse::<SessionName>());
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn read_meta(dir: &Path, name: &str) -> Option<Meta> {
    let path = file(dir, name, "json");
    let small = fs::metadata(&path).ok()?.len() <= MAX_META;
    serde_json::from_slice(&small.then(|| fs::read(&path).ok())??).ok()
}

/// Whole or not at all, and readable by its owner and root only.
fn write_meta(dir: &Path, meta: &Meta, owner: Owner) -> anyhow::Result<()> {
    let path = file(dir, &meta.name, "json");
    let new = file(dir, &meta.name, "new");
    let write = || -> anyhow::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(&serde_json::to_vec(meta)?)?;
        // An id that does not exist in this user namespace: root can still read the file.
        let _ = chown(&new, Some(owner.uid), Some(owner.gid));
        Ok(fs::rename(&new, &path)?)
    };
    write().with_context(|| format!("write {}", path.display()))
}

fn socket(dir: &Path, name: &SessionName) -> PathBuf {
    file(dir, name.as_str(), "sock")
}

fn file(dir: &Path, name: &str, kind: &str) -> PathBuf {
    dir.join(format!("{name}.{kind}"))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::config::Wishes;
    use crate::control::server::tests::{Scratch, tempdir};
    use crate::error::explain;

    #[test]
    fn a_claim_is_listed_until_it_is_dropped() {
        let dir = tempdir();
        let mut claim = take(&dir, "a", "10.0.0.0/8").unwrap();
        claim.set_device("ssmp0").unwrap();

        let listed = list(dir.path()).unwrap();
        let meta = claim.meta().clone();
        drop(claim);

        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].meta.as_ref(), Some(&meta));
        assert_eq!((meta.device.as_deref(), meta.pid), (Some("ssmp0"), std::process::id()));
        assert!(list(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn the_same_name_is_refused_while_it_runs() {
        let dir = tempdir();
        let first = take(&dir, "a", "10.0.0.0/8").unwrap();

        let refused = explain(&take(&dir, "a", "172.16.0.0/12").unwrap_err());
        drop(first);

        assert_eq!(refused.exit, Exit::Conflict);
        assert!(refused.what.contains("session a is already running"), "{refused:?}");
        assert!(take(&dir, "a", "172.16.0.0/12").is_ok());
    }

    #[test]
    fn overlapping_ranges_are_refused_with_both_named() {
        let dir = tempdir();
        let _first = take(&dir, "a", "10.0.0.0/8").unwrap();

        let refused = explain(&take(&dir, "b", "10.1.0.0/16").unwrap_err());
        let beside = take(&dir, "c", "172.16.0.0/12").unwrap();

        assert_eq!(refused.exit, Exit::Conflict);
        assert_eq!(refused.what, "--cidr 10.1.0.0/16 overlaps 10.0.0.0/8 of session a");
        assert_eq!(beside.meta().slot, 1);
        assert_eq!(beside.meta().local[0].to_string(), "169.254.77.5/30");
    }

    #[test]
    fn a_slot_is_given_again_when_free() {
        let dir = tempdir();
        let first = take(&dir, "a", "10.0.0.0/8").unwrap();
        let second = take(&dir, "b", "172.16.0.0/12").unwrap();
        drop(first);

        let third = take(&dir, "c", "192.168.0.0/16").unwrap();

        assert_eq!((second.meta().slot, third.meta().slot), (1, 0));
    }

    #[test]
    fn an_address_of_another_device_is_refused() {
        let dir = tempdir();
        let _first = take(&dir, "a", "10.0.0.0/8").unwrap();
        let plan = plan("b", "172.16.0.0/12", &["169.254.77.2/30"]);

        let refused = explain(&claim(dir.path(), &plan, me(), 0).unwrap_err());

        assert_eq!(refused.exit, Exit::Conflict);
        assert!(refused.what.contains("169.254.77.1/30"), "{refused:?}");
    }

    #[test]
    fn leftovers_of_a_dead_session_are_removed_and_told() {
        let dir = tempdir();
        let claim = take(&dir, "a", "10.0.0.0/8").unwrap();
        let dead = claim.meta().clone();
        let files: Vec<_> = ["json", "lock"].map(|kind| file(dir.path(), "a", kind)).into();
        let kept: Vec<_> = files.iter().map(|path| fs::read(path).unwrap()).collect();
        drop(claim);
        for (path, bytes) in files.iter().zip(kept) {
            fs::write(path, bytes).unwrap();
        }
        drop(std::os::unix::net::UnixListener::bind(file(dir.path(), "a", "sock")).unwrap());

        let next = take(&dir, "b", "10.0.0.0/8").unwrap();

        assert_eq!(next.stale, [dead]);
        let names: Vec<_> =
            list(dir.path()).unwrap().into_iter().map(|entry| entry.name.to_string()).collect();
        assert_eq!(names, ["b"]);
    }

    #[test]
    fn of_many_at_once_one_wins() {
        let dir = tempdir();
        let gate = std::sync::Barrier::new(8);

        let claims: Vec<_> = thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        gate.wait();
                        take(&dir, "a", "10.0.0.0/8")
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });

        assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 1);
        assert!(
            claims
                .iter()
                .flat_map(|claim| claim.as_ref().err())
                .all(|error| explain(error).exit == Exit::Conflict)
        );
    }

    #[test]
    fn strange_files_do_not_disturb() {
        let dir = tempdir();
        for name in ["x.txt", ".json", "..sock", "a b.json", "bad.json", "noext"] {
            fs::write(dir.path().join(name), b"\xff{").unwrap();
        }

        let listed = list(dir.path()).unwrap();
        let claim = take(&dir, "a", "10.0.0.0/8");

        assert_eq!(listed.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["bad"]);
        assert!(claim.is_ok());
        assert!(list(&dir.path().join("absent")).unwrap().is_empty());
    }

    #[test]
    fn a_directory_open_to_all_is_not_trusted() {
        let dir = tempdir();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();

        assert!(take(&dir, "a", "10.0.0.0/8").is_err());
    }

    fn take(dir: &Scratch, name: &str, cidr: &str) -> anyhow::Result<Claim> {
        claim(dir.path(), &plan(name, cidr, &[]), me(), 1)
    }

    fn plan(name: &str, cidr: &str, local: &[&str]) -> Plan {
        Plan::new(Wishes {
            name: Some(name.parse().unwrap()),
            instance: Some("i-0123456789abcdef0".into()),
            cidrs: vec![cidr.to_owned()],
            local: local.iter().map(ToString::to_string).collect(),
            ..Wishes::default()
        })
        .unwrap()
    }

    fn me() -> Owner {
        Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}
