//! The mux against the `yamux` crate in both roles, and saturated over the smallest pipes.
//!
//! `SSM_PROXY_LONG=1` makes each saturation ten minutes instead of twenty seconds.
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, Instant};

use agent::wire::mux::{Mux, MuxConfig, MuxFault, MuxFull, Role, StreamId, Streams, Token};
use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

const ROLES: [Role; 2] = [Role::Client, Role::Agent];
const MEGABYTE: usize = 1 << 20;
/// What each stream's owner keeps of bytes that arrived, for the app to take.
const RING: usize = 512 << 10;
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn megabytes_both_ways_on_streams_of_both_sides() {
    for role in ROLES {
        run(async move {
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            let mut node = Node::new(MuxConfig::foreign(role), ours);
            let mine: Vec<usize> = (0..4).map(|_| node.open(Job::Send { left: 2 * MEGABYTE })).collect();
            let mut peer = Peer::new(theirs, role);
            let opened = peer.open(4).await;
            let theirs = join_all(opened.into_iter().map(|stream| exchange(stream, 2 * MEGABYTE)));
            tokio::spawn(peer.serve(echo));

            let mut theirs = pin!(theirs);
            let mut theirs_done = false;
            poll_fn(|cx| {
                theirs_done = theirs_done || theirs.as_mut().poll(cx).is_ready();
                assert!(node.poll(cx).is_pending(), "the connection ended");
                let all = node.owner.flows.len() == 8 && node.owner.flows.iter().all(|flow| flow.is_closed);
                if theirs_done && all { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;

            for flow in mine {
                assert_eq!(node.owner.flows[flow].received, 2 * MEGABYTE as u64);
            }
            assert!(node.mux.is_empty());
            assert_eq!(node.mux.stats().violations, 0);
        });
    }
}

#[test]
fn a_half_closed_stream_carries_the_answer() {
    for role in ROLES {
        run(async move {
            let (ours, theirs) = tokio::io::duplex(4096);
            let mut node = Node::new(MuxConfig::foreign(role), ours);
            let flow = node.open(Job::Send { left: 5000 });
            tokio::spawn(Peer::new(theirs, role).serve(|mut stream| async move {
                let mut request = Vec::new();
                stream.read_to_end(&mut request).await.expect("a request");
                assert_eq!(request.len(), 5000);
                stream.write_all(&pattern(0)[..70_000]).await.expect("half open");
                stream.shutdown().await.expect("half open");
            }));

            node.until(|node| node.owner.flows[flow].is_closed).await;

            assert_eq!(node.owner.flows[flow].received, 70_000);
        });
    }
}

#[test]
fn a_stream_that_the_crate_drops_is_reset() {
    for role in ROLES {
        run(async move {
            let (ours, theirs) = tokio::io::duplex(4096);
            let mut node = Node::new(MuxConfig::foreign(role), ours);
            let flow = node.open(Job::Send { left: MEGABYTE });
            tokio::spawn(Peer::new(theirs, role).serve(|mut stream| async move {
                let mut some = [0; 100];
                stream.read_exact(&mut some).await.expect("bytes");
            }));

            node.until(|node| node.owner.flows[flow].is_reset).await;

            assert!(node.mux.is_empty());
        });
    }
}

#[test]
fn our_reset_after_fin_frees_the_crates_writer() {
    for role in ROLES {
        run(async move {
            let (ours, theirs) = tokio::io::duplex(4096);
            let mut node = Node::new(MuxConfig::foreign(role), ours);
            let flow = node.open(Job::Send { left: 10 });
            node.owner.flows[flow].is_stalled = true;
            let (told, mut failed) = tokio::sync::mpsc::channel(1);
            tokio::spawn(Peer::new(theirs, role).serve(move |mut stream| {
                let told = told.clone();
                async move {
                    let mut request = Vec::new();
                    stream.read_to_end(&mut request).await.expect("a request");
                    // Whole turns of the pattern.
                    while stream.write_all(&pattern(0)[..251 * 4]).await.is_ok() {}
                    told.send(request.len()).await.expect("the test waits");
                }
            }));
            node.until(|node| node.owner.flows[flow].received == 256 << 10).await;

            node.mux.reset(node.id(flow));
            let request = node.during(failed.recv()).await;

            assert_eq!(request, Some(10));
        });
    }
}

#[test]
fn one_stream_too_many_does_not_end_the_connection() {
    run(async {
        let (ours, theirs) = tokio::io::duplex(4096);
        let mut node = Node::new(MuxConfig { max_streams: 2, ..MuxConfig::foreign(Role::Agent) }, ours);
        let mut peer = Peer::new(theirs, Role::Agent);
        let mut streams = peer.open(3).await;
        let excess = streams.pop().expect("three");
        tokio::spawn(peer.serve(echo));

        let work = async {
            // The first two begin before the third, and go on after it.
            for stream in &mut streams {
                stream.write_all(&pattern(0)[..10]).await.expect("open");
                stream.read_exact(&mut [0; 10]).await.expect("an echo");
            }
            let mut excess = excess;
            excess.write_all(b"x").await.expect("not yet refused");
            let read = excess.read(&mut [0; 1]).await;
            for mut stream in streams {
                stream.write_all(&pattern(10)[..10]).await.expect("still open");
                stream.read_exact(&mut [0; 10]).await.expect("an echo");
            }
            read.expect("an end")
        };

        assert_eq!(node.during(work).await, 0);
        assert_eq!(node.mux.stats().refused, 1);
    });
}

#[test]
fn the_crates_goodbye_is_understood() {
    run(async {
        let (ours, theirs) = tokio::io::duplex(4096);
        let mut node = Node::new(MuxConfig::foreign(Role::Client), ours);
        let mut peer = Peer::new(theirs, Role::Client);
        let goodbye = tokio::spawn(async move { poll_fn(|cx| peer.connection.poll_close(cx)).await });

        node.until(|node| node.mux.peer_left()).await;

        assert_eq!(node.mux.open(Token(0)), Err(MuxFull::Left));
        goodbye.await.expect("no panic").expect("closed");
    });
}

#[test]
fn the_crate_understands_our_last_word() {
    run(async {
        let (ours, theirs) = tokio::io::duplex(4096);
        let mut node = Node::new(MuxConfig::foreign(Role::Agent), ours);
        let mut peer = Peer::new(theirs, Role::Agent);

        let fault = node.mux.handle_bytes(&[9; 12], &mut node.owner, Instant::now());
        assert!(matches!(fault, Err(MuxFault::Peer(_))));
        let end = node.during(poll_fn(|cx| peer.connection.poll_next_inbound(cx))).await;

        assert!(end.is_none(), "{end:?}");
    });
}

#[test]
fn both_directions_saturated_over_tiny_pipes() {
    let (client_end, agent_end) = tokio::io::duplex(1024);
    let watch = Watch::new(8);
    let (client_gates, agent_gates) = (watch.gates(0..4), watch.gates(4..8));
    let client = thread::spawn({
        let watch = watch.clone();
        move || {
            run_for(watch.length, async {
                let mut node = Node::new(MuxConfig::new(Role::Client), client_end);
                node.owner.gates = client_gates;
                for _ in 0..4 {
                    node.open(Job::Send { left: usize::MAX });
                }
                node.until(|_| watch.is_over()).await;
            });
        }
    });
    let agent = thread::spawn({
        let watch = watch.clone();
        move || {
            run_for(watch.length, async {
                let mut node = Node::new(MuxConfig::new(Role::Agent), agent_end);
                node.owner.gates = agent_gates;
                node.owner.answers_without_end = true;
                node.until(|_| watch.is_over()).await;
            });
        }
    });

    watch.fail_on_a_stall();
    client.join().expect("the client");
    agent.join().expect("the agent");
}

/// The crate stops reading while a pong of its own waits for the pipe; this end always reads, so the pong
/// always goes. Two ends of the crate freeze here.
#[test]
fn both_directions_saturated_with_the_crate_over_tiny_pipes() {
    let (our_end, their_end) = tokio::io::duplex(1024);
    let watch = Watch::new(8);
    let (our_gates, their_gates) = (watch.gates(0..4), watch.gates(4..8));
    let ours = thread::spawn({
        let watch = watch.clone();
        move || {
            run_for(watch.length, async {
                let mut node = Node::new(MuxConfig::foreign(Role::Client), our_end);
                node.owner.gates = our_gates;
                for _ in 0..4 {
                    node.open(Job::Send { left: usize::MAX });
                }
                node.until(|_| watch.is_over()).await;
                node
            })
        }
    });
    let theirs = thread::spawn({
        let watch = watch.clone();
        move || {
            run_for(watch.length, async {
                let peer = Peer::new(their_end, Role::Client);
                let gates = std::sync::Mutex::new(their_gates);
                let serve = peer.serve(move |stream| {
                    let gate = gates.lock().expect("one thread").pop().expect("four streams");
                    saturate(stream, gate)
                });
                let mut serve = pin!(serve);
                poll_fn(|cx| {
                    if watch.is_over() {
                        return Poll::Ready(());
                    }
                    serve.as_mut().poll(cx)
                })
                .await;
            });
        }
    });

    watch.fail_on_a_stall();
    // The crate's end may look at the pipe once more; it breaks when ours goes.
    let _node = ours.join().expect("our end");
    theirs.join().expect("the crate's end");
}

/// Writes and reads at once for ever.
async fn saturate(stream: Compat<yamux::Stream>, gate: Arc<AtomicU64>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        let mut sent = 0;
        while let Ok(len) = writer.write(&pattern(sent)[..4096]).await {
            sent += len as u64;
        }
    };
    let read = async {
        let (mut got, mut buf) = (0, [0; 4096]);
        while let Ok(len @ 1..) = reader.read(&mut buf).await {
            assert!(buf[..len] == pattern(got)[..len], "other bytes at {got}");
            got += len as u64;
            gate.store(got, Ordering::Relaxed);
        }
    };
    tokio::join!(write, read);
}

/// Bytes received per stream and direction, as seen from outside.
#[derive(Clone)]
struct Watch {
    gates: Vec<Arc<AtomicU64>>,
    start: Instant,
    length: Duration,
}

impl Watch {
    fn new(gates: usize) -> Self {
        let long = std::env::var_os("SSM_PROXY_LONG").is_some();
        Self {
            gates: (0..gates).map(|_| Arc::default()).collect(),
            start: Instant::now(),
            length: Duration::from_secs(if long { 600 } else { 20 }),
        }
    }

    fn gates(&self, range: std::ops::Range<usize>) -> Vec<Arc<AtomicU64>> {
        self.gates[range].to_vec()
    }

    fn is_over(&self) -> bool {
        self.start.elapsed() > self.length
    }

    /// Samples until the time is over. Some bytes must pass every gate within every second.
    fn fail_on_a_stall(&self) {
        let mut seen = vec![(0, Instant::now()); self.gates.len()];
        let mut longest = Duration::ZERO;
        while !self.is_over() {
            thread::sleep(Duration::from_millis(20));
            for (at, (gate, (bytes, moved))) in self.gates.iter().zip(&mut seen).enumerate() {
                let now = gate.load(Ordering::Relaxed);
                longest = longest.max(moved.elapsed());
                assert!(moved.elapsed() < Duration::from_secs(1) || self.is_over(), "gate {at} at {bytes}");
                if now != *bytes {
                    (*bytes, *moved) = (now, Instant::now());
                }
            }
        }
        let total: u64 = seen.iter().map(|(bytes, _)| bytes).sum();
        println!("{total} bytes in {:?}, longest pause of a stream {longest:?}", self.length);
        assert!(total > 0);
    }
}

fn run(test: impl Future<Output = ()>) {
    run_for(Duration::ZERO, test);
}

fn run_for<T>(length: Duration, test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(length + DEADLINE, test).await.expect("done before the deadline")
    })
}

