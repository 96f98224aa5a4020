//! Pure: datagrams that the application's kernel cut to the device's or a way's MTU, put together again.
//!
//! Only UDP and ICMP: TCP is never cut by a kernel that cuts for itself. Fragments that overlap make their
//! datagram worthless (RFC 5722), and so does one that is still missing after 30 s.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::packet::{self, ICMP, ICMP6, UDP, V4_HEADER, V6_HEADER, checksum, put_u16, u16_at, u32_at};

/// Datagrams of which fragments are missing; the newest, where they are many.
#[derive(Default)]
pub(super) struct Fragments {
    waiting: Vec<Assembly>,
}

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Joined {
    Waits,
    /// The whole packet.
    Whole(Vec<u8>),
    /// It is of no use, or makes its datagram useless.
    Useless,
}

#[derive(PartialEq, Eq, Clone, Copy)]
struct Key {
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
    id: u32,
}

struct Fragment<'a> {
    key: Key,
    offset: usize,
    more: bool,
    data: &'a [u8],
}

struct Assembly {
    key: Key,
    began: Instant,
    /// By offset, without overlap.
    pieces: Vec<(usize, Vec<u8>)>,
    /// The whole length, once the last piece is there.
    total: Option<usize>,
}

impl Fragments {
    /// Takes a fragment whose IP header is sound; tells, too, how many datagrams were given up for it.
    pub(super) fn join(&mut self, bytes: &[u8], now: Instant) -> (Joined, u64) {
        let Some(fragment) = Fragment::read(bytes) else { return (Joined::Useless, 0) };
        let mut given_up = self.expire(now);
        let at = match self.waiting.iter().position(|assembly| assembly.key == fragment.key) {
            Some(at) => at,
            None => {
                if self.waiting.len() == MAX_WAITING {
                    self.waiting.remove(0);
                    given_up += 1;
                }
                self.waiting.push(Assembly {
                    key: fragment.key,
                    began: now,
                    pieces: Vec::new(),
                    total: None,
                });
                self.waiting.len() - 1
            }
        };
        let assembly = &mut self.waiting[at];
        if !assembly.take(&fragment) {
            self.waiting.remove(at);
            return (Joined::Useless, given_up);
        }
        if !assembly.is_whole() {
            return (Joined::Waits, given_up);
        }
        let whole = self.waiting.remove(at).into_packet(&bytes[..packet::header_of(fragment.key.source)]);
        (Joined::Whole(whole), given_up)
    }

    /// Gives up what waited for too long; tells how many datagrams.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        let before = self.waiting.len();
        self.waiting.retain(|assembly| assembly.began + LIFE > now);
        (before - self.waiting.len()) as u64
    }

    /// When the oldest is given up.
    pub(super) fn next(&self) -> Option<Instant> {
        self.waiting.first().map(|assembly| assembly.began + LIFE)
    }
}

impl<'a> Fragment<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (key, place, data) = if bytes.first()? >> 4 == 4 {
            let (header, data) = bytes.get(..usize::from(u16_at(bytes, 2)))?.split_at_checked(V4_HEADER)?;
            let (source, target) = (packet::v4_at(header, 12), packet::v4_at(header, 16));
            let key = Key { source, target, protocol: header[9], id: u16_at(header, 4).into() };
            (key, (usize::from(u16_at(header, 6) & 0x1fff) * 8, header[6] & 0x20 != 0), data)
        } else {
            let end = V6_HEADER + usize::from(u16_at(bytes, 4));
            let (header, data) = bytes.get(..end)?.split_at_checked(V6_HEADER + FRAGMENT_HEADER)?;
            let (source, target) = (packet::v6_at(header, 8), packet::v6_at(header, 24));
            let key = Key { source, target, protocol: header[V6_HEADER], id: u32_at(header, V6_HEADER + 4) };
            let place = u16_at(header, V6_HEADER + 2);
            (key, (usize::from(place & 0xfff8), place & 1 != 0), data)
        };
        let (offset, more) = place;
        let most = usize::from(u16::MAX) - if key.source.is_ipv4() { V4_HEADER } else { 0 };
        let sound = offset + data.len() <= most && !(more && (data.is_empty() || data.len() % 8 != 0));
        let ours = matches!(key.protocol, UDP | ICMP | ICMP6);
        (sound && ours).then_some(Self { key, offset, more, data })
    }
}

