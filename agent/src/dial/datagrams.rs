//! One flow of datagrams: an association of UDP with any number of peers, or the echoes to one target.
//!
//! What arrives waits in the kernel's socket buffer until the mux asks for it; what is sent goes out at
//! once or is dropped and counted. So a flow holds no more than one message that was cut, and a few
//! troubles.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use rustix::io::Errno;

use super::echo::{self, Echo};
use super::poller::Heard;
use super::post::Post;
use super::rules::Rules;
use super::system::{self, EchoSocket, Report};
use super::tcp;
use crate::wire::datagram::{Message, MessageFault, Reader, Trouble};
use crate::wire::open::Refusal;

/// One flow.
#[derive(Debug)]
pub(super) struct Datagrams {
    carries: Carries,
    /// For IPv4 and for IPv6.
    sockets: [Option<UdpSocket>; 2],
    reader: Reader,
    /// A message that no buffer had room for, from `handed` on.
    pending: Vec<u8>,
    handed: usize,
    troubles: VecDeque<(SocketAddr, Trouble)>,
    /// A datagram may have arrived.
    readable: bool,
    /// A report may have arrived.
    erring: bool,
    /// The engine knows, and has not found nothing since.
    told: bool,
    /// Which family is asked first next time.
    six_first: bool,
    /// When the last datagram passed.
    pub(super) used: Instant,
    /// When `used` is looked at next.
    pub(super) expires: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Carries {
    Udp,
    Echo {
        target: IpAddr,
        /// Of our requests; only a raw socket needs it to know its answers.
        id: u16,
        raw: bool,
    },
}

/// What a look into the socket came to.
enum Arrived {
    Message,
    Nothing,
    /// Something that is not for the far side.
    Other,
}

impl Datagrams {
    /// An association; the socket for the target's family is made now, since a lack of ports is best told now.
    pub(super) fn udp(target: SocketAddr, slot: u32, post: &mut Post, now: Instant) -> Result<Self, Refusal> {
        let mut flow = Self::new(Carries::Udp, now);
        flow.socket(target.is_ipv6(), slot, post).map_err(|error| tcp::refusal(&error))?;
        Ok(flow)
    }

    pub(super) fn echo(target: IpAddr, slot: u32, post: &mut Post, now: Instant) -> Result<Self, Refusal> {
        let refused = |error: io::Error| tcp::refusal(&error);
        let EchoSocket { socket, raw } = system::echo(target).map_err(refused)?;
        post.watch(&socket, slot).map_err(refused)?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed) ^ std::process::id() as u16;
        let mut flow = Self::new(Carries::Echo { target, id, raw }, now);
        flow.sockets[usize::from(target.is_ipv6())] = Some(socket);
        Ok(flow)
    }

    fn new(carries: Carries, now: Instant) -> Self {
        Self {
            carries,
            sockets: [None, None],
            reader: Reader::default(),
            pending: Vec::new(),
            handed: 0,
            troubles: VecDeque::new(),
            readable: false,
            erring: false,
            told: false,
            six_first: false,
            used: now,
            expires: now,
        }
    }

    /// Where the target's family is sent from.
    pub(super) fn local(&self, target: SocketAddr) -> SocketAddr {
        let socket = self.sockets[usize::from(target.is_ipv6())].as_ref();
        let local = socket.and_then(|socket| socket.local_addr().ok());
        let any: IpAddr = if target.is_ipv6() { [0; 16].into() } else { [0; 4].into() };
        local.unwrap_or(SocketAddr::new(any, 0))
    }

    /// Notes what a socket says.
    pub(super) fn hear(&mut self, heard: Heard) {
        self.readable |= heard.readable;
        self.erring |= heard.erring;
    }

    /// Whether the engine has to be told now that there is something to read.
    pub(super) fn is_news(&mut self) -> bool {
        let news = self.has_word() && !self.told;
        self.told |= news;
        news
    }

    fn has_word(&self) -> bool {
        self.readable || self.erring || !self.troubles.is_empty()
    }

