//! Patience, urgent bytes, and ports that are used again.

use super::*;

#[test]
fn patience_urgency_and_ports_look_the_same() -> Result<()> {
    require_netns!(Ok);
    Roads::new()?.play_all(&HABITS)
}

const MANY: usize = 6_000_000;

const HABITS: [Case; 10] = [
    Case::new(
        "the target does not read for seconds",
        |me, at| {
            let stream = me.connect(at)?;
            me.send(&stream, &noise(MANY, 3));
            me.finish(&stream);
            me.receive_all(&stream);
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.await_bytes(&stream);
            thread::sleep(Duration::from_secs(3));
            me.receive_all(&stream);
            Ok(())
        },
        (
            &["connected", "sent 6000000 bytes 366e5654", "finished", "end"],
            &["accepted", "bytes wait", "got 6000000 bytes 366e5654", "end"],
        ),
    ),
    Case::new(
        "the client does not read for seconds",
        |me, at| {
            let stream = me.connect(at)?;
            me.await_bytes(&stream);
            thread::sleep(Duration::from_secs(3));
            me.receive_all(&stream);
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.send(&stream, &noise(MANY, 4));
            me.finish(&stream);
            me.receive_all(&stream);
            Ok(())
        },
        (
            &["connected", "bytes wait", "got 6000000 bytes d7eb2db5", "end"],
            &["accepted", "sent 6000000 bytes d7eb2db5", "finished", "end"],
        ),
    ),
    Case::new(
        "the client probes an idle connection each second",
        |me, at| {
            let stream = me.connect(at)?;
            let every = Duration::from_secs(1);
            let probes = TcpKeepalive::new().with_time(every).with_interval(every).with_retries(1);
            SockRef::from(&stream).set_tcp_keepalive(&probes)?;
            me.receive_all(&stream);
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            thread::sleep(Duration::from_millis(5_500));
            me.send(&stream, b"still there");
            Ok(())
        },
        (&["connected", "got still there", "end"], &["accepted", "sent still there"]),
    ),
    Case {
        differs: Some((
            "the urgent byte stays in its place of the stream, as with SO_OOBINLINE (RFC 6093)",
            (
                &["connected", "sent abc", "sent urgently", "sent def", "finished", "end"],
                &["accepted", "got abcxdef", "end"],
            ),
        )),
        ..Case::new(
            "the client sends an urgent byte",
            |me, at| {
                let stream = me.connect(at)?;
                me.send(&stream, b"abc");
                me.send_urgent(&stream, b'x');
                me.send(&stream, b"def");
                me.finish(&stream);
                me.receive_all(&stream);
                Ok(())
            },
            |me, listener| {
                let stream = me.accept(listener)?;
                me.receive_all(&stream);
                Ok(())
            },
            (
                &["connected", "sent abc", "sent urgently", "sent def", "finished", "end"],
                &["accepted", "got abcdef", "end"],
            ),
        )
    },
    Case::new(
        "the client sends an urgent byte to who takes it in line",
        |me, at| {
            me.meet()?;
            let stream = me.connect(at)?;
            me.send(&stream, b"abc");
            me.send_urgent(&stream, b'x');
            me.send(&stream, b"def");
            me.finish(&stream);
            me.receive_all(&stream);
            Ok(())
        },
        |me, listener| {
            SockRef::from(listener).set_out_of_band_inline(true)?;
            me.meet()?;
            let stream = me.accept(listener)?;
            me.receive_all(&stream);
            Ok(())
        },
        (
            &["connected", "sent abc", "sent urgently", "sent def", "finished", "end"],
            &["accepted", "got abcxdef", "end"],
        ),
    ),
    Case::new(
        "the target sends an urgent byte to who takes it in line",
        |me, at| {
            let stream = me.connect(at)?;
            SockRef::from(&stream).set_out_of_band_inline(true)?;
            me.meet()?;
            me.receive_all(&stream);
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.meet()?;
            me.send(&stream, b"abc");
            me.send_urgent(&stream, b'x');
            me.send(&stream, b"def");
            me.finish(&stream);
            me.receive_all(&stream);
            Ok(())
        },
        (
            &["connected", "got abcxdef", "end"],
            &["accepted", "sent abc", "sent urgently", "sent def", "finished", "end"],
        ),
    ),
    Case::new(
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
    Case::new(
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
        ..Case::new(
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
    Case::new(
        "the target speaks first and at once",
        |me, at| {
            let stream = me.connect(at)?;
            me.receive(&stream, 6);
            me.send(&stream, b"thanks");
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.send(&stream, b"banner");
            me.receive_all(&stream);
            Ok(())
        },
        (&["connected", "got banner", "sent thanks"], &["accepted", "sent banner", "got thanks", "end"]),
    ),
];

const AGAIN: [&str; 15] = [
    "connected",
    "sent ping",
    "end",
    "connected",
    "sent ping",
    "end",
    "connected",
    "sent ping",
    "end",
    "connected",
    "sent ping",
    "end",
    "connected",
    "sent ping",
    "end",
];

const AGAIN_TARGET: [&str; 10] = [
    "accepted", "got ping", "accepted", "got ping", "accepted", "got ping", "accepted", "got ping",
    "accepted", "got ping",
];

const AFTER_RESET: [&str; 12] = [
    "connected",
    "sent ping",
    "got pong",
    "reset it",
    "connected",
    "sent ping",
    "got pong",
    "reset it",
    "connected",
    "sent ping",
    "got pong",
    "reset it",
];

const AFTER_RESET_TARGET: [&str; 12] = [
    "accepted",
    "got ping",
    "sent pong",
    "ECONNRESET",
    "accepted",
    "got ping",
    "sent pong",
    "ECONNRESET",
    "accepted",
    "got ping",
    "sent pong",
    "ECONNRESET",
];
