//! From a StreamUrl to a websocket: connect, sign the upgrade, exchange it.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::connect::{ConnectError, Network, Stream};
use super::stream_url::StreamUrl;

/// A websocket to the gateway.
pub type WebSocket = WebSocketStream<Stream>;

/// Opens the websocket of a session. `time` is the wall clock, for the signature.
pub async fn upgrade(
    network: &Network,
    url: &StreamUrl,
    credentials: &Credentials,
    region: &str,
    time: SystemTime,
) -> Result<WebSocket, UpgradeError> {
    let mut request = url.uri.clone().into_client_request().map_err(|_| UpgradeError::NotAUrl)?;
    if !url.is_signed() {
        sign_request(&mut request, credentials, region, time)?;
    }
    let stream = network.connect(&url.host, url.port, url.secure).await?;
    let exchange = client_async_with_config(request, stream, Some(websocket_config()));
    match timeout(UPGRADE_TIMEOUT, exchange).await {
        Ok(Ok((websocket, _))) => Ok(websocket),
        Ok(Err(tungstenite::Error::Http(response))) => {
            let body = response.body().as_deref().unwrap_or_default();
            let reason = String::from_utf8_lossy(&body[..body.len().min(MAX_REASON)]).trim().to_owned();
            Err(UpgradeError::Refused { status: response.status().as_u16(), reason })
        }
        Ok(Err(error)) => Err(UpgradeError::Broken(error.to_string())),
        Err(_) => Err(UpgradeError::Timeout),
    }
}

/// Why there is no websocket.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the service's StreamUrl is not a URL")]
    NotAUrl,
    #[error("the websocket request could not be signed: {0}")]
    Sign(String),
    #[error("the gateway refused the websocket with status {status}: {reason}")]
    Refused { status: u16, reason: String },
    #[error("the websocket's opening broke off: {0}")]
    Broken(String),
    #[error("the gateway did not answer the websocket's opening in time")]
    Timeout,
}

impl UpgradeError {
    /// What to try next.
    pub fn hint(&self) -> String {
        match self {
            Self::Connect(error) => error.hint(),
            Self::Refused { status: 401 | 403, .. } => {
                "check that the caller may ssmmessages:OpenDataChannel, and this machine's clock".to_owned()
            }
            Self::NotAUrl | Self::Sign(_) | Self::Refused { .. } | Self::Broken(_) | Self::Timeout => {
                "try again; if a proxy stands between, check that it lets websockets to ssmmessages pass"
                    .to_owned()
            }
        }
    }
}

fn sign_request(
    request: &mut Request,
    credentials: &Credentials,
    region: &str,
    time: SystemTime,
) -> Result<(), UpgradeError> {
    let failed = |error: &dyn std::fmt::Display| UpgradeError::Sign(error.to_string());
    let identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("ssmmessages")
        .time(time)
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| failed(&error))?;
    let host =
        request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let uri = request.uri().to_string();
    // Signed as the HTTP request that it is.
    let uri = uri.strip_prefix("ws").map_or_else(|| uri.clone(), |rest| format!("http{rest}"));
    let headers = [("host", host.as_str())];
    let signable = SignableRequest::new("GET", uri, headers.into_iter(), SignableBody::Bytes(&[]))
        .map_err(|error| failed(&error))?;
    let (instructions, _) = sign(signable, &params.into()).map_err(|error| failed(&error))?.into_parts();
    for (name, value) in instructions.headers() {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| failed(&error))?;
        let mut value = HeaderValue::from_str(value).map_err(|error| failed(&error))?;
        value.set_sensitive(true);
        request.headers_mut().insert(name, value);
    }
    Ok(())
}

fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(32 << 10)
        .write_buffer_size(32 << 10)
        .max_write_buffer_size(MAX_MESSAGE * 2)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

/// Gateways send about a kilobyte.
const MAX_MESSAGE: usize = 1 << 20;
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_REASON: usize = 300;
