//! Linux: a mark on the socket, which the rules of [`crate::os::routes`] look for.

use std::io;

use rustix::io::Errno;

/// One bit, so that a rule can ask for its absence (`fwmark 0/MARK`; an inverted rule would invert the
/// destination too). Chosen away from Kubernetes (0xc000), Tailscale (0xff0000), wg-quick (0xca6c),
/// Mullvad (0x6d6f6c65) and Cilium (0xf00).
pub const MARK: u32 = 0x1000_0000;

pub(super) fn protect(socket: &socket2::Socket) -> io::Result<()> {
    match socket.set_mark(MARK) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
            tracing::debug!("no right to mark a socket");
            Ok(())
        }
        done => done,
    }
}
