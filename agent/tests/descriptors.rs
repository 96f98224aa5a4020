//! Running out of file descriptors; a file of its own, since the limit is the process's.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use agent::dial::rules::Rules;
use agent::dial::{DialConfig, Dialer};
use agent::local_end::{EndEvent, LocalEnds};
use agent::wire::open::{Kind, Open, Refusal, Target};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn without_descriptors_a_flow_is_refused_as_exhausted_and_the_next_one_works() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let open = Open { kind: Kind::Tcp, target: Target::Address(target.ip(), target.port()) };
    let loopback = vec!["127.0.0.0/8".parse().unwrap()];
    let dialer = Dialer::new(DialConfig { rules: Rules::new(loopback, Vec::new()), ..DialConfig::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut ends = dialer.sockets();
        let open_files = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let old = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(open_files + 2), maximum: old.maximum }).unwrap();
        let mut opened = Vec::new();
        let refusal = loop {
            match ends.open(&open, Instant::now()) {
                Ok(end) => opened.push(end),
                Err(refusal) => break refusal,
            }
            assert!(opened.len() < 100);
        };
        assert_eq!(refusal, Refusal::Exhausted);
        assert_eq!(dialer.flows(), opened.len());
        for kind in [Kind::Udp, Kind::Echo] {
            let other = Open { kind, target: open.target.clone() };
            assert_eq!(ends.open(&other, Instant::now()), Err(Refusal::Exhausted));
        }
        assert_eq!(dialer.flows(), opened.len());
        setrlimit(Resource::Nofile, old).unwrap();

        let again = ends.open(&open, Instant::now()).unwrap();
        let connected = async {
            loop {
                while let Some(event) = ends.poll_event() {
                    if matches!(event, EndEvent::Connected { end, .. } if end == again) {
                        return;
                    }
                }
                std::future::poll_fn(|cx| ends.poll_io(cx, Instant::now())).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), connected).await.expect("connected");
    });
}
