//! The calls to AWS: start, resume and end sessions, find instances; and the credentials for them.

#![expect(clippy::disallowed_methods, reason = "a driver: credentials and signatures need the wall clock")]

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::identity::IdentityCache;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_sdk_ssm::Client;
use aws_sdk_ssm::types::{InstanceInformation, InstanceInformationStringFilter};
use aws_types::service_config::ServiceConfigKey;
use tokio::time::timeout;

use super::api_error::{ApiError, Subject, Surroundings, classify};
use super::connect::Network;
use super::http::SdkHttp;
use super::key_source::KeySource;
use super::keys::Keys;
use super::profiles;
use super::stream_url::StreamUrl;
use super::upgrade::{UpgradeError, WebSocket, upgrade};

/// What the calls are made with; the rest comes from the environment and the AWS files.
#[derive(Clone)]
pub struct ApiConfig {
    /// Overrides `AWS_PROFILE`.
    pub profile: Option<String>,
    /// Overrides `AWS_REGION` and the profile's region.
    pub region: Option<String>,
    /// Overrides `AWS_ENDPOINT_URL` and all others.
    pub endpoint_url: Option<String>,
    /// Fixed credentials instead of the profile's: for tests.
    pub credentials: Option<Credentials>,
    pub network: Network,
}

impl ApiConfig {
    pub fn new(network: Network) -> Self {
        Self { profile: None, region: None, endpoint_url: None, credentials: None, network }
    }
}

/// The calls to AWS for one profile and region. Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    /// As it was asked for, to be read anew.
    wanted: ApiConfig,
    client: Client,
    config: SdkConfig,
    network: Network,
    region: String,
    surroundings: Surroundings,
    /// An endpoint override is in force, so gateways other than AWS's are in order.
    any_gateway: bool,
}

/// What opens one session's websocket. Neither token nor address has a `Debug`.
#[derive(Clone)]
pub struct SessionTicket {
    pub session_id: String,
    pub stream_url: StreamUrl,
    pub token: String,
}

impl fmt::Debug for SessionTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionTicket").field("session_id", &self.session_id).finish_non_exhaustive()
    }
}

/// One instance as Session Manager knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceInfo {
    pub instance_id: String,
    pub online: bool,
    /// `Online`, `ConnectionLost`, `Inactive`.
    pub ping_status: String,
    pub name: Option<String>,
    pub platform: Option<String>,
    pub address: Option<String>,
    pub agent_version: Option<String>,
}

/// What [`Api::preflight`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preflight {
    pub profile: String,
    pub region: String,
    /// None for keys that do not expire.
    pub credentials_expire: Option<SystemTime>,
}

impl Api {
    /// Reads environment and AWS files; asks nobody. An error names a missing region.
    pub async fn new(config: ApiConfig) -> Result<Self, ApiError> {
        let profile = config.profile.clone().or_else(|| variable("AWS_PROFILE"));
        let wanted = config.clone();
        let sdk = load(&config).await;
        let mut surroundings = surroundings(profile.unwrap_or_else(|| DEFAULT_PROFILE.to_owned()));
        let region = sdk.region().map(ToString::to_string).ok_or_else(|| surroundings.no_region())?;
        surroundings.region.clone_from(&region);
        Ok(Self(Arc::new(Inner {
            wanted,
            client: Client::new(&sdk),
            any_gateway: sdk.endpoint_url().is_some() || endpoint_override(&sdk).is_some(),
            config: sdk,
            network: config.network,
            region,
            surroundings,
        })))
    }

    /// The same with what the environment and the AWS files say now.
    pub async fn renewed(&self) -> Result<Self, ApiError> {
        Self::new(self.0.wanted.clone()).await
    }

    pub fn region(&self) -> &str {
        &self.0.region
    }

    /// Why a call takes long at this moment, as far as that is known.
    pub fn delay(&self) -> Option<String> {
        self.0.network.delay()
    }

    /// The hosts behind the calls, the websockets and the credentials.
    pub fn hosts(&self) -> Vec<String> {
        let region = &self.0.region;
        let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let mut hosts: Vec<String> =
            SERVICES.iter().map(|service| format!("{service}.{region}.{suffix}")).collect();
        let endpoints = [self.0.config.endpoint_url().map(str::to_owned), endpoint_override(&self.0.config)];
        hosts.extend(endpoints.into_iter().flatten().filter_map(|endpoint| {
            let uri: hyper::Uri = endpoint.parse().ok()?;
            Some(uri.host()?.to_owned())
        }));
        hosts
    }