/// Bytes of every stream in every direction from an offset on; at least 64 KiB of them.
fn pattern(offset: u64) -> &'static [u8] {
    static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let bytes = BYTES.get_or_init(|| (0..251 * 300).map(|at| (at % 251) as u8).collect());
    &bytes[(offset % 251) as usize..]
}

/// Our mux, its streams' apps, and the pipe to the other end.
struct Node {
    mux: Mux,
    owner: Owner,
    pipe: DuplexStream,
    out: Vec<u8>,
    sent: usize,
}

#[derive(Default)]
struct Owner {
    flows: Vec<Flow>,
    accepted: Vec<StreamId>,
    answers_without_end: bool,
    /// Counters for the flows in their order.
    gates: Vec<Arc<AtomicU64>>,
}

enum Job {
    /// Sends so many bytes of the pattern, and expects the pattern.
    Send { left: usize },
    /// Sends back what it gets.
    Echo,
}

struct Flow {
    id: StreamId,
    job: Job,
    pulled: u64,
    received: u64,
    waiting: VecDeque<u8>,
    is_stalled: bool,
    is_finished: bool,
    is_closed: bool,
    is_reset: bool,
    finish_told: bool,
}

impl Flow {
    fn new(id: StreamId, job: Job) -> Self {
        Self {
            id,
            job,
            pulled: 0,
            received: 0,
            waiting: VecDeque::new(),
            is_stalled: false,
            is_finished: false,
            is_closed: false,
            is_reset: false,
            finish_told: false,
        }
    }
}

