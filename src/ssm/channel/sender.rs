//! Pure: the upstream half of a channel: what was sent and not yet acknowledged.
//!
//! A message is stored before it is sent. Sent again are: the oldest unacknowledged one when its
//! timeout has passed, and more of the timed-out ones with every such resend that was needed; once
//! every one that three later acknowledgements have overtaken; and all of them, in order and paced,
//! after a new websocket.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Limits of the upstream half.
#[derive(Clone, Copy, Debug)]
pub struct SendLimits {
    /// No new payload is taken while this many payload bytes wait for acknowledgements.
    pub window_bytes: usize,
    /// No new payload is taken while this many messages wait for acknowledgements.
    pub window_messages: usize,
    /// How long one message may stay the oldest unacknowledged on a live websocket.
    pub wedged_after: Duration,
}

impl Default for SendLimits {
    fn default() -> Self {
        // The SSM agent keeps 100,000 messages out of order, AWS's client resends at most 10,000.
        Self { window_bytes: 4 << 20, window_messages: 8000, wedged_after: Duration::from_secs(20) }
    }
}

pub(super) struct Sender {
    limits: SendLimits,
    next_sequence: i64,
    /// Everything from here to `next_sequence` has not been sent yet.
    fresh_from: i64,
    unacked: BTreeMap<i64, Sent>,
    unacked_bytes: usize,
    resend: BTreeSet<i64>,
    /// Some while the resends after a new websocket are paced.
    pace: Option<Pace>,
    /// Everything before this has had its fast resend.
    fast_until: i64,
    rtt: Rtt,
    /// No back-off before this: the SSM agent tells "still dialling" by silence only.
    dialling_until: Option<Instant>,
    /// When the oldest message was last acknowledged.
    head_acked: Option<Instant>,
    /// How many timed-out messages go out at once.
    recovery: usize,
    pub(super) sent: u64,
    pub(super) resent: u64,
    pub(super) surplus_acks: u64,
}

struct Sent {
    frame: Bytes,
    payload_size: usize,
    /// Of the first and the last sending on the present websocket.
    times: Option<(Instant, Instant)>,
    tries: u32,
    overtaken: u8,
}

struct Pace {
    left: u32,
    refill_at: Instant,
}