    /// Resolves credentials, so that a missing or expired login shows before anything is changed.
    pub async fn preflight(&self) -> Result<Preflight, ApiError> {
        let credentials = self.credentials().await?;
        Ok(Preflight {
            profile: self.0.surroundings.profile.clone(),
            region: self.0.region.clone(),
            credentials_expire: credentials.expiry(),
        })
    }

    /// Starts a session of `document` on `target`.
    pub async fn start(
        &self,
        target: &str,
        document: &str,
        parameters: &[(&str, &str)],
        reason: Option<&str>,
    ) -> Result<SessionTicket, ApiError> {
        let action = "ssm:StartSession";
        let mut call = self.0.client.start_session().target(target).document_name(document);
        for (name, value) in parameters {
            call = call.parameters(*name, vec![(*value).to_owned()]);
        }
        let sent = call.set_reason(reason.map(str::to_owned)).send().await;
        let output = sent.map_err(|error| classify(&self.subject(action, target, document), &error))?;
        self.ticket(action, output.session_id, output.stream_url, output.token_value)
    }

    /// A new address and token for a session whose websocket is gone.
    pub async fn resume(&self, session_id: &str) -> Result<SessionTicket, ApiError> {
        let action = "ssm:ResumeSession";
        let sent = self.0.client.resume_session().session_id(session_id).send().await;
        let output = sent.map_err(|error| classify(&self.subject(action, session_id, ""), &error))?;
        if output.token_value.as_deref().unwrap_or_default().is_empty() {
            return Err(ApiError::SessionGone {
                message: "the service gives no token for it any more".to_owned(),
            });
        }
        let session_id = output.session_id.or_else(|| Some(session_id.to_owned()));
        self.ticket(action, session_id, output.stream_url, output.token_value)
    }

    /// Ends a session, whatever its state. Takes at most 3 s.
    pub async fn terminate(&self, session_id: &str) -> Result<(), ApiError> {
        let action = "ssm:TerminateSession";
        let call = self.0.client.terminate_session().session_id(session_id).send();
        match timeout(TERMINATE_TIMEOUT, call).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(classify(&self.subject(action, session_id, ""), &error)),
            Err(_) => Err(ApiError::Timeout { action }),
        }
    }

    /// The managed instances with a tag, online ones first.
    pub async fn find_by_tag(&self, key: &str, value: &str) -> Result<Vec<InstanceInfo>, ApiError> {
        self.find(&format!("tag:{key}"), value).await
    }

    /// What Session Manager knows of an instance; None if nothing.
    pub async fn find_by_id(&self, instance_id: &str) -> Result<Option<InstanceInfo>, ApiError> {
        Ok(self.find("InstanceIds", instance_id).await?.into_iter().next())
    }

    /// Opens the websocket a ticket is for, signed with fresh credentials.
    pub async fn open_websocket(&self, url: &StreamUrl) -> Result<WebSocket, OpenError> {
        let credentials = self.credentials().await?;
        Ok(upgrade(&self.0.network, url, &credentials, &self.0.region, SystemTime::now()).await?)
    }

    async fn find(&self, filter: &str, value: &str) -> Result<Vec<InstanceInfo>, ApiError> {
        let action = "ssm:DescribeInstanceInformation";
        let failed = |message: String| ApiError::Other { action, message };
        let filter = InstanceInformationStringFilter::builder().key(filter).values(value).build();
        let filter = filter.map_err(|error| failed(error.to_string()))?;
        let call = self.0.client.describe_instance_information().filters(filter).max_results(PAGE_SIZE);
        let mut pages = call.into_paginator().send();
        let mut found = Vec::new();
        for _ in 0..MAX_PAGES {
            let Some(page) = pages.next().await else { break };
            let page = page.map_err(|error| classify(&self.subject(action, value, ""), &error))?;
            found.extend(page.instance_information_list.unwrap_or_default().into_iter().filter_map(instance));
        }
        found.sort_by(|a, b| (!a.online, &a.instance_id).cmp(&(!b.online, &b.instance_id)));
        Ok(found)
    }

    async fn credentials(&self) -> Result<Credentials, ApiError> {
        let surroundings = &self.0.surroundings;
        let Some(keys) = self.0.config.credentials_provider() else {
            return Err(surroundings.credentials(&NoProvider));
        };
        match keys.provide_credentials().await {
            Ok(found) => Ok(found),
            Err(CredentialsError::ProviderTimedOut(_)) => {
                Err(ApiError::Timeout { action: "looking for credentials" })
            }
            Err(error) => Err(surroundings.credentials(&error)),
        }
    }

    fn ticket(
        &self,
        action: &'static str,
        session_id: Option<String>,
        stream_url: Option<String>,
        token: Option<String>,
    ) -> Result<SessionTicket, ApiError> {
        let missing = |what: &str| ApiError::BadAnswer { action, message: format!("it has no {what}") };
        let session_id = session_id.ok_or_else(|| missing("SessionId"))?;
        let stream_url = stream_url.ok_or_else(|| missing("StreamUrl"))?;
        let token = token.filter(|token| !token.is_empty()).ok_or_else(|| missing("TokenValue"))?;
        let stream_url = StreamUrl::parse(&stream_url, self.0.any_gateway)
            .map_err(|error| ApiError::BadAnswer { action, message: error.to_string() })?;
        Ok(SessionTicket { session_id, stream_url, token })
    }

    fn subject<'a>(&'a self, action: &'static str, target: &'a str, document: &'a str) -> Subject<'a> {
        Subject { action, target, document, surroundings: &self.0.surroundings }
    }
}

