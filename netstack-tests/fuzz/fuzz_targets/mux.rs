//! The mux under libFuzzer; what is checked stands in `netstack_tests::fuzz::mux`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    netstack_tests::fuzz::mux::run(input, std::time::Instant::now());
});
