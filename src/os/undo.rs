//! The journal: a file in the run directory that knows every change to the system before it is made.
//!
//! One JSON object per line: first who writes (process, its start, the boot, the network namespace), then
//! `{"did": change}` before each change and `{"undid": change}` after it was taken back. Its process holds a
//! lock on it, which dies with the process. A journal without a living owner is undone by the next start.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::identity::{self, Process};
use super::routes::{self, Route, Rule, Via};

/// One thing we did to the system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    Rule(Rule),
    Route(Route),
}

/// A change that could not be taken back.
#[derive(Debug)]
pub struct Failure {
    /// The change in words.
    pub change: String,
    pub error: io::Error,
}

/// A dead session's journal and what became of it.
#[derive(Debug)]
pub struct Leftover {
    pub path: PathBuf,
    /// 0 if the journal could not be read.
    pub pid: u32,
    /// How many changes were taken back.
    pub undone: usize,
    /// What stays, with the journal, for the next try.
    pub failures: Vec<Failure>,
}

/// The journal of this process.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// Holds the lock.
    file: File,
    /// Recorded and not undone, in the order in which they were made.
    changes: Vec<Change>,
}

impl Journal {
    /// Starts a journal. An existing file is an error: [`leftovers`](Self::leftovers) comes first.
    pub fn create(path: &Path) -> io::Result<Self> {
        // The lock must be there before the name is, or a starting neighbour takes it for a dead one's.
        let draft = path.with_extension(format!("{}.new", std::process::id()));
        let mut file =
            OpenOptions::new().append(true).create(true).truncate(false).mode(0o600).open(&draft)?;
        file.set_len(0)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let owner = Owner::this_process()?;
        let named = write_line(&mut file, &owner).and_then(|()| std::fs::hard_link(&draft, path));
        std::fs::remove_file(&draft)?;
        named?;
        Ok(Self { path: path.to_owned(), file, changes: Vec::new() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes down what is about to be done; on return it is on the disk.
    pub fn record(&mut self, change: &Change) -> io::Result<()> {
        write_line(&mut self.file, &Line::Did(change.clone()))?;
        self.changes.push(change.clone());
        Ok(())
    }

    /// Writes down that a change was taken back.
    pub fn forget(&mut self, change: &Change) -> io::Result<()> {
        write_line(&mut self.file, &Line::Undid(change.clone()))?;
        self.changes.retain(|known| known != change);
        Ok(())
    }

    /// What was recorded and not taken back.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Takes everything back, the last change first, and says what stays. May be called again. When nothing
    /// stays, the file is removed.
    pub fn undo_all(&mut self) -> Vec<Failure> {
        self.undo_with(&mut routes::undo)
    }

    fn undo_with(&mut self, undo: &mut dyn FnMut(&Change) -> io::Result<()>) -> Vec<Failure> {
        let mut failures = Vec::new();
        for change in self.changes.clone().iter().rev() {
            // A line that could not be written only means that the change is undone twice, which is harmless.
            let undone = undo(change).and_then(|()| self.forget(change).or(Ok(())));
            if let Err(error) = undone {
                failures.push(Failure { change: change.to_string(), error });
            }
        }
        if failures.is_empty() {
            match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    failures.push(Failure { change: self.path.display().to_string(), error });
                }
                _ => {}
            }
        }
        failures
    }

    /// Undoes the journals of dead processes in `dir`. `is_alive` is usually [`Process::is_alive`]. Journals
    /// of another network namespace are left alone: their changes are not here.
    pub fn leftovers(dir: &Path, is_alive: &dyn Fn(&Process) -> bool) -> io::Result<Vec<Leftover>> {
        Self::leftovers_with(dir, is_alive, &mut routes::undo)
    }

    fn leftovers_with(
        dir: &Path,
        is_alive: &dyn Fn(&Process) -> bool,
        undo: &mut dyn FnMut(&Change) -> io::Result<()>,
    ) -> io::Result<Vec<Leftover>> {
        let entries = match std::fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            match Self::open_dead(&path, is_alive) {
                Ok(None) => {}
                Ok(Some((pid, mut journal))) => {
                    let before = journal.changes.len();
                    let failures = journal.undo_with(undo);
                    let undone = before - journal.changes.len();
                    found.push(Leftover { path, pid, undone, failures });
                }
                Err(error) => {
                    let failures = vec![Failure { change: path.display().to_string(), error }];
                    found.push(Leftover { path, pid: 0, undone: 0, failures });
                }
            }
        }
        Ok(found)
    }

    /// The journal, locked by us now, if its process is gone and its changes are in our namespace.
    fn open_dead(path: &Path, is_alive: &dyn Fn(&Process) -> bool) -> io::Result<Option<(u32, Self)>> {
        match OpenOptions::new().read(true).append(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => Self::take_over(path, file?, is_alive),
        }
    }