/// Why a session's websocket did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
}

impl OpenError {
    /// What to try next.
    pub fn hint(&self) -> String {
        match self {
            Self::Api(error) => error.hint(),
            Self::Upgrade(error) => error.hint(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("nothing in the environment or the AWS files provides any")]
struct NoProvider;

async fn load(config: &ApiConfig) -> SdkConfig {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(15))
        .operation_attempt_timeout(Duration::from_secs(20))
        .operation_timeout(Duration::from_secs(45))
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(SdkHttp::new(config.network.clone()))
        // The keys keep themselves.
        .identity_cache(IdentityCache::no_cache())
        .retry_config(RetryConfig::standard().with_max_attempts(4))
        .timeout_config(timeouts);
    if let Some(profile) = &config.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(region) = &config.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(endpoint) = &config.endpoint_url {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(credentials) = &config.credentials {
        loader = loader.credentials_provider(credentials.clone());
    }
    let sdk = loader.load().await;
    let Some(source) = sdk.credentials_provider() else { return sdk };
    let keys = SharedCredentialsProvider::new(Keys::new(source));
    sdk.into_builder().credentials_provider(keys).build()
}

/// `AWS_ENDPOINT_URL_SSM`, `AWS_ENDPOINT_URL`, or either in the profile.
fn endpoint_override(config: &SdkConfig) -> Option<String> {
    let key =
        ServiceConfigKey::builder().service_id("SSM").env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
    config.service_config().zip(key.ok()).and_then(|(loader, key)| loader.load_config(key))
}

fn instance(info: InstanceInformation) -> Option<InstanceInfo> {
    let ping_status = info.ping_status.map(|status| status.as_str().to_owned()).unwrap_or_default();
    Some(InstanceInfo {
        instance_id: info.instance_id?,
        online: ping_status == "Online",
        ping_status,
        name: info.computer_name.or(info.name),
        platform: info.platform_name,
        address: info.ip_address,
        agent_version: info.agent_version,
    })
}

/// The certificates that a profile trusts beside the system's: `ca_bundle` in the config file.
pub fn ca_bundle(profile: Option<&str>) -> Option<PathBuf> {
    let named = profile.map(str::to_owned).or_else(|| variable("AWS_PROFILE"));
    let profile = named.unwrap_or_else(|| DEFAULT_PROFILE.to_owned());
    let config = config_file();
    let bundle = profiles::setting(&config, &profile, "ca_bundle").filter(|path| !path.is_empty());
    bundle.map(PathBuf::from)
}

/// What the environment and the files that the SDK reads say of a profile, but for its region.
fn surroundings(profile: String) -> Surroundings {
    let config = config_file();
    let credentials = aws_file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
    let in_environment =
        ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(variable).iter().all(Option::is_some);
    Surroundings {
        region: String::new(),
        profiles: profiles::names(&config, &credentials),
        with_mfa: profiles::with_mfa(&config),
        keys: KeySource::of(&profile, in_environment, &config, &credentials),
        profile,
    }
}

fn config_file() -> String {
    aws_file("AWS_CONFIG_FILE", ".aws/config")
}

/// A file of the AWS CLI, which is small; empty where there is none.
fn aws_file(name: &str, default: &str) -> String {
    let named = variable(name).map(PathBuf::from);
    let path = named.or_else(|| Some(PathBuf::from(variable("HOME")?).join(default)));
    path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

const DEFAULT_PROFILE: &str = "default";
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(3);
/// Those of a laptop: calls, websockets, assumed roles, sign-on.
const SERVICES: [&str; 5] = ["ssm", "ssmmessages", "sts", "oidc", "portal.sso"];
const PAGE_SIZE: i32 = 50;
const MAX_PAGES: usize = 20;
