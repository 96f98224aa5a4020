//! The AWS SDK's HTTP client over our own connections, so that marks, proxy and certificates hold
//! for API calls as for websockets. One connection per call: calls are rare.

use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::connect::{Network, Stream};

/// Hands the SDK connections of a [`Network`].
#[derive(Clone)]
pub struct SdkHttp(Network);

impl SdkHttp {
    pub fn new(network: Network) -> Self {
        Self(network)
    }
}

impl std::fmt::Debug for SdkHttp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SdkHttp")
    }
}

impl HttpClient for SdkHttp {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(Caller {
            http: self.clone(),
            connect_timeout: settings.connect_timeout().unwrap_or(CONNECT_TIMEOUT),
            read_timeout: settings.read_timeout().unwrap_or(READ_TIMEOUT),
        })
    }
}

#[derive(Clone, Debug)]
struct Caller {
    http: SdkHttp,
    connect_timeout: Duration,
    read_timeout: Duration,
}

impl HttpConnector for Caller {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let caller = self.clone();
        HttpConnectorFuture::new(async move { caller.exchange(request).await })
    }
}

impl Caller {
    async fn exchange(self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let call = Call::translate(&request)?;
        let connecting = self.http.0.connect(&call.host, call.port, call.secure);
        let stream = match timeout(self.connect_timeout, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.is_permanent() => return Err(user(error)),
            Ok(Err(error)) => return Err(ConnectorError::io(error.into()).never_connected()),
            Err(elapsed) => return Err(ConnectorError::timeout(elapsed.into()).never_connected()),
        };
        let _wait = self.http.0.wait_for(format!("the answer of {}", call.host));
        match timeout(self.read_timeout, converse(stream, call.request)).await {
            Ok(result) => result,
            Err(elapsed) => Err(ConnectorError::timeout(elapsed.into())),
        }
    }
}

/// The SDK's request as hyper's, and where it goes.
struct Call {
    request: Request<Full<Bytes>>,
    host: String,
    port: u16,
    secure: bool,
}

impl Call {
    fn translate(from: &HttpRequest) -> Result<Self, ConnectorError> {
        let uri: Uri = from.uri().parse().map_err(|error: hyper::http::uri::InvalidUri| user(error))?;
        let secure = uri.scheme_str() == Some("https");
        let authority = uri.authority().ok_or_else(|| user("the endpoint has no host"))?;
        let body = from.body().bytes().ok_or_else(|| user("the request's body is a stream"))?;

        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder().method(from.method()).uri(path);
        for (name, value) in from.headers() {
            request = request.header(name, value);
        }
        let mut request = request.body(Full::new(Bytes::copy_from_slice(body))).map_err(user)?;
        if !request.headers().contains_key(HOST) {
            let value = HeaderValue::from_str(authority.as_str()).map_err(user)?;
            request.headers_mut().insert(HOST, value);
        }
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Ok(Self { request, host, port, secure })
    }
}

async fn converse(stream: Stream, request: Request<Full<Bytes>>) -> Result<HttpResponse, ConnectorError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(io)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(ConnectorError::io)?.to_bytes();
        let status = StatusCode::try_from(parts.status.as_u16()).map_err(user)?;
        let mut translated = HttpResponse::new(status, SdkBody::from(body));
        for (name, value) in &parts.headers {
            if let Ok(value) = value.to_str() {
                translated.headers_mut().append(name.as_str().to_owned(), value.to_owned());
            }
        }
        Ok(translated)
    };
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        // The connection may end once it has handed over the whole answer.
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(io(error)),
        },
    }
}

fn io(error: hyper::Error) -> ConnectorError {
    ConnectorError::io(error.into())
}

fn user(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ConnectorError {
    ConnectorError::user(error.into())
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// Of one answer; a page of instances has some 100 KB.
const MAX_BODY: usize = 8 << 20;
