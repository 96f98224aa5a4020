//! Pure: one SSM session's data channel: handshake, sequence numbers, acknowledgements, resends.
//!
//! States: `Handshake` until the SSM agent says it is complete, `Open` while bytes flow, `Closing`
//! after [`Channel::terminate`], `Over` after the gateway's `channel_closed` or a failure.
//!
//! Calls: [`handle_message`](Channel::handle_message) for each binary websocket message, then
//! [`poll_event`](Channel::poll_event) and [`poll_transmit`](Channel::poll_transmit) until they give
//! nothing; [`handle_timeout`](Channel::handle_timeout) at [`poll_timeout`](Channel::poll_timeout);
//! [`handle_reconnected`](Channel::handle_reconnected) when a new websocket of the same session is
//! up. Without a websocket nothing is transmitted and no timeout is handled.
//!
//! Timers: end of the handshake · resend of the oldest unacknowledged message · a wedged session ·
//! the next batch of paced resends after a new websocket.
//!
//! The SSM agent acknowledges and drops what reaches it before it has marked the handshake
//! complete, which it does after telling us. So the owner sends nothing before the first downstream
//! byte, which only the far program can have sent.

mod receiver;
mod sender;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::receiver::{Arrival, Receiver};
pub use self::sender::SendLimits;
use self::sender::Sender;
use super::handshake::{
    AcknowledgeContent, CLIENT_VERSION, ChannelClosed, HandshakeComplete, HandshakeRequest,
};
use super::message::{FLAGS_SYN_FIN, FlagValue, Kind, Message, OVERHEAD, ParseError, PayloadType, Uuid};

/// Limits and names of one channel.
#[derive(Clone, Debug)]
pub struct ChannelConfig {
    /// The most bytes of one upstream message; kept within 1 KiB and 32 KiB.
    pub max_payload: usize,
    /// The most bytes kept of messages that came before an earlier one. Our agent has 256 KiB under way at most.
    pub reorder_bytes: usize,
    pub send: SendLimits,
    /// How long the handshake may take from the channel's making.
    pub handshake_timeout: Duration,
    /// Told to the SSM agent in the handshake.
    pub client_version: String,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            max_payload: 8 << 10,
            reorder_bytes: 8 << 20,
            send: SendLimits::default(),
            handshake_timeout: Duration::from_secs(30),
            client_version: CLIENT_VERSION.to_owned(),
        }
    }
}

/// The state machine of one data channel.
pub struct Channel {
    state: State,
    config: ChannelConfig,
    sender: Sender,
    receiver: Receiver,
    /// Acknowledgements to write: what they confirm.
    acks: VecDeque<(Uuid, i64)>,
    events: VecDeque<Event>,
    /// Payload bytes in `events`.
    ready_bytes: usize,
    agent_version: String,
    ids: IdSource,
    clock: UnixClock,
    counters: Counters,
}

enum State {
    Handshake { deadline: Instant, answered: bool },
    Open,
    Closing { flag: i64 },
    Over,
}

/// What the channel tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The handshake is complete; the SSM agent dials its port now.
    Opened { agent_version: String },
    /// The next bytes of the downstream.
    Data(Bytes),
    /// The gateway ended the session; `output` is its reason, empty for an orderly end.
    Closed { output: String },
    /// The session is of no use any more.
    Failed(ChannelError),
}

/// Why a session is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    #[error("the SSM agent did not complete the handshake within {0:?}")]
    HandshakeTimeout(Duration),
    #[error("the SSM agent's handshake makes no sense: {0}")]
    BadHandshake(String),
    #[error("the SSM agent asks for what a Port session does not have: {0}")]
    Unsupported(String),
    #[error("the SSM agent sent data without a handshake: the document is not one of a Port session")]
    NotPort,
    #[error("the SSM agent has not acknowledged a message for {0:?}")]
    Wedged(Duration),
    #[error("one message is missing and {0} bytes behind it are waiting: the buffer is full")]
    ReorderFull(usize),
}

/// Numbers for status and health; a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelStats {
    /// None until a message was acknowledged without being resent.
    pub srtt: Option<Duration>,
    pub min_rtt: Option<Duration>,
    pub rto: Duration,
    pub unacked_bytes: usize,
    pub unacked_messages: usize,
    pub acked_messages: u64,
    pub sent_messages: u64,
    pub resent_messages: u64,
    pub surplus_acks: u64,
    pub received_messages: u64,
    pub duplicates: u64,
    pub reorder_bytes: usize,
    /// Since when a missing downstream message holds up later ones.
    pub gap_since: Option<Instant>,
    pub bad_digests: u64,
    /// Well-formed messages without a meaning here.
    pub ignored: u64,
}

#[derive(Default)]
struct Counters {
    received: u64,
    bad_digests: u64,
    ignored: u64,
}

