//! Pure: every knob of the simulator, its seeded chance, and what the gateway does to messages in passing.

use std::collections::VecDeque;
use std::time::Duration;

use super::api::ApiFailure;
use super::parcel::{Parcel, Tag};

/// Everything that can be turned while the simulator runs (`Simulator::knobs`).
///
/// [`Knobs::default`] is faithful to the measured service; [`Knobs::fast`] is for tests of bytes.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// One way, for each of the two hops: client to gateway and gateway to SSM agent.
    pub hop_delay: Duration,
    /// Up to this much is added to a hop's delay; the order of messages stays.
    pub jitter: Duration,
    /// Bytes a second each way on the client's hop.
    pub bandwidth: Option<u64>,
    /// What the gateway does to the client's messages.
    pub up: Mix,
    /// What the gateway does to the SSM agent's messages.
    pub down: Mix,
    /// How long a websocket of the client lives before it is closed with 1000 `Bye`.
    pub client_recycle: Option<Duration>,
    /// The same for the SSM agent's websocket.
    pub agent_recycle: Option<Duration>,
    /// The chance that a cut of the SSM agent's websocket falls between the write of an upstream
    /// message to the target and its acknowledgement, so that the message is written twice.
    pub repeat_after_agent_cut: f64,
    /// How long a token of StartSession or ResumeSession may be used.
    pub token_life: Duration,
    /// A longer message of the client closes its websocket, with 1009 unless `max_message_silent`.
    pub max_message: usize,
    /// As boxes on the way do that know no more of a message than that they do not like it.
    pub max_message_silent: bool,
    /// Without a stream message of the client or a ResumeSession for so long, the session ends.
    pub idle_timeout: Option<Duration>,
    pub max_duration: Option<Duration>,
    /// How many messages the gateway keeps for a half that has gone; the rest is lost.
    pub absent_peer_buffer: usize,
    /// Pings of the client get no answer.
    pub suppress_pongs: bool,
    /// Time from an API request to its answer.
    pub api_delay: Duration,
    /// More StartSession calls in one second are throttled.
    pub starts_per_second: Option<u32>,
    pub resume: ResumeAnswer,
    /// How long the gateway waits for the first text message of a websocket.
    pub open_deadline: Duration,
    /// How gateway messages without stream data look.
    pub gateway_form: GatewayForm,
    pub agent: AgentKnobs,
}

/// The SSM agent's side. Values are read when a session starts.
#[derive(Clone, Debug)]
pub struct AgentKnobs {
    pub version: String,
    /// From StartSession to the worker's websocket.
    pub start_delay: Duration,
    /// The most bytes of one read, hence of one message.
    pub read_size: usize,
    /// Sleep after every message.
    pub pause: Duration,
    /// The chance that a message is stored for resending only after an acknowledgement that comes
    /// within a millisecond; 0 stores before sending.
    pub store_late: f64,
    /// From writing HandshakeComplete to taking stream data, at most; until then it is acknowledged and lost.
    pub complete_delay: Duration,
    pub dial_delay: Duration,
    pub refusal: Refusal,
    pub outgoing_capacity: usize,
    pub incoming_capacity: usize,
    pub resend_tick: Duration,
    pub handshake_timeout: Duration,
    /// How long acknowledgements are awaited after the target closed.
    pub eof_drain: Duration,
    /// From the worker's end to the client's `channel_closed`.
    pub close_delay: Duration,
    /// How long the worker lives after TerminateSession.
    pub terminate_linger: Duration,
    /// Least and most time from noticing a lost websocket to the next one.
    pub reconnect: (Duration, Duration),
    /// How long a silent websocket goes unnoticed.
    pub dead_after: Duration,
}

/// What the client of a session sees after the SSM agent could not dial the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The worker dies; the client hears `pause_publication` and then nothing.
    Vanish,
    /// After a second, `channel_closed` with the worker's error.
    Explain,
}

/// What ResumeSession answers for a session that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeAnswer {
    Token,
    /// An answer without TokenValue: the session has timed out.
    WithoutToken,
    Fail(ApiFailure),
}

/// The header of gateway messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatewayForm {
    /// Header length 112, type padded with NUL, no payload.
    Short,
    /// Header length 116, type padded with spaces, a JSON payload and a zero digest.
    Long,
    /// The one and the other in turn.
    Both,
}

