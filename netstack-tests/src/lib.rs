//! What the tests of more than one part share, and the SSM simulator.

pub mod actor;
pub mod app;
pub mod bins;
pub mod fuzz;
pub mod link;
pub mod netns;
pub mod patience;
pub mod servers;
pub mod ssm;
pub mod vpc;
