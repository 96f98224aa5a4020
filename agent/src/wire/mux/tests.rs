//! Two muxes joined by pipes that cut anywhere, and single ones fed by hand.
#![allow(clippy::disallowed_methods)]

use std::collections::VecDeque;

use proptest::prelude::*;

use super::frame::{Flags, Header, Kind};
use super::*;

/// Room of every stream's owner, beyond the initial window.
const RING: usize = 40_000;

#[derive(Debug, Default)]
struct Flow {
    id: u32,
    /// Bytes the app wrote and `pull` has not taken.
    waiting: usize,
    written: usize,
    pulled: usize,
    pushed: usize,
    unread: usize,
    finish: bool,
    finished: u32,
    closed: u32,
    resets: u32,
    reset_here: bool,
}

/// All flows of one side; the token is the index.
#[derive(Debug)]
struct Owner {
    role: Role,
    flows: Vec<Flow>,
    refuses: bool,
    /// Most bytes one `pull` gives.
    sip: usize,
}

struct Side {
    mux: Mux,
    owner: Owner,
    /// What this side sent and the other has not got.
    pipe: VecDeque<u8>,
    now: Instant,
}

fn byte(sender: Role, id: u32, offset: usize) -> u8 {
    (offset * 31 + offset / 256 + id as usize * 7 + sender as usize) as u8
}

impl Owner {
    fn flow(&mut self, token: Token) -> &mut Flow {
        let flow = &mut self.flows[token.0 as usize];
        assert_eq!((flow.closed, flow.resets, flow.reset_here), (0, 0, false), "told of after its end");
        flow
    }
}

impl Streams for Owner {
    fn accept(&mut self, id: StreamId) -> Option<Token> {
        if self.refuses {
            return None;
        }
        self.flows.push(Flow { id: id.0, ..Flow::default() });
        Some(Token(self.flows.len() as u32 - 1))
    }

    fn pull(&mut self, token: Token, buf: &mut [u8]) -> usize {
        let (role, sip) = (self.role, self.sip);
        let flow = self.flow(token);
        let len = flow.waiting.min(buf.len()).min(sip);
        for (at, slot) in buf[..len].iter_mut().enumerate() {
            *slot = byte(role, flow.id, flow.pulled + at);
        }
        flow.pulled += len;
        flow.waiting -= len;
        len
    }

    fn push(&mut self, token: Token, bytes: &[u8]) {
        let sender = self.role.other();
        let flow = self.flow(token);
        assert_eq!(flow.finished, 0, "bytes after the end");
        assert!(!bytes.is_empty());
        for &got in bytes {
            assert_eq!(got, byte(sender, flow.id, flow.pushed), "stream {} at {}", flow.id, flow.pushed);
            flow.pushed += 1;
        }
        flow.unread += bytes.len();
        assert!(flow.unread <= RING, "more than was granted");
    }

    fn finished(&mut self, token: Token) {
        let flow = self.flow(token);
        flow.finished += 1;
        assert_eq!(flow.finished, 1);
    }

    fn reset(&mut self, token: Token) {
        self.flow(token).resets += 1;
    }

    fn closed(&mut self, token: Token) {
        let flow = self.flow(token);
        assert!(flow.finish && flow.finished == 1 && flow.waiting == 0);
        flow.closed += 1;
    }
}

impl Side {
    fn new(config: MuxConfig) -> Self {
        Self {
            mux: Mux::new(config),
            owner: Owner { role: config.role, flows: Vec::new(), refuses: false, sip: usize::MAX },
            pipe: VecDeque::new(),
            now: Instant::now(),
        }
    }

    fn open(&mut self) -> usize {
        let token = self.owner.flows.len();
        if let Ok(id) = self.mux.open(Token(token as u32)) {
            self.owner.flows.push(Flow { id: id.0, ..Flow::default() });
        }
        token
    }

    fn is_over(&self, flow: usize) -> bool {
        let flow = &self.owner.flows[flow];
        flow.closed + flow.resets > 0 || flow.reset_here
    }

    fn id(&self, flow: usize) -> StreamId {
        StreamId(self.owner.flows[flow].id)
    }

    fn write(&mut self, flow: usize, bytes: usize) {
        let id = self.id(flow);
        let flow = &mut self.owner.flows[flow];
        if !flow.finish {
            flow.waiting += bytes;
            flow.written += bytes;
            self.mux.ready(id);
        }
    }