/// Faults of one direction, each with its chance per message.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mix {
    pub loss: f64,
    /// The chance that a burst of losses begins.
    pub burst: f64,
    /// Messages lost in one burst.
    pub burst_length: u32,
    pub duplicate: f64,
    pub reorder: f64,
    /// How many later messages overtake a reordered one, at most.
    pub reorder_distance: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the SSM agent.
    Up,
    /// From the SSM agent to the client.
    Down,
}

/// Which messages a targeted drop takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Any,
    Stream,
    Acknowledgement,
}

impl Knobs {
    /// No delays, no pacing, no chance: bytes go through as fast as the machine allows.
    pub fn fast() -> Self {
        let agent = AgentKnobs {
            start_delay: Duration::ZERO,
            pause: Duration::ZERO,
            store_late: 0.0,
            complete_delay: Duration::ZERO,
            terminate_linger: Duration::ZERO,
            ..AgentKnobs::default()
        };
        Self {
            hop_delay: Duration::ZERO,
            api_delay: Duration::ZERO,
            repeat_after_agent_cut: 0.0,
            agent,
            ..Self::default()
        }
    }
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            hop_delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            bandwidth: None,
            up: Mix::default(),
            down: Mix::default(),
            client_recycle: Some(Duration::from_secs(3600)),
            agent_recycle: Some(Duration::from_secs(3600)),
            repeat_after_agent_cut: 0.5,
            token_life: Duration::from_secs(60),
            max_message: 128 * 1024,
            max_message_silent: false,
            idle_timeout: Some(Duration::from_secs(20 * 60)),
            max_duration: None,
            absent_peer_buffer: 0,
            suppress_pongs: false,
            api_delay: Duration::from_millis(40),
            starts_per_second: None,
            resume: ResumeAnswer::Token,
            open_deadline: Duration::from_secs(5),
            gateway_form: GatewayForm::Both,
            agent: AgentKnobs::default(),
        }
    }
}

impl Default for AgentKnobs {
    fn default() -> Self {
        Self {
            version: "3.3.987.0".to_owned(),
            start_delay: Duration::from_millis(100),
            read_size: 1024,
            pause: Duration::from_micros(1100),
            store_late: 0.02,
            complete_delay: Duration::from_millis(2),
            dial_delay: Duration::ZERO,
            refusal: Refusal::Vanish,
            outgoing_capacity: 100_000,
            incoming_capacity: 100_000,
            resend_tick: Duration::from_millis(100),
            handshake_timeout: Duration::from_secs(15),
            eof_drain: Duration::from_secs(2),
            close_delay: Duration::from_millis(50),
            terminate_linger: Duration::from_secs(3),
            reconnect: (Duration::from_millis(100), Duration::from_millis(300)),
            dead_after: Duration::from_secs(114),
        }
    }
}

/// Random numbers from a seed (SplitMix64): the same seed, the same run as far as timing allows.
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// True in `probability` of all cases.
    pub fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && ((self.number() >> 11) as f64 / (1u64 << 53) as f64) < probability
    }

    /// From `least` to `most`, both included.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.number() % (most.saturating_sub(least) + 1)
    }

    pub fn duration(&mut self, least: Duration, most: Duration) -> Duration {
        let micros = self.between(least.as_micros() as u64, most.as_micros() as u64);
        Duration::from_micros(micros)
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.number() as u8)
    }

    /// `length` characters of `alphabet`, which is ASCII.
    pub fn text(&mut self, alphabet: &[u8], length: usize) -> String {
        (0..length)
            .map(|_| char::from(alphabet[self.between(0, alphabet.len() as u64 - 1) as usize]))
            .collect()
    }
}

/// The gateway's faults for one direction of one session.
#[derive(Debug, Default)]
pub(crate) struct Mangler {
    burst_left: u32,
    drops: Vec<(What, u32)>,
    held: VecDeque<(u32, Parcel)>,
}

/// What [`Mangler::pass`] did with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Passed,
    Duplicated,
    Held,
    Lost,
}

impl Mangler {
    /// Loses the next `count` messages of this sort, one after the other.
    pub(crate) fn drop_next(&mut self, what: What, count: u32) {
        self.drops.push((what, count));
    }