impl Streams for Owner {
    fn accept(&mut self, id: StreamId) -> Option<Token> {
        let job = if self.answers_without_end { Job::Send { left: usize::MAX } } else { Job::Echo };
        self.flows.push(Flow::new(id, job));
        self.accepted.push(id);
        Some(Token(self.flows.len() as u32 - 1))
    }

    fn pull(&mut self, token: Token, buf: &mut [u8]) -> usize {
        let flow = &mut self.flows[token.0 as usize];
        let len = match &mut flow.job {
            Job::Send { left } => {
                let len = buf.len().min(*left).min(64 << 10);
                buf[..len].copy_from_slice(&pattern(flow.pulled)[..len]);
                *left -= len;
                len
            }
            Job::Echo => {
                let (front, _) = flow.waiting.as_slices();
                let len = buf.len().min(front.len());
                buf[..len].copy_from_slice(&front[..len]);
                flow.waiting.drain(..len);
                len
            }
        };
        flow.pulled += len as u64;
        len
    }

    fn push(&mut self, token: Token, bytes: &[u8]) {
        let flow = &mut self.flows[token.0 as usize];
        for chunk in bytes.chunks(64 << 10) {
            assert!(*chunk == pattern(flow.received)[..chunk.len()], "other bytes at {}", flow.received);
            flow.received += chunk.len() as u64;
        }
        if let Job::Echo = flow.job {
            flow.waiting.extend(bytes);
            assert!(flow.waiting.len() <= RING, "more than was granted");
        }
        if let Some(gate) = self.gates.get(token.0 as usize) {
            gate.store(flow.received, Ordering::Relaxed);
        }
    }

