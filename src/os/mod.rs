//! The operating system: the only place that knows which one it is, and the only one with `unsafe`.
//!
//! - [`tun`]: the device whose packets are the captured flows.
//! - [`routes`]: which destinations go to that device, and which stay as they were.
//! - [`bypass`]: how our own connections stay out of it.
//! - [`arena`]: memory that goes back to the system when it is at rest.
//! - [`undo`]: the journal of every change, so that a crash leaves nothing behind.
//! - [`identity`]: who called us through sudo, their home, the run directory.
//! - [`link`]: the network changed, or the machine woke up.
//! - [`descriptors`]: how many files and sockets we may hold.
//! - [`secrets`]: our memory stays ours.
//!
//! A setter takes the whole wanted state and may be called again; it writes the journal first and changes
//! the system second.

pub mod arena;
pub mod bypass;
pub mod descriptors;
pub mod identity;
pub mod link;
pub mod routes;
pub mod secrets;
pub mod tun;
pub mod undo;

#[cfg(target_os = "linux")]
mod netlink;
#[cfg(target_os = "macos")]
mod route_socket;

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!("ssm-proxy runs on Linux and macOS");
