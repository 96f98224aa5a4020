//! The message gateway's websocket for clients: who is let in, and the two loops that move messages.

#![expect(clippy::disallowed_methods, reason = "a driver: signatures are checked against the clock")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::Count;
use super::quiet::Quiet;
use super::session::{ClientConn, Mode, Session, ToClient};
use super::shared::Shared;
use super::signature::{SignatureFault, Signed, check_signature};
use super::verify::check_opening;

type Socket = WebSocketStream<Quiet<TokioIo<hyper::upgrade::Upgraded>>>;
type Sink = futures_util::stream::SplitSink<Socket, Message>;
type Stream = futures_util::stream::SplitStream<Socket>;

/// Answers a request for a data channel, with an upgrade when everything about it is right.
pub(crate) async fn upgrade(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    tokio::time::sleep(shared.knobs().hop_delay * 2).await;
    match admit(shared, &request) {
        Ok((session, accept)) => {
            let shared = Arc::clone(shared);
            let upgrading = hyper::upgrade::on(request);
            tokio::spawn(async move {
                if let Ok(upgraded) = upgrading.await {
                    let stream = Quiet::new(TokioIo::new(upgraded), shared);
                    let config = WebSocketConfig::default().write_buffer_size(64 * 1024);
                    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
                    serve(session, socket).await;
                }
            });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(UPGRADE, "websocket")
                .header(CONNECTION, "Upgrade")
                .header("sec-websocket-accept", accept)
                .body(Full::default())
                .unwrap_or_default()
        }
        Err(refusal) => {
            if refusal.is_violation {
                shared.violated(&refusal.text);
            }
            let mut response = Response::new(Full::from(refusal.text));
            *response.status_mut() = refusal.status;
            response
        }
    }
}

struct Refusal {
    status: StatusCode,
    text: String,
    is_violation: bool,
}

/// The session a request belongs to and the key that accepts the upgrade.
fn admit(shared: &Shared, request: &Request<Incoming>) -> Result<(Arc<Session>, String), Refusal> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let headers = request.headers();
    let accept = accept_key(headers).map_err(|text| Refusal::violation(StatusCode::BAD_REQUEST, text))?;
    check_signed(shared, path, headers)?;
    let id = request.uri().path().strip_prefix("/v1/data-channel/").unwrap_or_default();
    let Some(session) = shared.session(id) else {
        let text = format!("websocket for the unknown session {id:?}");
        return Err(Refusal::violation(StatusCode::NOT_FOUND, text));
    };
    if session.has_ended() {
        let text = "Session is already terminated".to_owned();
        return Err(Refusal { status: StatusCode::FORBIDDEN, text, is_violation: false });
    }
    if session.current_path() != path {
        let text = format!(
            "session {id}: the StreamUrl {path} is stale or was changed, its cell-number is not current"
        );
        return Err(Refusal::violation(StatusCode::BAD_REQUEST, text));
    }
    Ok((session, accept))
}

impl Refusal {
    fn violation(status: StatusCode, text: String) -> Self {
        Self { status, text, is_violation: true }
    }
}

fn accept_key(headers: &HeaderMap) -> Result<String, String> {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !value("upgrade").eq_ignore_ascii_case("websocket")
        || !value("connection").to_ascii_lowercase().contains("upgrade")
        || value("sec-websocket-version") != "13"
    {
        return Err("a data channel request is not a websocket upgrade of version 13".to_owned());
    }
    for name in ["sec-websocket-protocol", "sec-websocket-extensions"] {
        if headers.contains_key(name) {
            return Err(format!("a data channel request offers {name}, official clients do not"));
        }
    }
    match value("sec-websocket-key") {
        "" => Err("a data channel request has no Sec-WebSocket-Key".to_owned()),
        key => Ok(derive_accept_key(key.as_bytes())),
    }
}

fn check_signed(shared: &Shared, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let headers = plain_headers(headers);
    let signed = Signed { method: "GET", path_and_query: path, headers, body: b"" };
    let accounts = shared.accounts();
    let region = &shared.config.region;
    match check_signature(&signed, "ssmmessages", region, &accounts, SystemTime::now()) {
        Ok(()) => Ok(()),
        Err(SignatureFault::Missing) if shared.config.unsigned_upgrades => Ok(()),
        Err(SignatureFault::Missing) => {
            Err(Refusal::violation(StatusCode::FORBIDDEN, "the websocket upgrade is not signed".to_owned()))
        }
        Err(SignatureFault::Wrong(text)) => {
            Err(Refusal::violation(StatusCode::FORBIDDEN, format!("websocket upgrade: {text}")))
        }
        Err(SignatureFault::UnknownKey | SignatureFault::Expired) => {
            let text = "The security token included in the request is invalid or expired".to_owned();
            Err(Refusal { status: StatusCode::FORBIDDEN, text, is_violation: false })
        }
    }
}

pub(crate) fn plain_headers(headers: &HeaderMap) -> Vec<(&str, &str)> {
    headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))).collect()
}

