//! What an application's kernel sends again, or sends to hear that we are there.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::TcpRepr;

use super::*;

/// A kernel sends its last segment again after two round trips of silence. If it is not told that the bytes came twice,
/// it takes that for the cure of a loss and sends half as much from then on.
#[test]
fn every_segment_that_comes_again_is_said_to_have_come_twice() {
    for family in [V4, V6] {
        let mut app = RawApp::connect(family);
        app.send(1001, b"hello");
        assert_eq!(app.answers(), [(1006, None)]);
        for _ in 0..5 {
            app.send(1001, b"hello");
            assert_eq!(app.answers(), [(1006, Some((1001, 1006)))]);
        }
        app.send(1006, b"again");
        app.send(1006, b"again");
        assert_eq!(app.answers(), [(1011, Some((1006, 1011))), (1011, None)]);
        app.send(1003, b"llo");
        assert_eq!(app.answers(), [(1011, Some((1003, 1006)))]);

        let mut received = [0; 100];
        let count = app.world.stack.read(app.flow, &mut received, app.world.now);
        assert_eq!(&received[..count], b"helloagain");
        app.world.stack.check_invariants();
    }
}

#[test]
fn every_probe_of_an_idle_application_is_answered() {
    let mut app = RawApp::connect(V4);
    app.send(1001, b"hello");
    app.answers();
    for _ in 0..5 {
        app.send(1005, b"");
        assert_eq!(app.answers(), [(1006, None)]);
        app.world.now += Duration::from_millis(100);
    }
}

#[test]
fn a_flood_of_probes_is_answered_at_a_rate() {
    let mut app = RawApp::connect(V4);
    app.send(1001, b"hello");
    app.answers();
    for _ in 0..1000 {
        app.send(1005, b"");
    }
    let answers = app.answers().len() as u64;
    assert!((1..=100).contains(&answers), "{answers} answers");
    let drops: Vec<_> = app.world.stack.counters().drops().filter(|(_, count)| *count > 0).collect();
    assert_eq!(drops, [(DropReason::ReplyRate, 1000 - answers)]);
}

/// What we send to probe a closed window has no place in it: an answer that came after it would be dropped, and an
/// application that asks whether its peer lives would get none.
#[test]
fn a_probe_is_answered_where_the_application_stands_while_its_window_is_closed() {
    let mut app = RawApp::connect(V4);
    app.send_with_window(1001, b"hello", 0);
    app.told();
    assert_eq!(app.world.stack.write(app.flow, b"for later", app.world.now), 9);
    let mut probes = 0;
    for _ in 0..100 {
        app.world.now += Duration::from_millis(100);
        app.world.stack.handle_timeout(app.world.now);
        probes += app.packets().iter().filter(|packet| packet.len() > 40).count();
    }
    assert!(probes > 0, "the closed window was never probed");

    app.send_with_window(1005, b"", 0);

    let answers: Vec<u32> = app.told().iter().map(|told| told.seq_number.0 as u32).collect();
    assert_eq!(answers, [app.ack]);
}

/// The window in the answers is the one that was told before.
#[test]
fn what_comes_again_while_nobody_reads_does_not_move_the_window() {
    let mut app = RawApp::connect(V4);
    let data = vec![7; 60_000];
    let mut edge = 0;
    for at in 0..9 {
        for _ in 0..3 {
            app.send(1001 + at * 60_000, &data);
            for (ack, window) in app.windows() {
                assert!(
                    edge <= ack + window + 8,
                    "the end of the window went from {edge} to {}",
                    ack + window
                );
                edge = edge.max(ack + window);
            }
        }
    }
    app.world.stack.check_invariants();
}

/// An application of which every segment is made by hand; its first byte has the number 1,001.
struct RawApp {
    world: World,
    family: Family,
    flow: FlowId,
    ack: u32,
}

impl RawApp {
    fn connect(family: Family) -> Self {
        let config = Config { receive_ring: 512 * 1024, ..config(3) };
        let mut world = World::with_config(Faults::default(), 3, config);
        world.stack.handle_packet(&syn(family, 40_000, 1000).packet(), world.now);
        let Some(Event::Connect { flow, .. }) = world.stack.poll_event() else { panic!("no connect") };
        world.stack.accept(flow, world.now);
        let mut app = Self { world, family, flow, ack: 0 };
        let answer = app.told().remove(0);
        app.ack = (answer.seq_number.0 as u32).wrapping_add(1);
        app.send(1001, b"");
        app
    }

    fn send(&mut self, seq: u32, data: &[u8]) {
        self.send_with_window(seq, data, 64_000);
    }

    fn send_with_window(&mut self, seq: u32, data: &[u8], window: u16) {
        let syn = syn(self.family, 40_000, 1000);
        let segment = RawSegment { control: TcpControl::None, seq, ack: Some(self.ack), data, window, ..syn };
        self.world.stack.handle_packet(&segment.packet(), self.world.now);
    }

    /// What each packet acknowledges, and what it says came twice.
    fn answers(&mut self) -> Vec<(u32, Option<(u32, u32)>)> {
        self.told().iter().map(|told| (ack_of(told), told.sack_ranges[0])).collect()
    }

    /// What each packet acknowledges, and its window.
    fn windows(&mut self) -> Vec<(u32, u32)> {
        let shift = 3;
        self.told().iter().map(|told| (ack_of(told), u32::from(told.window_len) << shift)).collect()
    }

    fn told(&mut self) -> Vec<TcpRepr<'static>> {
        let packets = self.packets();
        let (source, target) = (self.family.source(1).ip().into(), self.family.target().ip().into());
        let parse = |packet: &Vec<u8>| {
            let tcp = TcpPacket::new_checked(&packet[self.family.header..]).expect("a header");
            let caps = ChecksumCapabilities::default();
            let repr = TcpRepr::parse(&tcp, &target, &source, &caps).expect("a segment");
            assert!(repr.payload.is_empty());
            TcpRepr { payload: b"", ..repr }
        };
        packets.iter().map(parse).collect()
    }

    fn packets(&mut self) -> Vec<Vec<u8>> {
        self.world.drain()
    }
}

fn ack_of(told: &TcpRepr<'_>) -> u32 {
    told.ack_number.expect("it acknowledges").0 as u32
}