    fn take_over(
        path: &Path,
        mut file: File,
        is_alive: &dyn Fn(&Process) -> bool,
    ) -> io::Result<Option<(u32, Self)>> {
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        if file.metadata()?.nlink() == 0 {
            // Somebody else undid it since it was opened; its name may be that of a living session by now.
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let Some((owner, changes)) = parse(&String::from_utf8_lossy(&bytes)) else {
            // Without a first line nothing can have been changed: that line is written before the name is given.
            std::fs::remove_file(path)?;
            return Ok(None);
        };
        let here = Owner::this_process()?;
        if owner.boot != here.boot {
            std::fs::remove_file(path)?;
            return Ok(None);
        }
        if is_alive(&owner.process) || owner.namespace != here.namespace {
            return Ok(None);
        }
        if !bytes.ends_with(b"\n") {
            file.write_all(b"\n")?;
        }
        Ok(Some((owner.process.pid, Self { path: path.to_owned(), file, changes })))
    }
}

/// The first line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    journal: u32,
    #[serde(flatten)]
    process: Process,
    boot: String,
    namespace: String,
}

impl Owner {
    fn this_process() -> io::Result<Self> {
        Ok(Self {
            journal: VERSION,
            process: Process::this()?,
            boot: identity::boot_id(),
            namespace: identity::network_namespace(),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Did(Change),
    Undid(Change),
}

/// A last line without its end was never followed by its change, so it is left out, as is one that we cannot read.
fn parse(text: &str) -> Option<(Owner, Vec<Change>)> {
    let whole = &text[..=text.rfind('\n')?];
    let mut lines = whole.lines();
    let owner = serde_json::from_str(lines.next()?).ok()?;
    let mut changes = Vec::new();
    for line in lines {
        match serde_json::from_str(line) {
            Ok(Line::Did(change)) => changes.push(change),
            Ok(Line::Undid(change)) => changes.retain(|known| *known != change),
            Err(error) => tracing::warn!(%error, "a line of a dead session's journal cannot be read"),
        }
    }
    Some((owner, changes))
}

/// Writes a whole line or, where that fails, none: the next one must not be taken for the rest of a half.
fn write_line(file: &mut File, line: &impl Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    let before = file.metadata()?.len();
    let written = file.write_all(&bytes).and_then(|()| file.sync_data());
    if written.is_err() {
        file.set_len(before)?;
    }
    written
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(Rule { to, priority, table, suppress, unmarked }) => {
                write!(f, "rule {priority}: to {to} lookup {table}")?;
                if let Some(length) = suppress {
                    write!(f, " suppress_prefixlength {length}")?;
                }
                if *unmarked {
                    write!(f, " unless marked")?;
                }
            }
            Self::Route(Route { to, table, via }) => {
                match via {
                    Via::Device { name, .. } => write!(f, "route {to} dev {name}")?,
                    Via::Throw => write!(f, "route throw {to}")?,
                    Via::Gateway { address, .. } => write!(f, "route {to} via {address}")?,
                }
                if let Some(table) = table {
                    write!(f, " table {table}")?;
                }
            }
        }
        Ok(())
    }
}

const VERSION: u32 = 1;

/// What the name of a journal ends with.
pub const EXTENSION: &str = "journal";

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;

