//! Messages in the streams of the mux under libFuzzer; what is checked stands in `netstack_tests::fuzz::messages`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    netstack_tests::fuzz::messages::run(input, std::time::Instant::now());
});
