//! The SSM API over HTTP/1.1, JSON 1.1: StartSession, ResumeSession, TerminateSession, DescribeSessions,
//! DescribeInstanceInformation.

#![expect(
    clippy::disallowed_methods,
    reason = "a driver: signatures and rates are checked against the clock"
)]

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::config::{Document, Instance};
use super::faults::ResumeAnswer;
use super::gateway::plain_headers;
use super::session::{Plan, Session};
use super::shared::Shared;
use super::signature::{SignatureFault, Signed, check_signature};

/// An API call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    StartSession,
    ResumeSession,
    TerminateSession,
    DescribeSessions,
    DescribeInstanceInformation,
}

/// An error of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiFailure {
    TargetNotConnected,
    InvalidDocument,
    AccessDenied,
    Throttling,
    ExpiredToken,
    UnrecognizedClient,
    DoesNotExist,
    InternalServerError,
    ServiceUnavailable,
}

impl Operation {
    fn from_target(target: &str) -> Option<Self> {
        Some(match target.strip_prefix("AmazonSSM.")? {
            "StartSession" => Self::StartSession,
            "ResumeSession" => Self::ResumeSession,
            "TerminateSession" => Self::TerminateSession,
            "DescribeSessions" => Self::DescribeSessions,
            "DescribeInstanceInformation" => Self::DescribeInstanceInformation,
            _ => return None,
        })
    }
}

/// An answer other than success: status, `__type`, message.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    kind: &'static str,
    message: String,
}

impl Failure {
    fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind, message: message.into() }
    }
}

impl From<ApiFailure> for Failure {
    fn from(failure: ApiFailure) -> Self {
        let failed = |kind, message: &str| Self::new(kind, message);
        match failure {
            ApiFailure::TargetNotConnected => failed("TargetNotConnected", "The target is not connected."),
            ApiFailure::InvalidDocument => failed("InvalidDocument", "The document does not exist."),
            ApiFailure::AccessDenied => failed(
                "AccessDeniedException",
                "User: arn:aws:iam::123456789012:user/simulated is not authorized to perform this action",
            ),
            ApiFailure::Throttling => failed("ThrottlingException", "Rate exceeded"),
            ApiFailure::ExpiredToken => {
                failed("ExpiredTokenException", "The security token included in the request is expired")
            }
            ApiFailure::UnrecognizedClient => failed(
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            ),
            ApiFailure::DoesNotExist => failed("DoesNotExistException", "The session does not exist."),
            ApiFailure::InternalServerError => {
                let failure = failed("InternalServerError", "An internal error occurred.");
                Self { status: StatusCode::INTERNAL_SERVER_ERROR, ..failure }
            }
            ApiFailure::ServiceUnavailable => {
                let failure = failed("ServiceUnavailable", "The service is unavailable.");
                Self { status: StatusCode::SERVICE_UNAVAILABLE, ..failure }
            }
        }
    }
}