/// One client websocket from its first text frame to its end.
async fn serve(session: Arc<Session>, socket: Socket) {
    let (mut sink, mut stream) = socket.split();
    let deadline = session.shared.knobs().open_deadline;
    let first = tokio::time::timeout(deadline, stream.next()).await;
    let opening = match first {
        Ok(Some(Ok(Message::Text(text)))) => check_opening(&text),
        Ok(Some(Ok(_))) => Err("the first websocket message is not the text frame".to_owned()),
        Ok(Some(Err(_)) | None) => return,
        Err(_) => Err("the first text frame did not come in time".to_owned()),
    };
    let opened = match opening {
        Ok(opening) => session.open_client(&opening),
        Err(text) => Err(super::session::Rejection { text, is_violation: true }),
    };
    match opened {
        Ok(conn) => {
            let mode = conn.mode.subscribe();
            tokio::spawn(write(Arc::clone(&conn), sink, mode.clone()));
            read(&session, &conn, stream, mode).await;
            session.client_gone(&conn);
        }
        Err(rejection) => {
            if rejection.is_violation {
                session.violated(&rejection.text);
            }
            let _ = sink.send(close_message(1008, &rejection.text)).await;
            // The client's close frame, or its patience, ends the connection.
            let _ = tokio::time::timeout(CLOSE_WAIT, drain(&mut stream)).await;
        }
    }
}

async fn drain(stream: &mut Stream) {
    while let Some(Ok(_)) = stream.next().await {}
}

async fn read(
    session: &Arc<Session>,
    conn: &Arc<ClientConn>,
    mut stream: Stream,
    mut mode: watch::Receiver<Mode>,
) {
    loop {
        let item = tokio::select! {
            biased;
            () = left(&mut mode, Mode::Open) => None,
            item = stream.next() => Some(item),
        };
        let Some(item) = item else {
            // The stream must live, unread, until the connection may go.
            return left(&mut mode, Mode::BlackHole).await;
        };
        let violation = match item {
            Some(Ok(Message::Binary(bytes))) => {
                let knobs = session.shared.knobs();
                if bytes.len() > knobs.max_message {
                    session.count(Count::TooBig);
                    if knobs.max_message_silent {
                        return conn.kill();
                    }
                    conn.close_with(1009, "message too big", super::parcel::Transit::default());
                    continue;
                }
                session.take_from_client(conn, bytes).await.err()
            }
            Some(Ok(Message::Text(_))) => Some("a text message after the first one".to_owned()),
            Some(Ok(Message::Ping(_))) => {
                session.count(Count::Pings);
                None
            }
            Some(Ok(Message::Pong(_) | Message::Close(_) | Message::Frame(_))) => None,
            Some(Err(error)) => {
                if let Some(text) = fault_of(&error) {
                    session.violated(&text);
                }
                return;
            }
            None => return,
        };
        if let Some(text) = violation {
            session.violated(&text);
            if !session.shared.config.lenient {
                conn.close_with(1008, &text, super::parcel::Transit::default());
            }
        }
    }
}

/// What is the client's fault in a websocket error; a lost connection is not.
fn fault_of(error: &Error) -> Option<String> {
    let is_loss = matches!(
        error,
        Error::ConnectionClosed
            | Error::AlreadyClosed
            | Error::Io(_)
            | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake | ProtocolError::SendAfterClosing)
    );
    (!is_loss).then(|| format!("websocket: {error}"))
}

async fn write(conn: Arc<ClientConn>, mut sink: Sink, mut mode: watch::Receiver<Mode>) {
    let ended = tokio::select! {
        biased;
        () = left(&mut mode, Mode::Open) => false,
        written = write_all(&conn, &mut sink) => {
            // A close frame was sent: the client answers it, and the reader then ends the connection.
            written.is_ok()
        }
    };
    if ended {
        let _ = tokio::time::timeout(CLOSE_WAIT, left(&mut mode, Mode::Open)).await;
        conn.mode.send_replace(Mode::Killed);
    } else {
        left(&mut mode, Mode::BlackHole).await;
    }
}

/// Waits until the connection has gone beyond this mode; modes only go forward.
async fn left(mode: &mut watch::Receiver<Mode>, former: Mode) {
    // An error means that the connection is gone.
    let _ = mode.wait_for(|mode| *mode > former).await;
}

async fn write_all(conn: &ClientConn, sink: &mut Sink) -> Result<(), Error> {
    while let Some(item) = conn.down.recv().await {
        match item {
            ToClient::Parcel(parcel) => sink.feed(Message::Binary(parcel.bytes)).await?,
            ToClient::Text(text) => sink.feed(Message::text(text)).await?,
            ToClient::Close { code, reason } => return sink.send(close_message(code, &reason)).await,
        }
        if conn.down.is_quiet() {
            sink.flush().await?;
        }
    }
    Ok(())
}

fn close_message(code: u16, reason: &str) -> Message {
    // A close frame's reason is at most 123 bytes.
    let reason: String = reason.chars().filter(char::is_ascii).take(120).collect();
    Message::Close(Some(CloseFrame { code: CloseCode::from(code), reason: reason.into() }))
}

const CLOSE_WAIT: Duration = Duration::from_secs(2);
