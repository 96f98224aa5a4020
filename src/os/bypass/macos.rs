//! macOS: a socket cannot be marked; the host routes of [`crate::os::routes`] cover what must stay outside.

use std::io;

/// Connections to AWS leave by the default route, which a captured range never is here.
pub(super) fn protect(_socket: &socket2::Socket) -> io::Result<()> {
    Ok(())
}
