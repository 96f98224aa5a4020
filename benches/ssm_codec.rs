//! What the binary message of the SSM data channel costs, to bytes and back, with its SHA-256 and without.
//!
//!     cargo bench --bench ssm_codec -- [--json] [--check] [--rounds N] [--millis N]

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints its figures")]
#![allow(clippy::disallowed_methods, reason = "it measures")]

mod report;

use std::hint::black_box;

use report::Report;
use ssm_proxy::ssm::message::{Kind, Message, PayloadType, Uuid};

fn main() {
    let mut report = Report::from_args();
    // An acknowledgement's JSON, what the SSM agent sends at most, and our records upstream.
    for (name, size) in
        [("1 byte", 1), ("an ack's 170 bytes", 170), ("1,024 bytes", 1_024), ("8,192 bytes", 8_192)]
    {
        size_of_payload(&mut report, name, size);
    }
    report.end();
}

fn size_of_payload(report: &mut Report, name: &str, size: usize) {
    let payload = vec![0x5a; size];
    let message = || {
        let payload = black_box(payload.as_slice());
        Message::new(Kind::InputStreamData, 7, Uuid([3; 16]), 1_700_000_000_000, PayloadType::OUTPUT, payload)
    };
    let ready = message();
    let bytes = ready.to_vec();
    let mut out = Vec::with_capacity(bytes.len());

    let digest_and_encode = report.seconds_per_call(|| {
        out.clear();
        message().encode(&mut out);
        black_box(&out);
    });
    let encode = report.seconds_per_call(|| {
        out.clear();
        black_box(&ready).encode(&mut out);
        black_box(&out);
    });
    let parse = report.seconds_per_call(|| {
        let parsed = Message::parse(black_box(&bytes)).expect("it was encoded here");
        black_box(parsed.payload.len());
    });
    let parse_and_check = report.seconds_per_call(|| {
        let parsed = Message::parse(black_box(&bytes)).expect("it was encoded here");
        assert!(parsed.digest_fits());
    });
    report.row(format!("{name}: digest and encode"), digest_and_encode * 1e9, "ns");
    report.row(format!("{name}: encode alone"), encode * 1e9, "ns");
    report.row(format!("{name}: parse"), parse * 1e9, "ns");
    report.row(format!("{name}: parse and check digest"), parse_and_check * 1e9, "ns");
    if size >= 1_024 {
        report.row(format!("{name}: digest and encode"), digest_and_encode * 1e9 / size as f64, "s/GB");
        report.row(format!("{name}: parse and check digest"), parse_and_check * 1e9 / size as f64, "s/GB");
    }
}
