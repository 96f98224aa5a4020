//! Pure: what is counted of one flow: packets, segments sent again, and the round trip to the application.
//!
//! A segment counts as sent again when it takes up sequence numbers and none beyond those sent before. Probes of
//! a closed window are no repeats. Round trips are measured one at a time, from the SYN-ACK on, never over a
//! segment that was sent again, and smoothed as TCP does it, by an eighth.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use agent::local_end::EndFigures;

use super::packet::{self, Segment};

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    packets_from: u64,
    packets_to: u64,
    repeats_from: u32,
    repeats_to: u32,
    /// Nanoseconds; dividing a `Duration` costs more than the rest of this.
    rtt: Option<NonZeroU64>,
    silent: bool,
    /// Behind the last sequence number the application sent, and behind the last one sent to it.
    heard: Option<u32>,
    said: Option<u32>,
    /// The application's window is closed.
    closed: bool,
    /// The round trip that is being measured: what must be acknowledged, and when it was sent.
    sample: Option<(u32, Instant)>,
}

impl Meter {
    pub(super) fn figures(&self) -> EndFigures {
        EndFigures {
            packets_from: self.packets_from,
            packets_to: self.packets_to,
            repeats_from: self.repeats_from.into(),
            repeats_to: self.repeats_to.into(),
            rtt: self.rtt.map(|rtt| Duration::from_nanos(rtt.get())),
            silent: self.silent,
        }
    }

    /// The application has sent a datagram.
    pub(super) fn heard_datagram(&mut self) {
        self.packets_from += 1;
    }

    /// The application has got a datagram.
    pub(super) fn said_datagram(&mut self) {
        self.packets_to += 1;
    }

    /// The application has sent this.
    #[inline]
    pub(super) fn heard(&mut self, segment: &Segment, now: Instant) {
        self.packets_from += 1;
        let control = u32::from(segment.has(packet::SYN)) + u32::from(segment.has(packet::FIN));
        let end = segment.end().wrapping_add(control);
        if end != segment.seq {
            let again = u32::from(advance(&mut self.heard, end));
            self.repeats_from = self.repeats_from.saturating_add(again);
        }
        self.closed = segment.window == 0;
        if let Some((due, sent)) = self.sample
            && segment.has(packet::ACK)
            && segment.ack.wrapping_sub(due) as i32 >= 0
        {
            self.sample = None;
            self.smooth(now.saturating_duration_since(sent));
        }
    }

    /// This goes to the application.
    #[inline]
    pub(super) fn said(&mut self, packet: &[u8], now: Instant) {
        self.packets_to += 1;
        let Some((seq, end)) = packet::sequence(packet) else { return };
        if seq == end {
            return;
        }
        if !advance(&mut self.said, end) {
            self.sample.get_or_insert((end, now));
        } else if !self.closed {
            self.repeats_to = self.repeats_to.saturating_add(1);
            self.sample = None;
        }
    }

    /// The application answers no more.
    pub(super) fn give_up(&mut self) {
        self.silent = true;
    }

    fn smooth(&mut self, took: Duration) {
        let took = took.as_nanos() as u64;
        let rtt = self.rtt.map_or(took, |rtt| rtt.get() - rtt.get() / 8 + took / 8);
        self.rtt = NonZeroU64::new(rtt.max(1));
    }
}

