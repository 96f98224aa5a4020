//! The netstack under libFuzzer; what is checked stands in `netstack_tests::fuzz::netstack`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    netstack_tests::fuzz::netstack::run(input, std::time::Instant::now());
});
