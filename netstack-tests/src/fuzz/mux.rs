//! Pure: a mux whose peer says anything, and whose owner does anything.
//!
//! Rules: an owner gets no more bytes than it has room for, each in its place, and hears nothing of a flow after its
//! end; what the mux sends are whole frames, within the credit that the peer gave.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use agent::wire::Role;
use agent::wire::mux::{Mux, MuxConfig, MuxFault, StreamId, Streams, Token};

use super::{Bytes, Sights, pattern, variant};

pub fn run(input: &[u8], start: Instant) -> Sights {
    let mut bytes = Bytes(input);
    let mut world = World::new(bytes.byte(), start);
    while !bytes.0.is_empty() && world.fault.is_none() {
        world.step(&mut bytes);
        assert_eq!(world.mux.len(), world.owner.flows.iter().filter(|flow| !flow.over).count());
    }
    world.wind_up()
}

struct World {
    now: Instant,
    config: MuxConfig,
    mux: Mux,
    owner: Owner,
    /// The end of a frame whose beginning was sent.
    cut: Vec<u8>,
    /// Bytes the peer has made, and what those on their way do once they arrive up to such a place.
    made: u64,
    on_their_way: VecDeque<(u64, Effect)>,
    /// By stream id, what the peer sent, and what it may be sent.
    sent: HashMap<u32, u32>,
    credit: HashMap<u32, u64>,
    /// What the mux sent.
    received: HashMap<u32, u64>,
    /// Streams that the peer knows of.
    known: HashSet<u32>,
    fault: Option<MuxFault>,
}

/// What a frame of the peer does to what it may be sent.
enum Effect {
    Open(u32),
    Credit(u32, u32),
}

/// All flows that ever were; the token is the index.
struct Owner {
    flows: Vec<Flow>,
    refuses: bool,
    /// Most bytes one `pull` gives.
    sip: usize,
    /// Accepted and not told of their room.
    fresh: Vec<usize>,
    /// No stream can carry other bytes than those of the pattern.
    honest: bool,
    sights: Sights,
}

#[derive(Default)]
struct Flow {
    id: u32,
    waiting: usize,
    pulled: u32,
    pushed: u32,
    unread: usize,
    finish: bool,
    finished: bool,
    over: bool,
}

impl Owner {
    fn flow(&mut self, token: Token) -> &mut Flow {
        let flow = &mut self.flows[token.0 as usize];
        assert!(!flow.over, "told of after its end");
        flow
    }
}

impl Streams for Owner {
    fn accept(&mut self, id: StreamId) -> Option<Token> {
        if self.refuses {
            return None;
        }
        assert!(self.flows.iter().all(|flow| flow.id != id.0 || flow.over), "opened twice");
        self.flows.push(Flow { id: id.0, ..Flow::default() });
        self.fresh.push(self.flows.len() - 1);
        Some(Token(self.flows.len() as u32 - 1))
    }

    fn pull(&mut self, token: Token, buf: &mut [u8]) -> usize {
        let sip = self.sip;
        let flow = self.flow(token);
        let length = flow.waiting.min(buf.len()).min(sip);
        for byte in &mut buf[..length] {
            *byte = pattern(flow.pulled);
            flow.pulled += 1;
        }
        flow.waiting -= length;
        length
    }

    fn push(&mut self, token: Token, bytes: &[u8]) {
        let honest = self.honest;
        let flow = self.flow(token);
        assert!(!flow.finished && !bytes.is_empty());
        for byte in bytes {
            assert!(!honest || *byte == pattern(flow.pushed), "byte {} of stream {}", flow.pushed, flow.id);
            flow.pushed += 1;
        }
        flow.unread += bytes.len();
        assert!(flow.unread <= RING, "more than was granted");
    }

    fn finished(&mut self, token: Token) {
        assert!(!std::mem::replace(&mut self.flow(token).finished, true), "finished twice");
        self.sights.insert("finished".to_owned());
    }

