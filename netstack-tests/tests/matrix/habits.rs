//! Patience, urgent bytes, and ports that are used again.

use super::steps::Step::*;
use super::*;

#[test]
fn patience_urgency_and_ports_look_the_same() -> Result<()> {
    require_netns!(Ok);
    Roads::new()?.play_all(&HABITS)
}

const MANY: usize = 6_000_000;

const HABITS: [Case; 10] = [
    Case::steps(
        "the target does not read for seconds",
        (
            &[SendNoise(MANY, 3), Finish, ReceiveAll],
            &["connected", "sent 6000000 bytes 366e5654", "finished", "end"],
        ),
        (
            &[AwaitBytes, Pause(Duration::from_secs(3)), ReceiveAll],
            &["accepted", "bytes wait", "got 6000000 bytes 366e5654", "end"],
        ),
    ),
    Case::steps(
        "the client does not read for seconds",
        (
            &[AwaitBytes, Pause(Duration::from_secs(3)), ReceiveAll],
            &["connected", "bytes wait", "got 6000000 bytes d7eb2db5", "end"],
        ),
        (
            &[SendNoise(MANY, 4), Finish, ReceiveAll],
            &["accepted", "sent 6000000 bytes d7eb2db5", "finished", "end"],
        ),
    ),
    Case::steps(
        "the client probes an idle connection each second",
        (&[Probe(Duration::from_secs(1)), ReceiveAll], &["connected", "got still there", "end"]),
        (&[Pause(Duration::from_millis(5_500)), Send(b"still there")], &["accepted", "sent still there"]),
    ),
    Case {
        differs: Some((
            "the urgent byte stays in its place of the stream, as with SO_OOBINLINE (RFC 6093)",
            (
                &["connected", "sent abc", "sent urgently", "sent def", "finished", "end"],
                &["accepted", "got abcxdef", "end"],
            ),
        )),
        ..Case::steps(
            "the client sends an urgent byte",
            (
                &[Send(b"abc"), SendUrgent(b'x'), Send(b"def"), Finish, ReceiveAll],
                &["connected", "sent abc", "sent urgently", "sent def", "finished", "end"],
            ),
            (&[ReceiveAll], &["accepted", "got abcdef", "end"]),
        )
    },
    Case::steps(
        "the client sends an urgent byte to who takes it in line",
        (
            &[Meet, Send(b"abc"), SendUrgent(b'x'), Send(b"def"), Finish, ReceiveAll],
            &["connected", "sent abc", "sent urgently", "sent def", "finished", "end"],
        ),
        (&[TakeUrgentInLine, Meet, ReceiveAll], &["accepted", "got abcxdef", "end"]),
    ),
    Case::steps(
        "the target sends an urgent byte to who takes it in line",
        (&[TakeUrgentInLine, Meet, ReceiveAll], &["connected", "got abcxdef", "end"]),
        (
            &[Meet, Send(b"abc"), SendUrgent(b'x'), Send(b"def"), Finish, ReceiveAll],
            &["accepted", "sent abc", "sent urgently", "sent def", "finished", "end"],
        ),
    ),
    Case::own(
        "a port is used again right after the target closed",
        |me, at| {
            for _ in 0..5 {
                let stream = me.connect_again(at, 45_001)?;
                me.send(&stream, b"ping");
                me.receive_all(&stream);
            }
            Ok(())
        },
        |me, listener| {
            for _ in 0..5 {
                let stream = me.accept(listener)?;
                me.receive(&stream, 4);
            }
            Ok(())
        },
        (&AGAIN, &AGAIN_TARGET),
    ),
    Case::own(
        "a port is used again right after a reset",
        |me, at| {
            for _ in 0..3 {
                let stream = me.connect_again(at, 45_002)?;
                me.send(&stream, b"ping");
                me.receive(&stream, 4);
                me.reset(stream)?;
            }
            Ok(())
        },
        |me, listener| {
            for _ in 0..3 {
                let stream = me.accept(listener)?;
                me.receive(&stream, 4);
                me.send(&stream, b"pong");
                me.receive_all(&stream);
            }
            Ok(())
        },
        (&AFTER_RESET, &AFTER_RESET_TARGET),
    ),
    Case {
        backlog: 0,
        ..Case::own(
            "the target's backlog is full for a while",
            |me, at| {
                let first = me.connect(at)?;
                let (sender, second) = mpsc::channel();
                // On a thread of its own it stays in this namespace.
                thread::spawn(move || sender.send(actor::connect(at, None)));
                match second.recv_timeout(Duration::from_millis(700)) {
                    Ok(_) => me.note("the second came through"),
                    Err(_) => me.note("the second waits"),
                }
                me.meet()?;
                let second = second.recv_timeout(actor::PATIENCE)??;
                me.note("connected");
                me.receive_all(&first);
                me.receive_all(&second);
                Ok(())
            },
            |me, listener| {
                me.meet()?;
                for _ in 0..2 {
                    let stream = me.accept(listener)?;
                    me.send(&stream, b"hello");
                }
                Ok(())
            },
            (
                &["connected", "the second waits", "connected", "got hello", "end", "got hello", "end"],
                &["accepted", "sent hello", "accepted", "sent hello"],
            ),
        )
    },
    Case::steps(
        "the target speaks first and at once",
        (&[Receive(6), Send(b"thanks")], &["connected", "got banner", "sent thanks"]),
        (&[Send(b"banner"), ReceiveAll], &["accepted", "sent banner", "got thanks", "end"]),
    ),
];

const AGAIN: [&str; 15] = again(["connected", "sent ping", "end"]);
const AGAIN_TARGET: [&str; 10] = again(["accepted", "got ping"]);
const AFTER_RESET: [&str; 12] = again(["connected", "sent ping", "got pong", "reset it"]);
const AFTER_RESET_TARGET: [&str; 12] = again(["accepted", "got ping", "sent pong", "ECONNRESET"]);

/// The same lines over and over.
const fn again<const LINES: usize, const ALL: usize>(lines: [&'static str; LINES]) -> [&'static str; ALL] {
    let mut all = [""; ALL];
    let mut at = 0;
    while at < ALL {
        all[at] = lines[at % LINES];
        at += 1;
    }
    all
}
