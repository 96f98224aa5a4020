//! How many descriptors this process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as the system allows; what it is then, `None` for no limit.
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // macOS refuses more than its own most; then the limit stays as it was.
    if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_hard_one_afterwards() {
        let before = getrlimit(Resource::Nofile);
        let raised = raise_limit();
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.current, raised);
        assert_eq!(after.maximum, before.maximum);
        if cfg!(target_os = "linux") {
            assert_eq!(raised, before.maximum);
        }
    }
}