    fn finished(&mut self, token: Token) {
        let flow = &mut self.flows[token.0 as usize];
        assert!(!std::mem::replace(&mut flow.is_finished, true));
    }

    fn reset(&mut self, token: Token) {
        self.flows[token.0 as usize].is_reset = true;
    }

    fn closed(&mut self, token: Token) {
        let flow = &mut self.flows[token.0 as usize];
        assert!(!std::mem::replace(&mut flow.is_closed, true));
    }
}

impl Node {
    fn new(config: MuxConfig, pipe: DuplexStream) -> Self {
        Self { mux: Mux::new(config), owner: Owner::default(), pipe, out: Vec::new(), sent: 0 }
    }

    fn open(&mut self, job: Job) -> usize {
        let flow = self.owner.flows.len();
        let id = self.mux.open(Token(flow as u32)).expect("there is room");
        self.mux.set_room(id, RING, Instant::now());
        self.owner.flows.push(Flow::new(id, job));
        flow
    }

    fn id(&self, flow: usize) -> StreamId {
        self.owner.flows[flow].id
    }

    async fn until(&mut self, mut over: impl FnMut(&Self) -> bool) {
        poll_fn(|cx| {
            let ended = self.poll(cx);
            if over(self) {
                return Poll::Ready(());
            }
            assert!(ended.is_pending(), "the connection ended");
            Poll::Pending
        })
        .await;
    }

