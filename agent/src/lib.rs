//! The far end of ssm-proxy, and everything both ends share.
//!
//! - [`wire`]: what both ends speak (pure): greeting and hello, trunk, mux, open.
//! - [`lane`]: what carries a part of the trunk: takes whole records, gives back bytes.
//! - [`engine`]: flows, mux, trunk and lanes in one budgeted loop; both ends run it.
//! - [`local_end`]: what the engine asks of the near side of its flows.
//! - [`flags`], [`serve`], [`admission`], [`dial`], [`parked`], [`keys`], [`log`]: the agent's own side.

pub mod admission;
pub mod dial;
pub mod engine;
pub mod flags;
pub mod keys;
pub mod lane;
pub mod local_end;
pub mod log;
pub mod parked;
pub mod serve;
pub mod wire;