impl Sender {
    pub(super) fn new(limits: SendLimits) -> Self {
        Self {
            limits,
            next_sequence: 0,
            fresh_from: 0,
            unacked: BTreeMap::new(),
            unacked_bytes: 0,
            resend: BTreeSet::new(),
            pace: None,
            fast_until: 0,
            rtt: Rtt::default(),
            dialling_until: None,
            head_acked: None,
            recovery: 1,
            sent: 0,
            resent: 0,
            surplus_acks: 0,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.unacked_bytes < self.limits.window_bytes && self.unacked.len() < self.limits.window_messages
    }

    pub(super) fn has_fresh(&self) -> bool {
        self.fresh_from < self.next_sequence
    }

    /// The number of the message that [`store`](Self::store) takes next.
    pub(super) fn next_sequence(&self) -> i64 {
        self.next_sequence
    }

    /// Keeps an encoded message until it is acknowledged; `transmit` gives it out.
    pub(super) fn store(&mut self, frame: Bytes, payload_size: usize) {
        let sent = Sent { frame, payload_size, times: None, tries: 0, overtaken: 0 };
        self.unacked.insert(self.next_sequence, sent);
        self.unacked_bytes += payload_size;
        self.next_sequence += 1;
    }

    /// The next message to put on the websocket: resends first.
    pub(super) fn transmit(&mut self, now: Instant) -> Option<Bytes> {
        if let Some(sequence) = self.resend.first().copied() {
            if !self.take_pace() {
                return None;
            }
            self.resend.remove(&sequence);
            self.resent += 1;
            return self.mark_sent(sequence, now);
        }
        self.pace = None;
        if self.fresh_from == self.next_sequence {
            return None;
        }
        let sequence = self.fresh_from;
        self.fresh_from += 1;
        self.sent += 1;
        self.mark_sent(sequence, now)
    }

    fn take_pace(&mut self) -> bool {
        let Some(pace) = &mut self.pace else { return true };
        let taken = pace.left > 0;
        pace.left -= u32::from(taken);
        taken
    }

    fn mark_sent(&mut self, sequence: i64, now: Instant) -> Option<Bytes> {
        let sent = self.unacked.get_mut(&sequence)?;
        let first = sent.times.map_or(now, |(first, _)| first);
        sent.times = Some((first, now));
        sent.tries += 1;
        Some(sent.frame.clone())
    }

    pub(super) fn handle_ack(&mut self, sequence: i64, now: Instant) {
        if sequence >= self.fresh_from {
            self.surplus_acks += 1;
            return;
        }
        if self.unacked.first_key_value().is_some_and(|(head, _)| *head == sequence) {
            self.head_acked = Some(now);
        }
        let Some(acked) = self.unacked.remove(&sequence) else {
            self.surplus_acks += 1;
            return;
        };
        self.unacked_bytes -= acked.payload_size;
        self.resend.remove(&sequence);
        self.learn(&acked, now);
        self.overtake(sequence);
    }

    fn learn(&mut self, acked: &Sent, now: Instant) {
        let Some((_, last)) = acked.times else { return };
        let since_last = now.saturating_duration_since(last);
        if acked.tries == 1 {
            self.rtt.sample(since_last);
        } else if self.rtt.least.is_none_or(|least| since_last >= least) {
            self.recovery = (self.recovery * 2).min(MAX_RECOVERY);
        } else {
            // Too early to be the resend's: the first sending had arrived, only late.
            self.recovery = 1;
        }
    }

    /// Counts an acknowledgement against all older messages. Older ones have seen at least as many
    /// as younger ones, so the cursor moves past each of them once.
    fn overtake(&mut self, acked: i64) {
        if self.fast_until >= acked {
            return;
        }
        for (sequence, sent) in self.unacked.range_mut(self.fast_until..acked) {
            if sent.times.is_none() || self.resend.contains(sequence) {
                continue;
            }
            sent.overtaken += 1;
            if sent.overtaken >= OVERTAKEN_IS_LOST {
                self.resend.insert(*sequence);
                self.fast_until = sequence + 1;
            }
        }
    }

    pub(super) fn handle_opened(&mut self, now: Instant) {
        self.dialling_until = Some(now + DIAL_PHASE);
    }

    /// All that was sent on the old websocket goes out again.
    pub(super) fn handle_reconnected(&mut self, now: Instant) {
        for sent in self.unacked.values_mut() {
            sent.times = None;
            sent.overtaken = 0;
        }
        self.fast_until = 0;
        self.resend = self.unacked.range(..self.fresh_from).map(|(sequence, _)| *sequence).collect();
        self.pace = Some(Pace { left: RESENDS_PER_RTT, refill_at: now + self.rtt.smoothed.max(MIN_PACE) });
    }

    /// When `handle_timeout` has something to do, or `transmit` has paced resends to give.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let paced = self.pace.as_ref().filter(|pace| pace.left == 0 && !self.resend.is_empty());
        let paced = paced.map(|pace| pace.refill_at);
        let head = self.head_deadlines(now).map(|(resend, wedged)| resend.min(wedged));
        paced.into_iter().chain(head).min()
    }

    /// Queues the oldest message again when its time has come; true when the session is wedged.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        if let Some(pace) = self.pace.as_mut().filter(|pace| pace.refill_at <= now) {
            *pace = Pace { left: RESENDS_PER_RTT, refill_at: now + self.rtt.smoothed.max(MIN_PACE) };
        }
        let Some((resend, wedged)) = self.head_deadlines(now) else { return false };
        if resend <= now {
            let late =
                |sent: &Sent| sent.times.is_some_and(|(_, last)| last + self.timeout(sent, now) <= now);
            let oldest = self.unacked.iter().take(self.recovery).take_while(|(_, sent)| late(sent));
            let oldest: Vec<_> = oldest.map(|(sequence, _)| *sequence).collect();
            self.resend.extend(oldest);
        }
        wedged <= now
    }

    fn head_deadlines(&self, now: Instant) -> Option<(Instant, Instant)> {
        let (sequence, head) = self.unacked.first_key_value()?;
        let (first, last) = head.times.filter(|_| !self.resend.contains(sequence))?;
        let head_since = self.head_acked.map_or(first, |acked| acked.max(first));
        Some((last + self.timeout(head, now), head_since + self.limits.wedged_after))
    }

    fn timeout(&self, sent: &Sent, now: Instant) -> Duration {
        if self.dialling_until.is_some_and(|until| now < until) {
            MIN_RTO
        } else {
            let doublings = sent.tries.saturating_sub(1).min(8);
            (self.rtt.timeout() * (1 << doublings)).min(MAX_RTO)
        }
    }

    pub(super) fn is_unacked(&self, sequence: i64) -> bool {
        self.unacked.contains_key(&sequence)
    }

    pub(super) fn unacked_bytes(&self) -> usize {
        self.unacked_bytes
    }

    pub(super) fn acked_messages(&self) -> u64 {
        self.next_sequence.unsigned_abs() - self.unacked.len() as u64
    }

    pub(super) fn unacked_messages(&self) -> usize {
        self.unacked.len()
    }

    pub(super) fn srtt(&self) -> Option<Duration> {
        self.rtt.sampled.then_some(self.rtt.smoothed)
    }

    pub(super) fn min_rtt(&self) -> Option<Duration> {
        self.rtt.least
    }

    pub(super) fn rto(&self) -> Duration {
        self.rtt.timeout()
    }
}

