//! Two muxes joined by pipes that cut anywhere, and single ones fed by hand.
#![allow(clippy::disallowed_methods)]

mod faults;
mod frames;
mod turns;
mod windows;

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
