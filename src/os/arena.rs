//! Memory for the rings of connections: address space in equal places, whose pages come with use and go back
//! to the system when their bytes are no longer needed, and with the last of a mapping's places the tables that map them:
//! those cost more than everything else that stays of a flow.
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
    chunks: Vec<Chunk>,
    /// Places leased so far; each once.
    leased: usize,
}

/// One mapping.
#[derive(Debug)]
struct Chunk {
    base: NonNull<u8>,
    /// A bit for each place whose bytes are needed.
    awake: u64,
}

// SAFETY: the pointers name mappings that belong to the whole process; only the arena's owner hands out their places.
unsafe impl Send for Arena {}

impl Arena {
    /// Makes no mapping yet.
    pub fn new(size: usize) -> Self {
        Self { size: size.next_multiple_of(rustix::param::page_size()), chunks: Vec::new(), leased: 0 }
    }

    fn grow(&mut self) -> io::Result<()> {
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { map(null_mut(), self.size * CHUNK, flags()) }?;
        self.chunks.push(Chunk { base, awake: 0 });
        Ok(())
    }

    /// A leased place's chunk, its bit there, and where it begins.
    fn find(&mut self, Place(index): Place) -> Option<(&mut Chunk, u64, NonNull<u8>)> {
        let index = index as usize;
        let chunk = self.chunks.get_mut(index / CHUNK).filter(|_| index < self.leased)?;
        // SAFETY: the offset lies within the chunk, whose mapping has `CHUNK` places.
        let start = unsafe { chunk.base.add(index % CHUNK * self.size) };
        Some((chunk, 1 << (index % CHUNK), start))
    }
}

impl Memory for Arena {
    fn lease(&mut self, length: usize) -> Option<(Place, &'static mut [u8])> {
        if length > self.size || (self.leased == self.chunks.len() * CHUNK && self.grow().is_err()) {
            return None;
        }
        let place = Place(u32::try_from(self.leased).ok()?);
        self.leased += 1;
        let (chunk, bit, start) = self.find(place)?;
        chunk.awake |= bit;
        // SAFETY: the place is mapped for good, zeroed by the kernel, `length` bytes fit in it, and it was never leased
        // before, so nobody else has a reference to it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), length) };
        Some((place, bytes))
    }

    fn rest(&mut self, place: Place) {
        let size = self.size;
        let Some((chunk, bit, start)) = self.find(place) else { return };
        chunk.awake &= !bit;
        // SAFETY: the range is one mapping of ours, and takes the old one's place as a whole. The owners of all its
        // places have said that they will not read any of their bytes before writing them.
        let renew =
            |chunk: &Chunk| unsafe { map(chunk.base.as_ptr(), size * CHUNK, flags() | MapFlags::FIXED) };
        if chunk.awake == 0 && renew(chunk).is_ok() {
            return;
        }
        // SAFETY: the range is one place of ours. Its owner says that it will not read any of its bytes before writing
        // them, so that they may turn to zeroes.
        let discarded = unsafe { discard(start, size) };
        if chunk.awake == 0 && discarded.is_err_and(|error| error.kind() == io::ErrorKind::OutOfMemory) {
            // The system took the old mapping and gave no new one: nobody may go on as if there were memory.
            renew(chunk).expect("the system gives memory again that it has just taken");
        }
    }

    fn wake(&mut self, place: Place) {
        if let Some((chunk, bit, _)) = self.find(place) {
            chunk.awake |= bit;
        }
    }
}

/// Maps memory that is zero and takes no pages before it is used.
///
/// # Safety
///
/// With `MapFlags::FIXED` the range is a mapping of ours whose bytes nobody will read before writing them.
unsafe fn map(at: *mut u8, length: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    // SAFETY: the caller's.
    let base = unsafe { mmap_anonymous(at.cast(), length, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
    #[cfg(target_os = "linux")]
    // SAFETY: the range is the mapping just made. Huge pages would make every ring resident at its first byte.
    // A kernel without them refuses.
    let _ = unsafe { madvise(base, length, Advice::LinuxNoHugepage) };
    Ok(NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?)
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
unsafe fn discard(start: NonNull<u8>, length: usize) -> io::Result<()> {
    // SAFETY: the caller's.
    Ok(unsafe { madvise(start.as_ptr().cast(), length, Advice::LinuxDontNeed) }?)
}

/// As on Linux, but the system takes the pages when it needs them: its MADV_DONTNEED would keep them.
///
/// # Safety
///
/// As on Linux.
#[cfg(target_os = "macos")]
unsafe fn discard(start: NonNull<u8>, length: usize) -> io::Result<()> {
    // SAFETY: the caller's.
    match unsafe { libc::madvise(start.as_ptr().cast(), length, libc::MADV_FREE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Places in one mapping, a bit for each.
const CHUNK: usize = u64::BITS as usize;

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
        let _alone = ALONE.lock();
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

    #[test]
    #[cfg(target_os = "linux")]
    fn tables_go_back_when_all_places_of_a_mapping_rest_and_bytes_of_those_that_do_not_stay() {
        let _alone = ALONE.lock();
        let mut arena = Arena::new(2 << 20);
        let mut leases: Vec<_> = (0..20 * CHUNK).map(|_| arena.lease(2 << 20).unwrap()).collect();
        leases.iter_mut().for_each(|(_, bytes)| bytes[0] = 7);
        let used = tables();
        assert!(used >= 5_000, "{used} KiB of tables");
        for (place, _) in &leases {
            arena.rest(*place);
        }
        assert!(tables() < used / 4, "{} KiB of {used}", tables());
        assert_eq!(leases[9].1[0], 0);

        for (place, bytes) in &mut leases[..2] {
            arena.wake(*place);
            bytes[0] = 9;
        }
        arena.rest(leases[1].0);
        assert_eq!((leases[0].1[0], leases[1].1[0]), (9, 0));
    }

    /// For tests that measure the whole process.
    #[cfg(target_os = "linux")]
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

    /// The system's memory for this process's mappings, in KiB.
    #[cfg(target_os = "linux")]
    fn tables() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[cfg(target_os = "linux")]
    fn resident() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * rustix::param::page_size()
    }
}