    fn scratch(test: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("ssm-proxy-undo-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn route(to: &str) -> Change {
        Change::Route(Route { to: to.parse().unwrap(), table: Some(7421), via: Via::Throw })
    }

    fn rule(to: &str) -> Change {
        Change::Rule(Rule {
            to: to.parse().unwrap(),
            priority: 4948,
            table: 254,
            suppress: Some(8),
            unmarked: false,
        })
    }

    /// A journal as a dead process leaves it, `tail` being the last thing it wrote.
    fn left_behind(dir: &Path, changes: &[Change], tail: &str) -> PathBuf {
        let path = dir.join("dead.journal");
        let mut journal = Journal::create(&path).unwrap();
        for change in changes {
            journal.record(change).unwrap();
        }
        journal.file.write_all(tail.as_bytes()).unwrap();
        path
    }

    #[test]
    fn a_change_is_in_the_file_before_record_returns() {
        let dir = scratch("record");
        let path = dir.join("s.journal");
        let mut journal = Journal::create(&path).unwrap();
        journal.record(&rule("10.0.0.0/8")).unwrap();
        let (owner, changes) = parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(owner.process, Process::this().unwrap());
        assert_eq!(changes, [rule("10.0.0.0/8")]);
        assert_eq!(Journal::create(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn undoing_goes_backwards_and_past_what_fails() {
        let dir = scratch("backwards");
        let mut journal = Journal::create(&dir.join("s.journal")).unwrap();
        for change in [route("10.1.0.0/16"), route("10.2.0.0/16"), rule("10.0.0.0/8")] {
            journal.record(&change).unwrap();
        }
        let mut order = Vec::new();
        let failures = journal.undo_with(&mut |change| {
            order.push(change.clone());
            if *change == route("10.2.0.0/16") { Err(io::Error::other("no")) } else { Ok(()) }
        });
        assert_eq!(order, [rule("10.0.0.0/8"), route("10.2.0.0/16"), route("10.1.0.0/16")]);
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].change, "route throw 10.2.0.0/16 table 7421");
        assert!(journal.path().exists(), "what failed is tried again later");
        assert!(journal.undo_with(&mut |_| Ok(())).is_empty());
        assert!(!journal.path().exists());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_torn_last_line_hides_nothing_before_it() {
        let dir = scratch("torn");
        let torn = r#"{"did":{"change":"rule","to":"10.0"#;
        left_behind(&dir, &[route("10.1.0.0/16"), rule("10.0.0.0/8")], torn);
        let mut undone = Vec::new();
        let found = Journal::leftovers_with(&dir, &|_| false, &mut |change| {
            undone.push(change.clone());
            Ok(())
        });
        assert_eq!(undone, [rule("10.0.0.0/8"), route("10.1.0.0/16")]);
        assert_eq!(found.unwrap()[0].undone, 2);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_record_that_found_no_room_hides_none_after_it() {
        let dir = scratch("room");
        // Writes beyond the limit are cut short there. The soft limit only: what is started may lift it.
        let limited = r#"trap "" XFSZ; ulimit -S -f 1; exec "$0" --exact os::undo::tests::fill_a_journal"#;
        let us = std::env::current_exe().unwrap();
        let output = Command::new("sh").args(["-c", limited]).arg(us).env("FILL_IN", &dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));

        let text = std::fs::read_to_string(dir.join("full.journal")).unwrap();
        let (_, changes) = parse(&text).unwrap();
        assert!(changes.len() > 2, "{text}");
        assert_eq!(changes.len() + 1, text.lines().count(), "no half line: {text}");
        assert_eq!(changes.last(), Some(&rule("10.0.0.0/8")), "recorded when there was room again");
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// Not a test of its own: what the test above starts.
    #[test]
    fn fill_a_journal() {
        let Some(dir) = std::env::var_os("FILL_IN") else { return };
        let mut journal = Journal::create(&Path::new(&dir).join("full.journal")).unwrap();
        let full = (0..=255).find_map(|n| journal.record(&route(&format!("10.{n}.0.0/16"))).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::FileTooLarge);
        let recorded = journal.changes().len();

        let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
        setrlimit(Resource::Fsize, Rlimit { current: maximum, maximum }).unwrap();
        journal.record(&rule("10.0.0.0/8")).unwrap();
        assert_eq!(journal.changes().len(), recorded + 1, "what was not written is not in the list");
    }

    #[test]
    fn what_was_undone_before_the_death_is_not_undone_again() {
        let dir = scratch("undid");
        let undid = format!("{}\n", serde_json::to_string(&Line::Undid(rule("10.0.0.0/8"))).unwrap());
        left_behind(&dir, &[rule("10.0.0.0/8")], &undid);
        let found = Journal::leftovers_with(&dir, &|_| false, &mut |_| panic!("nothing is left"));
        assert_eq!(found.unwrap()[0].undone, 0);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_living_process_keeps_its_changes_and_a_reused_number_does_not_save_the_dead() {
        let dir = scratch("alive");
        let path = left_behind(&dir, &[rule("10.0.0.0/8")], "");
        let found = Journal::leftovers_with(&dir, &Process::is_alive, &mut |_| panic!("it lives"));
        assert!(found.unwrap().is_empty());

        let started = format!("\"started\":{}", Process::this().unwrap().started);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(&started));
        std::fs::write(&path, text.replace(&started, "\"started\":1")).unwrap();
        let found = Journal::leftovers_with(&dir, &Process::is_alive, &mut |_| Ok(()));
        assert_eq!(found.unwrap()[0].undone, 1);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_journal_that_another_start_undoes_first_is_left_to_it() {
        let dir = scratch("race");
        let path = left_behind(&dir, &[rule("10.0.0.0/8")], "");
        let opened = OpenOptions::new().read(true).append(true).open(&path).unwrap();
        assert_eq!(Journal::leftovers_with(&dir, &|_| false, &mut |_| Ok(())).unwrap().len(), 1);
        let _next = Journal::create(&path).unwrap();
        assert!(Journal::take_over(&path, opened, &|_| false).unwrap().is_none());
        assert!(path.exists());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_journal_from_before_the_last_boot_is_only_removed() {
        let dir = scratch("boot");
        let path = left_behind(&dir, &[rule("10.0.0.0/8")], "");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(&identity::boot_id(), "another")).unwrap();
        let found = Journal::leftovers_with(&dir, &|_| false, &mut |_| panic!("the boot undid it"));
        assert!(found.unwrap().is_empty());
        assert!(!path.exists());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn garbage_is_no_journal_and_a_missing_directory_is_an_empty_one() {
        let dir = scratch("garbage");
        std::fs::write(dir.join("x.journal"), b"\x00\xff\n\xfe").unwrap();
        std::fs::write(dir.join("y.journal"), "{}\nnonsense\n").unwrap();
        std::fs::write(dir.join("control.sock"), "not a journal").unwrap();
        let found = Journal::leftovers_with(&dir, &|_| false, &mut |_| panic!("nothing to undo"));
        assert!(found.unwrap().is_empty());
        assert!(dir.join("control.sock").exists());
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(Journal::leftovers_with(&dir, &|_| false, &mut |_| Ok(())).unwrap().is_empty());
    }
}
