//! Pure: a data channel whose far side says anything.
//!
//! Rules: bytes come in order and once, the end is told once and last, and what is sent are sound messages, numbered
//! without a gap and the same when they are sent again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes as Shared;
use ssm_proxy::ssm::channel::{Channel, ChannelConfig, Event, SendLimits};
use ssm_proxy::ssm::handshake::{AcknowledgeContent, ChannelClosed, HandshakeComplete, HandshakeRequest};
use ssm_proxy::ssm::message::{Kind, Message, PayloadType, Uuid, digest_of};

use super::{Bytes, Sights, pattern, variant};

pub fn run(input: &[u8], start: Instant) -> Sights {
    let mut bytes = Bytes(input);
    let mut world = World::new(bytes.byte(), start);
    while !bytes.0.is_empty() {
        world.step(&mut bytes);
        world.check();
    }
    world.wind_up()
}

struct World {
    now: Instant,
    config: ChannelConfig,
    channel: Channel,
    /// Our next number downstream, and the payloads of type output that count, by number.
    next: i64,
    said: HashMap<i64, Option<Vec<u8>>>,
    heard: Vec<u8>,
    over: bool,
    /// Nothing was said whose place in the stream is not known here.
    honest: bool,
    /// What came upstream, by number.
    sent: HashMap<i64, Shared>,
    sights: Sights,
}