    fn finish(&mut self, flow: usize) {
        self.owner.flows[flow].finish = true;
        self.mux.finish(self.id(flow));
    }

    fn reset(&mut self, flow: usize) {
        if !self.is_over(flow) {
            self.owner.flows[flow].reset_here = true;
            self.mux.reset(self.id(flow));
        }
    }

    fn read(&mut self, flow: usize, bytes: usize) {
        let id = self.id(flow);
        let flow = &mut self.owner.flows[flow];
        flow.unread -= bytes.min(flow.unread);
        let room = RING - flow.unread;
        self.mux.set_room(id, room, self.now);
    }

    fn read_all(&mut self) {
        for flow in 0..self.owner.flows.len() {
            self.read(flow, usize::MAX);
        }
    }

    /// Sends what fits into a buffer of this size.
    fn send(&mut self, room: usize) -> usize {
        let mut out = vec![0; room];
        let len = self.mux.poll_frames(&mut out, &mut self.owner);
        self.pipe.extend(&out[..len]);
        len
    }

    fn receive(&mut self, from: &mut Self, bytes: usize) {
        let bytes: Vec<u8> = from.pipe.drain(..bytes.min(from.pipe.len())).collect();
        self.handle(&bytes).expect("a correct peer");
    }

    fn handle(&mut self, bytes: &[u8]) -> Result<(), MuxFault> {
        self.mux.handle_bytes(bytes, &mut self.owner, self.now)
    }

    fn headers(&mut self, room: usize) -> Vec<Header> {
        self.pipe.clear();
        self.send(room);
        let bytes: Vec<u8> = self.pipe.drain(..).collect();
        let (mut at, mut headers) = (0, Vec::new());
        while at < bytes.len() {
            let header = Header::decode(bytes[at..at + HEADER].try_into().expect("whole")).expect("valid");
            at += HEADER + if header.kind == Kind::Data { header.length as usize } else { 0 };
            headers.push(header);
        }
        assert_eq!(at, bytes.len(), "whole frames only");
        headers
    }
}

fn pair(change: impl Fn(&mut MuxConfig)) -> (Side, Side) {
    let side = |role| {
        let mut config = MuxConfig { initial_window: 2000, max_window: 30_000, ..MuxConfig::new(role) };
        change(&mut config);
        Side::new(config)
    };
    (side(Role::Client), side(Role::Agent))
}

/// Moves everything that moves.
fn settle(a: &mut Side, b: &mut Side) {
    for _ in 0..100_000 {
        a.read_all();
        b.read_all();
        a.send(5000);
        b.send(5000);
        let moved = a.pipe.len() + b.pipe.len();
        b.receive(a, usize::MAX);
        a.receive(b, usize::MAX);
        if moved == 0 {
            assert!(!a.mux.wants_to_send() && !b.mux.wants_to_send());
            return;
        }
    }
    panic!("does not settle");
}

fn data(flags: Flags, id: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header { kind: Kind::Data, flags, id, length: payload.len() as u32 };
    [&header.encode()[..], payload].concat()
}

fn frame(kind: Kind, flags: Flags, id: u32, length: u32) -> Vec<u8> {
    Header { kind, flags, id, length }.encode().to_vec()
}

/// The bytes the client's stream would carry.
fn payload(id: u32, offset: usize, len: usize) -> Vec<u8> {
    (offset..offset + len).map(|at| byte(Role::Client, id, at)).collect()
}

#[derive(Clone, Debug)]
enum Op {
    Open,
    Write(usize, usize),
    Finish(usize),
    Reset(usize),
    Read(usize, usize),
    Send(usize),
    Receive(usize),
    Wait(u64),
    MaxFrame(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => Just(Op::Open),
        6 => (0..20usize, 0..9000usize).prop_map(|(flow, bytes)| Op::Write(flow, bytes)),
        1 => (0..20usize).prop_map(Op::Finish),
        1 => (0..20usize).prop_map(Op::Reset),
        6 => (0..20usize, 0..9000usize).prop_map(|(flow, bytes)| Op::Read(flow, bytes)),
        10 => (0..4000usize).prop_map(Op::Send),
        10 => (0..4000usize).prop_map(Op::Receive),
        1 => (0..300u64).prop_map(Op::Wait),
        1 => (0..5000usize).prop_map(Op::MaxFrame),
    ]
}

