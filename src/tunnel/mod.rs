//! The way to the agent: makes lanes, greets, and keeps the trunk alive.
//!
//! What decides is pure: `keeper` (what is to be done about lanes now), with `wanted` (how many), `gate` (when one may be
//! asked for), `restarts` (when a trunk may begin), `life` (when a lane is replaced by plan), `lessons` (what is remembered),
//! `outage` and `history` (what is told).
//! What acts: [`lanes`] does what the keeper says and tells it what [`news`] there are, `hiccups` tells of websockets that
//! are lost and back, `dial` makes one lane, [`path`] is what it is made of.

mod backoff;
mod dial;
mod gate;
pub mod greet;
pub mod health;
mod hiccups;
pub mod history;
mod keeper;
pub mod lanes;
pub mod lessons;
mod life;
pub mod news;
mod outage;
pub mod path;
mod restarts;
mod wanted;