    /// Fills `buf` with messages, the last of them cut where the room ends.
    pub(super) fn read(&mut self, buf: &mut [u8], rules: &Rules, post: &mut Post, now: Instant) -> usize {
        let mut filled = 0;
        while filled < buf.len() {
            if self.handed < self.pending.len() {
                let rest = &self.pending[self.handed..];
                let count = rest.len().min(buf.len() - filled);
                buf[filled..filled + count].copy_from_slice(&rest[..count]);
                filled += count;
                self.handed += count;
                continue;
            }
            self.pending = Vec::new();
            self.handed = 0;
            if !self.next_message(rules, post, now) {
                break;
            }
            let (fits, rest) = post.out.split_at(post.out.len().min(buf.len() - filled));
            buf[filled..filled + fits.len()].copy_from_slice(fits);
            filled += fits.len();
            self.pending = rest.to_vec();
        }
        if filled == 0 {
            self.told = false;
        }
        filled
    }

    /// Encodes the next message into `post.out`; false when there is none now.
    fn next_message(&mut self, rules: &Rules, post: &mut Post, now: Instant) -> bool {
        for _ in 0..LOOKS {
            post.out.clear();
            if let Some((peer, trouble)) = self.troubles.pop_front() {
                Message::Trouble { peer, trouble }.encode(&mut post.out);
                return true;
            }
            if self.erring {
                self.take_reports(post);
                continue;
            }
            if !self.readable {
                return false;
            }
            match self.receive(rules, post) {
                Arrived::Message => {
                    self.used = now;
                    post.counts.received += 1;
                    return true;
                }
                Arrived::Nothing => self.readable = false,
                Arrived::Other => {}
            }
        }
        false
    }

    fn receive(&mut self, rules: &Rules, post: &mut Post) -> Arrived {
        for six in [self.six_first, !self.six_first] {
            let Some(socket) = &self.sockets[usize::from(six)] else { continue };
            let (length, from) = match socket.recv_from(&mut post.arrived) {
                Ok(arrived) => arrived,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Arrived::Other,
                Err(_of_a_report) => {
                    self.erring = true;
                    return Arrived::Other;
                }
            };
            self.six_first = !six;
            if !rules.permits(from.ip()) {
                post.counts.denied += 1;
                return Arrived::Other;
            }
            let bytes = &post.arrived[..length];
            let (peer, payload) = match self.carries {
                Carries::Udp => (from, bytes),
                Carries::Echo { target, id, raw } => {
                    let bytes = if raw && !six { echo::behind_ipv4(bytes) } else { bytes };
                    match Echo::answer(six, bytes) {
                        Some(answer) if from.ip() == target && (answer.id == id || !raw) => {
                            (SocketAddr::new(target, answer.sequence), answer.payload)
                        }
                        Some(_) | None => return Arrived::Other,
                    }
                }
            };
            Message::Datagram { peer, payload }.encode(&mut post.out);
            return Arrived::Message;
        }
        Arrived::Nothing
    }

    /// Takes what the network said out of the error queues, as far as there is room for it. What the system
    /// says itself of the datagram that it was just given is handed back.
    fn take_reports(&mut self, post: &mut Post) -> Option<Trouble> {
        self.erring = false;
        let mut own = None;
        for index in 0..self.sockets.len() {
            while let Some(socket) = &self.sockets[index] {
                if self.troubles.len() >= TROUBLES {
                    self.erring = true;
                    return own;
                }
                let mut quote = [0; 8];
                let Some(report) = system::next_report(socket, &mut quote) else { break };
                if report.own {
                    own = Some(report.trouble);
                } else if let Some(peer) = self.about(&report, &quote) {
                    self.tell_trouble(peer, report.trouble, post);
                }
            }
        }
        own
    }

    /// Which peer a report is about, as the far side knows it; `None` for one that is not ours.
    fn about(&self, report: &Report, quote: &[u8; 8]) -> Option<SocketAddr> {
        let Carries::Echo { target, id, raw } = self.carries else { return Some(report.peer) };
        let quoted = Echo::quoted(target.is_ipv6(), &quote[..report.quoted.min(quote.len())])?;
        (quoted.id == id || !raw).then(|| SocketAddr::new(target, quoted.sequence))
    }

