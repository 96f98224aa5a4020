//! Pure: what a stream of kind UDP or echo carries after its opening: messages, each way the same.
//!
//! One UDP stream is one association: a source socket of an application, and any number of peers. One echo
//! stream is one identifier of one application and one target. All integers are big-endian.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 1 | 1 datagram, 2 trouble |
//! | 1 | 1 | form of the address: 4 IPv4, 6 IPv6 |
//! | 2 | 2 | port of the peer; for an echo its sequence number |
//! | 4 | 4 or 16 | address of the peer |
//! | then | 2 and n | datagram: length, payload |
//! | or | 1 and 2 | trouble: the code of a refusal (see [`open`]), or 255 when the datagram was too big for the way, and the MTU of the way or 0 |
//!
//! A datagram's peer is where it goes, or where it came from. Trouble is what the network said about a
//! datagram to that peer.
//!
//! Examples: `hi` to or from 10.0.1.5:53, "nobody listens at 10.0.1.5:53", "10.0.1.5 is behind an MTU of 1,400":
//!
//! ```text
//! 01 04 0035 0a000105 0002 6869
//! 02 04 0035 0a000105 01 0000
//! 02 04 0035 0a000105 ff 0578
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::open::{self, Refusal};
use super::trunk::segment::Fields;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    Datagram { peer: SocketAddr, payload: &'a [u8] },
    Trouble { peer: SocketAddr, trouble: Trouble },
}

/// Why a datagram did not arrive, as far as the network said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Refusal(Refusal),
    /// Longer than this MTU of the way allows; 0 if that is not known.
    TooBig(u16),
}

/// What stands where a message begins is none; the flow is to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageFault {
    What(u8),
    Form(u8),
    Trouble(u8),
}

/// How long a flow of datagrams may be silent at most: the agent ends it then, whatever the client would have.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(600);
/// The longest payload of one message.
pub const MAX_PAYLOAD: usize = u16::MAX as usize;
/// The longest message.
pub const MAX_MESSAGE: usize = HEAD + 16 + 2 + MAX_PAYLOAD;

impl<'a> Message<'a> {
    /// Appends the message. A payload longer than [`MAX_PAYLOAD`] cannot be told and appends nothing.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Datagram { peer, payload } => {
                let Ok(length) = u16::try_from(payload.len()) else { return };
                put_head(out, DATAGRAM, peer);
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(payload);
            }
            Self::Trouble { peer, trouble } => {
                put_head(out, TROUBLE, peer);
                let (code, mtu) = match trouble {
                    Trouble::Refusal(refusal) => (refusal.code(), 0),
                    Trouble::TooBig(mtu) => (TOO_BIG, mtu),
                };
                out.push(code);
                out.extend_from_slice(&mtu.to_be_bytes());
            }
        }
    }

    /// Reads the message at the start of `input` and tells its length; `None` when part of it is missing.
    pub fn decode(input: &'a [u8]) -> Result<Option<(Self, usize)>, MessageFault> {
        match input {
            [what, ..] if !matches!(*what, DATAGRAM | TROUBLE) => return Err(MessageFault::What(*what)),
            [_, form, ..] if !open::is_form(*form) => return Err(MessageFault::Form(*form)),
            _ => {}
        }
        let mut fields = Fields(input);
        Ok(Self::read(&mut fields)?.map(|message| (message, input.len() - fields.0.len())))
    }

    fn read(fields: &mut Fields<'a>) -> Result<Option<Self>, MessageFault> {
        let (Some(what), Some(form), Some(port)) = (fields.u8(), fields.u8(), fields.u16()) else {
            return Ok(None);
        };
        let Some(address) = open::address(form, fields) else { return Ok(None) };
        let peer = SocketAddr::new(address, port);
        if what == DATAGRAM {
            let payload = fields.u16().and_then(|length| fields.bytes(usize::from(length)));
            return Ok(payload.map(|payload| Self::Datagram { peer, payload }));
        }
        let (Some(code), Some(mtu)) = (fields.u8(), fields.u16()) else { return Ok(None) };
        let trouble = match Refusal::from_code(code) {
            _ if code == TOO_BIG => Trouble::TooBig(mtu),
            Some(refusal) => Trouble::Refusal(refusal),
            None => return Err(MessageFault::Trouble(code)),
        };
        Ok(Some(Self::Trouble { peer, trouble }))
    }
}

/// Puts messages together from bytes cut anywhere.
#[derive(Debug, Default)]
pub struct Reader {
    /// The beginning of a message whose end has not come.
    cut: Vec<u8>,
}

