//! What the service and the network do to a session, met by the real client and agent: the scenarios of the protocol
//! notes, by number, and the test that holds each.
//!
//! | number | scenario | held by |
//! |---|---|---|
//! | 1 | echo, 64 MiB both ways, equal digests | `e2e`: `a_transfer_does_not_notice_cuts_on_either_side`; `ssm_channel`: `an_echo_comes_back_whole_and_the_end_leaves_no_session` |
//! | 2 | every payload size upstream | `ssm_channel` and `simulator`: `every_payload_size_arrives` |
//! | 3 | reordered messages | `ssm_channel`: `reordered_repeated_and_lost_messages_change_no_byte`; here: `shuffled_messages_change_no_byte` |
//! | 4 | every message twice | here: `every_message_twice_changes_no_byte` |
//! | 5 | 1, 10, 100 downstream messages lost in a row | `ssm_channel`: `bursts_of_losses_are_made_good`; here: `losses_in_a_row_cost_seconds_at_most` |
//! | 6 | acknowledgements lost both ways | `ssm_channel`: `lost_acknowledgements_only_cost_resends`; here: `lost_acknowledgements_are_not_felt` |
//! | 7 | the SSM agent's websocket recycled under load, back after 0.2, 1, 5 s | here: `an_ssm_agent_that_is_away_for_a_moment_is_not_felt`, `an_ssm_agent_that_is_away_for_five_seconds_is_not_felt` |
//! | 8 | the client's websocket recycled under load | `ssm_channel`: `a_recycled_websocket_every_300_ms_is_not_noticed_above`; `e2e`: `a_transfer_does_not_notice_cuts_on_either_side` |
//! | 9 | both recycled at once | `ssm_channel`: `cuts_of_the_agents_websocket_and_of_both_lose_nothing`; here: `both_websockets_cut_at_once_lose_nothing` |
//! | 10 | resume denied: another session, flows live on | `ssm_channel`: `a_session_that_cannot_be_resumed_is_gone_at_once`; here: `connections_outlive_a_session_that_may_not_be_resumed` |
//! | 11 | credentials expired at resume | `ssm_channel`: `expired_credentials_at_resume_are_told_with_the_login_command`; `sessions`: `a_login_that_has_expired_is_told_and_a_new_one_is_used` |
//! | 12 | dial refused | `ssm_channel`: `a_refused_dial_is_explained_when_the_gateway_explains_it`; `e2e`: `every_wrong_start_says_why_and_changes_nothing` |
//! | 13 | no greeting from the agent's port | `ssm_channel`: `no_record_is_taken_before_the_banner`; `sessions`: `whoever_else_answers_at_the_agents_port_is_named` |
//! | 14 | data before the handshake is complete | `ssm_channel`: `the_default_agent_loses_nothing_that_waits_for_the_banner`; here: `nothing_is_sent_before_a_handshake_is_complete` |
//! | 15 | the target's end in a transfer | `ssm_channel`: `the_targets_end_comes_after_its_last_byte`; here: `an_ssm_agent_whose_target_ends_costs_a_lane_and_no_byte`, `a_target_that_ends_within_an_upload_gets_all_of_it`; `e2e`: `an_agent_that_restarts_costs_its_connections_and_nothing_more` |
//! | 16 | idleness, with and without keep-alive | `ssm_channel`: `maximum_duration_and_idleness_end_the_lane_with_their_words`; here: `connections_outlive_the_services_idle_timeout` |
//! | 17 | maximum duration | `lanes`: `planned_replacement_is_not_felt`; here: `sessions_that_end_by_age_under_load_lose_nothing` |
//! | 18 | the session closed with an error text | `ssm_channel`: `the_gateways_last_words_are_passed_on_verbatim`; `lanes`: `a_lane_that_ends_under_a_transfer_is_replaced_and_costs_no_stall` |
//! | 19 | malformed messages | `ssm_channel`: `garbage_costs_a_websocket_and_no_byte`, `bad_digests_and_unknown_types_are_counted_and_cost_nothing`; here: `garbage_from_the_gateway_changes_no_byte` |
//! | 20 | a black hole | `ssm_channel`: `a_black_hole_is_noticed_by_silence`; `lanes`: `a_lane_that_leads_nowhere_is_replaced_within_seconds` |
//! | 21 | sleep and wake | here: `a_laptop_that_slept_goes_on_where_it_was` |
//! | 22 | a large message refused | `ssm_channel`: `a_refused_message_size_fails_the_lane_and_smaller_ones_pass`; `sessions`: `a_path_that_takes_only_small_messages_is_used_with_small_ones` |
//! | 23 | the service's pace, growing with sessions | `simulator`: `sessions_are_paced_as_measured_and_scale`; `lanes`: `four_lanes_carry_one_download_nearly_four_times_as_fast_and_auto_finds_them` |
//! | 24 | StartSession throttled | `ssm_channel`: `a_throttled_start_is_retried_and_a_refused_one_is_told`; `lanes`: `throttled_calls_come_slower_and_all_lanes_come_in_the_end` |
//! | 25 | Ctrl-C leaves no session | `sessions`: `a_signal_at_any_moment_leaves_nothing_behind`; every test here |
//!
//! A cut of the SSM agent's websocket can write a whole message to the target twice:
//! `fifty_cuts_of_the_ssm_agent_that_repeat_messages_change_no_byte` here, a thousand cuts in virtual time in the trunk's
//! own `sim`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests: they end the test or tell of it"
)]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use netstack_tests::patience::{now, until};
use netstack_tests::require_netns;
use netstack_tests::servers::{self, noise};
use netstack_tests::ssm::{self, Count, Direction, Mix, Operation, ResumeAnswer, Simulator, What};
use netstack_tests::vpc::{DEADLINE, INSTANCE, Process, TARGET, Vpc};
use rustix::process::Signal;

