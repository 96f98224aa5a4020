//! A client and an agent that shake hands under libFuzzer; what is checked stands in `netstack_tests::fuzz::handshake`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    netstack_tests::fuzz::handshake::run(input, std::time::Instant::now());
});