fn apply(op: Op, side: &mut Side, peer: &mut Side) {
    let pick = |flow: usize, side: &Side| match side.owner.flows.len() {
        0 => None,
        len => Some(flow % len).filter(|&flow| !side.is_over(flow)),
    };
    match op {
        Op::Open => {
            side.open();
        }
        Op::Write(flow, bytes) => {
            if let Some(flow) = pick(flow, side) {
                side.write(flow, bytes);
            }
        }
        Op::Finish(flow) => {
            if let Some(flow) = pick(flow, side) {
                side.finish(flow);
            }
        }
        Op::Reset(flow) => {
            if let Some(flow) = pick(flow, side) {
                side.reset(flow);
            }
        }
        Op::Read(flow, bytes) => {
            if let Some(flow) = pick(flow, side) {
                side.read(flow, bytes);
            }
        }
        Op::Send(room) => {
            side.send(room);
        }
        Op::Receive(bytes) => side.receive(peer, bytes),
        Op::Wait(millis) => side.now += Duration::from_millis(millis),
        Op::MaxFrame(bytes) => side.mux.set_max_frame(bytes),
    }
}

fn check(here: &Side, there: &Side) {
    let mut open = 0;
    for flow in &here.owner.flows {
        let Some(peer) = there.owner.flows.iter().find(|peer| peer.id == flow.id) else {
            // The far side never heard of it: nothing was ever sent.
            open += usize::from(!flow.reset_here);
            assert!(flow.reset_here || flow.written == 0 && !flow.finish, "{flow:?}");
            continue;
        };
        let was_reset = |flow: &Flow| flow.reset_here || flow.resets > 0;
        assert_eq!(
            flow.closed > 0 || was_reset(flow),
            peer.closed > 0 || was_reset(peer),
            "{flow:?} {peer:?}"
        );
        if was_reset(flow) || was_reset(peer) {
            continue;
        }
        assert_eq!(flow.written, peer.pushed, "{flow:?} {peer:?}");
        assert_eq!(flow.finish, peer.finished == 1, "{flow:?} {peer:?}");
        assert_eq!(flow.closed == 1, flow.finish && peer.finish, "{flow:?} {peer:?}");
        open += usize::from(flow.closed == 0);
    }
    let stats = here.mux.stats();
    assert_eq!((here.mux.len(), stats.open), (open, open));
    assert_eq!((stats.violations, there.mux.stats().violations), (0, 0));
    assert!(open > 0 || stats.granted == 0 && stats.grown == 0, "{stats:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_events_gives_the_same_bytes(
        ops in proptest::collection::vec((any::<bool>(), op()), 0..400),
        sip in 1..4000usize,
    ) {
        let (mut a, mut b) = pair(|_| {});
        a.owner.sip = sip;
        for (of_a, op) in ops {
            if of_a { apply(op, &mut a, &mut b) } else { apply(op, &mut b, &mut a) }
        }
        settle(&mut a, &mut b);
        check(&a, &b);
        check(&b, &a);
    }

    #[test]
    fn random_bytes_do_not_panic(bytes: Vec<u8>, role in prop_oneof![Just(Role::Client), Just(Role::Agent)]) {
        let mut side = Side::new(MuxConfig::new(role));
        let _ = side.handle(&bytes);
        side.send(4000);
    }

    #[test]
    fn random_frames_do_not_panic(
        frames in proptest::collection::vec((0..5u8, 0..17u16, 0..6u32, prop_oneof![0..40u32, any::<u32>()]), 0..60),
        role in prop_oneof![Just(Role::Client), Just(Role::Agent)],
    ) {
        struct Anything;
        impl Streams for Anything {
            fn accept(&mut self, id: StreamId) -> Option<Token> {
                Some(Token(id.0))
            }
            fn pull(&mut self, _: Token, buf: &mut [u8]) -> usize {
                buf.len() + 1
            }
            fn push(&mut self, _: Token, _: &[u8]) {}
            fn finished(&mut self, _: Token) {}
            fn reset(&mut self, _: Token) {}
            fn closed(&mut self, _: Token) {}
        }
        let mut mux = Mux::new(MuxConfig { max_streams: 3, ..MuxConfig::new(role) });
        let mine = mux.open(Token(9)).expect("there is room");
        mux.ready(mine);
        let mut out = [0; 300];
        for (kind, flags, id, length) in frames {
            let mut bytes = vec![0, kind];
            bytes.extend(flags.to_be_bytes());
            bytes.extend(id.to_be_bytes());
            bytes.extend(length.to_be_bytes());
            if kind == 0 {
                bytes.extend(vec![7; length.min(40) as usize]);
            }
            let _ = mux.handle_bytes(&bytes, &mut Anything, Instant::now());
            mux.set_room(StreamId(id), length as usize, Instant::now());
            mux.poll_frames(&mut out, &mut Anything);
        }
    }
}

