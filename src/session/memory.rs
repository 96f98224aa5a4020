//! What lanes have taught about the way to each agent: one line per agent, `<place> since=<Unix seconds> <lessons>`.
//!
//! Accounts and networks change, so what is older than a month is not believed any more.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::shared_file::SharedFile;
use crate::tunnel::lessons::Lessons;

/// The file, beside that of the known agents.
pub(super) struct Memory {
    file: SharedFile,
}

impl Memory {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { file: SharedFile::at(path) }
    }

    /// What is known of `place`; nothing where the file cannot be read, which costs only time.
    pub(super) fn find(&self, place: &str, now: u64) -> Lessons {
        let text = self.file.read().unwrap_or_default();
        let found = text.lines().filter_map(|line| line.split_once(' ')).find(|(known, _)| *known == place);
        let lessons = found.map(|(_, rest)| rest).filter(|rest| is_fresh(rest, now));
        lessons.map(Lessons::parse).unwrap_or_default()
    }

    pub(super) fn remember(&self, place: &str, lessons: &Lessons, now: u64) -> io::Result<()> {
        let line = format!("{place} since={now} {lessons}");
        let with_it = |text: &str| {
            let others = text.lines().filter(|line| line.split(' ').next() != Some(place));
            let lines: Vec<&str> = others.chain(std::iter::once(line.as_str())).collect();
            // The latest ones: nobody has so many agents.
            Some(lines[lines.len().saturating_sub(MOST)..].join("\n") + "\n")
        };
        self.file.update(with_it).map(drop)
    }
}

fn is_fresh(rest: &str, now: u64) -> bool {
    let since = rest.split_whitespace().find_map(|word| word.strip_prefix("since=")?.parse::<u64>().ok());
    since.is_some_and(|since| now.saturating_sub(since) < BELIEVED.as_secs())
}

const BELIEVED: Duration = Duration::from_secs(30 * 24 * 3600);
const MOST: usize = 1000;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lessons_are_found_for_a_month_and_the_last_word_holds() {
        let directory = std::env::temp_dir().join(format!("ssm-proxy-memory-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let memory = Memory::at(directory.join("lanes"));
        let (old, new) = (Lessons::parse("max_session=1800"), Lessons::parse("max_session=600 limit=1024"));
        assert_eq!(memory.find("i-1:742", 0), Lessons::default());
        memory.remember("i-1:742", &old, 1000).unwrap();
        memory.remember("i-2:742", &old, 1000).unwrap();
        memory.remember("i-1:742", &new, 2000).unwrap();

        assert_eq!(memory.find("i-1:742", 2000), new);
        assert_eq!(memory.find("i-2:742", 2000), old);
        let month = BELIEVED.as_secs();
        assert_eq!(memory.find("i-1:742", 1999 + month), new);
        assert_eq!(memory.find("i-1:742", 2000 + month), Lessons::default());
        let text = fs::read_to_string(directory.join("lanes")).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn of_sessions_that_learn_at_once_no_lesson_is_lost() {
        let directory = std::env::temp_dir().join(format!("ssm-proxy-memory-race-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let at_once = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for session in 0..8 {
                let (directory, at_once) = (&directory, &at_once);
                scope.spawn(move || {
                    let memory = Memory::at(directory.join("lanes"));
                    at_once.wait();
                    for seconds in 1..=20 {
                        let lessons = Lessons::parse(&format!("max_session={}", 60 * seconds));
                        memory.remember(&format!("i-{session}"), &lessons, 1000).unwrap();
                    }
                });
            }
        });
        let memory = Memory::at(directory.join("lanes"));
        for session in 0..8 {
            assert_eq!(memory.find(&format!("i-{session}"), 1000), Lessons::parse("max_session=1200"));
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