impl Channel {
    /// `seed` makes the message ids, `unix_ms` is the wall clock at `now`.
    pub fn new(config: ChannelConfig, seed: u64, now: Instant, unix_ms: u64) -> Self {
        let max_payload = config.max_payload.clamp(MIN_PAYLOAD, MAX_PAYLOAD);
        Self {
            state: State::Handshake { deadline: now + config.handshake_timeout, answered: false },
            sender: Sender::new(config.send),
            receiver: Receiver::new(config.reorder_bytes),
            config: ChannelConfig { max_payload, ..config },
            acks: VecDeque::new(),
            events: VecDeque::new(),
            ready_bytes: 0,
            agent_version: String::new(),
            ids: IdSource(seed),
            clock: UnixClock { at: now, unix_ms },
            counters: Counters::default(),
        }
    }

    /// Takes one binary websocket message. An error means that the websocket carries garbage.
    pub fn handle_message(&mut self, bytes: &Bytes, now: Instant) -> Result<(), ParseError> {
        let message = Message::parse(bytes)?;
        if matches!(self.state, State::Over) {
            return Ok(());
        }
        match message.kind {
            // The gateway's own messages carry no digest.
            Kind::OutputStreamData | Kind::Acknowledge if !message.digest_fits() => {
                self.counters.bad_digests += 1;
            }
            Kind::OutputStreamData => self.handle_output(&message, bytes, now),
            Kind::Acknowledge => self.handle_ack(message.payload, now),
            Kind::ChannelClosed => self.handle_closed(message.payload),
            Kind::StartPublication | Kind::PausePublication => {}
            Kind::InputStreamData | Kind::AgentSessionState | Kind::Other(_) => self.counters.ignored += 1,
        }
        Ok(())
    }

    /// Takes one payload for the SSM agent's target, as one message. False, and nothing taken, when
    /// [`can_send`](Self::can_send) does not allow it.
    pub fn send(&mut self, payload: &[u8], now: Instant) -> bool {
        let fits = self.can_send().is_some_and(|most| payload.len() <= most);
        if fits && !payload.is_empty() {
            self.store(PayloadType::OUTPUT, payload, now);
        }
        fits
    }

    /// Asks the SSM agent to end the session. What was sent before still goes first.
    pub fn terminate(&mut self, now: Instant) {
        match self.state {
            State::Handshake { .. } | State::Open => {
                let flag = self.sender.next_sequence();
                self.store(PayloadType::FLAG, &FlagValue::TERMINATE_SESSION.0.to_be_bytes(), now);
                self.state = State::Closing { flag };
            }
            State::Closing { .. } | State::Over => {}
        }
    }

    /// The session has a new websocket: everything unacknowledged goes out again, in order.
    pub fn handle_reconnected(&mut self, now: Instant) {
        self.sender.handle_reconnected(now);
        if let State::Handshake { deadline, .. } = &mut self.state {
            *deadline = now + self.config.handshake_timeout;
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::Handshake { deadline, .. } if deadline <= now => {
                self.fail(ChannelError::HandshakeTimeout(self.config.handshake_timeout));
            }
            State::Handshake { .. } | State::Open | State::Closing { .. } => {
                if self.sender.handle_timeout(now) {
                    self.fail(ChannelError::Wedged(self.config.send.wedged_after));
                }
            }
            State::Over => {}
        }
    }

