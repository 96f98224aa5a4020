//! ssm-proxy: reach private VPC networks from a laptop through AWS SSM Session Manager.
//!
//! The modules stand in the order a byte passes them, from the application to the agent:
//!
//! - [`os`]: the TUN device, routes, and every other system call.
//! - [`capture`]: packets in batches between the device and the netstack.
//! - [`netstack`]: packets in, packets out, flows (pure; smoltcp).
//! - [`engine`]: the data thread: the agent library's engine with netstack flows as its local ends.
//! - [`flows`]: the ledger of live and recent flows.
//! - [`tunnel`]: lanes to the agent: connect, supervise, replace.
//! - [`ssm`]: the SSM data channel of one lane.
//!
//! Around them: [`cli`], [`config`], [`error`] (what a user is told), [`session`] (one running `up`),
//! [`control`] (the socket that `status`, `flows` and `down` talk to).
//!
//! Invariants: pure files do no IO, read no clock, know no system · `cfg(target_os)` only in `os` ·
//! an undo record exists before a system change · every queue is bounded · only `cli::print` prints ·
//! our own sockets to AWS go through `os::bypass`.

pub mod capture;
pub mod cli;
pub mod config;
pub mod control;
pub mod engine;
pub mod error;
pub mod flows;
pub mod netstack;
pub mod os;
pub mod session;
pub mod ssm;
pub mod tunnel;