/// The client opens stream 1 with three bytes, sends more, gives credit, and finishes.
fn conversation() -> Vec<u8> {
    [
        data(Flags::SYN, 1, &payload(1, 0, 3)),
        frame(Kind::Ping, Flags::SYN, 0, 77),
        data(Flags::NONE, 1, &payload(1, 3, 100)),
        frame(Kind::WindowUpdate, Flags::NONE, 1, 1000),
        data(Flags::NONE, 99, b"for nobody"),
        data(Flags::FIN, 1, &payload(1, 103, 5)),
        frame(Kind::WindowUpdate, Flags::SYN, 3, 50),
        frame(Kind::WindowUpdate, Flags::RST, 3, 0),
    ]
    .concat()
}

fn summary(side: &mut Side) -> (Vec<String>, MuxStats, Vec<Header>) {
    (side.owner.flows.iter().map(|flow| format!("{flow:?}")).collect(), side.mux.stats(), side.headers(1000))
}

#[test]
fn a_conversation_cut_anywhere_is_the_same() {
    let bytes = conversation();
    let agent = || pair(|_| {}).1;
    let mut whole = agent();
    whole.handle(&bytes).expect("valid");
    let whole = summary(&mut whole);
    assert!(whole.0[0].contains("pushed: 108") && whole.0[0].contains("finished: 1"), "{whole:?}");
    assert!(whole.0[1].contains("resets: 1"), "{whole:?}");
    assert_eq!(whole.2, [Header { kind: Kind::Ping, flags: Flags::ACK, id: 0, length: 77 }]);

    for cut in 0..bytes.len() {
        let mut side = agent();
        side.handle(&bytes[..cut]).expect("a prefix is valid");
        side.handle(&bytes[cut..]).expect("the rest is valid");
        assert_eq!(summary(&mut side), whole, "cut at {cut}");
    }
    let mut side = agent();
    for byte in bytes {
        side.handle(&[byte]).expect("valid");
    }
    assert_eq!(summary(&mut side), whole);
}

#[test]
fn open_bytes_and_fin_ride_on_one_frame() {
    let (mut a, _) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 10);
    a.finish(flow);

    let flags = Flags::SYN.and(Flags::FIN);
    assert_eq!(a.headers(1000), [Header { kind: Kind::Data, flags, id: 1, length: 10 }]);
}

#[test]
fn the_acceptor_acknowledges_with_its_first_frame() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 10);
    a.send(1000);
    b.receive(&mut a, usize::MAX);
    assert!(!b.mux.wants_to_send());

    b.write(0, 1);
    assert_eq!(b.headers(1000), [Header { kind: Kind::Data, flags: Flags::ACK, id: 1, length: 1 }]);
    b.write(0, 1);
    assert_eq!(b.headers(1000), [Header { kind: Kind::Data, flags: Flags::NONE, id: 1, length: 1 }]);
}

#[test]
fn a_foreign_peer_is_acknowledged_at_once() {
    let mut agent = Side::new(MuxConfig::foreign(Role::Agent));
    agent.handle(&data(Flags::SYN, 1, b"")).expect("valid");

    assert_eq!(
        agent.headers(1000),
        [Header { kind: Kind::WindowUpdate, flags: Flags::ACK, id: 1, length: 0 }]
    );
}

#[test]
fn a_half_closed_stream_still_receives() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 10);
    a.finish(flow);
    settle(&mut a, &mut b);
    assert_eq!((b.owner.flows[0].finished, b.owner.flows[0].closed), (1, 0));

    b.write(0, 20_000);
    settle(&mut a, &mut b);
    assert_eq!(a.owner.flows[flow].pushed, 20_000);
    b.finish(0);
    settle(&mut a, &mut b);

    assert_eq!((a.owner.flows[flow].closed, b.owner.flows[0].closed), (1, 1));
    check(&a, &b);
}

