//! What the tests of more than one part share, and the SSM simulator.

pub mod netns;
pub mod ssm;