    /// Takes one message and appends to `out` what goes on.
    pub(crate) fn pass(&mut self, parcel: Parcel, mix: &Mix, rng: &mut Rng, out: &mut Vec<Parcel>) -> Fate {
        if self.loses(parcel.tag, mix, rng) {
            self.release(out);
            return Fate::Lost;
        }
        if self.held.len() < MOST_HELD && rng.chance(mix.reorder) {
            self.held.push_back((rng.between(1, u64::from(mix.reorder_distance.max(1))) as u32, parcel));
            return Fate::Held;
        }
        let fate = if rng.chance(mix.duplicate) {
            out.push(parcel.clone());
            Fate::Duplicated
        } else {
            Fate::Passed
        };
        out.push(parcel);
        self.release(out);
        fate
    }

    /// Lets go of everything held back for reordering.
    pub(crate) fn flush(&mut self, out: &mut Vec<Parcel>) {
        out.extend(self.held.drain(..).map(|(_, parcel)| parcel));
    }

    pub(crate) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    fn loses(&mut self, tag: Tag, mix: &Mix, rng: &mut Rng) -> bool {
        if let Some((_, left)) = self.drops.iter_mut().find(|(what, _)| what.takes(tag)) {
            *left -= 1;
            self.drops.retain(|(_, left)| *left > 0);
            return true;
        }
        if self.burst_left == 0 && rng.chance(mix.burst) {
            self.burst_left = mix.burst_length;
        }
        if self.burst_left > 0 {
            self.burst_left -= 1;
            return true;
        }
        rng.chance(mix.loss)
    }

    fn release(&mut self, out: &mut Vec<Parcel>) {
        for (wait, _) in &mut self.held {
            *wait = wait.saturating_sub(1);
        }
        while let Some((_, parcel)) = self.held.pop_front_if(|(wait, _)| *wait == 0) {
            out.push(parcel);
        }
    }
}

impl What {
    fn takes(self, tag: Tag) -> bool {
        match self {
            Self::Any => true,
            Self::Stream => matches!(tag, Tag::Stream { .. }),
            Self::Acknowledgement => matches!(tag, Tag::Acknowledgement),
        }
    }
}

const MOST_HELD: usize = 1024;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn stream(sequence: i64) -> Parcel {
        Parcel { bytes: Bytes::new(), tag: Tag::Stream { sequence, id: None } }
    }

    fn run(mangler: &mut Mangler, mix: &Mix, count: i64) -> Vec<i64> {
        let (mut rng, mut out) = (Rng::new(7), Vec::new());
        for sequence in 0..count {
            mangler.pass(stream(sequence), mix, &mut rng, &mut out);
        }
        mangler.flush(&mut out);
        out.iter()
            .map(|parcel| match parcel.tag {
                Tag::Stream { sequence, .. } => sequence,
                Tag::Acknowledgement | Tag::Control => -1,
            })
            .collect()
    }

    #[test]
    fn nothing_happens_without_a_fault() {
        assert_eq!(run(&mut Mangler::default(), &Mix::default(), 5), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_targeted_drop_takes_exactly_its_count_of_its_sort() {
        let mut mangler = Mangler::default();
        mangler.drop_next(What::Acknowledgement, 1);
        mangler.drop_next(What::Stream, 2);
        assert_eq!(run(&mut mangler, &Mix::default(), 4), [2, 3]);
    }

    #[test]
    fn duplicates_double_and_reordering_loses_nothing() {
        let doubled = run(&mut Mangler::default(), &Mix { duplicate: 1.0, ..Mix::default() }, 3);
        assert_eq!(doubled, [0, 0, 1, 1, 2, 2]);

        let mix = Mix { reorder: 0.3, reorder_distance: 4, ..Mix::default() };
        let mut shuffled = run(&mut Mangler::default(), &mix, 200);
        assert!(!shuffled.is_sorted());
        shuffled.sort_unstable();
        assert!(shuffled.into_iter().eq(0..200));
    }

    #[test]
    fn a_burst_loses_its_length_in_a_row() {
        let mix = Mix { burst: 0.02, burst_length: 10, ..Mix::default() };
        let kept = run(&mut Mangler::default(), &mix, 500);
        let gap = kept.windows(2).map(|pair| pair[1] - pair[0]).find(|gap| *gap > 1);
        assert_eq!(gap.map(|gap| (gap - 1) % 10), Some(0));
    }
}
