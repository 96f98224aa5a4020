//! Every way to end a connection.

use super::steps::Step::*;
use super::*;

#[test]
fn every_way_to_end_a_connection_looks_the_same() -> Result<()> {
    require_netns!(Ok);
    Roads::new()?.play_all(&ENDS)
}

const ENDS: [Case; 15] = [
    Case::steps(
        "the client finishes first, data comes after",
        (
            &[Send(b"question"), Finish, ReceiveAll],
            &["connected", "sent question", "finished", "got late answer", "end"],
        ),
        (&[ReceiveAll, Send(b"late answer")], &["accepted", "got question", "end", "sent late answer"]),
    ),
    Case::steps(
        "the target finishes first, data comes after",
        (&[ReceiveAll, Send(b"late word")], &["connected", "got hello", "end", "sent late word"]),
        (
            &[Send(b"hello"), Finish, ReceiveAll],
            &["accepted", "sent hello", "finished", "got late word", "end"],
        ),
    ),
    Case::steps(
        "a megabyte after each half-close",
        (
            &[SendNoise(1_000_000, 1), Finish, ReceiveAll],
            &["connected", "sent 1000000 bytes ad3f9fc3", "finished", "got 1000001 bytes f8d110f4", "end"],
        ),
        (
            &[ReceiveAll, SendNoise(1_000_001, 2), Finish, ReceiveAll],
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
    Case::steps(
        "opened and closed without a byte",
        (&[], &["connected"]),
        (&[ReceiveAll], &["accepted", "end"]),
    ),
    Case::steps(
        "both finish at once",
        (&[Meet, Finish, ReceiveAll], &["connected", "finished", "end"]),
        (&[Meet, Finish, ReceiveAll], &["accepted", "finished", "end"]),
    ),
    Case::steps(
        "both send and close at once",
        (
            &[Meet, Send(b"from the client"), Finish, ReceiveAll],
            &["connected", "sent from the client", "finished", "got from the target", "end"],
        ),
        (
            &[Meet, Send(b"from the target"), Finish, ReceiveAll],
            &["accepted", "sent from the target", "finished", "got from the client", "end"],
        ),
    ),
    Case::steps(
        "the target resets an open connection",
        (&[Send(b"ping"), ReceiveAll, Send(b"more")], &["connected", "sent ping", "ECONNRESET", "EPIPE"]),
        (&[Receive(4), Reset], &["accepted", "got ping", "reset it"]),
    ),
    Case::steps(
        "the client resets an open connection",
        (&[Receive(2), Reset], &["connected", "got hi", "reset it"]),
        (&[Send(b"hi"), ReceiveAll, Send(b"more")], &["accepted", "sent hi", "ECONNRESET", "EPIPE"]),
    ),
    Case::steps(
        "the target says a last word and resets",
        (&[Send(b"ping"), ReceiveAll], &["connected", "sent ping", "got last word", "ECONNRESET"]),
        (&[Receive(4), Send(b"last word"), Reset], &["accepted", "got ping", "sent last word", "reset it"]),
    ),
    Case::steps(
        "the client says a last word and resets",
        (&[Receive(2), Send(b"last word"), Reset], &["connected", "got hi", "sent last word", "reset it"]),
        (&[Send(b"hi"), ReceiveAll], &["accepted", "sent hi", "got last word", "ECONNRESET"]),
    ),
    Case::steps(
        "the target closes with bytes unread",
        (
            &[Send(b"never read"), ReceiveAll, Send(b"more")],
            &["connected", "sent never read", "ECONNRESET", "EPIPE"],
        ),
        (&[AwaitBytes], &["accepted", "bytes wait"]),
    ),
    Case::steps(
        "the target answers early and closes with bytes unread",
        (
            &[Send(b"never read"), ReceiveAll],
            &["connected", "sent never read", "got 413 too large", "ECONNRESET"],
        ),
        (&[AwaitBytes, Send(b"413 too large")], &["accepted", "bytes wait", "sent 413 too large"]),
    ),
    Case::steps(
        "the client closes with bytes unread",
        (&[AwaitBytes, Send(b"quit")], &["connected", "bytes wait", "sent quit"]),
        (
            &[Send(b"never read"), ReceiveAll, Send(b"more")],
            &["accepted", "sent never read", "got quit", "ECONNRESET", "EPIPE"],
        ),
    ),
    Case::steps(
        "the client closes with bytes unread after the target's end",
        (&[AwaitBytes, Meet], &["connected", "bytes wait"]),
        (
            &[Send(b"never read"), Finish, Meet, ReceiveAll],
            &["accepted", "sent never read", "finished", "ECONNRESET"],
        ),
    ),
    Case::steps(
        "the client resets after it has finished",
        (&[Send(b"bye"), Finish, Meet, Reset], &["connected", "sent bye", "finished", "reset it"]),
        // A target that has seen the end meets the reset when it writes.
        (&[ReceiveAll, Meet, SendInVain], &["accepted", "got bye", "end", "a write failed"]),
    ),
];