#[test]
fn a_reset_after_fin_is_sent() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.finish(flow);
    settle(&mut a, &mut b);

    a.reset(flow);
    settle(&mut a, &mut b);

    assert_eq!((b.owner.flows[0].finished, b.owner.flows[0].resets), (1, 1));
    assert!(a.mux.is_empty() && b.mux.is_empty());
}

#[test]
fn a_stream_reset_before_its_first_frame_was_never_there() {
    let (mut a, _) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 10);

    a.reset(flow);

    assert_eq!((a.send(1000), a.mux.len()), (0, 0));
}

#[test]
fn bytes_that_come_after_our_reset_are_skipped() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 1500);
    a.send(1600);
    b.receive(&mut a, 700);

    b.reset(0);
    b.receive(&mut a, usize::MAX);
    a.write(flow, 100);
    settle(&mut a, &mut b);

    assert_eq!(a.owner.flows[flow].resets, 1);
    assert!(b.mux.is_empty());
    let next = a.open();
    a.write(next, 5);
    settle(&mut a, &mut b);
    assert_eq!(b.owner.flows[1].pushed, 5);
}

#[test]
fn one_stream_too_many_is_reset_alone() {
    let (mut a, mut b) = pair(|_| {});
    b.mux.config.max_streams = 2;
    let flows = [a.open(), a.open(), a.open()];
    for flow in flows {
        a.write(flow, 100);
    }

    settle(&mut a, &mut b);
    a.write(flows[0], 5000);
    settle(&mut a, &mut b);

    assert_eq!(flows.map(|flow| a.owner.flows[flow].resets), [0, 0, 1]);
    assert_eq!(b.owner.flows[0].pushed, 5100);
    assert_eq!((b.mux.stats().refused, b.mux.len()), (1, 2));
    assert_eq!(b.mux.open(Token(7)), Err(MuxFull::Streams));
}

#[test]
fn a_stream_the_owner_does_not_want_is_reset() {
    let (mut a, mut b) = pair(|_| {});
    b.owner.refuses = true;
    let flow = a.open();
    a.write(flow, 100);

    settle(&mut a, &mut b);

    assert_eq!(a.owner.flows[flow].resets, 1);
}

#[test]
fn the_last_id_is_used_once() {
    let (mut a, _) = pair(|_| {});
    a.mux.next_id = Some(u32::MAX);

    assert_eq!(a.mux.open(Token(1)), Ok(StreamId(u32::MAX)));
    assert_eq!(a.mux.open(Token(2)), Err(MuxFull::Ids));
}

#[test]
fn bytes_beyond_the_window_reset_that_stream_only() {
    let (_, mut b) = pair(|_| {});
    b.handle(&data(Flags::SYN, 1, &payload(1, 0, 2000))).expect("valid");
    b.handle(&data(Flags::SYN, 3, &payload(3, 0, 10))).expect("valid");

    b.handle(&data(Flags::NONE, 1, &payload(1, 2000, 1))).expect("concerns one stream");
    b.handle(&data(Flags::NONE, 3, &payload(3, 10, 10))).expect("valid");

    assert_eq!((b.owner.flows[0].pushed, b.owner.flows[0].resets), (2000, 1));
    assert_eq!((b.owner.flows[1].pushed, b.mux.stats().violations), (20, 1));
    assert_eq!(b.headers(100), [Header { kind: Kind::WindowUpdate, flags: Flags::RST, id: 1, length: 0 }]);
}

#[test]
fn bytes_after_fin_and_credit_beyond_counting_reset_the_stream() {
    let (_, mut b) = pair(|_| {});
    b.handle(&data(Flags::SYN.and(Flags::FIN), 1, b"")).expect("valid");
    b.handle(&data(Flags::SYN, 3, b"")).expect("valid");

    b.handle(&data(Flags::NONE, 1, b"x")).expect("concerns one stream");
    b.handle(&frame(Kind::WindowUpdate, Flags::NONE, 3, u32::MAX)).expect("concerns one stream");

    assert_eq!((b.owner.flows[0].resets, b.owner.flows[1].resets), (1, 1));
}