/// Answers one API request.
pub(crate) async fn handle(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let answer = answer(shared, request).await;
    tokio::time::sleep(shared.knobs().api_delay).await;
    let (status, body) = match answer {
        Ok(body) => (StatusCode::OK, body),
        Err(Failure { status, kind, message }) => (status, json!({"__type": kind, "message": message})),
    };
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static("application/x-amz-json-1.1"));
    if let Ok(id) = shared.fork_rng().text(super::session::ALPHANUMERIC, 32).parse() {
        headers.insert("x-amzn-requestid", id);
    }
    response
}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Value, Failure> {
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, LARGEST_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Err(Failure::new("SerializationException", error.to_string())),
    };
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let headers = plain_headers(&parts.headers);
    let header = |name| headers.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| *value);
    if (&parts.method, path) != (&Method::POST, "/") {
        let text = format!("API request {} {path} is not POST /", parts.method);
        return Err(violation(shared, "UnknownOperationException", text));
    }
    let Some(operation) = Operation::from_target(header("x-amz-target")) else {
        let text = format!("X-Amz-Target {:?} is unknown to the simulator", header("x-amz-target"));
        return Err(violation(shared, "UnknownOperationException", text));
    };
    if header("content-type") != "application/x-amz-json-1.1" {
        let text = format!("the content type of {operation:?} is not application/x-amz-json-1.1");
        return Err(violation(shared, "SerializationException", text));
    }
    shared.called(operation);
    let method = parts.method.as_str();
    let signed = Signed { method, path_and_query: path, headers, body: &body };
    check_signed(shared, &signed, operation)?;
    if let Some(failure) = shared.scripted_failure(operation) {
        return Err(failure.into());
    }
    let body: Value = serde_json::from_slice(&body)
        .map_err(|error| violation(shared, "SerializationException", format!("{operation:?}: {error}")))?;
    match operation {
        Operation::StartSession => start(shared, &body),
        Operation::ResumeSession => resume(shared, &body),
        Operation::TerminateSession => terminate(shared, &body),
        Operation::DescribeSessions => describe_sessions(shared, &body),
        Operation::DescribeInstanceInformation => describe_instances(shared, &body),
    }
}

fn violation(shared: &Shared, kind: &'static str, text: String) -> Failure {
    shared.violated(&text);
    Failure::new(kind, text)
}

fn check_signed(shared: &Shared, signed: &Signed<'_>, operation: Operation) -> Result<(), Failure> {
    let accounts = shared.accounts();
    match check_signature(signed, "ssm", &shared.config.region, &accounts, SystemTime::now()) {
        Ok(()) => Ok(()),
        Err(SignatureFault::Missing) => {
            let text = format!("{operation:?} is not signed");
            Err(violation(shared, "MissingAuthenticationTokenException", text))
        }
        Err(SignatureFault::Wrong(text)) => {
            Err(violation(shared, "InvalidSignatureException", format!("{operation:?}: {text}")))
        }
        Err(SignatureFault::UnknownKey) => Err(ApiFailure::UnrecognizedClient.into()),
        Err(SignatureFault::Expired) => Err(ApiFailure::ExpiredToken.into()),
    }
}

fn start(shared: &Arc<Shared>, body: &Value) -> Result<Value, Failure> {
    only_members(shared, body, &["Target", "DocumentName", "Parameters", "Reason"])?;
    if !shared.may_start() {
        return Err(ApiFailure::Throttling.into());
    }
    let target = body["Target"].as_str().unwrap_or_default();
    if target.is_empty() || target.len() > 400 {
        return Err(violation(shared, "ValidationException", "Target is missing or too long".to_owned()));
    }
    let reason = body["Reason"].as_str().map(str::to_owned);
    if reason.as_ref().is_some_and(|reason| reason.is_empty() || reason.len() > 256) {
        return Err(violation(
            shared,
            "ValidationException",
            "Reason has not 1 to 256 characters".to_owned(),
        ));
    }
    let name = body["DocumentName"].as_str().unwrap_or("SSM-SessionManagerRunShell");
    let documents = &shared.config.documents;
    let document = documents.iter().find(|document| document.name == name);
    let document = document.ok_or_else(|| {
        Failure::new("InvalidDocument", format!("Document with name {name} does not exist."))
    })?;
    let port = port_number(shared, body, document)?;
    let instance = shared.instance(target).filter(|instance| instance.online);
    let instance =
        instance.ok_or_else(|| Failure::new("TargetNotConnected", format!("{target} is not connected.")))?;
    let dial = instance.dial.unwrap_or_else(|| shared.config.dial.clone());
    let plan = Plan { target: target.to_owned(), document: name.to_owned(), port, reason, dial };
    let session = shared.start_session(plan);
    let (token, path) = session.admit(false).ok_or(ApiFailure::InternalServerError)?;
    Ok(admission(shared, &session, &token, &path))
}

