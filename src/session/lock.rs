//! Driver: a lock on a file, which the system takes back however its holder dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

/// Takes the lock at `path`, whose file it makes; `None` when another process holds it.
pub(super) fn take(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// As [`take`], but waits for another holder, up to [`DEADLINE`].
pub(super) fn wait_for(path: &Path) -> io::Result<File> {
    for _ in 0..DEADLINE.as_millis() / PAUSE.as_millis() {
        if let Some(guard) = take(path)? {
            return Ok(guard);
        }
        thread::sleep(PAUSE);
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "another ssm-proxy holds it for too long"))
}

/// The file system knows no locks.
pub(super) fn is_impossible(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(Errno::NOLCK.raw_os_error())
}

const DEADLINE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);