impl Assembly {
    /// False when the fragment contradicts those before it.
    fn take(&mut self, fragment: &Fragment<'_>) -> bool {
        let (start, end) = (fragment.offset, fragment.offset + fragment.data.len());
        let at = self.pieces.partition_point(|(offset, _)| *offset < start);
        if self.pieces.get(at).is_some_and(|(offset, data)| *offset == start && data == fragment.data) {
            return true;
        }
        let before = at.checked_sub(1).map(|before| &self.pieces[before]);
        let overlaps = before.is_some_and(|(offset, data)| offset + data.len() > start)
            || self.pieces.get(at).is_some_and(|(offset, _)| *offset < end);
        let last = self.pieces.last().map_or(0, |(offset, data)| offset + data.len());
        let ends = match (fragment.more, self.total) {
            (false, Some(total)) => total == end,
            (false, None) => last <= end,
            (true, Some(total)) => end < total,
            (true, None) => true,
        };
        if overlaps || !ends || self.pieces.len() == MAX_PIECES {
            return false;
        }
        if !fragment.more {
            self.total = Some(end);
        }
        self.pieces.insert(at, (start, fragment.data.to_vec()));
        true
    }

    fn is_whole(&self) -> bool {
        let have: usize = self.pieces.iter().map(|(_, data)| data.len()).sum();
        self.total == Some(have)
    }

    /// `header` is the IP header of any of the fragments.
    fn into_packet(self, header: &[u8]) -> Vec<u8> {
        let mut bytes = header.to_vec();
        self.pieces.iter().for_each(|(_, data)| bytes.extend_from_slice(data));
        if self.key.source.is_ipv4() {
            let length = bytes.len() as u16;
            put_u16(&mut bytes, 2, length);
            put_u16(&mut bytes, 6, 0);
            put_u16(&mut bytes, 10, 0);
            let sum = checksum(&[&bytes[..V4_HEADER]]);
            put_u16(&mut bytes, 10, sum);
        } else {
            let length = (bytes.len() - V6_HEADER) as u16;
            put_u16(&mut bytes, 4, length);
            bytes[6] = self.key.protocol;
        }
        bytes
    }
}