    async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|cx| {
            let _ = self.poll(cx);
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Moves bytes as far as the pipe allows, within a budget; ready at its end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..64 {
            self.tend();
            let wrote = self.poll_write(cx).is_ready();
            match self.poll_read(cx) {
                Poll::Ready(0) => return Poll::Ready(()),
                Poll::Ready(_) => {}
                Poll::Pending if wrote => {}
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Tells the mux what the apps did.
    fn tend(&mut self) {
        let now = Instant::now();
        for flow in self.owner.flows.iter_mut().filter(|flow| !flow.is_closed && !flow.is_reset) {
            let (has_bytes, is_done) = match flow.job {
                Job::Send { left } => (left > 0, left == 0),
                Job::Echo => (!flow.waiting.is_empty(), flow.is_finished),
            };
            if has_bytes {
                self.mux.ready(flow.id);
            }
            if is_done && !std::mem::replace(&mut flow.finish_told, true) {
                self.mux.finish(flow.id);
            }
            let room = if flow.is_stalled { 0 } else { RING - flow.waiting.len() };
            self.mux.set_room(flow.id, room, now);
        }
    }

    /// Ready when it wrote something.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.sent == self.out.len() {
            self.out.resize(4096, 0);
            let len = self.mux.poll_frames(&mut self.out, &mut self.owner);
            self.out.truncate(len);
            self.sent = 0;
            if len == 0 {
                return Poll::Pending;
            }
        }
        let written = ready!(Pin::new(&mut self.pipe).poll_write(cx, &self.out[self.sent..]));
        // A peer that is gone is noticed by reading.
        self.sent += written.unwrap_or(self.out.len() - self.sent);
        Poll::Ready(())
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        let mut bytes = [0; 8192];
        let mut buf = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.pipe).poll_read(cx, &mut buf)).expect("an in-memory pipe");
        let handled = self.mux.handle_bytes(buf.filled(), &mut self.owner, Instant::now());
        match handled {
            Ok(()) => Poll::Ready(buf.filled().len()),
            // Only reported: the last word still has to go out.
            Err(MuxFault::Peer(_)) => Poll::Ready(buf.filled().len()),
            Err(fault) => panic!("{fault}"),
        }
    }
}

/// The yamux crate at the other end, in the other role.
struct Peer {
    connection: yamux::Connection<Compat<DuplexStream>>,
}

impl Peer {
    fn new(pipe: DuplexStream, ours: Role) -> Self {
        let mode = match ours {
            Role::Client => yamux::Mode::Server,
            Role::Agent => yamux::Mode::Client,
        };
        Self { connection: yamux::Connection::new(pipe.compat(), yamux::Config::default(), mode) }
    }

    async fn open(&mut self, count: usize) -> Vec<Compat<yamux::Stream>> {
        let mut streams = Vec::new();
        for _ in 0..count {
            let stream = poll_fn(|cx| self.connection.poll_new_outbound(cx)).await.expect("there is room");
            streams.push(stream.compat());
        }
        streams
    }

    /// Runs the connection, and the app on every stream that comes in.
    async fn serve<F>(mut self, app: impl Fn(Compat<yamux::Stream>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        while let Some(stream) = poll_fn(|cx| self.connection.poll_next_inbound(cx)).await {
            tokio::spawn(app(stream.expect("a correct peer").compat()));
        }
    }
}

async fn echo(stream: Compat<yamux::Stream>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::io::copy(&mut reader, &mut writer).await.expect("a correct peer");
    writer.shutdown().await.expect("a correct peer");
}

/// Sends bytes, finishes, and reads their echo to its end.
async fn exchange(stream: Compat<yamux::Stream>, bytes: usize) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        let mut sent = 0;
        while sent < bytes {
            let most = (bytes - sent).min(60_000);
            sent += writer.write(&pattern(sent as u64)[..most]).await.expect("open");
        }
        writer.shutdown().await.expect("open");
    };
    let read = async {
        let (mut got, mut buf) = (0, vec![0; 60_000]);
        loop {
            let len = reader.read(&mut buf).await.expect("open");
            if len == 0 {
                return got;
            }
            assert!(buf[..len] == pattern(got as u64)[..len], "other bytes at {got}");
            got += len;
        }
    };
    let ((), got) = tokio::join!(write, read);
    assert_eq!(got, bytes);
}
