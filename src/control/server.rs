//! Driver: the session's end of the control socket.
//!
//! One JSON object per line each way. Only root and the session's owner are heard. What a peer sends
//! is bounded in length, number and time; whatever does not add up closes that connection and is counted.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::{Answer, Flow, Killed, Request, Status};

/// Who may use a session besides root: the user who started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// What a connection asks of the session.
#[derive(Debug)]
pub enum Ask {
    Status(oneshot::Sender<Status>),
    Flows(oneshot::Sender<Vec<Flow>>),
    /// Reset these flows.
    Kill(Vec<u64>, oneshot::Sender<Vec<Killed>>),
    /// End the session. Whoever asked waits until the [`Server`] is dropped.
    Down,
}

/// The way from the control socket to the session.
#[derive(Clone, Debug)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
}

impl Handle {
    /// The handle and the session's end of it, which must be read for as long as the session lives.
    pub fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, receiver) = mpsc::channel(MAX_ASKS);
        (Self { asks }, receiver)
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.asks.send(make(reply)).await.ok()?;
            answer.await.ok()
        };
        timeout(ANSWER_DEADLINE, asked).await.ok().flatten()
    }
}

/// A listening control socket. Dropping it ends all its connections and removes the socket; do so last, when
/// the session has undone everything: the end of its connection tells `down` that.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    task: JoinHandle<()>,
    rejected: Arc<AtomicU64>,
}

impl Server {
    /// Listens at `path`, in place of whatever is left there from a dead session. Needs a tokio runtime.
    pub fn start(path: &Path, owner: Owner, handle: Handle) -> anyhow::Result<Self> {
        let listener = bind(path, owner).with_context(|| format!("listen at {}", path.display()))?;
        let rejected = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(serve(listener, owner, handle, Arc::clone(&rejected)));
        Ok(Self { path: path.to_owned(), task, rejected })
    }

    /// How many connections were closed for what they sent or who they were.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        self.task.abort();
    }
}

const MAX_ASKS: usize = 16;
const MAX_CONNECTIONS: usize = 32;
const MAX_LINE: u64 = 64 * 1024;
const IDLE_DEADLINE: Duration = Duration::from_secs(30);
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a full table of descriptors keeps us from accepting again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

fn bind(path: &Path, owner: Owner) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    if let Err(error) = chown(path, Some(owner.uid), Some(owner.gid)) {
        // In a user namespace the caller's id may not exist; root can still use the socket.
        tracing::warn!(%error, uid = owner.uid, "cannot give the control socket to its user");
    }
    Ok(listener)
}

async fn serve(listener: UnixListener, owner: Owner, handle: Handle, rejected: Arc<AtomicU64>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = open.join_next(), if !open.is_empty() => {}
            accepted = listener.accept(), if open.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    open.spawn(connection(stream, owner, handle.clone(), Arc::clone(&rejected)));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control socket");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection(stream: UnixStream, owner: Owner, handle: Handle, rejected: Arc<AtomicU64>) {
    let mut stream = BufReader::new(stream);
    if let Err(fault) = converse(&mut stream, owner, &handle).await {
        rejected.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%fault, "closed a connection of the control socket");
        let _ = tell(&mut stream, &Answer::Error { message: fault.to_string() }).await;
    }
}

async fn converse(stream: &mut BufReader<UnixStream>, owner: Owner, handle: &Handle) -> anyhow::Result<()> {
    let peer = stream.get_ref().peer_cred().context("ask who the peer is")?.uid();
    anyhow::ensure!(peer == 0 || peer == owner.uid, "this session belongs to another user");
    while let Some(line) =
        timeout(IDLE_DEADLINE, next_line(stream)).await.context("no request for too long")??
    {
        let request = serde_json::from_slice(&line).context("not a request")?;
        let answer = match request {
            Request::Status => handle.ask(Ask::Status).await.map(|status| Answer::Status(Box::new(status))),
            Request::Flows => handle.ask(Ask::Flows).await.map(|flows| Answer::Flows { flows }),
            Request::Kill { flows } => {
                let killed = handle.ask(|reply| Ask::Kill(flows, reply)).await;
                killed.map(|flows| Answer::Killed { flows })
            }
            Request::Down => return down(stream, handle).await,
        };
        let answer = answer.unwrap_or_else(|| Answer::Error { message: BUSY.to_owned() });
        tell(stream, &answer).await?;
    }
    Ok(())
}

const BUSY: &str = "the session does not answer at the moment";

/// Says that the end has begun, then stays until the session is gone or the peer has left.
async fn down(stream: &mut BufReader<UnixStream>, handle: &Handle) -> anyhow::Result<()> {
    let told = timeout(ANSWER_DEADLINE, handle.asks.send(Ask::Down)).await;
    if told.is_err() {
        return tell(stream, &Answer::Error { message: BUSY.to_owned() }).await;
    }
    // A closed channel means that the end has already begun.
    tell(stream, &Answer::Ending).await?;
    let mut ignored = [0; 256];
    while stream.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
    Ok(())
}

