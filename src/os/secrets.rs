//! Nothing of this process's memory ends in a file.

use rustix::process::{Resource, Rlimit, setrlimit};

/// From now on this process and its children leave no core file, and other processes of the same user cannot look into
/// this one's memory.
pub fn leave_no_core() {
    // Where the system refuses, there is nothing better to do.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_room_for_a_core_file_afterwards() {
        leave_no_core();
        assert_eq!(rustix::process::getrlimit(Resource::Core).current, Some(0));
        #[cfg(target_os = "linux")]
        assert_eq!(
            rustix::process::dumpable_behavior().ok(),
            Some(rustix::process::DumpableBehavior::NotDumpable)
        );
    }
}
