//! Pure: where the rings of connections get their memory, and when it may go back.

use smoltcp::socket::tcp::SocketBuffer;

/// Names what [`Memory::lease`] gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub u32);

/// Where rings lie.
pub trait Memory: Send {
    /// Bytes for the rings of one connection, for good: there is no way to give them back. `None`: there are no more.
    fn lease(&mut self, length: usize) -> Option<(Place, &'static mut [u8])>;
    /// Nobody reads these bytes again before they were written, and that is told by `wake`: they need no memory until then.
    fn rest(&mut self, place: Place);
    /// Bytes of a place at rest are written again, or are about to be.
    fn wake(&mut self, place: Place);
}

/// The rings of one connection: receive and send.
pub(super) struct Rings {
    pub(super) receive: SocketBuffer<'static>,
    pub(super) send: SocketBuffer<'static>,
    /// `None`: they belong to the connection and go with it.
    pub(super) place: Option<Place>,
}

impl Rings {
    /// From the allocator when there is no `memory`.
    pub(super) fn new(memory: Option<&mut Box<dyn Memory>>, receive: usize, send: usize) -> Option<Self> {
        let Some(memory) = memory else {
            let ring = |length| SocketBuffer::new(vec![0; length]);
            return Some(Self { receive: ring(receive), send: ring(send), place: None });
        };
        let (place, bytes) = memory.lease(receive + send)?;
        let (receive, send) = bytes.split_at_mut(receive);
        Some(Self { receive: SocketBuffer::new(receive), send: SocketBuffer::new(send), place: Some(place) })
    }
}