fn admission(shared: &Shared, session: &Session, token: &str, path: &str) -> Value {
    json!({"SessionId": session.id, "TokenValue": token, "StreamUrl": shared.stream_url(path)})
}

/// The `portNumber` a StartSession asks for, as the document allows it.
fn port_number(shared: &Shared, body: &Value, document: &Document) -> Result<u16, Failure> {
    if body["Parameters"].is_null() {
        return Ok(document.default_port);
    }
    let parameters = body["Parameters"]
        .as_object()
        .ok_or_else(|| violation(shared, "SerializationException", "Parameters is no map".to_owned()))?;
    for (name, value) in parameters {
        if name != "portNumber" {
            let text = format!("Parameter {name} is not defined in document {}", document.name);
            return Err(Failure::new("InvalidParameters", text));
        }
        if value.as_array().is_none_or(|list| list.len() != 1 || !list[0].is_string()) {
            let text = format!("parameter {name} is not a list of one string");
            return Err(violation(shared, "ValidationException", text));
        }
    }
    let Some(text) = parameters.get("portNumber").and_then(|list| list[0].as_str()) else {
        return Ok(document.default_port);
    };
    let port = text.parse().ok().filter(|port| document.allows(*port));
    port.ok_or_else(|| {
        let text = format!("Parameter portNumber with value {text} does not match its allowedPattern");
        Failure::new("InvalidParameters", text)
    })
}

fn resume(shared: &Arc<Shared>, body: &Value) -> Result<Value, Failure> {
    let session = named_session(shared, body)?;
    let answer = shared.knobs().resume;
    match answer {
        ResumeAnswer::Fail(failure) => Err(failure.into()),
        ResumeAnswer::WithoutToken => Ok(json!({"SessionId": session.id})),
        ResumeAnswer::Token => Ok(match session.admit(true) {
            Some((token, path)) => admission(shared, &session, &token, &path),
            None => json!({"SessionId": session.id}),
        }),
    }
}

fn terminate(shared: &Arc<Shared>, body: &Value) -> Result<Value, Failure> {
    let session = named_session(shared, body)?;
    session.end("TerminateSession", "");
    Ok(json!({"SessionId": session.id}))
}

fn named_session(shared: &Shared, body: &Value) -> Result<Arc<Session>, Failure> {
    only_members(shared, body, &["SessionId"])?;
    let id = body["SessionId"].as_str().unwrap_or_default();
    if id.is_empty() || id.len() > 96 {
        return Err(violation(shared, "ValidationException", "SessionId is missing or too long".to_owned()));
    }
    shared
        .session(id)
        .ok_or_else(|| Failure::new("DoesNotExistException", format!("Session {id} does not exist.")))
}

fn only_members(shared: &Shared, body: &Value, known: &[&str]) -> Result<(), Failure> {
    let Some(members) = body.as_object() else {
        return Err(violation(shared, "SerializationException", "the request is no JSON object".to_owned()));
    };
    match members.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => {
            let text = format!("the request has the unknown member {name}");
            Err(violation(shared, "SerializationException", text))
        }
        None => Ok(()),
    }
}

fn describe_sessions(shared: &Shared, body: &Value) -> Result<Value, Failure> {
    only_members(shared, body, &["State", "Filters", "MaxResults", "NextToken"])?;
    let wants_active = match body["State"].as_str() {
        Some("Active") => true,
        Some("History") => false,
        _ => return Err(violation(shared, "ValidationException", "State is Active or History".to_owned())),
    };
    let owner = format!("arn:aws:iam::123456789012:user/{}", shared.config.caller);
    let filters: Vec<(String, String)> = body["Filters"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|filter| (text(&filter["key"]), text(&filter["value"])))
        .collect();
    let infos = shared.sessions().into_iter().map(|session| session.info());
    let sessions: Vec<Value> = infos
        .filter(|info| info.ended.is_none() == wants_active)
        .filter(|info| {
            filters.iter().all(|(key, value)| match key.as_str() {
                "Target" => *value == info.target,
                "Owner" => *value == owner,
                "SessionId" => *value == info.id,
                _ => true,
            })
        })
        .map(|info| {
            json!({
                "SessionId": info.id, "Target": info.target, "DocumentName": info.document,
                "Status": if wants_active { "Connected" } else { "Terminated" },
                "StartDate": now_seconds() - info.age.as_secs_f64(),
                "Owner": owner, "Reason": info.reason,
            })
        })
        .collect();
    let (page, next) = page(&sessions, body)?;
    Ok(json!({"Sessions": page, "NextToken": next}))
}

