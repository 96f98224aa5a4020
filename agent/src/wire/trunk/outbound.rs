//! Pure: the segments that are on their way to the peer on one lane.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::LaneFault;
use super::delay::Micros;
use super::pace::{Departure, Pace};
use super::profile::LaneProfile;

pub(super) struct Outbound {
    profile: LaneProfile,
    /// In the order of their sequence numbers, the oldest right after `acked`.
    in_flight: VecDeque<InFlight>,
    bytes: usize,
    /// Highest sequence number the peer has received; the first segment is 1.
    acked: u32,
    pace: Pace,
    /// The oldest so many in flight are overdue and were given to other lanes.
    overdue: usize,
    /// Since when nothing was acknowledged, while something is in flight.
    waiting_since: Option<Instant>,
    /// That was told.
    stalled: bool,
    /// Bytes given to other lanes.
    pub(super) given_away: u64,
}

#[derive(Clone, Copy)]
struct InFlight {
    offset: u64,
    length: u32,
    sent_at: Instant,
    departure: Departure,
}

/// What an ack brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Acked {
    pub(super) bytes: usize,
    /// When the newest segment it covers was sent.
    pub(super) sent_at: Option<Instant>,
}

impl Outbound {
    pub(super) fn new(profile: LaneProfile) -> Self {
        Self {
            profile,
            in_flight: VecDeque::new(),
            bytes: 0,
            acked: 0,
            pace: Pace::new(profile.pace),
            overdue: 0,
            waiting_since: None,
            stalled: false,
            given_away: 0,
        }
    }

    /// A segment goes out; its sequence number. `micros` is `now` on the clock the pace goes by.
    pub(super) fn send(&mut self, offset: u64, length: usize, now: Instant, micros: Micros) -> u32 {
        let departure = self.pace.depart(length, self.bytes, micros);
        self.waiting_since.get_or_insert(now);
        self.in_flight.push_back(InFlight { offset, length: length as u32, sent_at: now, departure });
        self.bytes += length;
        self.acked.wrapping_add(self.in_flight.len() as u32)
    }

    /// All segments up to `sequence` have arrived, the last of them at `arrived`; `found` is told of those that
    /// were given to other lanes.
    pub(super) fn acknowledge(
        &mut self,
        sequence: u32,
        arrived: Micros,
        now: Instant,
        micros: Micros,
        found: &mut dyn FnMut(u64, usize),
    ) -> Result<Acked, LaneFault> {
        let news = sequence.wrapping_sub(self.acked);
        if news == 0 || news > u32::MAX / 2 {
            return Ok(Acked::default());
        }
        if news as usize > self.in_flight.len() {
            return Err(LaneFault::AckOfUnsentSegment { sequence });
        }
        self.acked = sequence;
        let (mut bytes, mut newest) = (0, None);
        for segment in self.in_flight.drain(..news as usize) {
            if self.overdue > 0 {
                self.overdue -= 1;
                found(segment.offset, segment.length as usize);
            }
            bytes += segment.length as usize;
            newest = Some(segment);
        }
        self.bytes -= bytes;
        self.stalled = false;
        self.waiting_since = (!self.in_flight.is_empty()).then_some(now);
        if let Some(newest) = newest {
            self.pace.delivered(bytes, newest.departure, self.bytes, arrived, micros);
        }
        Ok(Acked { bytes, sent_at: newest.map(|newest| newest.sent_at) })
    }

    /// How many bytes may go out now.
    pub(super) fn room(&self, micros: Micros) -> usize {
        if self.in_flight.len() >= MOST_IN_FLIGHT || self.is_suspect() {
            0
        } else {
            self.pace.room(self.bytes, micros)
        }
    }

    /// It was asked for a segment and had nothing, or no room, to send one.
    pub(super) fn note_idle(&mut self, micros: Micros) {
        if self.room(micros) < NEARLY_FULL {
            self.pace.held_back();
        } else {
            self.pace.idle(self.bytes);
        }
    }

    /// Something waits that the window does not let out.
    pub(super) fn note_held_back(&mut self) {
        self.pace.held_back();
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Segments of it were given to other lanes and have not arrived here: it gets no more until they have.
    pub(super) fn is_suspect(&self) -> bool {
        self.overdue > 0
    }

    /// When the next segment becomes overdue.
    pub(super) fn overdue_at(&self) -> Option<Instant> {
        let (segment, delay) = (self.in_flight.get(self.overdue)?, self.pace.delay());
        let silent = self.waiting_since.map(|since| since + delay.longest_silence());
        silent.into_iter().chain([segment.sent_at + delay.patience()]).min()
    }

    /// Marks the next segment that is overdue as given to other lanes; its offset and length.
    pub(super) fn give_away(&mut self, now: Instant) -> Option<(u64, usize)> {
        if self.overdue_at()? > now {
            return None;
        }
        let segment = self.in_flight.get(self.overdue)?;
        self.overdue += 1;
        self.given_away += u64::from(segment.length);
        Some((segment.offset, segment.length as usize))
    }

    /// No other lane is left: takes back what was given away; `found` is told of it.
    pub(super) fn take_back(&mut self, found: &mut dyn FnMut(u64, usize)) {
        for segment in self.in_flight.iter().take(std::mem::take(&mut self.overdue)) {
            found(segment.offset, segment.length as usize);
        }
    }

    /// For how long nothing was acknowledged.
    pub(super) fn waiting(&self, now: Instant) -> Duration {
        self.waiting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.waiting_since
    }

    /// The program did not run for a while: the wait begins anew.
    pub(super) fn wait_anew(&mut self, now: Instant) {
        if self.waiting_since.is_some() {
            self.waiting_since = Some(now);
        }
    }

    /// `true` once for each stall.
    pub(super) fn tell_stall(&mut self) -> bool {
        !std::mem::replace(&mut self.stalled, true)
    }

    pub(super) fn has_told_stall(&self) -> bool {
        self.stalled
    }

    pub(super) fn longest_segment(&self) -> usize {
        self.profile.segment
    }

    /// 1 to 2 ms of lane time; of a lane whose rate is not known, a small part of what it begins with.
    pub(super) fn longest_frame(&self) -> usize {
        let LaneProfile { frame, least_frame, pace, .. } = self.profile;
        let bytes = match self.pace.proven_rate() {
            Some(rate) => usize::try_from(rate.saturating_mul(FRAME_MICROS) / 1_000_000).unwrap_or(frame),
            None => pace.start / 8,
        };
        bytes.clamp(least_frame, frame)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn pace(&self) -> &Pace {
        &self.pace
    }

    #[cfg(test)]
    pub(super) fn count_from(&mut self, sequence: u32) {
        self.acked = sequence;
    }

    /// Offsets and lengths of what may not have arrived and was given to no other lane.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = (u64, usize)> {
        self.in_flight.iter().skip(self.overdue).map(|segment| (segment.offset, segment.length as usize))
    }
}

/// Segments in flight on one lane; short ones wait and go out as one.
pub(super) const MOST_IN_FLIGHT: usize = 1024;
/// With less room the window counts as full.
const NEARLY_FULL: usize = 2048;
const FRAME_MICROS: u64 = 1_500;
