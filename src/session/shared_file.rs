//! Driver: a small file of lines in the home of whoever typed the command, which several sessions may change
//! at the same time. Read and written as that user may.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::lock;
use crate::os::identity;

pub(super) struct SharedFile {
    path: PathBuf,
}

impl SharedFile {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its lines, each with its end; none where there is no file.
    pub(super) fn read(&self) -> io::Result<String> {
        identity::as_caller(|| self.text())
    }

    /// Gives the file the content that `change` makes of the present one, none to leave it; true when it was
    /// changed. One process does so at a time, and readers see the old content or the new.
    ///
    /// May block for up to five seconds while others do the same.
    pub(super) fn update(&self, change: impl Fn(&str) -> Option<String> + Sync) -> io::Result<bool> {
        identity::as_caller(|| {
            // A file that stays as it is needs no right to write beside it.
            if change(&self.text()?).is_none() {
                return Ok(false);
            }
            if let Some(directory) = self.path.parent() {
                fs::create_dir_all(directory)?;
            }
            let _guard = match lock::wait_for(&self.path.with_extension("lock")) {
                // There two sessions that change it at the same moment may lose a line of each other.
                Err(error) if lock::is_impossible(&error) => None,
                guard => Some(guard?),
            };
            let Some(content) = change(&self.text()?) else { return Ok(false) };
            let fresh = self.path.with_extension("new");
            fs::write(&fresh, content)?;
            fs::rename(&fresh, &self.path)?;
            Ok(true)
        })
    }

    fn text(&self) -> io::Result<String> {
        match fs::read_to_string(&self.path) {
            Ok(text) if text.is_empty() || text.ends_with('\n') => Ok(text),
            Ok(text) => Ok(text + "\n"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error),
        }
    }
}
