//! Memory for the rings of connections: address space in equal places, whose pages come with use and go back
//! to the system when their bytes are no longer needed.
//!
//! From the allocator each ring would be a mapping of its own, of which a process may have about 65,000, and its
//! pages would stay for as long as the connection does.

use std::io;
use std::ptr::{NonNull, null_mut};

#[cfg(target_os = "linux")]
use rustix::mm::{Advice, madvise};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use crate::netstack::rings::{Memory, Place};

/// Places of one size. Address space once taken is kept until the process ends, its pages are not.
#[derive(Debug)]
pub struct Arena {
    /// Bytes of a place, whole pages.
    size: usize,
    chunks: Vec<NonNull<u8>>,
    /// Places leased so far; each once.
    leased: usize,
}

// SAFETY: the pointers name mappings that belong to the whole process; only the arena's owner hands out their places.
unsafe impl Send for Arena {}

impl Arena {
    /// Makes no mapping yet.
    pub fn new(size: usize) -> Self {
        Self { size: size.next_multiple_of(rustix::param::page_size()), chunks: Vec::new(), leased: 0 }
    }

    fn grow(&mut self) -> io::Result<()> {
        let length = self.size * CHUNK;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { mmap_anonymous(null_mut(), length, access, flags()) }?;
        #[cfg(target_os = "linux")]
        // SAFETY: the range is the mapping just made. Huge pages would make every ring resident at its first byte.
        // A kernel without them refuses.
        let _ = unsafe { madvise(base, length, Advice::LinuxNoHugepage) };
        self.chunks.push(NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?);
        Ok(())
    }

    fn place(&self, Place(index): Place) -> Option<NonNull<u8>> {
        let index = index as usize;
        let chunk = self.chunks.get(index / CHUNK)?;
        // SAFETY: the offset lies within the chunk, whose mapping has `CHUNK` places.
        Some(unsafe { chunk.add(index % CHUNK * self.size) })
    }
}

impl Memory for Arena {
    fn lease(&mut self, length: usize) -> Option<(Place, &'static mut [u8])> {
        if length > self.size || (self.leased == self.chunks.len() * CHUNK && self.grow().is_err()) {
            return None;
        }
        let place = Place(u32::try_from(self.leased).ok()?);
        let start = self.place(place)?;
        self.leased += 1;
        // SAFETY: the place is mapped for good, zeroed by the kernel, `length` bytes fit in it, and it was never leased
        // before, so nobody else has a reference to it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), length) };
        Some((place, bytes))
    }

    fn rest(&mut self, place: Place) {
        if place.0 as usize >= self.leased {
            return;
        }
        let Some(start) = self.place(place) else { return };
        // SAFETY: the range is one place of ours. Its owner says that it will not read any of its bytes before writing
        // them, so that they may turn to zeroes.
        unsafe { discard(start, self.size) };
    }
}

#[cfg(target_os = "linux")]
fn flags() -> MapFlags {
    MapFlags::PRIVATE | MapFlags::NORESERVE
}

#[cfg(target_os = "macos")]
fn flags() -> MapFlags {
    MapFlags::PRIVATE
}

/// Gives the pages back to the system. Where it refuses they stay, which costs memory and no more.
///
/// # Safety
///
/// The range is whole pages of a mapping of ours whose bytes nobody will read before writing them.
#[cfg(target_os = "linux")]
unsafe fn discard(start: NonNull<u8>, length: usize) {
    // SAFETY: the caller's.
    let _ = unsafe { madvise(start.as_ptr().cast(), length, Advice::LinuxDontNeed) };
}

/// As on Linux, but the system takes the pages when it needs them: its MADV_DONTNEED would keep them.
///
/// # Safety
///
/// As on Linux.
#[cfg(target_os = "macos")]
unsafe fn discard(start: NonNull<u8>, length: usize) {
    // SAFETY: the caller's.
    let _ = unsafe { libc::madvise(start.as_ptr().cast(), length, libc::MADV_FREE) };
}

/// Places in one mapping.
const CHUNK: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_do_not_overlap_and_keep_their_bytes() {
        let mut arena = Arena::new(10_000);
        let mut leases: Vec<_> = (0..2 * CHUNK + 1).map(|_| arena.lease(10_000).unwrap()).collect();
        for (index, (place, bytes)) in leases.iter_mut().enumerate() {
            assert_eq!((place.0 as usize, bytes.len()), (index, 10_000));
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(index as u8);
        }
        assert!(leases.iter().enumerate().all(|(index, (_, bytes))| bytes.iter().all(|b| *b == index as u8)));
        assert!(arena.lease(20_000).is_none(), "no place is that long");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn pages_of_a_place_at_rest_go_back_to_the_system() {
        let mut arena = Arena::new(8 << 20);
        let before = resident();
        let (place, bytes) = arena.lease(8 << 20).unwrap();
        assert!(resident() < before + (4 << 20), "pages come with use only");
        bytes.fill(1);
        assert!(resident() >= before + (7 << 20));
        arena.rest(place);
        assert!(resident() < before + (4 << 20));
        bytes[17] = 2;
        assert_eq!(bytes[17], 2);
        arena.rest(Place(99));
    }

    #[cfg(target_os = "linux")]
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size()
    }
}