const FRAGMENT_HEADER: usize = 8;
/// 64 of at most 64 KiB.
const MAX_WAITING: usize = 64;
/// As many as a full datagram has at the least MTU of IPv4 that is in use.
const MAX_PIECES: usize = 128;
const LIFE: Duration = Duration::from_secs(30);

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netstack::packet::Packet;

    #[test]
    fn fragments_in_any_order_make_the_datagram() {
        let now = Instant::now();
        for v6 in [false, true] {
            let data: Vec<u8> = (0..3000).map(|at| (at % 251) as u8).collect();
            for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
                let mut fragments = Fragments::default();
                let pieces = [(0, 1480, true), (1480, 1480, true), (2960, 40, false)];
                for (nth, piece) in order.into_iter().enumerate() {
                    let (offset, length, more) = pieces[piece];
                    let bytes = fragment(v6, UDP, offset, more, &data[offset..offset + length]);
                    assert_eq!(
                        Packet::parse(&bytes, true).err(),
                        Some(crate::netstack::DropReason::Fragment)
                    );
                    // A repeated fragment does no harm.
                    let joined = fragments.join(&bytes, now).0;
                    if nth < 2 {
                        assert_eq!((joined, fragments.join(&bytes, now).0), (Joined::Waits, Joined::Waits));
                    } else {
                        let Joined::Whole(whole) = joined else { panic!("{joined:?}") };
                        let packet = Packet::parse(&whole, true).unwrap();
                        assert_eq!((packet.protocol, packet.payload()), (UDP, &data[..]));
                    }
                }
                assert!(fragments.waiting.is_empty());
            }
        }
    }

    #[test]
    fn what_contradicts_itself_is_useless() {
        let now = Instant::now();
        let cases: [&[(usize, usize, bool)]; 6] = [
            &[(0, 16, true), (8, 16, true)],
            &[(8, 16, true), (0, 16, true)],
            &[(16, 8, false), (8, 16, false)],
            &[(16, 8, false), (24, 8, true)],
            &[(16, 8, true), (8, 8, false)],
            &[(65_528, 16, false)],
        ];
        for pieces in cases {
            let mut fragments = Fragments::default();
            let mut last = Joined::Waits;
            for (offset, length, more) in pieces {
                assert_eq!(last, Joined::Waits);
                last = fragments.join(&fragment(false, UDP, *offset, *more, &vec![7; *length]), now).0;
            }
            assert_eq!(last, Joined::Useless, "{pieces:?}");
            assert!(fragments.waiting.is_empty());
        }
        let mut fragments = Fragments::default();
        assert_eq!(fragments.join(&fragment(false, 6, 0, true, &[0; 8]), now).0, Joined::Useless);
        assert_eq!(fragments.join(&fragment(true, UDP, 0, true, &[0; 9]), now).0, Joined::Useless);
    }

    #[test]
    fn what_waits_is_bounded_in_number_and_time() {
        let now = Instant::now();
        let mut fragments = Fragments::default();
        let mut given_up = 0;
        for id in 0..100u8 {
            let mut bytes = fragment(false, UDP, 0, true, &[0; 8]);
            bytes[5] = id;
            given_up += fragments.join(&bytes, now).1;
        }
        assert_eq!((given_up, fragments.waiting.len()), (36, MAX_WAITING));
        assert_eq!(fragments.next(), Some(now + LIFE));
        assert_eq!(fragments.join(&fragment(true, UDP, 0, true, &[0; 8]), now + LIFE).1, 64);
        assert_eq!((fragments.next(), fragments.expire(now + LIFE)), (Some(now + 2 * LIFE), 0));
        assert_eq!((fragments.expire(now + 2 * LIFE), fragments.next()), (1, None));
    }

    proptest! {
        #[test]
        fn any_fragments_keep_the_bounds(
            pieces in prop::collection::vec((any::<bool>(), 0..20usize, any::<bool>(), 0..5usize, 0..4u8), 0..200),
        ) {
            let now = Instant::now();
            let mut fragments = Fragments::default();
            for (v6, offset, more, length, id) in pieces {
                let mut bytes = fragment(v6, UDP, offset * 8, more, &vec![1; length * 8]);
                bytes[if v6 { 47 } else { 5 }] = id;
                if let Joined::Whole(whole) = fragments.join(&bytes, now).0 {
                    prop_assert!(Packet::parse(&whole, false).is_ok());
                }
            }
            prop_assert!(fragments.waiting.len() <= 8);
        }

        #[test]
        fn any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 40..120), v6 in any::<bool>()) {
            let mut bytes = bytes;
            bytes[0] = if v6 { 0x60 } else { 0x45 };
            Fragments::default().join(&bytes, Instant::now());
        }
    }

    fn fragment(v6: bool, protocol: u8, offset: usize, more: bool, data: &[u8]) -> Vec<u8> {
        let place = offset as u16 | u16::from(more);
        let mut bytes = if v6 { vec![0; 48] } else { vec![0; 20] };
        bytes.extend_from_slice(data);
        if v6 {
            bytes[0] = 0x60;
            put_u16(&mut bytes, 4, (8 + data.len()) as u16);
            (bytes[6], bytes[7]) = (44, 64);
            (bytes[8], bytes[23], bytes[24], bytes[39]) = (0xfd, 1, 0xfd, 2);
            bytes[40] = protocol;
            put_u16(&mut bytes, 42, place);
        } else {
            bytes[0] = 0x45;
            put_u16(&mut bytes, 2, (20 + data.len()) as u16);
            put_u16(&mut bytes, 6, (offset / 8) as u16 | u16::from(more) << 13);
            (bytes[8], bytes[9]) = (64, protocol);
            (bytes[12], bytes[15], bytes[16], bytes[19]) = (10, 1, 10, 2);
            let sum = checksum(&[&bytes[..20]]);
            put_u16(&mut bytes, 10, sum);
        }
        bytes
    }
}