impl Reader {
    /// Takes bytes and hands over each message that is whole.
    pub fn push(&mut self, bytes: &[u8], take: &mut dyn FnMut(Message<'_>)) -> Result<(), MessageFault> {
        let mut cut = std::mem::take(&mut self.cut);
        let is_first = cut.is_empty();
        if !is_first {
            cut.extend_from_slice(bytes);
        }
        let all = if is_first { bytes } else { &cut };
        let mut rest = all;
        while let Some((message, length)) = Message::decode(rest)? {
            take(message);
            rest = &rest[length..];
        }
        // A long message may come in very many pieces: what has come of it is not copied for each.
        self.cut = if is_first || rest.len() < all.len() { rest.to_vec() } else { cut };
        Ok(())
    }

    /// Bytes that wait for the rest of their message; less than [`MAX_MESSAGE`].
    pub fn waiting(&self) -> usize {
        self.cut.len()
    }
}

fn put_head(out: &mut Vec<u8>, what: u8, peer: SocketAddr) {
    out.push(what);
    out.push(open::form(peer.ip()));
    out.extend_from_slice(&peer.port().to_be_bytes());
    open::put_address(out, peer.ip());
}

impl fmt::Display for MessageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::What(what) => write!(f, "no message begins with {what}"),
            Self::Form(form) => write!(f, "an address of form {form} is none"),
            Self::Trouble(code) => write!(f, "the trouble {code} is not known to this version"),
        }
    }
}

impl std::error::Error for MessageFault {}

const HEAD: usize = 4;
const DATAGRAM: u8 = 1;
const TROUBLE: u8 = 2;
const TOO_BIG: u8 = 255;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn examples_of_the_doc_decode_and_encode() {
        let peer = ([10, 0, 1, 5], 53).into();
        let examples: [(Message<'_>, &[u8]); 3] = [
            (Message::Datagram { peer, payload: b"hi" }, b"\x01\x04\x00\x35\x0a\x00\x01\x05\x00\x02hi"),
            (
                Message::Trouble { peer, trouble: Trouble::Refusal(Refusal::Refused) },
                b"\x02\x04\x00\x35\x0a\x00\x01\x05\x01\x00\x00",
            ),
            (
                Message::Trouble { peer, trouble: Trouble::TooBig(1400) },
                b"\x02\x04\x00\x35\x0a\x00\x01\x05\xff\x05\x78",
            ),
        ];
        for (message, wire) in examples {
            let mut out = Vec::new();
            message.encode(&mut out);
            assert_eq!(out, wire);
            assert_eq!(Message::decode(wire), Ok(Some((message, wire.len()))));
        }
    }

    #[test]
    fn a_message_in_very_many_pieces_is_not_copied_for_each() {
        let payload = vec![7; 60_000];
        let mut wire = Vec::new();
        Message::Datagram { peer: ([10, 0, 1, 5], 53).into(), payload: &payload }.encode(&mut wire);
        let (mut reader, mut places, mut taken) = (Reader::default(), Vec::new(), 0);
        for byte in &wire {
            reader.push(std::slice::from_ref(byte), &mut |_| taken += 1).unwrap();
            places.push((reader.cut.as_ptr(), reader.cut.capacity()));
        }
        places.dedup();
        assert_eq!((taken, reader.waiting()), (1, 0));
        assert!(places.len() < 40, "{} times in another place", places.len());
    }

    #[test]
    fn what_is_no_message_is_told_at_its_first_byte_that_shows_it() {
        assert_eq!(Message::decode(&[3]), Err(MessageFault::What(3)));
        assert_eq!(Message::decode(&[1, 5]), Err(MessageFault::Form(5)));
        assert_eq!(Message::decode(&[2, 4, 0, 1, 10, 0, 0, 1, 77, 0, 0]), Err(MessageFault::Trouble(77)));
    }

    proptest! {
        #[test]
        fn messages_cut_anywhere_arrive_whole(messages in prop::collection::vec(any_message(), 0..6), cut in 1..40usize) {
            let mut wire = Vec::new();
            for (peer, what) in &messages {
                message(*peer, what).encode(&mut wire);
            }
            let mut reader = Reader::default();
            let mut arrived = Vec::new();
            for piece in wire.chunks(cut) {
                reader.push(piece, &mut |message| arrived.push(own(message))).unwrap();
            }
            prop_assert_eq!(reader.waiting(), 0);
            prop_assert_eq!(arrived, messages);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(prop_oneof![Just(1u8), Just(2), Just(4), Just(0), any::<u8>()], 0..80)) {
            let mut reader = Reader::default();
            let _ = reader.push(&bytes, &mut |_| {});
        }
    }

    type Own = (SocketAddr, Result<Vec<u8>, Trouble>);

    fn message(peer: SocketAddr, what: &Result<Vec<u8>, Trouble>) -> Message<'_> {
        match what {
            Ok(payload) => Message::Datagram { peer, payload },
            Err(trouble) => Message::Trouble { peer, trouble: *trouble },
        }
    }

    fn own(message: Message<'_>) -> Own {
        match message {
            Message::Datagram { peer, payload } => (peer, Ok(payload.to_vec())),
            Message::Trouble { peer, trouble } => (peer, Err(trouble)),
        }
    }

    fn any_message() -> impl Strategy<Value = Own> {
        let peer = (any::<std::net::IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port));
        let what = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200).prop_map(Ok),
            Just(Err(Trouble::Refusal(Refusal::HostUnreachable))),
            any::<u16>().prop_map(|mtu| Err(Trouble::TooBig(mtu))),
        ];
        (peer, what)
    }
}