fn describe_instances(shared: &Shared, body: &Value) -> Result<Value, Failure> {
    only_members(shared, body, &["InstanceInformationFilterList", "Filters", "MaxResults", "NextToken"])?;
    let mut filters = Vec::new();
    for (list, key, values) in
        [("Filters", "Key", "Values"), ("InstanceInformationFilterList", "key", "valueSet")]
    {
        for filter in body[list].as_array().into_iter().flatten() {
            let values: Vec<String> = filter[values].as_array().into_iter().flatten().map(text).collect();
            filters.push((text(&filter[key]), values));
        }
    }
    let mut found = Vec::new();
    for instance in shared.instances() {
        let mut fits = true;
        for (key, values) in &filters {
            fits &= instance.fits(key, values)?;
        }
        if fits {
            found.push(instance.describe());
        }
    }
    let (page, next) = page(&found, body)?;
    Ok(json!({"InstanceInformationList": page, "NextToken": next}))
}

impl Instance {
    fn fits(&self, key: &str, values: &[String]) -> Result<bool, Failure> {
        let one_of = |value: &str| values.iter().any(|wanted| wanted == value);
        if let Some(tag) = key.strip_prefix("tag:") {
            return Ok(self.tags.iter().any(|(name, value)| name == tag && one_of(value)));
        }
        match key {
            "tag-key" => Ok(self.tags.iter().any(|(name, _)| one_of(name))),
            "InstanceIds" => Ok(one_of(&self.id)),
            "PingStatus" => Ok(one_of(self.ping_status())),
            "PlatformTypes" => Ok(one_of("Linux")),
            "ResourceType" => Ok(one_of("EC2Instance")),
            _ => Err(Failure::new("InvalidFilterKey", format!("The filter key {key} is not valid."))),
        }
    }

    fn ping_status(&self) -> &'static str {
        if self.online { "Online" } else { "ConnectionLost" }
    }

    fn describe(&self) -> Value {
        let name = self.tags.iter().find(|(name, _)| name == "Name").map_or("", |(_, value)| value);
        json!({
            "InstanceId": self.id, "PingStatus": self.ping_status(), "LastPingDateTime": now_seconds(),
            "AgentVersion": self.agent_version, "IsLatestVersion": true, "PlatformType": "Linux",
            "PlatformName": "Amazon Linux", "PlatformVersion": "2023", "ResourceType": "EC2Instance",
            "IPAddress": "10.0.0.10", "ComputerName": format!("{name}.internal"),
        })
    }
}

/// The page of a list that `MaxResults` and `NextToken` ask for, and the token of the next one.
fn page(list: &[Value], body: &Value) -> Result<(Vec<Value>, Option<String>), Failure> {
    let from = match body["NextToken"].as_str() {
        None => 0,
        Some(token) => token
            .parse::<usize>()
            .map_err(|_| Failure::new("InvalidNextToken", "The specified token is not valid."))?,
    };
    let most = body["MaxResults"].as_u64().map_or(50, |most| most.clamp(1, 50)) as usize;
    let page: Vec<Value> = list.iter().skip(from).take(most).cloned().collect();
    let next = from.saturating_add(most);
    Ok((page, (next < list.len()).then(|| next.to_string())))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn now_seconds() -> f64 {
    super::session::now_ms() as f64 / 1000.0
}

const LARGEST_BODY: usize = 1 << 20;
