//! Pure: what frames that arrive do.

use std::time::Instant;

use super::segment::{Frame, Parser};
use super::{GoodbyeReason, LaneFault, Role, Trunk, TrunkEvent, demand, hello};

impl Trunk {
    pub(super) fn handle_frames(
        &mut self,
        index: usize,
        parser: &mut Parser,
        mut input: &[u8],
        now: Instant,
        place: &mut dyn FnMut(&[u8]),
    ) -> Result<(), LaneFault> {
        while let Some(frame) = parser.next_frame(&mut input).map_err(LaneFault::Frame)? {
            let lane = &mut self.lanes[index];
            lane.heard(now);
            match frame {
                Frame::Segment { offset, sequence, bytes } => {
                    if lane.inbound.is_next(sequence)? {
                        self.receiver.handle_segment(offset, bytes, place)?;
                        lane.taken(sequence, bytes.len(), now);
                    } else {
                        self.receiver.duplicates += bytes.len() as u64;
                    }
                }
                Frame::Ack { cum, credit, sequence, arrived, wanted } => {
                    let sender = &mut self.sender;
                    let mut found = |offset, length| sender.arrived(offset, length);
                    lane.handle_ack(sequence, arrived, now, &mut found)?;
                    self.sender.acknowledge(cum)?;
                    self.sender.raise_credit(credit);
                    self.peer_wants = wanted.min(demand::MOST as u8);
                    self.note_drained(index);
                }
                Frame::Retire => {
                    lane.handle_retire();
                    self.note_drained(index);
                }
                Frame::Ping { id } => lane.handle_ping(id),
                Frame::Pong { id } => lane.handle_pong(id, now),
                Frame::Goodbye { reason, text } => self.handle_goodbye(reason, text),
                Frame::Greeting(_) | Frame::Welcome(_) if self.config.role == Role::Client => {}
                Frame::Hello(body) if self.config.role == Role::Agent => {
                    if hello::digest(body) != lane.hello {
                        return Err(LaneFault::OtherHello);
                    }
                }
                Frame::Greeting(_) | Frame::Hello(_) | Frame::Welcome(_) | Frame::Deny { .. } => {
                    return Err(LaneFault::Handshake);
                }
            }
        }
        Ok(())
    }

    fn handle_goodbye(&mut self, reason: u8, text: &str) {
        if !std::mem::replace(&mut self.heard_goodbye, true) {
            let text = text.chars().filter(|char| !char.is_control()).collect();
            self.events.push_back(TrunkEvent::Goodbye { reason: GoodbyeReason::from_code(reason), text });
        }
    }

    fn note_drained(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        if lane.is_newly_drained() {
            self.events.push_back(TrunkEvent::LaneDrained { lane: lane.id });
        }
    }
}
