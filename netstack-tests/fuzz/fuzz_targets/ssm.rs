//! A data channel of SSM under libFuzzer; what is checked stands in `netstack_tests::fuzz::ssm`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    netstack_tests::fuzz::ssm::run(input, std::time::Instant::now());
});