struct World {
    client: Process,
    simulator: Simulator,
    vpc: Vpc,
    echo: SocketAddr,
}

impl World {
    fn new(config: ssm::Config, arguments: &[&str]) -> Self {
        let vpc = Vpc::new(&[]).unwrap();
        let simulator = vpc.simulator(config).unwrap();
        let client = vpc.up(&simulator.env(), &[&["--instance", INSTANCE], arguments].concat()).unwrap();
        let echo = servers::serve(&vpc.vpc, &format!("{TARGET}:0"), servers::echo).unwrap();
        Self { client, simulator, vpc, echo }
    }

    /// Over one lane, so that no other makes up for it.
    fn fast(knobs: impl FnOnce(&mut ssm::Knobs)) -> Self {
        let mut config = ssm::Config::fast();
        knobs(&mut config.knobs);
        Self::new(config, &["--lanes", "1"])
    }

    fn connect(&self) -> TcpStream {
        let echo = self.echo;
        let stream = self.vpc.laptop.enter(|| TcpStream::connect_timeout(&echo, DEADLINE)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Does it to every session there is.
    fn each(&self, mut act: impl FnMut(&Simulator, &str)) {
        self.simulator.active_sessions().iter().for_each(|session| act(&self.simulator, &session.id));
    }

    /// The fault was one.
    #[track_caller]
    fn assert_happened(&self, count: Count, least: u64) {
        let happened = self.simulator.count(count);
        eprintln!("{count:?}: {happened}");
        assert!(happened >= least, "{count:?} only {happened} times");
    }

    fn finish(mut self) {
        let status = self.client.end(Signal::INT).unwrap();
        assert_eq!(status.code(), Some(130), "{}", self.client.seen.join("\n"));
        self.simulator.assert_clean();
        assert!(self.simulator.active_sessions().is_empty());
    }
}

/// Bytes under way while something is disturbed.
struct Traffic<'a> {
    world: &'a World,
    /// Pieces that came back.
    pieces: &'a AtomicU64,
}

impl Traffic<'_> {
    /// Waits until so many more have come back.
    #[track_caller]
    fn goes_on(&self, pieces: u64) {
        let enough = self.pieces.load(Ordering::Relaxed) + pieces;
        until("more traffic", || self.pieces.load(Ordering::Relaxed) >= enough);
    }
}

