//! The SSM data channel: what carries one lane's records to AWS's SSM agent and back.
//!
//! In the order a byte passes them:
//!
//! - [`message`]: the binary message to bytes and back (pure).
//! - [`handshake`]: the JSON payloads and text frames (pure).
//! - [`channel`]: handshake, sequence numbers, acknowledgements, resends (pure).
//! - [`socket`]: the websocket under a channel, as a lane; resumes it when it is cut.
//! - [`upgrade`]: from a StreamUrl to a signed websocket.
//! - [`connect`]: TCP, HTTP proxy, TLS, for websockets and API calls alike; [`proxy`] and
//!   [`stream_url`] are its pure parts.
//!
//! Beside the path: [`api`], the calls that start, resume and end sessions, with their `keys`, its errors in
//! [`api_error`], which names the `profiles` of the AWS files, and [`http`], which carries them.

pub mod api;
pub mod api_error;
pub mod channel;
pub mod connect;
pub mod handshake;
pub mod http;
mod key_source;
mod keys;
pub mod message;
mod profiles;
pub mod proxy;
pub mod socket;
pub mod stream_url;
pub mod upgrade;
