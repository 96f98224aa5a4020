//! Every way to end a connection.

use super::*;

#[test]
fn every_way_to_end_a_connection_looks_the_same() -> Result<()> {
    require_netns!(Ok);
    Roads::new()?.play_all(&ENDS)
}

const ENDS: [Case; 15] = [
    Case::new(
        "the client finishes first, data comes after",
        |me, at| {
            let stream = me.connect(at)?;
            me.send(&stream, b"question");
            me.finish(&stream);
            me.receive_all(&stream);
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.receive_all(&stream);
            me.send(&stream, b"late answer");
            Ok(())
        },
        (
            &["connected", "sent question", "finished", "got late answer", "end"],
            &["accepted", "got question", "end", "sent late answer"],
        ),
    ),
    Case::new(
        "the target finishes first, data comes after",
        |me, at| {
            let stream = me.connect(at)?;
            me.receive_all(&stream);
            me.send(&stream, b"late word");
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.send(&stream, b"hello");
            me.finish(&stream);
            me.receive_all(&stream);
            Ok(())
        },
        (
            &["connected", "got hello", "end", "sent late word"],
            &["accepted", "sent hello", "finished", "got late word", "end"],
        ),
    ),
    Case::new(
        "a megabyte after each half-close",
        |me, at| {
            let stream = me.connect(at)?;
            me.send(&stream, &noise(1_000_000, 1));
            me.finish(&stream);
            me.receive_all(&stream);
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.receive_all(&stream);
            me.send(&stream, &noise(1_000_001, 2));
            me.finish(&stream);
            me.receive_all(&stream);
            Ok(())
        },
        (
            &["connected", "sent 1000000 bytes ad3f9fc3", "finished", "got 1000001 bytes f8d110f4", "end"],
            &[
                "accepted",
                "got 1000000 bytes ad3f9fc3",
                "end",
                "sent 1000001 bytes f8d110f4",
                "finished",
                "end",
            ],
        ),
    ),
    Case::new(
        "opened and closed without a byte",
        |me, at| {
            drop(me.connect(at)?);
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.receive_all(&stream);
            Ok(())
        },
        (&["connected"], &["accepted", "end"]),
    ),
    Case::new(
        "both finish at once",
        |me, at| {
            let stream = me.connect(at)?;
            me.meet()?;
            me.finish(&stream);
            me.receive_all(&stream);
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.meet()?;
            me.finish(&stream);
            me.receive_all(&stream);
            Ok(())
        },
        (&["connected", "finished", "end"], &["accepted", "finished", "end"]),
    ),
    Case::new(
        "both send and close at once",
        |me, at| {
            let stream = me.connect(at)?;
            me.meet()?;
            me.send(&stream, b"from the client");
            me.finish(&stream);
            me.receive_all(&stream);
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.meet()?;
            me.send(&stream, b"from the target");
            me.finish(&stream);
            me.receive_all(&stream);
            Ok(())
        },
        (
            &["connected", "sent from the client", "finished", "got from the target", "end"],
            &["accepted", "sent from the target", "finished", "got from the client", "end"],
        ),
    ),
    Case::new(
        "the target resets an open connection",
        |me, at| {
            let stream = me.connect(at)?;
            me.send(&stream, b"ping");
            me.receive_all(&stream);
            me.send(&stream, b"more");
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.receive(&stream, 4);
            me.reset(stream)
        },
        (&["connected", "sent ping", "ECONNRESET", "EPIPE"], &["accepted", "got ping", "reset it"]),
    ),
    Case::new(
        "the client resets an open connection",
        |me, at| {
            let stream = me.connect(at)?;
            me.receive(&stream, 2);
            me.reset(stream)
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.send(&stream, b"hi");
            me.receive_all(&stream);
            me.send(&stream, b"more");
            Ok(())
        },
        (&["connected", "got hi", "reset it"], &["accepted", "sent hi", "ECONNRESET", "EPIPE"]),
    ),
    Case::new(
        "the target says a last word and resets",
        |me, at| {
            let stream = me.connect(at)?;
            me.send(&stream, b"ping");
            me.receive_all(&stream);
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.receive(&stream, 4);
            me.send(&stream, b"last word");
            me.reset(stream)
        },
        (
            &["connected", "sent ping", "got last word", "ECONNRESET"],
            &["accepted", "got ping", "sent last word", "reset it"],
        ),
    ),
    Case::new(
        "the client says a last word and resets",
        |me, at| {
            let stream = me.connect(at)?;
            me.receive(&stream, 2);
            me.send(&stream, b"last word");
            me.reset(stream)
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.send(&stream, b"hi");
            me.receive_all(&stream);
            Ok(())
        },
        (
            &["connected", "got hi", "sent last word", "reset it"],
            &["accepted", "sent hi", "got last word", "ECONNRESET"],
        ),
    ),
    Case::new(
        "the target closes with bytes unread",
        |me, at| {
            let stream = me.connect(at)?;
            me.send(&stream, b"never read");
            me.receive_all(&stream);
            me.send(&stream, b"more");
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.await_bytes(&stream);
            drop(stream);
            Ok(())
        },
        (&["connected", "sent never read", "ECONNRESET", "EPIPE"], &["accepted", "bytes wait"]),
    ),
    Case::new(
        "the target answers early and closes with bytes unread",
        |me, at| {
            let stream = me.connect(at)?;
            me.send(&stream, b"never read");
            me.receive_all(&stream);
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.await_bytes(&stream);
            me.send(&stream, b"413 too large");
            drop(stream);
            Ok(())
        },
        (
            &["connected", "sent never read", "got 413 too large", "ECONNRESET"],
            &["accepted", "bytes wait", "sent 413 too large"],
        ),
    ),
    Case::new(
        "the client closes with bytes unread",
        |me, at| {
            let stream = me.connect(at)?;
            me.await_bytes(&stream);
            me.send(&stream, b"quit");
            drop(stream);
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.send(&stream, b"never read");
            me.receive_all(&stream);
            me.send(&stream, b"more");
            Ok(())
        },
        (
            &["connected", "bytes wait", "sent quit"],
            &["accepted", "sent never read", "got quit", "ECONNRESET", "EPIPE"],
        ),
    ),
    Case::new(
        "the client closes with bytes unread after the target's end",
        |me, at| {
            let stream = me.connect(at)?;
            me.await_bytes(&stream);
            me.meet()?;
            drop(stream);
            Ok(())
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.send(&stream, b"never read");
            me.finish(&stream);
            me.meet()?;
            me.receive_all(&stream);
            Ok(())
        },
        (&["connected", "bytes wait"], &["accepted", "sent never read", "finished", "ECONNRESET"]),
    ),
    Case::new(
        "the client resets after it has finished",
        |me, at| {
            let stream = me.connect(at)?;
            me.send(&stream, b"bye");
            me.finish(&stream);
            me.meet()?;
            me.reset(stream)
        },
        |me, listener| {
            let stream = me.accept(listener)?;
            me.receive_all(&stream);
            me.meet()?;
            // A target that has seen the end meets the reset when it writes.
            for _ in 0..1000 {
                if (&stream).write_all(b"x").is_err() {
                    me.note("a write failed");
                    return Ok(());
                }
                thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        },
        (
            &["connected", "sent bye", "finished", "reset it"],
            &["accepted", "got bye", "end", "a write failed"],
        ),
    ),
];