/// One connection sends and gets back [`noise`] while `disturb` runs, and everything comes back as it was
/// sent, with no pause between two reads longer than `most`.
#[track_caller]
fn undisturbed(world: &World, most: Duration, disturb: impl FnOnce(&Traffic<'_>)) {
    let stream = world.connect();
    let mut writer = stream.try_clone().unwrap();
    let (over, pieces) = (AtomicBool::new(false), AtomicU64::new(0));
    let (sent, (received, pause)) = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut sent = 0;
            while !over.load(Ordering::Relaxed) {
                writer.write_all(&noise(PIECE, sent)).unwrap();
                sent += 1;
            }
            writer.shutdown(Shutdown::Write).unwrap();
            sent
        });
        let reader = scope.spawn(|| compare(stream, &pieces));
        // Set also when what follows panics, or the others would never end.
        let _ends = SetWhenDropped(&over);
        let traffic = Traffic { world, pieces: &pieces };
        traffic.goes_on(2);
        disturb(&traffic);
        traffic.goes_on(2);
        over.store(true, Ordering::Relaxed);
        (writer.join().unwrap(), reader.join().unwrap())
    });
    eprintln!("{} MiB, the longest pause was {pause:?}", (sent * PIECE as u64) >> 20);
    assert_eq!(sent, received, "all came back");
    assert!(pause <= most, "it stood still for {pause:?}");
}

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads pieces of [`noise`] to the end; how many they were and the longest time without a byte.
fn compare(mut stream: TcpStream, pieces: &AtomicU64) -> (u64, Duration) {
    let (mut count, mut last, mut pause) = (0, now(), Duration::ZERO);
    loop {
        let expected = noise(PIECE, count);
        let (mut piece, mut filled) = (vec![0; PIECE], 0);
        while filled < PIECE {
            let read = stream.read(&mut piece[filled..]).unwrap();
            pause = pause.max(last.elapsed());
            last = now();
            if read == 0 {
                assert_eq!(filled, 0, "it ended within a piece");
                return (count, pause);
            }
            filled += read;
        }
        assert!(piece == expected, "other bytes in piece {count}");
        count += 1;
        pieces.store(count, Ordering::Relaxed);
    }
}

/// How long one byte takes there and back.
fn round_trip(stream: &mut TcpStream) -> Duration {
    let began = now();
    stream.write_all(b"p").unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"p");
    began.elapsed()
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

const PIECE: usize = 64 << 10;
/// On a machine where much else runs.
const NOT_LONG: Duration = Duration::from_secs(4);

#[test]
fn every_message_twice_changes_no_byte() {
    require_netns!();
    let mix = Mix { duplicate: 1.0, ..Mix::default() };
    let world = World::fast(|knobs| (knobs.up, knobs.down) = (mix, mix));
    undisturbed(&world, NOT_LONG, |traffic| traffic.goes_on(30));
    world.assert_happened(Count::Duplicated, 100);
    world.finish();
}

#[test]
fn shuffled_messages_change_no_byte() {
    require_netns!();
    let mix = Mix { reorder: 0.2, reorder_distance: 16, ..Mix::default() };
    let world = World::fast(|knobs| (knobs.up, knobs.down) = (mix, mix));
    undisturbed(&world, NOT_LONG, |traffic| traffic.goes_on(30));
    world.assert_happened(Count::Reordered, 10);
    world.finish();
}

#[test]
fn losses_in_a_row_cost_seconds_at_most() {
    require_netns!();
    let world = World::new(ssm::Config::fast(), &["--lanes", "2"]);
    for count in [1, 10, 100] {
        let lost = world.simulator.count(Count::LostByFault);
        undisturbed(&world, NOT_LONG, |traffic| {
            let one = traffic.world.simulator.active_sessions().remove(0).id;
            assert!(world.simulator.drop_next(&one, Direction::Down, What::Stream, count));
            until("a loss", || world.simulator.count(Count::LostByFault) > lost);
            traffic.goes_on(5);
        });
    }
    world.assert_happened(Count::LostByFault, 12);
    world.finish();
}

#[test]
fn lost_acknowledgements_are_not_felt() {
    require_netns!();
    let world = World::fast(|_| ());
    undisturbed(&world, NOT_LONG, |traffic| {
        for _ in 0..5 {
            world.each(|simulator, id| {
                simulator.drop_next(id, Direction::Up, What::Acknowledgement, 20);
                simulator.drop_next(id, Direction::Down, What::Acknowledgement, 20);
            });
            traffic.goes_on(5);
        }
    });
    world.assert_happened(Count::LostByFault, 20);
    world.finish();
}

