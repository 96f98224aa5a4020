//! The rules of the layout that no compiler keeps, read off the sources.
//!
//! A file is pure if its doc begins with `Pure:`, or if it stands below a pure module and does not say `Driver:`.
//! Everything here looks at code alone: comments, the insides of literals and tests are taken out first.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

#[test]
fn pure_files_do_no_io_and_know_no_clock_and_no_system() {
    let sources = &*SOURCES;
    let mut faults = String::new();
    for file in sources.files.iter().filter(|file| sources.is_pure(file)) {
        for (rule, found) in PURE_RULES {
            file.report(&mut faults, rule, found);
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn the_deciding_parts_are_pure() {
    let sources = &*SOURCES;
    for part in ALWAYS_PURE {
        let mut files = sources.files.iter().filter(|file| file.path.starts_with(part)).peekable();
        assert!(files.peek().is_some(), "{part}* is gone: mend the list in this test");
        for file in files {
            assert!(
                sources.is_pure(file),
                "{}: its doc begins neither with `Pure:` nor does that of a module above",
                file.path
            );
        }
    }
}

#[test]
fn only_os_knows_which_system_it_runs_on() {
    let mut faults = String::new();
    for file in SOURCES.product().filter(|file| !file.path.starts_with("src/os/")) {
        if !KNOW_THE_SYSTEM.contains(&file.path.as_str()) {
            file.report(&mut faults, "the system is asked for outside src/os", asks_for_the_system);
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn unsafe_stands_in_os_alone_and_says_why_it_is_sound() {
    let mut faults = String::new();
    for file in &SOURCES.files {
        for (number, line) in file.code.lines().enumerate().filter(|(_, line)| has_word(line, "unsafe")) {
            if !file.path.starts_with("src/os/") {
                let _ = writeln!(faults, "{}:{}: unsafe outside src/os: {line}", file.path, number + 1);
            } else if !file.is_reasoned(number) {
                let _ =
                    writeln!(faults, "{}:{}: unsafe without a SAFETY: comment above", file.path, number + 1);
            }
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn only_the_printers_print() {
    let mut faults = String::new();
    for file in SOURCES.product().filter(|file| !PRINTERS.contains(&file.path.as_str())) {
        file.report(&mut faults, "prints", |line| {
            ["print!", "println!", "eprint!", "eprintln!", "dbg!"].iter().any(|name| calls(line, name))
        });
    }
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn nothing_unwraps_outside_tests() {
    let mut faults = String::new();
    for file in &SOURCES.files {
        file.report(&mut faults, "unwraps", |line| line.contains(".unwrap()") || line.contains("::unwrap)"));
    }
    assert!(faults.is_empty(), "\n{faults}");
}

#[test]
fn comments_literals_and_tests_are_no_code() {
    let source = r##"//! Pure: tokio
use a; // tokio
/* tokio /* nested */ tokio */ let b = "tokio \" tokio"; let c = r#"tokio " tokio"#; let d = ('"', b'\'', 'x');
fn e<'a>(f: &'a str) {}
#[cfg(test)]
mod tests {
    fn g() { "}"; tokio }
}
fn h() {}
#[cfg(test)]
#[allow(dead_code)]
mod more;
#[cfg(test)]
pub(crate) fn i(j: &[u8; 2]) -> u8 { tokio }
fn k() {}
"##;

    let (code, test_modules) = code_of(source);

    assert!(!code.contains("tokio"), "{code}");
    for kept in
        ["use a;", "let b = ", "let c = ", "let d = ", "fn e<'a>(f: &'a str) {}", "fn h() {}", "fn k() {}"]
    {
        assert!(code.contains(kept), "{kept}: {code}");
    }
    assert_eq!(code.lines().count(), source.lines().count());
    assert_eq!(test_modules, ["more"]);
}

#[test]
fn every_rule_finds_what_it_is_for() {
    for line in [
        "use tokio::time;",
        "use tokio_tungstenite::Message;",
        "use std::net::{IpAddr, TcpStream};",
        "let s = std::net::UdpSocket::bind(a);",
        "TcpListener::bind(a)",
        "let t = Instant::now();",
        "map_or_else(Instant::now, f)",
        "#[cfg(target_os = \"\")]",
        "if cfg!(windows) {",
        "std::fs::read(p)",
        "use std::{fs, io};",
        "async fn f() {}",
        "std::thread::sleep(d)",
    ] {
        assert!(PURE_RULES.iter().any(|(_, found)| found(line)), "{line}");
    }
    for line in [
        "fn f(now: Instant) {}",
        "let refs = offset_of(tokios_cousin);",
        "self.now = now;",
        "let prefs::X = y;",
        "#[cfg(test)]",
    ] {
        assert!(!PURE_RULES.iter().any(|(_, found)| found(line)), "{line}");
    }
    assert!(calls("    println!(\"\")", "println!") && !calls("eprintln!(\"\")", "println!"));
}

static SOURCES: LazyLock<Sources> = LazyLock::new(|| Sources::read(PACKAGES));

/// Sources whose code is looked at; tests, benches and examples may do anything.
const PACKAGES: &[&str] = &["src", "agent/src", "netstack-tests/src"];

const ALWAYS_PURE: &[&str] = &[
    "src/netstack/",
    "agent/src/wire/",
    "src/ssm/message",
    "src/ssm/handshake",
    "src/ssm/channel",
    "src/config",
    "src/error.rs",
];

/// The agent runs on Linux alone, but its library is built everywhere: these choose between the real thing and
/// refusing.
const KNOW_THE_SYSTEM: &[&str] = &["agent/src/admission.rs", "agent/src/dial/system.rs"];
const PRINTERS: &[&str] = &["src/cli/print.rs", "agent/src/log.rs", "agent/src/flags.rs"];

type Rule = (&'static str, fn(&str) -> bool);

const PURE_RULES: &[Rule] = &[
    ("knows tokio", |line| words(line).any(|word| word == "tokio" || word.starts_with("tokio_"))),
    ("has sockets", |line| {
        ["TcpStream", "TcpListener", "UdpSocket", "UnixStream", "UnixListener", "UnixDatagram"]
            .iter()
            .any(|word| has_word(line, word))
    }),
    ("reads the clock", |line| {
        line.split("::now").skip(1).any(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    }),
    ("knows the system", asks_for_the_system),
    ("has files", |line| has_word(line, "fs") || line.contains("File::")),
    ("waits", |line| has_word(line, "async") || has_word(line, "sleep")),
];

fn asks_for_the_system(line: &str) -> bool {
    let asks = line.contains("cfg(") || line.contains("cfg!(") || line.contains("cfg_attr(");
    has_word(line, "target_os") || (asks && (has_word(line, "windows") || has_word(line, "target_family")))
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_'))
}

fn has_word(line: &str, wanted: &str) -> bool {
    words(line).any(|word| word == wanted)
}

/// Whether the macro `name`, with its exclamation mark, stands there by itself.
fn calls(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

struct Sources {
    files: Vec<Source>,
}

struct Source {
    /// From the workspace's root, with slashes.
    path: String,
    text: String,
    /// `text` without comments, insides of literals, and tests; line for line.
    code: String,
}

impl Sources {
    fn read(directories: &[&str]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut files = Vec::new();
        let mut tests = Vec::new();
        for directory in directories {
            for path in rust_files(&root.join(directory)) {
                let text = fs::read_to_string(&path).expect("a source file is readable");
                let path = path
                    .strip_prefix(&root)
                    .expect("below the root")
                    .to_str()
                    .expect("a path of text")
                    .to_owned();
                let (code, test_modules) = code_of(&text);
                let inside = module_directory(&path);
                tests.extend(test_modules.iter().map(|name| format!("{inside}{name}")));
                files.push(Source { path, text, code });
            }
        }
        files.retain(|file| !tests.iter().any(|test| is_module(&file.path, test)));
        assert!(files.len() > 10, "the sources are not where this test looks");
        Self { files }
    }

    /// What users run.
    fn product(&self) -> impl Iterator<Item = &Source> {
        self.files.iter().filter(|file| !file.path.starts_with("netstack-tests/"))
    }

    fn is_pure(&self, file: &Source) -> bool {
        let above = |above: &Source| {
            above.says("Pure:")
                && above.path != file.path
                && file.path.starts_with(&module_directory(&above.path))
        };
        file.says("Pure:") || (!file.says("Driver:") && self.files.iter().any(above))
    }
}

impl Source {
    /// Whether the module's doc begins with this label.
    fn says(&self, label: &str) -> bool {
        self.text.strip_prefix("//! ").is_some_and(|doc| doc.starts_with(label))
    }

    fn report(&self, faults: &mut String, rule: &str, found: impl Fn(&str) -> bool) {
        for (number, line) in self.code.lines().enumerate().filter(|(_, line)| found(line)) {
            let _ = writeln!(faults, "{}:{}: {rule}: {}", self.path, number + 1, line.trim());
        }
    }

    /// Whether a comment with `SAFETY:` (`# Safety` of an `unsafe fn`) stands on the line or, without a blank line
    /// between, above it.
    fn is_reasoned(&self, number: usize) -> bool {
        let lines: Vec<&str> = self.text.lines().take(number + 1).collect();
        let near = lines.iter().rev().take_while(|line| !line.trim().is_empty());
        near.take(10).any(|line| line.contains("// SAFETY:") || line.contains("/// # Safety"))
    }
}

/// Where the modules of this file are: `src/os/` for `src/os/mod.rs`, `src/os/tun/` for `src/os/tun.rs`.
fn module_directory(path: &str) -> String {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    let own = ["mod", "lib", "main"].iter().find_map(|name| stem.strip_suffix(name)?.strip_suffix('/'));
    format!("{}/", own.unwrap_or(stem))
}

/// Whether `path` is the module at `module` or below it.
fn is_module(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory of the project is readable") {
        let path = entry.expect("so is its entry").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The code alone, line for line, and the names of the modules in files of their own that are tests.
fn code_of(source: &str) -> (String, Vec<String>) {
    without_tests(&without_comments_and_literals(source))
}

fn without_comments_and_literals(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let after_word = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if !after_word && let Some(length) = raw_string(rest) {
            length
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' && is_character(rest) {
            quoted(rest, '\'')
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.push(' ');
        code.extend(rest[..length].chars().filter(|c| *c == '\n'));
        rest = &rest[length..];
    }
    code
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The length of `r"…"`, `br#"…"#` and the like.
fn raw_string(text: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"].iter().find(|prefix| {
        text.strip_prefix(**prefix).is_some_and(|rest| rest.trim_start_matches('#').starts_with('"'))
    })?;
    let hashes = text[prefix.len()..].bytes().take_while(|byte| *byte == b'#').count();
    let begin = prefix.len() + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text[begin..].find(&end).map_or(text.len(), |at| begin + at + end.len()))
}

/// The length of a literal between two `quote`s with escapes.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

/// A character, and no lifetime.
fn is_character(text: &str) -> bool {
    let mut inside = text.chars().skip(1);
    inside.next() == Some('\\') || inside.next() == Some('\'')
}

/// Blanks every item under `#[cfg(test)]`, from the attribute to its closing brace or semicolon.
fn without_tests(code: &str) -> (String, Vec<String>) {
    const TEST: &str = "#[cfg(test)]";
    let mut kept = String::with_capacity(code.len());
    let mut modules = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find(TEST) {
        let item = &rest[at + TEST.len()..];
        let length = item_length(item);
        let declared = item[..length].trim_end().strip_suffix(';').and_then(|item| item.rsplit_once("mod "));
        modules.extend(declared.map(|(_, name)| name.trim().to_owned()));
        kept.push_str(&rest[..at]);
        kept.extend(item[..length].chars().filter(|c| *c == '\n'));
        rest = &item[length..];
    }
    kept.push_str(rest);
    (kept, modules)
}

fn item_length(item: &str) -> usize {
    let mut depth = 0;
    for (at, c) in item.char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' | ')' | ']' => depth -= 1,
            ';' | ',' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}
