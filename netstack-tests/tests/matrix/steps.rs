//! What an end does on its one connection, step by step.

use super::*;

/// What is not told here is in [`Actor`] under the same name.
pub(crate) enum Step {
    Send(&'static [u8]),
    /// So many bytes of the noise with this seed.
    SendNoise(usize, u64),
    SendUrgent(u8),
    /// Sends, now that the other end is about to be gone, until that shows.
    SendInVain,
    Receive(usize),
    ReceiveAll,
    AwaitBytes,
    /// Urgent bytes stay in their places of the stream.
    TakeUrgentInLine,
    /// Keepalives so often.
    Probe(Duration),
    Pause(Duration),
    Meet,
    Finish,
    /// The last step, as after it there is no connection. Without it the connection is closed.
    Reset,
}

/// Does the steps and closes.
pub(crate) fn play(me: &mut Actor, stream: TcpStream, steps: &[Step]) -> Result<()> {
    for step in steps {
        match step {
            Step::Send(bytes) => me.send(&stream, bytes),
            Step::SendNoise(length, seed) => me.send(&stream, &noise(*length, *seed)),
            Step::SendUrgent(byte) => me.send_urgent(&stream, *byte),
            Step::SendInVain => send_in_vain(me, &stream),
            Step::Receive(length) => me.receive(&stream, *length),
            Step::ReceiveAll => me.receive_all(&stream),
            Step::AwaitBytes => me.await_bytes(&stream),
            Step::TakeUrgentInLine => SockRef::from(&stream).set_out_of_band_inline(true)?,
            Step::Probe(every) => {
                let probes = TcpKeepalive::new().with_time(*every).with_interval(*every).with_retries(1);
                SockRef::from(&stream).set_tcp_keepalive(&probes)?;
            }
            Step::Pause(time) => thread::sleep(*time),
            Step::Meet => me.meet()?,
            Step::Finish => me.finish(&stream),
            Step::Reset => return me.reset(stream),
        }
    }
    Ok(())
}

fn send_in_vain(me: &mut Actor, mut stream: &TcpStream) {
    for _ in 0..1000 {
        if stream.write_all(b"x").is_err() {
            return me.note("a write failed");
        }
        thread::sleep(Duration::from_millis(5));
    }
}
