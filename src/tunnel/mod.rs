//! The way to the agent: makes lanes, greets, and keeps the trunk alive.

pub mod backoff;
pub mod greet;
pub mod health;
pub mod lanes;
mod outage;
pub mod path;