/// Moves `mark` up to `end`; true if it was there before.
fn advance(mark: &mut Option<u32>, end: u32) -> bool {
    let is_old = mark.is_some_and(|mark| end.wrapping_sub(mark) as i32 <= 0);
    if !is_old {
        *mark = Some(end);
    }
    is_old
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use super::super::packet::Packet;
    use super::*;

    #[test]
    fn what_brings_nothing_new_is_a_repeat() {
        let mut meter = Meter::default();
        let now = Instant::now();
        for (flags, seq, data) in [
            (packet::SYN, 99, 0),
            (packet::SYN, 99, 0),
            (packet::ACK, 100, 0),
            (packet::ACK, 100, 50),
            (packet::ACK, 150, 50),
            (packet::ACK, 150, 50),
            // A keepalive takes up no sequence number.
            (packet::ACK, 199, 0),
            // The first byte is old, the last one new.
            (packet::ACK, 199, 2),
            (packet::ACK | packet::FIN, 201, 0),
            (packet::ACK | packet::FIN, 201, 0),
        ] {
            hear(&mut meter, flags, seq, 1, data, 1000, now);
        }

        let figures = meter.figures();

        assert_eq!((figures.packets_from, figures.repeats_from), (10, 3));
    }

    #[test]
    fn numbers_may_wrap_around() {
        let mut meter = Meter::default();
        let now = Instant::now();
        hear(&mut meter, packet::ACK, u32::MAX - 10, 1, 20, 1000, now);
        hear(&mut meter, packet::ACK, 9, 1, 20, 1000, now);
        assert_eq!(meter.figures().repeats_from, 0);
        hear(&mut meter, packet::ACK, u32::MAX - 10, 1, 20, 1000, now);
        assert_eq!(meter.figures().repeats_from, 1);
    }

    #[test]
    fn round_trips_are_smoothed_and_never_taken_from_what_was_sent_twice() {
        let mut meter = Meter::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut rtt = |said: &[(u32, usize, u64)], acked: u32, ms: u64| {
            for (seq, data, ms) in said {
                meter.said(&bytes(packet::ACK, *seq, 1, *data, 1000), at(*ms));
            }
            hear(&mut meter, packet::ACK, 1, acked, 0, 1000, at(ms));
            meter.figures().rtt.map(|rtt| rtt.as_millis())
        };

        assert_eq!(rtt(&[(100, 10, 0)], 105, 8), None, "not all of it");
        assert_eq!(rtt(&[], 110, 16), Some(16));
        assert_eq!(rtt(&[(110, 10, 20), (120, 10, 25)], 130, 28), Some(15), "one sample at a time");
        assert_eq!(rtt(&[(130, 10, 30), (130, 10, 900)], 140, 901), Some(15));
        assert_eq!(meter.figures().repeats_to, 1);
        assert_eq!(meter.figures().packets_to, 5);
    }

    #[test]
    fn probes_of_a_closed_window_are_no_repeats() {
        let mut meter = Meter::default();
        let now = Instant::now();
        meter.said(&bytes(packet::ACK, 100, 1, 10, 1000), now);
        hear(&mut meter, packet::ACK, 1, 110, 0, 0, now);
        for _ in 0..3 {
            meter.said(&bytes(packet::ACK, 110, 1, 1, 1000), now);
        }
        assert_eq!(meter.figures().repeats_to, 0);
        hear(&mut meter, packet::ACK, 1, 110, 0, 9, now);
        meter.said(&bytes(packet::ACK, 110, 1, 1, 1000), now);
        assert_eq!(meter.figures().repeats_to, 1);
    }

    fn hear(meter: &mut Meter, flags: u8, seq: u32, ack: u32, data: usize, window: u16, now: Instant) {
        let bytes = bytes(flags, seq, ack, data, window);
        let packet = Packet::parse(&bytes, false).unwrap();
        let segment = Segment::parse(&packet, false).unwrap();
        meter.heard(&segment, now);
    }

    fn bytes(flags: u8, seq: u32, ack: u32, data: usize, window: u16) -> Vec<u8> {
        let length = (40 + data) as u16;
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 99, 0, 1, 10, 0, 1, 5];
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes.extend([0x9c, 0x40, 0, 80]);
        bytes.extend(seq.to_be_bytes());
        bytes.extend(ack.to_be_bytes());
        bytes.extend([0x50, flags]);
        bytes.extend(window.to_be_bytes());
        bytes.resize(usize::from(length), 0);
        bytes
    }
}
