//! The real binaries, built once per test process.
//!
//! Cargo names a binary's path only to tests of its own package, so tests here ask cargo to build them
//! in their own profile and target directory; that takes no time when nothing changed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};

/// The client and the agent.
#[derive(Clone, Debug)]
pub struct Bins {
    pub client: PathBuf,
    pub agent: PathBuf,
}

/// The client, `ssm-proxy`.
pub fn ssm_proxy() -> PathBuf {
    built().client.clone()
}

/// The agent, `ssm-proxy-agent`.
pub fn agent() -> PathBuf {
    built().agent.clone()
}

/// The example `demo`.
pub fn demo() -> PathBuf {
    static DEMO: OnceLock<PathBuf> = OnceLock::new();
    let build =
        || built_by(&["-p", "ssm-proxy", "--example", "demo"]).and_then(|built| executable(&built, "demo"));
    DEMO.get_or_init(|| build().unwrap_or_else(|error| panic!("{error:#}"))).clone()
}

/// Builds client and agent, which may take minutes; cargo's own complaints go to stderr.
pub fn build() -> Result<Bins> {
    let built = built_by(&["-p", "ssm-proxy", "-p", "ssm-proxy-agent", "--bins"])?;
    Ok(Bins { client: executable(&built, "ssm-proxy")?, agent: executable(&built, "ssm-proxy-agent")? })
}

fn built() -> &'static Bins {
    static BINS: OnceLock<Bins> = OnceLock::new();
    BINS.get_or_init(|| build().unwrap_or_else(|error| panic!("{error:#}")))
}

/// Cargo's messages on what it built.
fn built_by(what: &[&str]) -> Result<String> {
    let output = cargo_build(what).output().context("cargo does not start (set CARGO to its path)")?;
    ensure!(output.status.success(), "cargo could not build the binaries");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn cargo_build(what: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args(["build", "--quiet", "--message-format=json-render-diagnostics"])
        .args(what)
        // Has no binary: named so that dependencies keep the features they have in this test's own build.
        .args(["-p", "netstack-tests"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_this_package) {
            cargo.env_remove(name);
        }
    }
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    if env::var_os("CARGO_TARGET_DIR").is_none()
        && let Some(dir) = own_target_dir()
    {
        cargo.arg("--target-dir").arg(dir);
    }
    cargo
}

/// Cargo tells the test about its package in variables; ring's build script is run anew whenever they change.
fn is_of_this_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
        .iter()
        .any(|prefix| variable.starts_with(prefix))
}

/// `<target>/<profile>/deps/<this test>` or `<target>/<profile>/examples/<this example>`.
fn own_target_dir() -> Option<PathBuf> {
    let exe = env::current_exe().ok()?;
    Some(exe.ancestors().nth(3)?.to_owned())
}

/// The path in cargo's message about the binary `name`.
fn executable(messages: &str, name: &str) -> Result<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo built no binary {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_path_of_the_named_binary_only() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"ssm-proxy"},"executable":null}"#,
            "\nnot json\n",
            r#"{"reason":"compiler-artifact","target":{"name":"ssm-proxy-agent"},"executable":"/t/agent"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"ssm-proxy"},"executable":"/t/client"}"#,
        );

        assert_eq!(executable(messages, "ssm-proxy").unwrap(), Path::new("/t/client"));
        assert_eq!(executable(messages, "ssm-proxy-agent").unwrap(), Path::new("/t/agent"));
        assert!(executable(messages, "other").is_err());
    }
}
