//! The keys in files: the one both ends share, and the agent's own.

use std::fmt;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::wire::hello::{AgentKey, Psk, ShortKey};

/// Why a key file is of no use.
#[derive(Debug)]
pub enum KeyError {
    Io { path: PathBuf, error: io::Error },
    Open { path: PathBuf, mode: u32 },
    NotAFile { path: PathBuf },
    Short { path: PathBuf, short: ShortKey },
    Damaged { path: PathBuf, length: usize },
    Entropy(getrandom::Error),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Open { path, mode } => write!(
                f,
                "{0} can be read by others (mode {mode:04o}): run 'chmod 600 {0}', and make a new key if others had access",
                path.display()
            ),
            Self::NotAFile { path } => write!(f, "{} is not a regular file", path.display()),
            Self::Short { path, short } => write!(
                f,
                "{0} holds a key of {1} bytes, at least 16 are needed: make one with '(umask 077; head -c 32 /dev/urandom | base64 > {0})'",
                path.display(),
                short.length
            ),
            Self::Damaged { path, length } => write!(
                f,
                "{} has {length} bytes instead of 32: remove it and start again; clients will then see a new agent key",
                path.display()
            ),
            Self::Entropy(error) => write!(f, "the system gives no random bytes: {error}"),
        }
    }
}

impl std::error::Error for KeyError {}

/// Reads the key that both ends share; refuses a file that others may read.
pub fn shared_key(path: &Path) -> Result<Psk, KeyError> {
    Psk::from_file_content(&read_secret(path)?)
        .map_err(|short| KeyError::Short { path: path.to_owned(), short })
}

/// Reads the agent's own key from its state directory; makes directory and key the first time.
pub fn agent_key(directory: &Path) -> Result<AgentKey, KeyError> {
    let path = directory.join("agent.key");
    let failed = |error| KeyError::Io { path: path.clone(), error };
    match read_secret(&path) {
        Ok(content) => own_key(&path, &content),
        Err(KeyError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            let key = random()?;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
            if write_secret(&path, &key)? {
                return Ok(AgentKey::from_bytes(key));
            }
            own_key(&path, &read_secret(&path)?)
        }
        Err(error) => Err(error),
    }
}

/// A key that lives as long as this process.
pub fn passing_agent_key() -> Result<AgentKey, KeyError> {
    Ok(AgentKey::from_bytes(random()?))
}

/// 32 random bytes.
pub fn random() -> Result<[u8; 32], KeyError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(KeyError::Entropy)?;
    Ok(bytes)
}

fn own_key(path: &Path, content: &[u8]) -> Result<AgentKey, KeyError> {
    let key = <[u8; 32]>::try_from(content).map(AgentKey::from_bytes);
    key.map_err(|_| KeyError::Damaged { path: path.to_owned(), length: content.len() })
}

fn read_secret(path: &Path) -> Result<Vec<u8>, KeyError> {
    let failed = |error| KeyError::Io { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(KeyError::NotAFile { path: path.to_owned() });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Open { path: path.to_owned(), mode });
    }
    let mut content = Vec::new();
    file.take(LARGEST).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

/// Writes beside the final name first, so that a crash leaves no half key; false if another agent's key
/// stands there by then.
fn write_secret(path: &Path, content: &[u8]) -> Result<bool, KeyError> {
    let failed = |error| KeyError::Io { path: path.to_owned(), error };
    // By chance: agents in containers that share the directory may have equal process numbers.
    let chance = getrandom::u64().map_err(KeyError::Entropy)?;
    let beside = path.with_extension(format!("new-{chance:016x}"));
    let placed = write_file(&beside, content).and_then(|()| match std::fs::hard_link(&beside, path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    });
    // Of no use any more; left behind, it stays a file that only its owner reads.
    let _ = std::fs::remove_file(&beside);
    placed.map_err(failed)
}

fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(content)?;
    file.sync_all()
}

/// More than any key has.
const LARGEST: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own, removed in the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ssm-proxy-agent-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, content: &[u8], mode: u32) -> PathBuf {
            let path = self.0.join("file");
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_shared_key_must_be_long_and_private() {
        let scratch = Scratch::new("shared");
        assert!(shared_key(&scratch.file(b"0123456789abcdef\n", 0o600)).is_ok());
        assert!(shared_key(&scratch.file(b"0123456789abcdef\n", 0o400)).is_ok());
        assert!(matches!(
            shared_key(&scratch.file(b"0123456789abcde\n", 0o600)),
            Err(KeyError::Short { .. })
        ));
        for mode in [0o640, 0o604, 0o660, 0o610] {
            let result = shared_key(&scratch.file(b"0123456789abcdef\n", mode));
            assert!(matches!(result, Err(KeyError::Open { mode: told, .. }) if told == mode));
        }
        assert!(matches!(shared_key(&scratch.0), Err(KeyError::NotAFile { .. } | KeyError::Open { .. })));
        assert!(matches!(shared_key(&scratch.0.join("none")), Err(KeyError::Io { .. })));
    }

    #[test]
    fn the_agents_key_is_made_once_and_kept_private() {
        let scratch = Scratch::new("own");
        let state = scratch.0.join("state");
        let first = agent_key(&state).unwrap().public();
        assert_eq!(agent_key(&state).unwrap().public(), first);
        assert_ne!(passing_agent_key().unwrap().public(), first);
        let file = state.join("agent.key");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 1);

        std::fs::write(&file, b"short").unwrap();
        assert!(matches!(agent_key(&state), Err(KeyError::Damaged { length: 5, .. })));
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(agent_key(&state), Err(KeyError::Open { .. })));
    }

    #[test]
    fn agents_that_start_together_share_the_key_of_the_first() {
        let scratch = Scratch::new("race");
        for round in 0..20 {
            let state = scratch.0.join(round.to_string());
            let together = std::sync::Barrier::new(8);
            let start = || {
                together.wait();
                agent_key(&state).map(|key| key.public())
            };
            let keys: Vec<_> = std::thread::scope(|scope| {
                let agents: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
                agents.into_iter().map(|agent| agent.join().unwrap().unwrap()).collect()
            });
            assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
            assert_eq!(std::fs::read_dir(&state).unwrap().count(), 1);
        }
    }
}