    fn reset(&mut self, token: Token) {
        self.flow(token).over = true;
        self.sights.insert("reset".to_owned());
    }

    fn broken_off(&mut self, token: Token) {
        self.flow(token).over = true;
        self.sights.insert("broken off".to_owned());
    }

    fn closed(&mut self, token: Token) {
        let flow = self.flow(token);
        assert!(flow.finish && flow.finished && flow.waiting == 0);
        flow.over = true;
        self.sights.insert("closed".to_owned());
    }
}

impl World {
    fn new(settings: u8, now: Instant) -> Self {
        let role = if settings & 1 == 0 { Role::Client } else { Role::Agent };
        let config = if settings & 2 == 0 { MuxConfig::new(role) } else { MuxConfig::foreign(role) };
        let pick = |shift: u8, of: [u32; 4]| of[usize::from(settings >> shift & 3)];
        let config = MuxConfig {
            initial_window: pick(2, [2000, 16 << 10, 100, 1]),
            max_window: 30_000,
            max_streams: pick(4, [6, 1, 2, 100]) as usize,
            max_frame: pick(6, [500, 16 << 10, 64, 1]) as usize,
            budget: 40_000,
            ..config
        };
        let owner = Owner {
            flows: Vec::new(),
            refuses: false,
            sip: usize::MAX,
            fresh: Vec::new(),
            honest: true,
            sights: Sights::new(),
        };
        Self {
            now,
            config,
            mux: Mux::new(config),
            owner,
            cut: Vec::new(),
            made: 0,
            on_their_way: VecDeque::new(),
            sent: HashMap::new(),
            credit: HashMap::new(),
            received: HashMap::new(),
            known: HashSet::new(),
            fault: None,
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.byte() % 14 {
            0 => self.frame(bytes.pick(&[1, 1, 5, 9]), bytes.byte(), bytes, true),
            1 => self.frame(bytes.pick(&[0, 0, 0, 2, 4]), bytes.byte(), bytes, true),
            2 => self.credit(bytes.byte(), bytes),
            3 => self.frame(u16::from(bytes.byte() & 15), bytes.byte(), bytes, bytes.0.len() & 1 == 0),
            4 => self.any_header(bytes),
            5 => self.raw(bytes),
            6 => self.open(),
            7 => self.write(bytes.byte(), usize::from(bytes.short())),
            8 => self.read(bytes.byte(), usize::from(bytes.short())),
            9 => self.finish(bytes.byte()),
            10 => self.reset(bytes.byte()),
            11 => self.send(usize::from(bytes.short())),
            12 => self.send(5000),
            _ => self.change(bytes),
        }
    }

    /// A data frame or a window update without credit.
    fn frame(&mut self, flags: u16, stream: u8, bytes: &mut Bytes<'_>, data: bool) {
        let id = self.id(stream);
        let (opens, resets) = (flags & 1 != 0, flags & 8 != 0);
        if opens && !resets {
            self.known.insert(id);
            self.sent.insert(id, 0);
            self.on_their_way.push_back((self.made + HEADER, Effect::Open(id)));
        }
        let length = if data { usize::from(bytes.byte()).saturating_sub(4) * 9 } else { 0 };
        self.owner.honest &= length == 0 || self.known.contains(&id);
        let sent = self.sent.entry(id).or_default();
        let payload: Vec<u8> = (0..length as u32).map(|at| pattern(sent.wrapping_add(at))).collect();
        *sent = sent.wrapping_add(length as u32);
        self.hand_over(&header(u8::from(!data), flags, id, length as u32), &payload, bytes.byte());
    }

    fn credit(&mut self, stream: u8, bytes: &mut Bytes<'_>) {
        let id = self.id(stream);
        let by = match bytes.byte() {
            0xff => bytes.long(),
            little => u32::from(little) * 50,
        };
        self.on_their_way.push_back((self.made + HEADER, Effect::Credit(id, by)));
        self.hand_over(&header(1, 0, id, by), &[], bytes.byte());
    }

    /// A header of any kind; one that announces payload takes its bytes from what follows.
    fn any_header(&mut self, bytes: &mut Bytes<'_>) {
        let (kind, flags, length) = (bytes.byte() % 5, bytes.short(), bytes.long());
        let id = if kind >= 2 { u32::from(bytes.byte() & 1) } else { bytes.long() };
        if kind < 2 {
            self.owner.honest = false;
            *self.credit.entry(id).or_default() += u64::from(u32::MAX);
            self.received.remove(&id);
        }
        self.hand_over(&header(kind, flags, id, length), &[], bytes.byte());
    }

    fn raw(&mut self, bytes: &mut Bytes<'_>) {
        self.owner.honest = false;
        for credit in self.credit.values_mut() {
            *credit += u64::from(u32::MAX);
        }
        let length = usize::from(bytes.byte());
        self.hand_over(bytes.take(length), &[], 0);
    }

    /// Gives the mux what was cut off the last frame, then this one but for the last `keep` bytes.
    fn hand_over(&mut self, header: &[u8], payload: &[u8], keep: u8) {
        self.made += (header.len() + payload.len()) as u64;
        self.cut.extend_from_slice(header);
        self.cut.extend_from_slice(payload);
        let rest = self.cut.split_off(self.cut.len().saturating_sub(usize::from(keep)));
        let whole = std::mem::replace(&mut self.cut, rest);
        let arrived = self.made - self.cut.len() as u64;
        while let Some((_, effect)) = self.on_their_way.pop_front_if(|(at, _)| *at <= arrived) {
            self.apply(&effect);
        }
        self.fault = self.mux.handle_bytes(&whole, &mut self.owner, self.now).err();
        for flow in std::mem::take(&mut self.owner.fresh) {
            self.read(flow as u8, 0);
        }
        if let Some(fault) = self.fault {
            self.owner.sights.insert(match fault {
                MuxFault::Peer(violation) => format!("peer {}", variant(&violation)),
                MuxFault::Flood | MuxFault::GivenUp(_) => variant(&fault),
            });
            assert_eq!(self.mux.handle_bytes(&[0], &mut self.owner, self.now), Err(fault));
        }
    }

    fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Credit(id, by) => *self.credit.entry(*id).or_default() += u64::from(*by),
            // Where any bytes were sent it may have been taken for payload.
            Effect::Open(id) if self.owner.honest => {
                self.credit.remove(id);
                self.received.remove(id);
            }
            Effect::Open(id) => _ = self.received.remove(id),
        }
    }

    /// A stream of either side.
    fn id(&self, stream: u8) -> u32 {
        u32::from(stream % 6) + 1
    }

    fn pick(&self, pick: u8) -> Option<usize> {
        let open = self.owner.flows.iter().enumerate().filter(|(_, flow)| !flow.over);
        open.map(|(at, _)| at).cycle().nth(usize::from(pick % 32))
    }

    fn open(&mut self) {
        let token = self.owner.flows.len();
        if let Ok(id) = self.mux.open(Token(token as u32)) {
            self.owner.flows.push(Flow { id: id.0, ..Flow::default() });
            self.mux.set_room(id, RING, self.now);
        }
    }

    fn write(&mut self, pick: u8, count: usize) {
        let Some(at) = self.pick(pick) else { return };
        let flow = &mut self.owner.flows[at];
        if !flow.finish {
            flow.waiting += count;
            self.mux.ready(StreamId(flow.id));
        }
    }

    fn read(&mut self, pick: u8, most: usize) {
        let Some(at) = self.pick(pick) else { return };
        let flow = &mut self.owner.flows[at];
        flow.unread -= most.min(flow.unread);
        self.mux.set_room(StreamId(flow.id), RING - flow.unread, self.now);
    }

    fn finish(&mut self, pick: u8) {
        let Some(at) = self.pick(pick) else { return };
        self.owner.flows[at].finish = true;
        self.mux.finish(StreamId(self.owner.flows[at].id));
    }

    fn reset(&mut self, pick: u8) {
        let Some(at) = self.pick(pick) else { return };
        self.owner.flows[at].over = true;
        self.mux.reset(StreamId(self.owner.flows[at].id));
    }

    fn change(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.byte() % 6 {
            0 => self.owner.refuses = !self.owner.refuses,
            1 => self.owner.sip = 1 + usize::from(bytes.byte()),
            2 => self.mux.set_max_frame(usize::from(bytes.short())),
            3 => self.mux.set_rtt(Duration::from_millis(bytes.byte().into())),
            4 if bytes.byte() == 0xff => self.mux.leave(),
            _ => self.now += Duration::from_millis(bytes.byte().into()),
        }
    }

    /// Takes what fits into `room`, and looks at it as a peer would.
    fn send(&mut self, room: usize) {
        let mut out = vec![0; room];
        let length = self.mux.poll_frames(&mut out, &mut self.owner);
        let mut rest = &out[..length];
        while let Some((head, behind)) = rest.split_first_chunk::<12>() {
            let &[version, kind, high, low, i0, i1, i2, i3, l0, l1, l2, l3] = head;
            let (id, length) = (u32::from_be_bytes([i0, i1, i2, i3]), u32::from_be_bytes([l0, l1, l2, l3]));
            assert!(version == 0 && kind <= 3 && high == 0 && low <= 15);
            let payload = if kind == 0 { length as usize } else { 0 };
            let (payload, behind) = behind.split_at_checked(payload).expect("whole frames");
            self.check_frame(kind, low, id, payload);
            rest = behind;
        }
        assert!(rest.is_empty(), "whole frames");
    }

    fn check_frame(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) {
        self.owner.sights.insert(format!("sent {kind} {flags}"));
        if flags & 1 != 0 {
            self.known.insert(id);
        }
        if kind != 0 {
            return;
        }
        let received = self.received.entry(id).or_default();
        *received += payload.len() as u64;
        let most = u64::from(self.config.initial_window) + self.credit.get(&id).copied().unwrap_or_default();
        assert!(*received <= most, "stream {id} was sent {received} bytes, it may get {most}");
    }

    /// The owner ends what it has: nothing may be left.
    fn wind_up(mut self) -> Sights {
        if let Some(fault) = self.fault {
            let told = usize::from(!matches!(fault, MuxFault::GivenUp(_))) * 12;
            assert_eq!(self.mux.poll_frames(&mut [0; 100], &mut self.owner), told);
            assert!(!self.mux.wants_to_send());
            return self.owner.sights;
        }
        while self.pick(0).is_some() {
            self.reset(0);
        }
        for _ in 0..200 {
            self.send(5000);
        }
        let stats = self.mux.stats();
        assert!(self.mux.is_empty() && !self.mux.wants_to_send());
        assert_eq!((stats.granted, stats.grown), (0, 0));
        self.owner.sights.insert(format!(
            "refused {} violations {}",
            stats.refused > 0,
            stats.violations > 0
        ));
        self.owner.sights.insert(format!("left {}", variant(&self.mux.peer_left())));
        self.owner.sights
    }
}

fn header(kind: u8, flags: u16, id: u32, length: u32) -> Vec<u8> {
    [&[0, kind], &flags.to_be_bytes()[..], &id.to_be_bytes(), &length.to_be_bytes()].concat()
}

/// Bytes of a header.
const HEADER: u64 = 12;
/// Room of every flow's owner.
const RING: usize = 40_000;
pub(super) const STEPS: &[u8] =
    &[0, 0, 0, 1, 1, 1, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9, 10, 11, 12, 12, 12, 13];