/// One of two SSM agents is away so long; whatever waits goes over the other lane.
fn one_is_away(away: Duration) {
    let mut config = ssm::Config::fast();
    config.knobs.agent.reconnect = (away, away);
    let world = World::new(config, &["--lanes", "2"]);
    undisturbed(&world, NOT_LONG, |traffic| {
        let one = world.simulator.active_sessions().remove(0).id;
        assert!(world.simulator.cut_agent(&one));
        traffic.goes_on(10);
    });
    world.finish();
}

#[test]
fn an_ssm_agent_that_is_away_for_a_moment_is_not_felt() {
    require_netns!();
    one_is_away(ms(200));
    one_is_away(ms(1000));
}

#[test]
fn an_ssm_agent_that_is_away_for_five_seconds_is_not_felt() {
    require_netns!();
    one_is_away(ms(5000));
}

#[test]
fn both_websockets_cut_at_once_lose_nothing() {
    require_netns!();
    let world = World::fast(|knobs| knobs.repeat_after_agent_cut = 1.0);
    undisturbed(&world, NOT_LONG, |traffic| {
        for _ in 0..3 {
            world.simulator.cut_all();
            traffic.goes_on(5);
        }
    });
    world.assert_happened(Count::AgentConnects, 4);
    world.finish();
}

#[test]
fn fifty_cuts_of_the_ssm_agent_that_repeat_messages_change_no_byte() {
    require_netns!();
    let mut config = ssm::Config::fast();
    config.knobs.repeat_after_agent_cut = 1.0;
    config.knobs.agent.reconnect = (ms(5), ms(15));
    let world = World::new(config, &["--lanes", "2"]);
    // Resends that meet the next cut come later and later.
    undisturbed(&world, 3 * NOT_LONG, |traffic| {
        for cuts in 0..50 {
            until("a websocket to cut", || {
                let active = world.simulator.active_sessions();
                active.get(cuts % 2).is_some_and(|one| world.simulator.cut_agent(&one.id))
            });
            traffic.goes_on(1);
        }
    });
    world.assert_happened(Count::AgentConnects, 50);
    world.assert_happened(Count::WrittenTwice, 1);
    world.finish();
}

#[test]
fn connections_outlive_a_session_that_may_not_be_resumed() {
    require_netns!();
    let world = World::fast(|knobs| knobs.resume = ResumeAnswer::WithoutToken);
    undisturbed(&world, NOT_LONG, |traffic| {
        world.each(|simulator, id| assert!(simulator.cut_client(id)));
        until("another session", || world.simulator.sessions().len() > 1);
        traffic.goes_on(5);
    });
    world.finish();
}

#[test]
fn nothing_is_sent_before_a_handshake_is_complete() {
    require_netns!();
    // What comes in that time is acknowledged and thrown away, while the client has much to send.
    let world = World::fast(|knobs| knobs.agent.complete_delay = ms(600));
    undisturbed(&world, NOT_LONG, |traffic| {
        for sessions in 2..=4 {
            world.each(|simulator, id| assert!(simulator.end_session(id, "ended by the test")));
            until("another session", || world.simulator.sessions().len() >= sessions);
            traffic.goes_on(5);
        }
    });
    assert_eq!(world.simulator.count(Count::EarlyLost), 0);
    world.finish();
}

#[test]
fn an_ssm_agent_whose_target_ends_costs_a_lane_and_no_byte() {
    require_netns!();
    let world = World::new(ssm::Config::fast(), &["--lanes", "2"]);
    undisturbed(&world, NOT_LONG, |traffic| {
        for _ in 0..3 {
            let one = world.simulator.active_sessions().remove(0).id;
            assert!(world.simulator.end_target(&one));
            until("the session's end", || {
                world.simulator.active_sessions().iter().all(|info| info.id != one)
            });
            until("another one", || world.simulator.active_sessions().len() == 2);
            traffic.goes_on(5);
        }
    });
    let reason = "the target closed or the client ended it";
    let ended =
        world.simulator.sessions().iter().filter(|info| info.ended.as_deref() == Some(reason)).count();
    assert!(ended >= 3, "{:?}", world.simulator.sessions());
    world.finish();
}