#[test]
fn a_broken_protocol_is_final_and_the_peer_is_told() {
    let cases = [
        (frame(Kind::Data, Flags::SYN, 0, 0), Violation::WrongId(0)),
        (frame(Kind::Data, Flags::SYN, 2, 0), Violation::WrongId(2)),
        ([data(Flags::SYN, 1, b""), data(Flags::SYN, 1, b"")].concat(), Violation::OpenedTwice(1)),
        (vec![1; 12], Violation::Version(1)),
    ];
    for (bytes, violation) in cases {
        let (_, mut b) = pair(|_| {});
        let fault = Err(MuxFault::Peer(violation));

        assert_eq!(b.handle(&bytes), fault);
        assert_eq!(b.handle(&data(Flags::SYN, 5, b"")), fault);
        assert_eq!(b.headers(1000), [Header { kind: Kind::GoAway, flags: Flags::NONE, id: 0, length: 1 }]);
        assert!(!b.mux.wants_to_send());
        assert_eq!(b.mux.open(Token(1)), Err(MuxFull::Left));
    }
}

#[test]
fn a_frame_for_a_stream_not_yet_announced_is_ignored() {
    let (mut a, _) = pair(|_| {});
    let flow = a.open();

    a.handle(&data(Flags::NONE, 1, b"guess")).expect("ignored");
    a.handle(&frame(Kind::WindowUpdate, Flags::RST, 1, 0)).expect("ignored");

    assert_eq!((a.owner.flows[flow].pushed, a.mux.len(), a.mux.stats().ignored), (0, 1, 2));
}

#[test]
fn a_peer_that_leaves_keeps_its_streams() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 10);
    settle(&mut a, &mut b);

    b.mux.leave();
    settle(&mut a, &mut b);
    b.write(0, 500);
    settle(&mut a, &mut b);

    assert!(a.mux.peer_left());
    assert_eq!(a.mux.open(Token(5)), Err(MuxFull::Left));
    assert_eq!(a.owner.flows[flow].pushed, 500);
}

#[test]
fn a_peer_that_gives_up_ends_the_mux() {
    let (mut a, _) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 10);

    assert_eq!(a.handle(&frame(Kind::GoAway, Flags::NONE, 0, 2)), Err(MuxFault::GivenUp(2)));
    assert!(!a.mux.wants_to_send());
    assert_eq!(a.send(1000), 0);
}

#[test]
fn a_flood_of_pings_is_answered_by_few_pongs() {
    let (mut a, _) = pair(|_| {});
    for value in 0..1000 {
        a.handle(&frame(Kind::Ping, Flags::SYN, 0, value)).expect("valid");
    }

    let answers: Vec<u32> = a.headers(100_000).iter().map(|pong| pong.length).collect();

    assert_eq!(answers, [0, 1, 2, 3, 4, 5, 6, 999]);
}

#[test]
fn a_flood_of_opens_beyond_the_limit_is_bounded() {
    let (_, mut b) = pair(|config| config.max_streams = 1);
    let flood: Vec<u8> = (0..2000).flat_map(|n| data(Flags::SYN, 2 * n + 1, b"")).collect();

    assert_eq!(b.handle(&flood), Err(MuxFault::Flood));
}

#[test]
fn windows_grow_with_use_and_the_budget_is_given_back() {
    let (mut a, mut b) = pair(|config| config.budget = 40_000);
    let flows: Vec<usize> = (0..3).map(|_| a.open()).collect();
    for &flow in &flows {
        a.write(flow, 300_000);
    }
    settle(&mut a, &mut b);

    let stats = b.mux.stats();
    assert_eq!(stats.grown, 40_000);
    assert!(b.mux.table.find(1).is_some_and(|slot| b.mux.table[slot].window.size() > 2000));
    assert!(stats.granted <= 3 * 2000 + 40_000);
    for flow in flows {
        a.reset(flow);
    }
    settle(&mut a, &mut b);
    assert_eq!((b.mux.stats().grown, b.mux.stats().granted), (0, 0));
}

#[test]
fn a_stalled_reader_holds_no_more_than_its_window() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 1);
    settle(&mut a, &mut b);
    a.write(flow, 300_000);
    for _ in 0..100 {
        a.send(5000);
        b.receive(&mut a, usize::MAX);
        b.read(0, 0);
        b.send(5000);
        a.receive(&mut b, usize::MAX);
    }

    assert_eq!(b.owner.flows[0].unread, 2000);
}