    /// The next thing that happened. Events come in stream order; their payload is bounded by the
    /// owner taking them before it hands in more messages.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Data(bytes) = &event {
            self.ready_bytes -= bytes.len();
        }
        Some(event)
    }

    /// The next binary websocket message to write: acknowledgements, then resends, then new data.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        if let Some((id, sequence)) = self.acks.pop_front() {
            return Some(self.encode_ack(id, sequence, now));
        }
        self.sender.transmit(now)
    }

    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::Handshake { deadline, .. } => {
                Some(self.sender.poll_timeout(now).map_or(deadline, |at| at.min(deadline)))
            }
            State::Open | State::Closing { .. } => self.sender.poll_timeout(now),
            State::Over => None,
        }
    }

    /// The most bytes of the next payload; None before the handshake, while the window is full, and
    /// after the end.
    pub fn can_send(&self) -> Option<usize> {
        match self.state {
            State::Open => self.sender.has_room().then_some(self.config.max_payload),
            State::Handshake { .. } | State::Closing { .. } | State::Over => None,
        }
    }

    /// From now on messages may be so large; kept within the same bounds as the first size.
    pub fn set_max_payload(&mut self, size: usize) {
        self.config.max_payload = size.clamp(MIN_PAYLOAD, MAX_PAYLOAD);
    }

    /// Whether the SSM agent has confirmed the end asked for by [`terminate`](Self::terminate).
    pub fn is_terminated(&self) -> bool {
        match self.state {
            State::Closing { flag } => !self.sender.is_unacked(flag),
            State::Over => true,
            State::Handshake { .. } | State::Open => false,
        }
    }

    /// The session has ended or failed; events may still wait.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Whether something waits for its first sending.
    pub fn has_unsent(&self) -> bool {
        !self.acks.is_empty() || self.sender.has_fresh()
    }

    /// Payload bytes that wait in [`poll_event`](Self::poll_event).
    pub fn ready_bytes(&self) -> usize {
        self.ready_bytes
    }

    pub fn stats(&self) -> ChannelStats {
        ChannelStats {
            srtt: self.sender.srtt(),
            min_rtt: self.sender.min_rtt(),
            rto: self.sender.rto(),
            unacked_bytes: self.sender.unacked_bytes(),
            unacked_messages: self.sender.unacked_messages(),
            acked_messages: self.sender.acked_messages(),
            sent_messages: self.sender.sent,
            resent_messages: self.sender.resent,
            surplus_acks: self.sender.surplus_acks,
            received_messages: self.counters.received,
            duplicates: self.receiver.duplicates,
            reorder_bytes: self.receiver.early_bytes(),
            gap_since: self.receiver.gap_since(),
            bad_digests: self.counters.bad_digests,
            ignored: self.counters.ignored,
        }
    }

    fn handle_output(&mut self, message: &Message<'_>, bytes: &Bytes, now: Instant) {
        // A full queue drops the message unacknowledged: the SSM agent sends it again.
        if message.sequence < 0 || self.acks.len() >= MAX_QUEUED_ACKS {
            self.counters.ignored += 1;
            return;
        }
        self.counters.received += 1;
        let payload_type = message.payload_type.unwrap_or(PayloadType::NONE);
        match self.receiver.handle(message.sequence, payload_type, message.payload, now) {
            Arrival::InOrder => {
                self.process(payload_type, bytes.slice_ref(message.payload), now);
                self.acks.push_back((message.id, message.sequence));
                while let Some((payload_type, payload)) = self.receiver.next_early() {
                    self.process(payload_type, payload, now);
                }
            }
            Arrival::Acknowledge => self.acks.push_back((message.id, message.sequence)),
            Arrival::Full => self.fail(ChannelError::ReorderFull(self.receiver.early_bytes())),
        }
    }

    fn process(&mut self, payload_type: PayloadType, payload: Bytes, now: Instant) {
        match payload_type {
            PayloadType::OUTPUT => self.deliver(payload),
            PayloadType::HANDSHAKE_REQUEST => self.answer_handshake(&payload, now),
            PayloadType::HANDSHAKE_COMPLETE => self.complete_handshake(&payload, now),
            PayloadType::ENCRYPTION_CHALLENGE_REQUEST => {
                self.fail(ChannelError::Unsupported("encryption with a KMS key".to_owned()));
            }
            _ => self.counters.ignored += 1,
        }
    }

    fn deliver(&mut self, payload: Bytes) {
        match self.state {
            State::Handshake { .. } => self.fail(ChannelError::NotPort),
            State::Open | State::Closing { .. } if !payload.is_empty() => {
                self.ready_bytes += payload.len();
                self.events.push_back(Event::Data(payload));
            }
            State::Open | State::Closing { .. } | State::Over => {}
        }
    }

    fn answer_handshake(&mut self, payload: &[u8], now: Instant) {
        let State::Handshake { answered: answered @ false, .. } = &mut self.state else {
            self.counters.ignored += 1;
            return;
        };
        *answered = true;
        let request: HandshakeRequest = match serde_json::from_slice(payload) {
            Ok(request) => request,
            Err(error) => return self.fail(ChannelError::BadHandshake(error.to_string())),
        };
        let (response, unsupported) = request.answer(&self.config.client_version);
        self.agent_version = request.agent_version;
        self.store(PayloadType::HANDSHAKE_RESPONSE, response.to_json().as_bytes(), now);
        if let Some(unsupported) = unsupported {
            self.fail(ChannelError::Unsupported(unsupported));
        }
    }

    fn complete_handshake(&mut self, payload: &[u8], now: Instant) {
        let State::Handshake { answered, .. } = self.state else {
            self.counters.ignored += 1;
            return;
        };
        let complete = serde_json::from_slice::<HandshakeComplete>(payload);
        match complete {
            Err(error) => self.fail(ChannelError::BadHandshake(error.to_string())),
            Ok(_) if !answered => {
                self.fail(ChannelError::BadHandshake("it was complete before it was asked".to_owned()));
            }
            Ok(_) => {
                self.state = State::Open;
                self.sender.handle_opened(now);
                let agent_version = std::mem::take(&mut self.agent_version);
                self.events.push_back(Event::Opened { agent_version });
            }
        }
    }

    fn handle_ack(&mut self, payload: &[u8], now: Instant) {
        match serde_json::from_slice::<AcknowledgeContent>(payload) {
            Ok(content) => self.sender.handle_ack(content.acknowledged_message_sequence_number, now),
            Err(_) => self.counters.ignored += 1,
        }
    }

    fn handle_closed(&mut self, payload: &[u8]) {
        let output = serde_json::from_slice::<ChannelClosed>(payload)
            .map_or_else(|_| String::from_utf8_lossy(payload).into_owned(), |closed| closed.output);
        self.end(Event::Closed { output });
    }

    fn fail(&mut self, error: ChannelError) {
        self.end(Event::Failed(error));
    }

    fn end(&mut self, event: Event) {
        match self.state {
            State::Handshake { .. } | State::Open | State::Closing { .. } => {
                self.events.push_back(event);
                self.state = State::Over;
            }
            State::Over => {}
        }
    }

    fn store(&mut self, payload_type: PayloadType, payload: &[u8], now: Instant) {
        let (sequence, id) = (self.sender.next_sequence(), self.ids.next());
        let created = self.clock.unix_ms(now);
        let message = Message::new(Kind::InputStreamData, sequence, id, created, payload_type, payload);
        let mut frame = Vec::with_capacity(OVERHEAD + payload.len());
        message.encode(&mut frame);
        self.sender.store(frame.into(), payload.len());
    }

    fn encode_ack(&mut self, id: Uuid, sequence: i64, now: Instant) -> Bytes {
        let payload = AcknowledgeContent::new(Kind::OutputStreamData, id, sequence).to_json();
        let (own_id, created) = (self.ids.next(), self.clock.unix_ms(now));
        let mut message =
            Message::new(Kind::Acknowledge, 0, own_id, created, PayloadType::NONE, payload.as_bytes());
        message.flags = FLAGS_SYN_FIN;
        message.to_vec().into()
    }
}