impl World {
    fn new(settings: u8, now: Instant) -> Self {
        let config = ChannelConfig {
            max_payload: [8 << 10, 1, 64 << 10, 1500][usize::from(settings & 3)],
            reorder_bytes: [64 << 20, 500, 4000, 0][usize::from(settings >> 2 & 3)],
            send: SendLimits {
                window_bytes: [4 << 20, 5000][usize::from(settings >> 4 & 1)],
                window_messages: [8000, 3][usize::from(settings >> 5 & 1)],
                ..SendLimits::default()
            },
            ..ChannelConfig::default()
        };
        Self {
            now,
            channel: Channel::new(config.clone(), 7, now, 1_700_000_000_000),
            config,
            next: 0,
            said: HashMap::new(),
            heard: Vec::new(),
            over: false,
            honest: true,
            sent: HashMap::new(),
            sights: Sights::new(),
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.byte() % 13 {
            0 => self.open(),
            1 => self.output(0, usize::from(bytes.byte())),
            2 => self.output(bytes.near(), usize::from(bytes.byte())),
            3 => self.any_message(bytes),
            4 => self.edited(bytes),
            5 => self.ack(bytes),
            6 => self.json(bytes),
            7 => self.send(usize::from(bytes.short())),
            8 | 9 => self.transmit(if bytes.byte() & 1 == 0 { usize::MAX } else { 1 }),
            10 => self.wait(bytes),
            11 => self.events(),
            _ => match bytes.byte() {
                0..=9 => self.channel.terminate(self.now),
                10..=40 => self.channel.set_max_payload(usize::from(bytes.short())),
                _ => self.channel.handle_reconnected(self.now),
            },
        }
    }

    /// What an SSM agent begins with.
    fn open(&mut self) {
        let request = HandshakeRequest::port_session("3.3", serde_json::json!({})).to_json();
        self.say(self.next, PayloadType::HANDSHAKE_REQUEST, request.as_bytes());
        let complete = HandshakeComplete { handshake_time_to_complete: 1, customer_message: String::new() };
        self.say(self.next, PayloadType::HANDSHAKE_COMPLETE, complete.to_json().as_bytes());
    }

    fn output(&mut self, beyond: i64, length: usize) {
        let payload: Vec<u8> =
            (0..length as u32).map(|at| pattern(at.wrapping_add(self.next as u32))).collect();
        self.say(self.next.saturating_add(beyond), PayloadType::OUTPUT, &payload);
    }

    fn any_message(&mut self, bytes: &mut Bytes<'_>) {
        let sequence = self.next.saturating_add(bytes.near());
        let payload_type = PayloadType(u32::from(bytes.byte() % 16));
        let length = usize::from(bytes.byte());
        self.say(sequence, payload_type, bytes.take(length));
    }

    /// A message of the stream, whole and with the right digest.
    fn say(&mut self, sequence: i64, payload_type: PayloadType, payload: &[u8]) {
        let message = Message::new(Kind::OutputStreamData, sequence, Uuid([9; 16]), 1, payload_type, payload);
        if sequence == self.next {
            self.next += 1;
        }
        let output = (payload_type == PayloadType::OUTPUT).then(|| payload.to_vec());
        if !self.channel.is_over() {
            self.said.entry(sequence).or_insert(output);
        }
        self.give(&message);
    }

    fn edited(&mut self, bytes: &mut Bytes<'_>) {
        self.honest = false;
        let kind =
            bytes.pick(&[Kind::OutputStreamData, Kind::Acknowledge, Kind::ChannelClosed, Kind::Other("x")]);
        let length = usize::from(bytes.byte());
        let payload = bytes.take(length);
        let message = Message::new(kind, self.next, Uuid([9; 16]), 1, PayloadType::OUTPUT, payload);
        let mut wire = message.to_vec();
        for _ in 0..bytes.byte() % 4 {
            let at = usize::from(bytes.byte()) % wire.len();
            wire[at] = bytes.byte();
        }
        wire.truncate(wire.len() - usize::from(bytes.byte() & 0x3f).min(wire.len()));
        self.give_bytes(wire);
    }

    fn ack(&mut self, bytes: &mut Bytes<'_>) {
        let sequence = (self.sent.len() as i64).saturating_add(bytes.near());
        let payload = AcknowledgeContent::new(Kind::InputStreamData, Uuid([9; 16]), sequence).to_json();
        self.give(&Message::new(
            Kind::Acknowledge,
            0,
            Uuid([8; 16]),
            1,
            PayloadType::NONE,
            payload.as_bytes(),
        ));
    }

    /// Text where JSON is expected, mostly such.
    fn json(&mut self, bytes: &mut Bytes<'_>) {
        let closed = ChannelClosed { output: "why".to_owned(), ..ChannelClosed::default() };
        let request = HandshakeRequest::port_session("3.3", serde_json::json!({ "portNumber": "1" }));
        let (kind, payload_type, text) = match bytes.byte() % 5 {
            0 => (Kind::OutputStreamData, PayloadType::HANDSHAKE_REQUEST, request.to_json()),
            1 => (Kind::OutputStreamData, PayloadType::HANDSHAKE_COMPLETE, "{}".to_owned()),
            2 if bytes.byte() > 200 => (Kind::ChannelClosed, PayloadType::NONE, closed.to_json()),
            _ => (
                Kind::Acknowledge,
                PayloadType::NONE,
                AcknowledgeContent::new(Kind::InputStreamData, Uuid([9; 16]), 0).to_json(),
            ),
        };
        let mut text = text.into_bytes();
        for _ in 0..bytes.byte() % 3 {
            let (from, length) =
                (usize::from(bytes.byte()) % (text.len() + 1), usize::from(bytes.byte() & 7));
            let to = (from + usize::from(bytes.byte() & 31)).min(text.len());
            text.splice(from..to, bytes.take(length).iter().copied());
        }
        if kind == Kind::OutputStreamData {
            self.say(self.next, payload_type, &text);
        } else {
            self.give(&Message::new(kind, 0, Uuid([9; 16]), 1, payload_type, &text));
        }
    }

    fn give(&mut self, message: &Message<'_>) {
        let wire = message.to_vec();
        assert_eq!(Message::parse(&wire).as_ref(), Ok(message));
        self.give_bytes(wire);
    }

    fn give_bytes(&mut self, wire: Vec<u8>) {
        if let Ok(message) = Message::parse(&wire) {
            assert_eq!(message.to_buf().as_message(), message);
            assert_eq!(
                message.digest_fits(),
                message.payload.is_empty() || digest_of(message.payload) == message.digest
            );
        }
        if let Err(error) = self.channel.handle_message(&wire.into(), self.now) {
            self.sights.insert(variant(&error));
        }
    }

    fn send(&mut self, length: usize) {
        let most = self.channel.can_send();
        let taken = self.channel.send(&vec![0; length], self.now);
        assert_eq!(taken, most.is_some_and(|most| length <= most));
        self.sights.insert(format!("sends {taken}"));
    }

    fn transmit(&mut self, most: usize) {
        for _ in 0..most.min(10_000) {
            let Some(wire) = self.channel.poll_transmit(self.now) else { return };
            let message = Message::parse(&wire).expect("a sound message");
            assert!(message.digest_fits());
            match message.kind {
                Kind::InputStreamData => match self.sent.get(&message.sequence) {
                    Some(before) => assert_eq!(before, &wire, "sent again, but other bytes"),
                    None => {
                        assert_eq!(message.sequence, self.sent.len() as i64, "a gap in the numbers");
                        self.sent.insert(message.sequence, wire.clone());
                    }
                },
                Kind::Acknowledge => {}
                Kind::OutputStreamData
                | Kind::ChannelClosed
                | Kind::StartPublication
                | Kind::PausePublication
                | Kind::AgentSessionState
                | Kind::Other(_) => panic!("a client does not send {:?}", message.kind),
            }
        }
    }

    fn wait(&mut self, bytes: &mut Bytes<'_>) {
        let millis =
            if bytes.byte() & 1 == 0 { u64::from(bytes.byte()) } else { u64::from(bytes.short()) * 4 };
        self.now += Duration::from_millis(millis);
        if self.channel.poll_timeout(self.now).is_some_and(|at| at <= self.now) {
            self.channel.handle_timeout(self.now);
            self.transmit(usize::MAX);
            assert!(
                self.channel.poll_timeout(self.now).is_none_or(|at| at > self.now),
                "a timer without end"
            );
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.channel.poll_event() {
            assert!(!self.over, "{event:?} after the end");
            match event {
                Event::Data(data) => {
                    assert!(!data.is_empty());
                    self.heard.extend_from_slice(&data);
                    self.sights.insert("data".to_owned());
                }
                Event::Opened { .. } => _ = self.sights.insert("opened".to_owned()),
                Event::Closed { .. } => {
                    self.over = true;
                    self.sights.insert("closed".to_owned());
                }
                Event::Failed(error) => {
                    self.over = true;
                    self.sights.insert(variant(&error));
                }
            }
        }
        assert_eq!((self.over, self.channel.ready_bytes()), (self.channel.is_over(), 0));
    }

    fn check(&self) {
        let stats = self.channel.stats();
        assert!(stats.reorder_bytes <= self.config.reorder_bytes);
        assert!(stats.unacked_messages <= self.config.send.window_messages + 2, "{}", stats.unacked_messages);
        assert_eq!(stats.gap_since.is_some(), stats.reorder_bytes > 0);
    }

    fn wind_up(mut self) -> Sights {
        self.events();
        self.transmit(usize::MAX);
        if self.honest {
            let said: Vec<u8> =
                (0..).map_while(|at| self.said.get(&at)).flatten().flatten().copied().collect();
            assert!(said.starts_with(&self.heard));
            assert!(self.over || said == self.heard, "{} of {} bytes", self.heard.len(), said.len());
        }
        self.sights.insert(format!("ignored {}", self.channel.stats().ignored > 0));
        self.sights
    }
}

pub(super) const STEPS: &[u8] =
    &[0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 5, 5, 6, 7, 7, 7, 8, 8, 9, 10, 10, 11, 11, 12];
