//! A trunk and the frames on its lanes under libFuzzer; what is checked stands in `netstack_tests::fuzz::trunk`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    netstack_tests::fuzz::trunk::run(input, std::time::Instant::now());
});
