//! The way to the agent: an SSM session or a TCP connection, and with which credentials.

use std::path::Path as FilePath;
use std::sync::Arc;

use agent::keys::{self, KeyError};
use agent::wire::hello::Psk;
use anyhow::anyhow;

use super::{Progress, explain};
use crate::config::{Plan, Via};
use crate::error::{Exit, UserError};
use crate::os::bypass;
use crate::os::identity;
use crate::ssm::api::{self, Api, ApiConfig};
use crate::ssm::connect::Network;
use crate::tunnel::lessons::Lessons;
use crate::tunnel::path::{Path, Sessions, SharedApi, SsmPath};

/// The way that all lanes of a session take.
pub(super) struct Way {
    pub(super) path: Path,
    /// As `up` names it: the instance with what is known of it, or `tcp://host:port`.
    pub(super) name: String,
    /// What the agent's key is pinned under.
    pub(super) place: String,
}

/// Makes the way; asks AWS for nothing but credentials, and for the instance where only a tag is known.
pub(super) async fn make(plan: &Plan, tell: &dyn Fn(Progress)) -> anyhow::Result<Way> {
    let instance = match &plan.via {
        Via::Tcp { addr, key_file } => {
            let psk = key_file.as_deref().map(read_key).transpose()?;
            tell(Progress::Warn(format!("the lane to tcp://{addr} is not encrypted")));
            let name = format!("tcp://{addr}");
            return Ok(Way { path: Path::Tcp { address: addr.clone(), psk }, place: name.clone(), name });
        }
        Via::Instance(id) => Some(id.clone()),
        Via::Tag { .. } => None,
    };
    let protect = Arc::new(|socket: &socket2::Socket| bypass::protect(socket));
    let ca_bundle = api::ca_bundle(plan.profile.as_deref());
    let network = Network::from_environment(protect, ca_bundle).map_err(|error| explain::network(&error))?;
    let config =
        ApiConfig { profile: plan.profile.clone(), region: plan.region.clone(), ..ApiConfig::new(network) };
    let told = |error| explain::api(&error);
    let api = Api::new(config).await.map_err(told)?;
    api.preflight().await.map_err(told)?;
    warn_of_dropped_variables(plan, tell);
    let instance = match (instance, &plan.via) {
        (Some(id), _) => id,
        (None, Via::Tag { key, value }) => find(&api, key, value).await?,
        (None, Via::Instance(_) | Via::Tcp { .. }) => return Err(anyhow!("no instance is named")),
    };
    let (name, place) =
        (format!("{instance} in {}", api.region()), format!("{instance}:{}", plan.agent_port));
    let path = SsmPath {
        api: SharedApi::new(api),
        runtime: tokio::runtime::Handle::current(),
        instance,
        document: plan.document.clone(),
        port: plan.agent_port,
        reason: format!("ssm-proxy {}", plan.name),
        sessions: Sessions::default(),
        lessons: Lessons::default(),
    };
    Ok(Way { path: Path::Ssm(path), name, place })
}

/// The default profile may be another account than the one the caller's shell means.
fn warn_of_dropped_variables(plan: &Plan, tell: &dyn Fn(Progress)) {
    if plan.profile.is_none()
        && let Some(command) = identity::dropped_environment_hint()
    {
        tell(Progress::Warn(format!("sudo dropped AWS variables of your shell; this keeps them: {command}")));
    }
}

async fn find(api: &Api, key: &str, value: &str) -> anyhow::Result<String> {
    let found = api.find_by_tag(key, value).await.map_err(|error| explain::api(&error))?;
    match found.as_slice() {
        [one] => Ok(one.instance_id.clone()),
        [] => Err(UserError::new(
            Exit::Unreachable,
            format!("no instance that SSM knows has the tag {key}={value}"),
        )
        .cause(format!("looked among the managed instances of region {}", api.region()))
        .hint(format!(
            "aws ssm describe-instance-information --region {} --filters Key=tag:{key},Values={value}",
            api.region()
        ))
        .into()),
        several => {
            let ids: Vec<&str> = several.iter().map(|info| info.instance_id.as_str()).collect();
            Err(UserError::new(Exit::Usage, format!("{} instances have the tag {key}={value}", ids.len()))
                .cause(ids.join(", "))
                .hint(format!("choose one: --instance {}", ids[0]))
                .into())
        }
    }
}

/// As the agent reads its own: a key that others may read is none.
fn read_key(file: &FilePath) -> Result<Psk, UserError> {
    keys::shared_key(file).map_err(|error| {
        let file = file.display();
        let told = |what| UserError::new(Exit::Usage, format!("the key file {file} {what}"));
        let unfit = told("cannot be used");
        match error {
            KeyError::Io { error, .. } => told("cannot be read").cause(error),
            KeyError::Open { mode, .. } => unfit
                .cause(format!("others may read it (mode {mode:04o})"))
                .hint(format!("chmod 600 {file}, and make a new key if others had access")),
            KeyError::Short { short, .. } => {
                unfit.cause(short).hint(format!("(umask 077; head -c 32 /dev/urandom | base64 > {file})"))
            }
            KeyError::NotAFile { .. } => unfit
                .cause("it is not a regular file")
                .hint("--key-file FILE with the file that the agent was given as its own --key-file"),
            KeyError::Damaged { .. } | KeyError::Entropy(_) => unfit.cause(error),
        }
    })
}