/// Message ids: distinct, not secret (splitmix64).
struct IdSource(u64);

impl IdSource {
    fn next(&mut self) -> Uuid {
        let (high, low) = (self.next_word(), self.next_word());
        Uuid::from_random((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
    }

    fn next_word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

struct UnixClock {
    at: Instant,
    unix_ms: u64,
}

impl UnixClock {
    fn unix_ms(&self, now: Instant) -> u64 {
        self.unix_ms + now.saturating_duration_since(self.at).as_millis() as u64
    }
}

/// What every SSM agent and gateway takes.
pub const MIN_PAYLOAD: usize = 1 << 10;
/// The largest payload seen to pass the real service.
pub const MAX_PAYLOAD: usize = 32 << 10;
/// The owner writes acknowledgements before it reads on, so this many mean a blocked websocket.
const MAX_QUEUED_ACKS: usize = 4096;

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::ssm::handshake::HandshakeResponse;

    #[test]
    fn the_handshake_opens_the_channel_and_bytes_flow_both_ways() {
        let mut world = World::new(Faults::default());
        assert_eq!(world.channel.can_send(), None);

        world.run_until(|world| world.opened());
        assert_eq!(world.events, [Event::Opened { agent_version: "3.3.987.0".into() }]);
        world.peer.say(b"banner");
        assert!(world.channel.send(b"hello", world.now));
        world.run_until(|world| !world.data.is_empty() && !world.peer.heard.is_empty());

        assert_eq!((&world.data[..], &world.peer.heard[..]), (&b"banner"[..], &b"hello"[..]));
        let response: HandshakeResponse = serde_json::from_slice(&world.peer.response).unwrap();
        assert_eq!(response.client_version, CLIENT_VERSION);
    }

    #[test]
    fn every_copy_of_the_request_is_acknowledged_and_one_is_answered() {
        let (mut channel, now) = new_channel();
        let request = request_message();
        for _ in 0..3 {
            channel.handle_message(&request, now).unwrap();
        }

        let sent: Vec<_> = std::iter::from_fn(|| channel.poll_transmit(now)).collect();

        let kinds: Vec<_> = sent.iter().map(|bytes| Message::parse(bytes).unwrap().kind).collect();
        assert_eq!(kinds, [Kind::Acknowledge, Kind::Acknowledge, Kind::Acknowledge, Kind::InputStreamData]);
        assert_eq!(channel.stats().duplicates, 2);
    }

    #[test]
    fn a_silent_agent_fails_the_handshake_at_its_deadline() {
        let (mut channel, now) = new_channel();
        let at = channel.poll_timeout(now).unwrap();
        assert_eq!(at, now + Duration::from_secs(30));
        channel.handle_timeout(at);
        let wanted = Event::Failed(ChannelError::HandshakeTimeout(Duration::from_secs(30)));
        assert_eq!((channel.poll_event(), channel.poll_timeout(at)), (Some(wanted), None));
    }

    #[test]
    fn encryption_is_refused_and_the_agent_is_told() {
        let (mut channel, now) = new_channel();
        let mut request = HandshakeRequest::port_session("3.3", json!({}));
        request.requested_client_actions[0].action_type = "KMSEncryption".into();
        let message = output(0, PayloadType::HANDSHAKE_REQUEST, request.to_json().as_bytes());

        channel.handle_message(&message, now).unwrap();

        assert!(matches!(channel.poll_event(), Some(Event::Failed(ChannelError::Unsupported(_)))));
        assert_eq!(
            std::iter::from_fn(|| channel.poll_transmit(now)).count(),
            2,
            "acknowledgement and answer"
        );
    }

    #[test]
    fn output_without_a_handshake_is_not_a_port_session() {
        let (mut channel, now) = new_channel();
        channel.handle_message(&output(0, PayloadType::OUTPUT, b"$ "), now).unwrap();
        assert_eq!(channel.poll_event(), Some(Event::Failed(ChannelError::NotPort)));
    }

    #[test]
    fn channel_closed_gives_its_output_after_the_data_before_it() {
        let mut world = World::new(Faults::default());
        world.run_until(|world| world.opened());
        let closed =
            ChannelClosed { output: "----ERROR----\nidle".into(), ..ChannelClosed::default() }.to_json();
        let mut message =
            Message::new(Kind::ChannelClosed, 0, Uuid([0; 16]), 0, PayloadType::NONE, closed.as_bytes());
        message.payload_type = None;
        message.digest = [0; 32];

        world.channel.handle_message(&output(2, PayloadType::OUTPUT, b"last"), world.now).unwrap();
        world.channel.handle_message(&message.to_vec().into(), world.now).unwrap();
        world.channel.handle_message(&output(3, PayloadType::OUTPUT, b"late"), world.now).unwrap();

        let events: Vec<_> = std::iter::from_fn(|| world.channel.poll_event()).collect();
        let closed = Event::Closed { output: "----ERROR----\nidle".into() };
        assert_eq!(events, [Event::Data(Bytes::from_static(b"last")), closed]);
        assert_eq!(world.channel.can_send(), None);
    }

    #[test]
    fn a_bad_digest_is_not_acknowledged() {
        let (mut channel, now) = new_channel();
        let mut bytes = request_message().to_vec();
        *bytes.last_mut().unwrap() ^= 1;

        channel.handle_message(&bytes.into(), now).unwrap();

        assert_eq!((channel.poll_transmit(now), channel.stats().bad_digests), (None, 1));
    }

    #[test]
    fn garbage_is_told_and_meaningless_messages_are_counted() {
        let (mut channel, now) = new_channel();
        assert!(channel.handle_message(&Bytes::from_static(b"short"), now).is_err());
        for kind in [Kind::Other("weather"), Kind::InputStreamData, Kind::AgentSessionState] {
            let message = Message::new(kind, 0, Uuid([0; 16]), 0, PayloadType::OUTPUT, b"x");
            channel.handle_message(&message.to_vec().into(), now).unwrap();
        }
        channel.handle_message(&output(-1, PayloadType::OUTPUT, b"x"), now).unwrap();
        assert_eq!((channel.stats().ignored, channel.poll_transmit(now)), (4, None));
    }

    #[test]
    fn unknown_payload_types_are_acknowledged_and_skipped() {
        let mut world = World::new(Faults::default());
        world.run_until(|world| world.opened());
        world.flush();
        world.channel.handle_message(&output(2, PayloadType(99), b"?"), world.now).unwrap();
        world.channel.handle_message(&output(3, PayloadType::OUTPUT, b"data"), world.now).unwrap();
        assert_eq!(world.channel.poll_event(), Some(Event::Data(Bytes::from_static(b"data"))));
        assert_eq!(std::iter::from_fn(|| world.channel.poll_transmit(world.now)).count(), 2);
    }

    #[test]
    fn a_full_reorder_buffer_fails_the_session() {
        let config = ChannelConfig { reorder_bytes: 4096, ..ChannelConfig::default() };
        let now = Instant::now();
        let mut channel = Channel::new(config, 1, now, 0);
        for sequence in 1..10 {
            channel.handle_message(&output(sequence, PayloadType::OUTPUT, &[0; 1024]), now).unwrap();
        }
        assert!(matches!(channel.poll_event(), Some(Event::Failed(ChannelError::ReorderFull(_)))));
    }

    #[test]
    fn the_window_closes_and_acks_open_it() {
        let send = SendLimits { window_bytes: 4096, ..SendLimits::default() };
        let config = ChannelConfig { send, max_payload: 2048, ..ChannelConfig::default() };
        let mut world = World::with_config(Faults::default(), config);
        world.run_until(|world| world.opened());

        let taken = (0..5).filter(|_| world.channel.send(&[7; 2048], world.now)).count();
        assert_eq!((taken, world.channel.can_send()), (2, None));
        world.run_until(|world| world.channel.can_send().is_some());

        assert!(!world.channel.send(&[7; 2049], world.now), "above the payload limit");
    }

    #[test]
    fn an_agent_that_stops_acknowledging_wedges_the_session() {
        let mut world = World::new(Faults::default());
        world.run_until(|world| world.opened());
        world.faults.lose_up = 100;
        world.channel.send(b"into the void", world.now);
        let start = world.now;

        world.run_until(|world| world.failed());

        assert_eq!(world.events.last(), Some(&Event::Failed(ChannelError::Wedged(Duration::from_secs(20)))));
        assert_eq!((world.now - start).as_secs(), 20);
    }

    #[test]
    fn terminate_sends_the_flag_after_the_data_and_is_confirmed() {
        let mut world = World::new(Faults::default());
        world.run_until(|world| world.opened());
        world.channel.send(b"bye", world.now);
        world.channel.terminate(world.now);
        world.channel.terminate(world.now);
        assert_eq!((world.channel.can_send(), world.channel.is_terminated()), (None, false));

        world.run_until(|world| world.channel.is_terminated());

        assert_eq!((&world.peer.heard[..], world.peer.flags), (&b"bye"[..], 1));
    }

    #[test]
    fn a_burst_of_losses_on_either_side_loses_no_byte() {
        for lost in [1, 10, 100] {
            let mut world = World::new(Faults::default());
            world.run_until(|world| world.opened());
            world.faults.drop_next_down = lost;
            world.faults.drop_next_up = lost;
            world.transfer(1_500_000);
            assert!(world.channel.stats().resent_messages > 0, "{lost}");
        }
    }

    #[test]
    fn lost_acks_both_ways_only_cost_duplicates() {
        let mut world = World::new(Faults { lose_acks: 40, ..Faults::default() });
        world.run_until(|world| world.opened());
        world.transfer(300_000);
        assert!(world.channel.stats().duplicates > 0 && world.peer.duplicates > 0);
    }

    #[test]
    fn a_cut_websocket_costs_no_byte_and_repeats_none() {
        let mut world = World::new(Faults::default());
        world.run_until(|world| world.opened());
        for round in 0..5 {
            world.faults.cut_at = Some(world.now + Duration::from_millis(37 * (round + 1)));
            world.transfer(300_000);
            assert_eq!(world.faults.cut_at, None, "the cut came during the transfer");
        }
        assert!(world.channel.stats().resent_messages > 0);
    }

    #[test]
    fn a_cut_during_the_handshake_does_not_stop_it() {
        for millis in [0, 10, 25, 45, 65, 85] {
            let mut world = World::new(Faults::default());
            world.faults.cut_at = Some(world.now + Duration::from_millis(millis));
            world.run_until(|world| world.opened());
            world.transfer(10_000);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_faults_give_the_same_bytes(
            seed: u64, lose_down in 0_u8..15, lose_up in 0_u8..15, lose_acks in 0_u8..30,
            repeat in 0_u8..50, jitter in 0_u64..60, cut in prop::option::of(0_u64..2000),
        ) {
            let faults = Faults { seed, lose_down, lose_up, lose_acks, repeat, jitter, ..Faults::default() };
            let mut world = World::new(faults);
            world.faults.cut_at = cut.map(|millis| world.now + Duration::from_millis(millis));
            world.run_until(|world| world.opened());
            world.transfer(60_000);
        }

        #[test]
        fn no_message_panics(messages: Vec<(u8, i64, u32, Vec<u8>)>) {
            let (mut channel, now) = new_channel();
            channel.handle_message(&request_message(), now).unwrap();
            for (kind, sequence, payload_type, payload) in messages {
                let kind = [Kind::OutputStreamData, Kind::Acknowledge, Kind::ChannelClosed][usize::from(kind) % 3];
                let sequence = if payload_type % 2 == 0 { sequence } else { sequence % 8 };
                let payload_type = PayloadType(payload_type % 16);
                let message = Message::new(kind, sequence, Uuid([1; 16]), 0, payload_type, &payload);
                channel.handle_message(&message.to_vec().into(), now).unwrap();
                channel.handle_timeout(now + Duration::from_millis(300));
                while channel.poll_transmit(now).is_some() {}
                while channel.poll_event().is_some() {}
            }
        }
    }

    /// What goes wrong between the two; chances are in per cent.
    #[derive(Default)]
    struct Faults {
        seed: u64,
        lose_down: u8,
        lose_up: u8,
        lose_acks: u8,
        repeat: u8,
        /// Milliseconds.
        jitter: u64,
        drop_next_down: u32,
        drop_next_up: u32,
        /// Everything in flight is lost then, and a new websocket is up at once.
        cut_at: Option<Instant>,
    }

    impl Faults {
        fn chance(&mut self, percent: u8) -> bool {
            self.random() % 100 < u64::from(percent)
        }

        fn random(&mut self) -> u64 {
            let mut source = IdSource(self.seed);
            let word = source.next_word();
            self.seed = source.0;
            word
        }

        /// How often a message arrives.
        fn copies(&mut self, bytes: &[u8], down: bool) -> usize {
            let ack = Message::parse(bytes).unwrap().kind == Kind::Acknowledge;
            let (percent, drop_next) = if down {
                (self.lose_down, &mut self.drop_next_down)
            } else {
                (self.lose_up, &mut self.drop_next_up)
            };
            if *drop_next > 0 && !ack {
                *drop_next -= 1;
                return 0;
            }
            let lost = if ack { self.lose_acks } else { percent };
            if self.chance(lost) { 0 } else { 1 + usize::from(self.chance(self.repeat)) }
        }
    }

    /// A channel and a peer with 20 ms between them, in virtual time.
    struct World {
        now: Instant,
        channel: Channel,
        peer: Peer,
        faults: Faults,
        /// By arrival; the second key keeps equal times in order.
        wire: BTreeMap<(Instant, u64), (bool, Bytes)>,
        count: u64,
        events: Vec<Event>,
        data: Vec<u8>,
    }

    impl World {
        fn new(faults: Faults) -> Self {
            Self::with_config(faults, ChannelConfig::default())
        }

        fn with_config(faults: Faults, config: ChannelConfig) -> Self {
            let now = Instant::now();
            let channel = Channel::new(config, 7, now, 1_700_000_000_000);
            let mut world = Self {
                now,
                channel,
                peer: Peer::new(now),
                faults,
                wire: BTreeMap::new(),
                count: 0,
                events: Vec::new(),
                data: Vec::new(),
            };
            let request = HandshakeRequest::port_session("3.3.987.0", json!({ "portNumber": "742" }));
            world.peer.store(PayloadType::HANDSHAKE_REQUEST, request.to_json().as_bytes());
            world
        }

        fn opened(&self) -> bool {
            self.events.iter().any(|event| matches!(event, Event::Opened { .. }))
        }

        fn failed(&self) -> bool {
            self.events.iter().any(|event| matches!(event, Event::Failed(_)))
        }

        /// Moves `size` bytes each way and compares them.
        fn transfer(&mut self, size: usize) {
            let (data_before, heard_before) = (self.data.len(), self.peer.heard.len());
            let bytes: Vec<_> = (0..size).map(|_| self.faults.random() as u8).collect();
            self.peer.say(&bytes);
            let mut rest = &bytes[..];
            while !rest.is_empty() || self.data.len() < data_before + size {
                while let Some(most) = self.channel.can_send().filter(|_| !rest.is_empty()) {
                    let (payload, later) = rest.split_at(most.min(rest.len()));
                    assert!(self.channel.send(payload, self.now));
                    rest = later;
                }
                self.step();
            }
            self.run_until(|world| world.peer.heard.len() >= heard_before + size);
            assert!(self.data[data_before..] == bytes, "downstream differs");
            assert!(self.peer.heard[heard_before..] == bytes, "upstream differs");
        }

        fn run_until(&mut self, done: impl Fn(&Self) -> bool) {
            let limit = self.now + Duration::from_secs(600);
            while !done(self) {
                assert!(self.now < limit, "nothing happened for 600 s");
                assert!(done(self) || self.step(), "stuck: {:?}", self.events);
            }
        }

        fn step(&mut self) -> bool {
            self.flush();
            let arrival = self.wire.first_key_value().map(|((at, _), _)| *at);
            let times =
                [arrival, self.channel.poll_timeout(self.now), self.peer.poll_timeout(), self.faults.cut_at];
            let Some(next) = times.into_iter().flatten().min() else { return false };
            self.now = self.now.max(next);
            if self.faults.cut_at.is_some_and(|at| at <= self.now) {
                self.faults.cut_at = None;
                self.wire.clear();
                self.channel.handle_reconnected(self.now);
            }
            while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
                match entry.remove() {
                    (true, bytes) => self.channel.handle_message(&bytes, self.now).unwrap(),
                    (false, bytes) => self.peer.handle(&bytes),
                }
            }
            self.channel.handle_timeout(self.now);
            self.peer.handle_timeout(self.now);
            while let Some(event) = self.channel.poll_event() {
                if let Event::Data(bytes) = &event {
                    self.data.extend_from_slice(bytes);
                } else {
                    self.events.push(event);
                }
            }
            true
        }

        fn flush(&mut self) {
            while let Some(bytes) = self.channel.poll_transmit(self.now) {
                self.put(false, bytes);
            }
            while let Some(bytes) = self.peer.out.pop_front() {
                self.put(true, bytes);
            }
        }

        fn put(&mut self, down: bool, bytes: Bytes) {
            for _ in 0..self.faults.copies(&bytes, down) {
                let jitter =
                    if self.faults.jitter == 0 { 0 } else { self.faults.random() % self.faults.jitter };
                self.count += 1;
                let at = self.now + Duration::from_millis(20 + jitter);
                self.wire.insert((at, self.count), (down, bytes.clone()));
            }
        }
    }

    /// The SSM agent: sends 1 KiB a millisecond, resends the oldest message only, keeps early ones.
    struct Peer {
        pending: VecDeque<(PayloadType, Vec<u8>)>,
        next_send: Instant,
        sequence: i64,
        unacked: BTreeMap<i64, (Bytes, Instant)>,
        next_tick: Instant,
        expected: i64,
        early: BTreeMap<i64, Bytes>,
        complete: bool,
        heard: Vec<u8>,
        response: Vec<u8>,
        flags: u32,
        duplicates: u32,
        out: VecDeque<Bytes>,
    }

    impl Peer {
        fn new(now: Instant) -> Self {
            Self {
                pending: VecDeque::new(),
                next_send: now,
                sequence: 0,
                unacked: BTreeMap::new(),
                next_tick: now,
                expected: 0,
                early: BTreeMap::new(),
                complete: false,
                heard: Vec::new(),
                response: Vec::new(),
                flags: 0,
                duplicates: 0,
                out: VecDeque::new(),
            }
        }

        fn say(&mut self, bytes: &[u8]) {
            bytes.chunks(1024).for_each(|chunk| self.store(PayloadType::OUTPUT, chunk));
        }

        fn store(&mut self, payload_type: PayloadType, payload: &[u8]) {
            self.pending.push_back((payload_type, payload.to_vec()));
        }

        fn handle(&mut self, bytes: &Bytes) {
            let message = Message::parse(bytes).unwrap();
            assert!(message.digest_fits());
            if message.kind == Kind::Acknowledge {
                let content: AcknowledgeContent = serde_json::from_slice(message.payload).unwrap();
                self.unacked.remove(&content.acknowledged_message_sequence_number);
                return;
            }
            self.duplicates += u32::from(message.sequence < self.expected);
            if message.sequence >= self.expected {
                self.early.insert(message.sequence, bytes.clone());
            }
            let ack = AcknowledgeContent::new(message.kind, message.id, message.sequence).to_json();
            let ack = Message::new(Kind::Acknowledge, 0, Uuid([2; 16]), 0, PayloadType::NONE, ack.as_bytes());
            self.out.push_back(ack.to_vec().into());
            while let Some(bytes) = self.early.remove(&self.expected) {
                self.expected += 1;
                self.take(&Message::parse(&bytes).unwrap());
            }
        }

        fn take(&mut self, message: &Message<'_>) {
            match message.payload_type.unwrap() {
                PayloadType::HANDSHAKE_RESPONSE => {
                    self.response = message.payload.to_vec();
                    let complete =
                        HandshakeComplete { handshake_time_to_complete: 1, customer_message: String::new() };
                    self.store(PayloadType::HANDSHAKE_COMPLETE, complete.to_json().as_bytes());
                    self.complete = true;
                }
                PayloadType::FLAG => self.flags += 1,
                _ => {
                    assert!(self.complete, "data before the handshake was complete");
                    self.heard.extend_from_slice(message.payload);
                }
            }
        }

        fn poll_timeout(&self) -> Option<Instant> {
            let send = (!self.pending.is_empty()).then_some(self.next_send);
            let tick = (!self.unacked.is_empty()).then_some(self.next_tick);
            send.into_iter().chain(tick).min()
        }

        fn handle_timeout(&mut self, now: Instant) {
            if now >= self.next_send
                && let Some((payload_type, payload)) = self.pending.pop_front()
            {
                let bytes = output(self.sequence, payload_type, &payload);
                self.unacked.insert(self.sequence, (bytes.clone(), now));
                self.sequence += 1;
                self.next_send = now + Duration::from_millis(1);
                self.out.push_back(bytes);
            }
            if now >= self.next_tick {
                self.next_tick = now + Duration::from_millis(100);
                let head = self.unacked.first_entry();
                if let Some(mut head) = head.filter(|head| now - head.get().1 > Duration::from_millis(200)) {
                    head.get_mut().1 = now;
                    self.out.push_back(head.get().0.clone());
                }
            }
        }
    }

    fn new_channel() -> (Channel, Instant) {
        let now = Instant::now();
        (Channel::new(ChannelConfig::default(), 1, now, 0), now)
    }

    fn request_message() -> Bytes {
        let request = HandshakeRequest::port_session("3.3.987.0", json!({ "portNumber": "742" }));
        output(0, PayloadType::HANDSHAKE_REQUEST, request.to_json().as_bytes())
    }

    fn output(sequence: i64, payload_type: PayloadType, payload: &[u8]) -> Bytes {
        let message = Message::new(Kind::OutputStreamData, sequence, Uuid([9; 16]), 0, payload_type, payload);
        message.to_vec().into()
    }
}
