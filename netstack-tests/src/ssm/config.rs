//! Pure: what is fixed for a simulator's life.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::dial::{self, Dial};
use super::faults::Knobs;

/// What is fixed for a simulator's life.
#[derive(Clone)]
pub struct Config {
    pub listen: SocketAddr,
    /// The host clients are told, when it is not the one listened on.
    pub advertise: Option<String>,
    pub tls: bool,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    pub session_token: Option<String>,
    /// The first part of session ids.
    pub caller: String,
    pub instances: Vec<Instance>,
    pub documents: Vec<Document>,
    /// How the SSM agent reaches its targets, unless an instance says otherwise.
    pub dial: Dial,
    pub knobs: Knobs,
    pub seed: u64,
    /// Violations are recorded, but sessions go on.
    pub lenient: bool,
    /// Websocket upgrades without a signature pass, as they did at the real service.
    pub unsigned_upgrades: bool,
    /// Runs first on the simulator's thread, to enter another network namespace for example: all
    /// its sockets are then made there.
    pub on_thread: Option<Arc<dyn Fn() -> io::Result<()> + Send + Sync>>,
}

impl Config {
    /// With the knobs for tests of bytes: no delay, no pacing.
    pub fn fast() -> Self {
        Self { knobs: Knobs::fast(), ..Self::default() }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            tls: false,
            region: "eu-central-1".to_owned(),
            access_key: "AKIASIMULATED0000001".to_owned(),
            secret_key: "simulated/secret+key/0000000000000000001".to_owned(),
            session_token: None,
            caller: "simulated-user".to_owned(),
            instances: vec![Instance::named("i-0123456789abcdef0", "simulated")],
            documents: vec![Document::start_ssh()],
            dial: dial::to_localhost(),
            knobs: Knobs::default(),
            seed: 1,
            lenient: false,
            unsigned_upgrades: false,
            on_thread: None,
        }
    }
}

/// A managed instance.
#[derive(Clone)]
pub struct Instance {
    pub id: String,
    pub tags: Vec<(String, String)>,
    /// Otherwise StartSession answers TargetNotConnected.
    pub online: bool,
    pub agent_version: String,
    pub dial: Option<Dial>,
}

impl Instance {
    pub fn named(id: &str, name: &str) -> Self {
        let tags = vec![("Name".to_owned(), name.to_owned())];
        Self { id: id.to_owned(), tags, online: true, agent_version: "3.3.987.0".to_owned(), dial: None }
    }
}

/// A session document of type Port with the one parameter `portNumber`.
#[derive(Clone, Debug)]
pub struct Document {
    pub name: String,
    pub default_port: u16,
    /// None: any port.
    pub allowed_ports: Option<Vec<u16>>,
}

impl Document {
    pub fn start_ssh() -> Self {
        Self { name: "AWS-StartSSHSession".to_owned(), default_port: 22, allowed_ports: None }
    }

    /// A custom document that pins one port.
    pub fn pinned(name: &str, port: u16) -> Self {
        Self { name: name.to_owned(), default_port: port, allowed_ports: Some(vec![port]) }
    }

    pub(crate) fn allows(&self, port: u16) -> bool {
        self.allowed_ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }
}