    /// Takes bytes of the far side and sends each datagram that is whole.
    pub(super) fn write(
        &mut self,
        bytes: &[u8],
        slot: u32,
        rules: &Rules,
        post: &mut Post,
        now: Instant,
    ) -> Result<(), MessageFault> {
        let mut reader = std::mem::take(&mut self.reader);
        let taken = reader.push(bytes, &mut |message| match message {
            Message::Datagram { peer, payload } => {
                self.used = now;
                if let Some(trouble) = self.send(peer, payload, slot, rules, post) {
                    self.tell_trouble(peer, trouble, post);
                }
            }
            // Nobody at a target takes it.
            Message::Trouble { .. } => {}
        });
        self.reader = reader;
        taken
    }

    fn send(
        &mut self,
        peer: SocketAddr,
        payload: &[u8],
        slot: u32,
        rules: &Rules,
        post: &mut Post,
    ) -> Option<Trouble> {
        if !rules.permits(peer.ip()) {
            post.counts.denied += 1;
            return Some(Trouble::Refusal(Refusal::Denied));
        }
        let mut refusal = Refusal::HostUnreachable;
        // An error may be what the network said of an earlier datagram, which is in the error queue too; asked
        // again, the socket tells of this one.
        for _ in 0..SEND_TRIES {
            let Err(error) = self.try_send(peer, payload, slot, post) else { return None };
            match Errno::from_io_error(&error) {
                Some(Errno::AGAIN | Errno::NOBUFS) => {
                    post.counts.dropped += 1;
                    return None;
                }
                Some(Errno::MSGSIZE) => {
                    if let Some(trouble) = self.take_reports(post) {
                        return Some(trouble);
                    }
                }
                Some(_) | None => refusal = tcp::refusal(&error),
            }
        }
        Some(Trouble::Refusal(refusal))
    }

    fn try_send(&mut self, peer: SocketAddr, payload: &[u8], slot: u32, post: &mut Post) -> io::Result<()> {
        let six = peer.is_ipv6();
        let sent = match self.carries {
            Carries::Udp => self.socket(six, slot, post)?.send_to(payload, peer)?,
            Carries::Echo { target, id, .. } => {
                let socket = self.sockets[usize::from(six)].as_ref().filter(|_| peer.ip() == target);
                let Some(socket) = socket else {
                    post.counts.stray += 1;
                    return Ok(());
                };
                Echo { id, sequence: peer.port(), payload }.request(six, &mut post.out);
                socket.send_to(&post.out, SocketAddr::new(target, 0))?
            }
        };
        // Datagrams go whole or not at all.
        let _: usize = sent;
        post.counts.sent += 1;
        Ok(())
    }

    fn tell_trouble(&mut self, peer: SocketAddr, trouble: Trouble, post: &mut Post) {
        post.counts.troubles += 1;
        if self.troubles.len() >= TROUBLES {
            self.troubles.pop_front();
            post.counts.untold += 1;
        }
        self.troubles.push_back((peer, trouble));
    }

    /// The socket of one family, made at its first use.
    fn socket(&mut self, six: bool, slot: u32, post: &mut Post) -> io::Result<&UdpSocket> {
        match &mut self.sockets[usize::from(six)] {
            Some(socket) => Ok(socket),
            none => {
                let socket = system::udp(six)?;
                post.watch(&socket, slot)?;
                Ok(none.insert(socket))
            }
        }
    }
}

/// Where the identifiers of raw echoes begin to differ from each other.
static NEXT_ID: AtomicU16 = AtomicU16::new(0);

/// Troubles of one flow that wait; more stay in the system's queue.
const TROUBLES: usize = 32;
/// At what is not for the far side, before others have their turn.
const LOOKS: usize = 64;
const SEND_TRIES: usize = 3;