/// Round trips of messages that were sent once (Karn's rule).
struct Rtt {
    smoothed: Duration,
    variation: Duration,
    least: Option<Duration>,
    sampled: bool,
}

impl Default for Rtt {
    fn default() -> Self {
        Self { smoothed: INITIAL_RTT, variation: Duration::ZERO, least: None, sampled: false }
    }
}

impl Rtt {
    fn sample(&mut self, rtt: Duration) {
        self.least = Some(self.least.map_or(rtt, |least| least.min(rtt)));
        if !std::mem::replace(&mut self.sampled, true) {
            self.smoothed = rtt;
            self.variation = rtt / 2;
            return;
        }
        self.variation = self.variation * 3 / 4 + self.smoothed.abs_diff(rtt) / 4;
        self.smoothed = self.smoothed * 7 / 8 + rtt / 8;
    }

    fn timeout(&self) -> Duration {
        (self.smoothed + (self.variation * 4).max(MIN_VARIATION)).clamp(MIN_RTO, MAX_RTO)
    }
}

const INITIAL_RTT: Duration = Duration::from_millis(100);
const MIN_VARIATION: Duration = Duration::from_millis(10);
const MIN_RTO: Duration = Duration::from_millis(200);
const MAX_RTO: Duration = Duration::from_secs(3);
const DIAL_PHASE: Duration = Duration::from_secs(1);
const MAX_RECOVERY: usize = 64;
const OVERTAKEN_IS_LOST: u8 = 3;
const RESENDS_PER_RTT: u32 = 200;
const MIN_PACE: Duration = Duration::from_millis(20);

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn messages_leave_in_order_and_acks_free_the_window() {
        let (mut sender, now) = filled(3);
        assert_eq!(drain(&mut sender, now), ["0", "1", "2"]);

        sender.handle_ack(1, now + ms(30));

        assert_eq!((sender.unacked_bytes(), sender.unacked_messages()), (2000, 2));
        assert_eq!(sender.srtt(), Some(ms(30)));
    }

    #[test]
    fn the_window_closes_by_bytes_and_by_count() {
        let limits = SendLimits { window_bytes: 2500, window_messages: 10, ..SendLimits::default() };
        let mut sender = Sender::new(limits);
        (0..3).for_each(|_| sender.store(Bytes::new(), 1000));
        assert!(!sender.has_room());

        let mut sender = Sender::new(limits);
        (0..10).for_each(|_| sender.store(Bytes::new(), 1));
        assert!(!sender.has_room());
    }

    #[test]
    fn the_head_is_resent_alone_and_backs_off() {
        let (mut sender, now) = filled(3);
        drain(&mut sender, now);

        let mut resends = Vec::new();
        while let Some(at) = sender.poll_timeout(now) {
            if sender.handle_timeout(at) {
                break;
            }
            assert_eq!(drain(&mut sender, at), ["0"]);
            resends.push((at - now).as_millis());
        }

        assert_eq!(resends[..6], [200, 600, 1400, 3000, 6000, 9000]);
        assert_eq!(resends.last(), Some(&18_000), "wedged at 20 s");
    }

    #[test]
    fn while_the_agent_dials_there_is_no_back_off() {
        let (mut sender, now) = filled(1);
        sender.handle_opened(now);
        drain(&mut sender, now);

        for round in 1..=4 {
            let at = sender.poll_timeout(now).unwrap();
            assert_eq!(at, now + ms(200) * round);
            assert!(!sender.handle_timeout(at));
            assert_eq!(drain(&mut sender, at), ["0"]);
        }
    }

    #[test]
    fn three_later_acks_resend_every_older_message_once() {
        let (mut sender, now) = filled(8);
        drain(&mut sender, now);

        for sequence in [2, 4, 5] {
            sender.handle_ack(sequence, now + ms(20));
        }
        assert_eq!(drain(&mut sender, now + ms(20)), ["0", "1"]);
        sender.handle_ack(6, now + ms(21));
        assert_eq!(drain(&mut sender, now + ms(21)), ["3"]);
        sender.handle_ack(7, now + ms(21));

        assert_eq!(drain(&mut sender, now + ms(21)), [""; 0]);
    }

    #[test]
    fn a_lost_tail_is_resent_in_growing_batches() {
        let (mut sender, now) = filled(20);
        drain(&mut sender, now);
        let mut at = now + ms(200);
        for wanted in [vec!["0"], vec!["1", "2"], vec!["3", "4", "5", "6", "7", "8", "9", "10"]] {
            sender.handle_timeout(at);
            let resent = drain(&mut sender, at);
            assert_eq!(resent, wanted);
            at += ms(50);
            resent.iter().for_each(|sequence| sender.handle_ack(sequence.parse().unwrap(), at));
        }
    }

    #[test]
    fn an_ack_of_the_first_sending_does_not_grow_the_batch() {
        let (mut sender, now) = filled(5);
        drain(&mut sender, now);
        sender.handle_ack(0, now + ms(150));
        let late = now + ms(600);
        sender.handle_timeout(late);
        assert_eq!(drain(&mut sender, late), ["1"]);

        sender.handle_ack(1, late + ms(10));
        sender.handle_timeout(late + ms(10));

        assert_eq!(drain(&mut sender, late + ms(10)), ["2"]);
    }

    #[test]
    fn a_resent_message_gives_no_rtt_sample() {
        let (mut sender, now) = filled(1);
        drain(&mut sender, now);
        sender.handle_timeout(now + ms(200));
        drain(&mut sender, now + ms(200));

        sender.handle_ack(0, now + ms(201));

        assert_eq!((sender.srtt(), sender.unacked_messages()), (None, 0));
    }

    #[test]
    fn acks_of_unsent_or_unknown_messages_change_nothing() {
        let (mut sender, now) = filled(2);
        sender.handle_ack(1, now);
        sender.handle_ack(99, now);
        sender.handle_ack(-1, now);
        assert_eq!((sender.unacked_messages(), sender.surplus_acks), (2, 3));
    }

    #[test]
    fn a_new_websocket_gets_everything_again_in_order_and_paced() {
        let (mut sender, now) = filled(500);
        drain(&mut sender, now);
        sender.store(Bytes::from("fresh"), 5);
        sender.handle_ack(7, now + ms(40));

        sender.handle_reconnected(now + ms(50));

        let first = drain(&mut sender, now + ms(50));
        assert_eq!((first.len(), first[0].as_str(), first[7].as_str()), (200, "0", "8"));
        let refill = sender.poll_timeout(now + ms(50)).unwrap();
        assert_eq!(refill, now + ms(90));
        sender.handle_timeout(refill);
        assert_eq!(drain(&mut sender, refill).len(), 200);
        sender.handle_timeout(refill + ms(40));
        let last = drain(&mut sender, refill + ms(40));
        assert_eq!((last.len(), last.last().unwrap().as_str()), (100, "fresh"));
    }

    #[test]
    fn the_rtt_timeout_follows_the_samples_within_its_limits() {
        let mut rtt = Rtt::default();
        (0..50).for_each(|_| rtt.sample(ms(5)));
        assert_eq!(rtt.timeout(), MIN_RTO);
        (0..50).for_each(|_| rtt.sample(ms(10_000)));
        assert_eq!((rtt.timeout(), rtt.least), (MAX_RTO, Some(ms(5))));
    }

    fn filled(count: usize) -> (Sender, Instant) {
        let mut sender = Sender::new(SendLimits::default());
        (0..count).for_each(|sequence| sender.store(Bytes::from(sequence.to_string()), 1000));
        (sender, Instant::now())
    }

    fn drain(sender: &mut Sender, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| sender.transmit(now))
            .map(|frame| String::from_utf8(frame.to_vec()).unwrap())
            .collect()
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }
}