#[test]
fn a_slow_reader_does_not_make_its_window_grow() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 300_000);
    for _ in 0..200 {
        a.send(5000);
        b.receive(&mut a, usize::MAX);
        b.now += Duration::from_millis(50);
        b.read(0, 300);
        b.send(5000);
        a.receive(&mut b, usize::MAX);
    }

    assert_eq!(b.mux.stats().grown, 0);
    assert!(b.owner.flows[0].pushed > 50_000);
}

#[test]
fn credit_is_never_more_than_room() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 2000);
    a.send(5000);
    b.receive(&mut a, usize::MAX);
    let id = b.id(0);

    for room in [0, 1, 700] {
        b.mux.set_room(id, room, b.now);
        let granted: u32 = b.headers(1000).iter().map(|update| update.length).sum();
        assert_eq!(b.mux.stats().granted, room as u64, "{granted} more at {room}");
        let Some(slot) = b.mux.table.find(1) else { panic!("open") };
        assert!(b.mux.table[slot].window.arrived(room as u32));
        b.mux.stats.granted -= room as u64;
    }
}

#[test]
fn one_update_announces_all_credit() {
    let (mut a, mut b) = pair(|_| {});
    let flow = a.open();
    a.write(flow, 2000);
    a.send(5000);
    b.receive(&mut a, usize::MAX);

    for _ in 0..20 {
        b.read(0, 100);
    }

    assert_eq!(
        b.headers(1000),
        [Header { kind: Kind::WindowUpdate, flags: Flags::ACK, id: 1, length: 2000 }]
    );
}

#[test]
fn a_lone_byte_passes_64_bulk_streams() {
    let (mut a, _) = pair(|config| (config.initial_window, config.max_frame) = (1 << 20, 1000));
    for _ in 0..64 {
        let flow = a.open();
        a.write(flow, 1 << 20);
    }
    let sparse = a.open();
    a.headers(300_000);

    for _ in 0..100 {
        assert!(a.headers(4096).iter().all(|header| header.id != a.id(sparse).0));
        a.write(sparse, 1);
        let first = a.headers(4096)[0];
        assert_eq!((first.id, first.length), (a.id(sparse).0, 1));
    }
}

#[test]
fn bulk_streams_share_evenly() {
    let (mut a, _) = pair(|config| (config.initial_window, config.max_frame) = (1 << 20, 1000));
    for _ in 0..8 {
        let flow = a.open();
        a.write(flow, 1 << 20);
    }
    for _ in 0..500 {
        a.send(1024);
    }

    let pulled: Vec<usize> = a.owner.flows.iter().map(|flow| flow.pulled).collect();
    let (least, most) = (pulled.iter().min(), pulled.iter().max());
    assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 2000), "{pulled:?}");
}

#[test]
fn any_buffer_longer_than_a_header_makes_progress() {
    for room in HEADER + 1..200 {
        let (mut a, mut b) = pair(|_| {});
        let flow = a.open();
        a.write(flow, 500);
        a.finish(flow);
        for _ in 0..600 {
            a.send(room);
            b.receive(&mut a, usize::MAX);
        }
        assert_eq!((b.owner.flows[0].pushed, b.owner.flows[0].finished), (500, 1), "{room} bytes");
    }
}

#[test]
fn a_frame_is_not_cut_to_crumbs() {
    let (mut a, _) = pair(|config| config.max_frame = 500);
    let flow = a.open();
    a.write(flow, 1000);

    let lengths = |headers: Vec<Header>| headers.iter().map(|header| header.length).collect::<Vec<_>>();
    assert_eq!(lengths(a.headers(HEADER + 500 + HEADER + 63)), [500]);
    assert_eq!(lengths(a.headers(HEADER + 436)), [436]);
    assert_eq!(lengths(a.headers(1000)), [64]);
}

#[test]
fn bytes_without_ready_still_go_before_fin() {
    let (mut a, mut b) = pair(|config| config.max_frame = 100);
    let flow = a.open();
    a.write(flow, 1);
    settle(&mut a, &mut b);

    a.owner.flows[flow].waiting += 300;
    a.finish(flow);
    settle(&mut a, &mut b);

    assert_eq!((b.owner.flows[0].pushed, b.owner.flows[0].finished), (301, 1));
}