/// One line without its end; `None` when the peer has closed.
async fn next_line(stream: &mut BufReader<UnixStream>) -> anyhow::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    stream.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if line.pop_if(|last| *last == b'\n').is_some() {
        return Ok(Some(line));
    }
    anyhow::ensure!(line.is_empty(), "a request longer than {MAX_LINE} bytes, or cut off");
    Ok(None)
}

async fn tell(stream: &mut BufReader<UnixStream>, answer: &Answer) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    timeout(WRITE_DEADLINE, stream.write_all(&line)).await.context("the peer does not read")??;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
pub(crate) mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::control::State;

    #[tokio::test]
    async fn answers_several_requests_on_one_connection() {
        let (dir, server, _session) = running();

        let mut peer = connect(&dir).await;
        let first = exchange(&mut peer, "{\"op\":\"status\"}\n").await;
        let second = exchange(&mut peer, "{\"op\":\"flows\"}\n").await;

        assert!(matches!(first, Answer::Status(status) if status.name == "t" && status.state == State::Up));
        assert!(matches!(second, Answer::Flows { flows } if flows.is_empty()));
        assert_eq!(server.rejected(), 0);
    }

    #[tokio::test]
    async fn garbage_closes_its_connection_and_no_other() {
        let (dir, server, _session) = running();
        let mut other = connect(&dir).await;
        let long = "x".repeat(MAX_LINE as usize + 1);

        for (n, garbage) in
            ["\n", "{}\n", "{\"op\":\"format\"}\n", "[[[[\n", "\u{0}\u{1}\n", &long].iter().enumerate()
        {
            let mut peer = connect(&dir).await;
            assert!(matches!(exchange(&mut peer, garbage).await, Answer::Error { .. }), "{n}");
            let mut rest = Vec::new();
            let _ = peer.read_to_end(&mut rest).await;
            assert!(rest.is_empty());
            assert_eq!(server.rejected(), n as u64 + 1);
        }

        assert!(matches!(exchange(&mut other, "{\"op\":\"status\"}\n").await, Answer::Status(_)));
    }

    #[tokio::test]
    async fn down_holds_the_connection_until_the_server_is_dropped() {
        let (dir, server, session) = running();
        let mut peer = connect(&dir).await;

        assert!(matches!(exchange(&mut peer, "{\"op\":\"down\"}\n").await, Answer::Ending));
        assert!(session.await.unwrap(), "the session was told");
        let mut byte = [0];
        let held = timeout(Duration::from_millis(50), peer.read(&mut byte)).await;
        drop(server);
        let ended = peer.read(&mut byte).await;

        assert!(held.is_err());
        assert_eq!(ended.unwrap(), 0);
        assert!(!dir.path().join("t.sock").exists());
    }

    #[tokio::test]
    async fn takes_the_place_of_a_dead_socket_and_belongs_to_its_user() {
        let dir = tempdir();
        let path = dir.path().join("t.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let me = owner();

        let _server = Server::start(&path, me, Handle::new().0).unwrap();

        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.uid()), (0o600, me.uid));
    }

    #[tokio::test]
    async fn a_session_that_is_gone_is_said_to_be_silent() {
        let dir = tempdir();
        let (handle, asks) = Handle::new();
        let _server = Server::start(&dir.path().join("t.sock"), owner(), handle).unwrap();
        drop(asks);

        let mut peer = connect(&dir).await;

        let answer = exchange(&mut peer, "{\"op\":\"status\"}\n").await;
        assert!(matches!(answer, Answer::Error { message } if message == BUSY));
    }

    /// A server and a session behind it that answers until it is asked to end.
    fn running() -> (Scratch, Server, JoinHandle<bool>) {
        let dir = tempdir();
        let (handle, mut asks) = Handle::new();
        let server = Server::start(&dir.path().join("t.sock"), owner(), handle).unwrap();
        let session = tokio::spawn(async move {
            while let Some(ask) = asks.recv().await {
                match ask {
                    Ask::Status(reply) => drop(reply.send(super::super::tests::status("t"))),
                    Ask::Flows(reply) => drop(reply.send(Vec::new())),
                    Ask::Kill(_, reply) => drop(reply.send(Vec::new())),
                    Ask::Down => return true,
                }
            }
            false
        });
        (dir, server, session)
    }

    async fn connect(dir: &Scratch) -> UnixStream {
        UnixStream::connect(dir.path().join("t.sock")).await.unwrap()
    }

    async fn exchange(peer: &mut UnixStream, request: &str) -> Answer {
        // The server may close before it has read all of a request that is too long.
        let _ = peer.write_all(request.as_bytes()).await;
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\n") && peer.read(&mut byte).await.unwrap() > 0 {
            line.push(byte[0]);
        }
        serde_json::from_slice(&line).unwrap()
    }

    fn owner() -> Owner {
        let process = rustix::process::geteuid();
        Owner { uid: process.as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// A directory of its own for one test, removed with it.
    pub(crate) struct Scratch(PathBuf);

    impl Scratch {
        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    pub(crate) fn tempdir() -> Scratch {
        let name = format!("ssm-proxy-test-{}-{:x}", std::process::id(), getrandom::u64().unwrap());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}
