//! What runs over the streams of one end: bulk each way with every byte checked, and exchanges of one byte.

use std::sync::OnceLock;
use std::time::Instant;

use super::Random;
use crate::wire::mux::{Mux, StreamId, Streams, Token};

/// Told to the far side by the first byte of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Upload = b'U',
    Download = b'D',
    Exchange = b'E',
}

pub(super) struct Apps {
    pub(super) is_client: bool,
    /// Microseconds.
    pub(super) now: u64,
    streams: Vec<App>,
    touched: Vec<Token>,
    /// Bytes of bulk received.
    pub(super) bulk: u64,
    pub(super) exchanges: Vec<u64>,
    pub(super) closed: usize,
    /// Bulk ends after so many bytes.
    pub(super) limit: u64,
}

struct App {
    id: Option<StreamId>,
    kind: Option<Kind>,
    /// The first byte is out.
    greeted: bool,
    sent: u64,
    received: u64,
    /// When bulk came last, and the longest time without any.
    last_at: u64,
    longest_gap: u64,
    owed: usize,
    asked_at: u64,
    ask_at: Option<u64>,
    finished: bool,
}

impl Apps {
    pub(super) fn new(is_client: bool) -> Self {
        Self {
            is_client,
            now: 0,
            streams: Vec::new(),
            touched: Vec::new(),
            bulk: 0,
            exchanges: Vec::new(),
            closed: 0,
            limit: u64::MAX,
        }
    }

    pub(super) fn open(&mut self, kind: Kind, mux: &mut Mux) {
        let token = self.add(Some(kind));
        self.streams[token.0 as usize].id = Some(mux.open(token).expect("the mux has room"));
        self.streams[token.0 as usize].ask_at = (kind == Kind::Exchange).then_some(self.now + 1);
    }

    fn add(&mut self, kind: Option<Kind>) -> Token {
        let token = Token(self.streams.len() as u32);
        self.streams.push(App {
            id: None,
            kind,
            greeted: !self.is_client,
            sent: 0,
            received: 0,
            last_at: self.now,
            longest_gap: 0,
            owed: 0,
            asked_at: 0,
            ask_at: None,
            finished: false,
        });
        self.touched.push(token);
        token
    }

    pub(super) fn reset_figures(&mut self) {
        self.bulk = 0;
        self.streams.iter_mut().for_each(|app| (app.last_at, app.longest_gap) = (self.now, 0));
        self.exchanges.clear();
    }

    /// The longest time that any stream was without its bulk, the present one included.
    pub(super) fn gap(&self) -> u64 {
        self.takers().map(|app| app.longest_gap.max(self.now - app.last_at)).max().unwrap_or_default()
    }

    /// Whether every stream has got bulk since then.
    pub(super) fn all_got_some_since(&self, then: u64) -> bool {
        self.takers().all(|app| app.last_at > then)
    }

    fn takers(&self) -> impl Iterator<Item = &App> {
        self.streams.iter().filter(|app| {
            matches!(app.kind, Some(Kind::Upload | Kind::Download)) && !Self::is_sender(self.is_client, app)
        })
    }

    pub(super) fn next_at(&self) -> Option<u64> {
        self.streams.iter().filter_map(|app| app.ask_at).min()
    }

    /// Tells the mux what is new.
    pub(super) fn settle(&mut self, mux: &mut Mux, now: Instant) {
        for (index, app) in self.streams.iter_mut().enumerate() {
            if app.ask_at.is_some_and(|at| at <= self.now) {
                (app.ask_at, app.asked_at, app.owed) = (None, self.now, 1);
                self.touched.push(Token(index as u32));
            }
        }
        for token in self.touched.drain(..) {
            let app = &mut self.streams[token.0 as usize];
            let Some(id) = app.id else { continue };
            mux.set_room(id, ROOM, now);
            mux.ready(id);
            if app.finished || Self::is_sender(self.is_client, app) && app.sent >= self.limit {
                mux.finish(id);
            }
        }
    }

    fn is_sender(is_client: bool, app: &App) -> bool {
        app.kind == Some(if is_client { Kind::Upload } else { Kind::Download })
    }
}

impl Streams for Apps {
    fn accept(&mut self, id: StreamId) -> Option<Token> {
        let token = self.add(None);
        self.streams[token.0 as usize].id = Some(id);
        Some(token)
    }

    fn pull(&mut self, token: Token, buf: &mut [u8]) -> usize {
        let app = &mut self.streams[token.0 as usize];
        let (Some(kind), Some(id)) = (app.kind, app.id) else { return 0 };
        if !app.greeted {
            app.greeted = true;
            buf[0] = kind as u8;
            return 1;
        }
        if Self::is_sender(self.is_client, app) {
            let count = buf.len().min(LONGEST).min(self.limit.saturating_sub(app.sent) as usize);
            buf[..count].copy_from_slice(pattern(app.sent, id, count));
            app.sent += count as u64;
            if app.sent >= self.limit {
                self.touched.push(token);
            }
            return count;
        }
        let count = app.owed.min(buf.len());
        buf[..count].fill(0x2e);
        app.owed -= count;
        count
    }

    fn push(&mut self, token: Token, mut bytes: &[u8]) {
        self.touched.push(token);
        let app = &mut self.streams[token.0 as usize];
        let id = app.id.expect("named at accept");
        if app.kind.is_none() {
            app.kind = Some(match bytes[0] {
                b'U' => Kind::Upload,
                b'D' => Kind::Download,
                b'E' => Kind::Exchange,
                other => panic!("stream begins with {other}"),
            });
            bytes = &bytes[1..];
        }
        match app.kind {
            Some(Kind::Exchange) if self.is_client => {
                self.exchanges.push(self.now - app.asked_at);
                app.ask_at = Some(self.now + 7_000 + Random(self.now + app.asked_at).below(26_000));
            }
            Some(Kind::Exchange) => app.owed += bytes.len(),
            Some(Kind::Upload | Kind::Download) | None => {
                for part in bytes.chunks(LONGEST) {
                    assert!(part == pattern(app.received, id, part.len()), "other bytes at {}", app.received);
                    app.received += part.len() as u64;
                }
                if !bytes.is_empty() {
                    self.bulk += bytes.len() as u64;
                    app.longest_gap = app.longest_gap.max(self.now - app.last_at);
                    app.last_at = self.now;
                }
            }
        }
    }

    fn finished(&mut self, token: Token) {
        self.streams[token.0 as usize].finished = true;
        self.touched.push(token);
    }

    fn reset(&mut self, token: Token) {
        panic!("stream {token:?} was reset");
    }

    fn closed(&mut self, token: Token) {
        self.streams[token.0 as usize].id = None;
        self.closed += 1;
    }
}

/// Bytes of a stream; far from repeating at the size of any segment.
fn pattern(at: u64, id: StreamId, length: usize) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        let mut random = Random(77);
        let period: Vec<u8> = (0..PERIOD).map(|_| random.below(256) as u8).collect();
        period.repeat(2)
    });
    let start = ((at + u64::from(id.0) * 1009) % PERIOD as u64) as usize;
    &bytes[start..start + length]
}

/// Prime, so that a segment put at a wrong offset is found.
const PERIOD: usize = 65_521;
const LONGEST: usize = 16_384;
const ROOM: usize = 4 << 20;