#[test]
fn a_target_that_ends_within_an_upload_gets_all_of_it() {
    require_netns!();
    let world = World::new(ssm::Config::fast(), &["--lanes", "2"]);
    let (told, taken) = mpsc::channel();
    let half = move |stream: TcpStream| {
        let mut writer = stream.try_clone().unwrap();
        writer.write_all(&noise(3 * PIECE, 1)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        { stream }.read_to_end(&mut all).unwrap();
        let _ = told.send(all);
    };
    let target = servers::serve(&world.vpc.vpc, &format!("{TARGET}:0"), half).unwrap();
    let stream = world.vpc.laptop.enter(|| TcpStream::connect_timeout(&target, DEADLINE)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    writer.write_all(&noise(20 * PIECE, 2)).unwrap();
    let mut received = Vec::new();
    { stream }.read_to_end(&mut received).unwrap();
    assert!(received == noise(3 * PIECE, 1), "{} bytes came before the end", received.len());
    // Its end was only of its own half, and a lane less does not change that.
    assert!(world.simulator.end_session(&world.simulator.active_sessions()[0].id, "ended by the test"));
    writer.write_all(&noise(20 * PIECE, 3)).unwrap();
    writer.shutdown(Shutdown::Write).unwrap();
    let all = taken.recv_timeout(DEADLINE).unwrap();
    assert!(all == [noise(20 * PIECE, 2), noise(20 * PIECE, 3)].concat(), "{} bytes arrived", all.len());
    world.finish();
}

#[test]
fn connections_outlive_the_services_idle_timeout() {
    require_netns!();
    let world = World::fast(|knobs| knobs.idle_timeout = Some(ms(700)));
    let ended = || world.simulator.sessions().iter().filter(|info| info.ended.is_some()).count();
    let mut open = world.connect();
    round_trip(&mut open);
    let before = ended();
    until("an end by idleness", || ended() > before);
    let took = round_trip(&mut open);
    assert!(took < NOT_LONG, "{took:?}");
    drop(open);
    // Without a connection nothing keeps the session; the next one opens another.
    let before = ended();
    until("another end by idleness", || ended() > before);
    let took = round_trip(&mut world.connect());
    eprintln!("{} sessions, an answer after {took:?}", world.simulator.sessions().len());
    assert!(took < NOT_LONG, "{took:?}");
    world.finish();
}

#[test]
fn sessions_that_end_by_age_under_load_lose_nothing() {
    require_netns!();
    let world = World::fast(|knobs| knobs.max_duration = Some(ms(800)));
    undisturbed(&world, NOT_LONG, |traffic| {
        until("three sessions", || world.simulator.sessions().len() >= 3);
        traffic.goes_on(5);
    });
    world.finish();
}

#[test]
fn garbage_from_the_gateway_changes_no_byte() {
    require_netns!();
    let world = World::fast(|_| ());
    undisturbed(&world, NOT_LONG, |traffic| {
        let mut huge = vec![0xff; 4];
        huge.extend(noise(200, 5));
        for garbage in [Vec::new(), vec![0; 4], huge, noise(120, 6), noise(5000, 7)] {
            world.each(|simulator, id| _ = simulator.inject_binary(id, garbage.clone()));
            traffic.goes_on(3);
        }
        world.each(|simulator, id| _ = simulator.inject_text(id, "{}"));
        traffic.goes_on(3);
    });
    world.assert_happened(Count::ClientConnects, 2);
    world.finish();
}

#[test]
fn a_laptop_that_slept_goes_on_where_it_was() {
    require_netns!();
    let world = World::new(ssm::Config::fast(), &["--lanes", "4"]);
    let mut open = world.connect();
    round_trip(&mut open);
    until("four lanes", || world.simulator.active_sessions().len() == 4);
    world.client.signal(Signal::STOP).unwrap();
    // The service does not wait.
    world.each(|simulator, id| {
        simulator.cut_client_abruptly(id);
        simulator.end_session(id, "Session timed out");
    });
    until("the end of all", || world.simulator.sessions().iter().all(|info| !info.agent_connected));
    let calls = |operation| world.simulator.calls(operation);
    let before = calls(Operation::StartSession) + calls(Operation::ResumeSession);
    world.client.signal(Signal::CONT).unwrap();
    let took = round_trip(&mut open);
    eprintln!("an answer {took:?} after waking");
    assert!(took < NOT_LONG, "{took:?}");
    undisturbed(&world, NOT_LONG, |_| until("four lanes", || world.simulator.active_sessions().len() == 4));
    let asked = calls(Operation::StartSession) + calls(Operation::ResumeSession) - before;
    assert!(asked <= 12, "{asked} calls for four lanes");
    world.finish();
}
