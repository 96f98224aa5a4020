//! Pure: the messages in a stream of the mux: open, answer, datagrams, the heads of blocks.
//!
//! Rules: what decodes is encoded to what decodes the same, no prefix of it is a message or a fault, and a reader fed
//! in pieces tells what one look at the whole tells.

use std::time::Instant;

use agent::wire::blocks::{self, Block};
use agent::wire::datagram::{MAX_MESSAGE, Message, Reader};
use agent::wire::open::{Answer, Open};

use super::{Bytes, Sights, variant};

pub fn run(input: &[u8], _start: Instant) -> Sights {
    let mut bytes = Bytes(input);
    let settings = bytes.byte();
    let wire = bytes.0;
    Sights::from([match settings % 5 {
        0 => format!("open {}", check(wire, open)),
        1 => format!("answer {}", check(wire, answer)),
        2 => format!("datagram {}", check(wire, datagram)),
        3 => format!("block {}", check(wire, block)),
        _ => format!("reader {}", check_reader(wire, 1 + usize::from(settings / 5))),
    }])
}

/// A message written anew, and how long it was; or the fault.
type Decoded = Result<Option<(Vec<u8>, usize)>, String>;

fn open(wire: &[u8]) -> Decoded {
    let decoded = Open::decode(wire).map_err(|fault| variant(&fault))?;
    Ok(decoded.map(|(open, length)| {
        let mut again = Vec::new();
        open.encode(&mut again).expect("a name that was read can be written");
        (again, length)
    }))
}

fn answer(wire: &[u8]) -> Decoded {
    let decoded = Answer::decode(wire).map_err(|fault| variant(&fault))?;
    Ok(decoded.map(|(answer, length)| {
        let mut again = Vec::new();
        answer.encode(&mut again);
        (again, length)
    }))
}

fn datagram(wire: &[u8]) -> Decoded {
    let decoded = Message::decode(wire).map_err(|fault| variant(&fault))?;
    Ok(decoded.map(|(message, length)| {
        let mut again = Vec::new();
        message.encode(&mut again);
        (again, length)
    }))
}

fn block(wire: &[u8]) -> Decoded {
    let decoded = Block::decode(wire).map_err(|fault| variant(&fault))?;
    Ok(decoded.map(|block| (block.encode().to_vec(), blocks::HEAD)))
}

fn check(wire: &[u8], decode: fn(&[u8]) -> Decoded) -> String {
    match decode(wire) {
        Ok(None) => "part".to_owned(),
        Err(fault) => fault,
        Ok(Some((again, length))) => {
            assert_eq!(again.len(), length);
            assert_eq!(decode(&again), Ok(Some((again.clone(), length))));
            for cut in 0..length {
                assert_eq!(decode(&wire[..cut]), Ok(None), "cut at {cut}");
            }
            format!("of {} bytes", length / 8 * 8)
        }
    }
}

fn check_reader(wire: &[u8], piece: usize) -> String {
    let (mut whole, mut rest) = (Vec::new(), wire);
    let fault = loop {
        match Message::decode(rest) {
            Ok(None) => break None,
            Err(fault) => break Some(fault),
            Ok(Some((message, length))) => {
                whole.push(format!("{message:?}"));
                rest = &rest[length..];
            }
        }
    };
    let (mut reader, mut told) = (Reader::default(), Vec::new());
    let result = wire.chunks(piece).try_for_each(|piece| {
        let result = reader.push(piece, &mut |message| told.push(format!("{message:?}")));
        assert!(reader.waiting() < MAX_MESSAGE);
        result
    });
    assert_eq!((&told, result.err()), (&whole, fault));
    if fault.is_none() {
        assert_eq!(reader.waiting(), rest.len());
    }
    format!("{} messages, then {}", told.len().min(3), variant(&fault))
}

/// Not steps, but what a message may begin with.
pub(super) const STEPS: &[u8] = &[0, 0, 0, 1, 1, 2, 4, 4, 6, 8, 15];
