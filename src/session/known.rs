//! The agents' keys as first seen: one line per agent, `<instance or tcp address> <key in hex>`.

use std::io;
use std::path::{Path, PathBuf};

use agent::wire::hello::PublicKey;

use super::shared_file::SharedFile;

/// The file of known agents.
pub struct Known {
    file: SharedFile,
}

impl Known {
    pub fn at(path: PathBuf) -> Self {
        Self { file: SharedFile::at(path) }
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The key seen before at `place`.
    pub fn find(&self, place: &str) -> io::Result<Option<PublicKey>> {
        let text = self.file.read()?;
        Ok(lines(&text).find(|(known, _)| *known == place).map(|(_, key)| key))
    }

    /// Remembers the key of `place` if none is known yet; true when it was new.
    pub fn remember(&self, place: &str, key: &PublicKey) -> io::Result<bool> {
        self.file.update(|text| {
            let known = lines(text).any(|(known, _)| known == place);
            (!known).then(|| format!("{text}{place} {}\n", hex(&key.0)))
        })
    }
}

fn lines(text: &str) -> impl Iterator<Item = (&str, PublicKey)> {
    text.lines().filter_map(|line| {
        let (place, key) = line.trim().rsplit_once(' ')?;
        Some((place, PublicKey(unhex(key)?)))
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn scratch(name: &str) -> Known {
        let directory = std::env::temp_dir().join(format!("ssm-proxy-known-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        Known::at(directory.join("known-agents"))
    }

    #[test]
    fn a_key_is_remembered_once_and_found_again() {
        let known = scratch("once");
        assert_eq!(known.find("i-0abc").unwrap(), None);
        assert!(known.remember("i-0abc", &PublicKey([7; 32])).unwrap());
        assert!(known.remember("tcp://h:1", &PublicKey([8; 32])).unwrap());
        assert!(!known.remember("i-0abc", &PublicKey([9; 32])).unwrap());
        assert_eq!(known.find("i-0abc").unwrap(), Some(PublicKey([7; 32])));
        assert_eq!(known.find("tcp://h:1").unwrap(), Some(PublicKey([8; 32])));
        fs::remove_dir_all(known.path().parent().unwrap()).unwrap();
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over_and_kept() {
        let known = scratch("broken");
        fs::create_dir_all(known.path().parent().unwrap()).unwrap();
        fs::write(known.path(), "# a comment\ni-1 nothex\nhalf a line").unwrap();
        known.remember("i-1", &PublicKey([1; 32])).unwrap();
        assert_eq!(known.find("i-1").unwrap(), Some(PublicKey([1; 32])));
        assert!(
            fs::read_to_string(known.path()).unwrap().starts_with("# a comment\ni-1 nothex\nhalf a line\n")
        );
        fs::remove_dir_all(known.path().parent().unwrap()).unwrap();
    }

    #[test]
    fn a_key_that_is_known_needs_no_lock() {
        let known = scratch("locked");
        let key = PublicKey([7; 32]);
        assert!(known.remember("i-1", &key).unwrap());
        let lock = known.path().with_extension("lock");
        fs::remove_file(&lock).unwrap();
        fs::create_dir(&lock).unwrap();
        assert!(!known.remember("i-1", &key).unwrap());
        assert!(known.remember("i-2", &key).is_err());
        fs::remove_dir_all(known.path().parent().unwrap()).unwrap();
    }

    #[test]
    fn of_sessions_that_start_together_every_key_is_kept() {
        let known = scratch("together");
        let at_once = std::sync::Barrier::new(8);
        let keys = || (0..8u8).flat_map(|session| (0..20u8).map(move |n| (session, n)));
        let place = |(session, n)| format!("i-{session}-{n}");
        std::thread::scope(|scope| {
            for session in 0..8 {
                let (known, at_once) = (&known, &at_once);
                scope.spawn(move || {
                    at_once.wait();
                    for agent in keys().filter(|agent| agent.0 == session) {
                        assert!(known.remember(&place(agent), &PublicKey([agent.1; 32])).unwrap());
                    }
                });
            }
        });
        for agent in keys() {
            assert_eq!(known.find(&place(agent)).unwrap(), Some(PublicKey([agent.1; 32])), "{agent:?}");
        }
        fs::remove_dir_all(known.path().parent().unwrap()).unwrap();
    }
}
