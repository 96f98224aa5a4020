//! Root: the TUN device, routes, bypass, journal and network watch on Linux, in namespaces of their own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ipnet::IpNet;
use netstack_tests::netns::{Netns, veth};
use netstack_tests::require_netns;
use ssm_proxy::os::identity::Process;
use ssm_proxy::os::link::{LinkEvent, Watch};
use ssm_proxy::os::routes::{self, LocalNet, Wanted};
use ssm_proxy::os::tun::{AsyncTun, Tun, TunConfig, TunError};
use ssm_proxy::os::undo::Journal;
use ssm_proxy::os::{bypass, identity};
use tempfile::TempDir;
use tokio::time::timeout;

#[test]
fn the_device_is_up_with_its_addresses_and_sends_nothing_by_itself() {
    require_netns!();
    let ns = Netns::new("os-tun").unwrap();
    ns.enter(|| {
        let tun = open(&["100.64.9.1/32", "fd00:9::1/128"]);
        assert_eq!(tun.name(), "ssmp0");
        assert_eq!(open(&[]).name(), "ssmp1");
        let shown = ns.ip("-d addr show dev ssmp0").unwrap();
        for part in ["mtu 65535", "qlen 1000", "inet 100.64.9.1/32", "inet6 fd00:9::1/128", "UP"] {
            assert!(shown.contains(part), "{part} is missing: {shown}");
        }
        assert!(!shown.contains("MULTICAST") && !shown.contains("fe80::"), "{shown}");
        with_runtime(async {
            let tun = tun.into_async().unwrap();
            // Router solicitations and multicast joins would come within this time.
            assert!(timeout(Duration::from_millis(300), read(&tun)).await.is_err());
        });
    });
    assert!(devices_go(&ns), "a dropped device is gone");
}

#[test]
fn packets_of_applications_come_out_and_answers_go_in() {
    require_netns!();
    let ns = Netns::new("os-packets").unwrap();
    let dir = TempDir::new().unwrap();
    ns.enter(|| {
        let tun = open(&["100.64.9.1/32", "fd00:9::1/128"]);
        let mut journal = journal(&dir);
        routes::apply(&wanted(&tun, &["10.0.0.0/8", "fd77::/64"]), &mut journal).unwrap();
        with_runtime(async {
            let tun = tun.into_async().unwrap();
            for (local, target) in [("100.64.9.1", "10.9.9.9:53"), ("fd00:9::1", "[fd77::9]:53")] {
                let target: SocketAddr = target.parse().unwrap();
                let app = udp_for(target.ip());
                app.send_to(b"question", target).unwrap();
                let packet = read(&tun).await.unwrap();
                let (source, destination) = addresses(&packet);
                assert_eq!(source, local.parse::<IpAddr>().unwrap());
                assert_eq!(destination, target.ip());
                assert!(packet.ends_with(b"question"));

                assert_eq!(tun.try_write(&swapped(packet.clone())).unwrap(), packet.len());
                let mut answer = [0; 64];
                let (length, from) = app.recv_from(&mut answer).unwrap();
                assert_eq!((&answer[..length], from), (&b"question"[..], target));
            }
            let mut none = [0; 64];
            assert_eq!(tun.try_read(&mut none).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert!(tun.try_write(b"\x00garbage").is_err());
        });
        assert!(routes::remove(&mut journal).is_empty());
    });
}

#[test]
fn what_the_machine_reaches_otherwise_stays_its_own() {
    require_netns!();
    let (laptop, _router) = laptop();
    let dir = TempDir::new().unwrap();
    laptop.enter(|| {
        let tun = open(&["100.64.9.1/32", "fd00:9::1/128"]);
        let mut journal = journal(&dir);
        let mut wanted = wanted(&tun, &["10.0.0.0/8", "fd00::/8"]);
        wanted.excluded = nets(&["10.50.0.0/16", "fd00:50::/32"]);
        wanted.host_bypass = vec!["10.7.7.7".parse().unwrap(), "fd00:7::7".parse().unwrap()];
        routes::apply(&wanted, &mut journal).unwrap();

        let leads = |target: &str| device_to(&laptop, target);
        assert_eq!(leads("10.9.9.9"), "ssmp0");
        assert_eq!(leads("fd00:99::1"), "ssmp0");
        assert_eq!(leads("10.1.5.5"), "lan", "the LAN");
        assert_eq!(leads("fd00:1::5"), "lan", "the LAN's IPv6");
        assert_eq!(leads("10.2.3.9"), "docker9", "a container network");
        assert_eq!(leads("10.50.1.1"), "lan", "excluded");
        assert_eq!(leads("fd00:50::1"), "lan", "excluded");
        assert_eq!(leads("10.7.7.7"), "lan", "a bypassed host");
        assert_eq!(leads("fd00:7::7"), "lan", "a bypassed host");
        assert_eq!(leads("8.8.8.8"), "lan", "not captured");
        assert_eq!(leads("10.1.0.2"), "lo", "the machine itself");
        let mark = format!("10.9.9.9 mark {}", bypass::MARK);
        assert_eq!(leads(&mark), "lan", "our own connections");
        assert_eq!(leads("10.9.9.9 mark 0xca6c"), "ssmp0", "somebody else's mark");

        laptop.ip("route add 10.60.0.0/16 dev docker9").unwrap();
        assert_eq!(leads("10.60.0.1"), "docker9", "a network that came later");

        let local = |net: &str, device: &str| LocalNet { net: net.parse().unwrap(), device: device.into() };
        assert_eq!(
            routes::local_networks_inside(&nets(&["10.0.0.0/8"])).unwrap(),
            [local("10.1.0.0/16", "lan"), local("10.2.3.0/24", "docker9"), local("10.60.0.0/16", "docker9")]
        );
        assert!(routes::conflicts(&nets(&["10.0.0.0/8"])).unwrap().is_empty());
        let conflicts = routes::conflicts(&nets(&["10.1.0.0/24"])).unwrap();
        assert_eq!(conflicts.len(), 1);
        assert_eq!((conflicts[0].net, conflicts[0].device.as_str()), (nets(&["10.1.0.0/16"])[0], "lan"));
    });
}

#[test]
fn everything_is_undone_exactly() {
    require_netns!();
    let (laptop, _router) = laptop();
    let dir = TempDir::new().unwrap();
    let before = routing(&laptop);
    laptop.enter(|| {
        let tun = open(&["100.64.9.1/32", "fd00:9::1/128"]);
        let mut journal = journal(&dir);
        let mut wanted = wanted(&tun, &["10.0.0.0/8", "172.16.0.0/12", "10.1.0.0/16", "fd77::/64"]);
        wanted.excluded = nets(&["10.50.0.0/16"]);
        routes::apply(&wanted, &mut journal).unwrap();
        assert_ne!(routing(&laptop), before);
        assert!(routes::remove(&mut journal).is_empty());
        assert!(routes::remove(&mut journal).is_empty(), "a second time is no error");
        assert!(!journal.path().exists());
    });
    assert!(devices_go(&laptop));
    assert_eq!(routing(&laptop), before);
}

#[test]
fn a_session_that_ends_leaves_the_rules_of_another_with_the_same_range() {
    require_netns!();
    let (laptop, _router) = laptop();
    let dir = TempDir::new().unwrap();
    let before = routing(&laptop);
    laptop.enter(|| {
        let ranges = ["10.0.0.0/8", "fd00::/8", "0.0.0.0/0"];
        let mut sessions = ["first", "second", "third"].map(|name| {
            let tun = open(&[]);
            let mut journal = Journal::create(&dir.path().join(format!("{name}.journal"))).unwrap();
            let wanted = wanted(&tun, &ranges);
            routes::apply(&wanted, &mut journal).unwrap();
            (tun, journal, wanted)
        });
        let [first, second, third] = &mut sessions;
        let kept = |tun: &Tun| {
            assert_eq!(device_to(&laptop, "10.9.9.9"), tun.name());
            assert_eq!(device_to(&laptop, "10.1.5.5"), "lan", "the LAN is still asked first");
            assert_eq!(device_to(&laptop, "fd00:1::5"), "lan", "the LAN's IPv6 as well");
        };
        kept(&first.0);
        assert!(routes::remove(&mut first.1).is_empty());
        kept(&second.0);

        // One that no longer wants the range, but others.
        second.2.captured = nets(&["172.16.0.0/12"]);
        routes::apply(&second.2, &mut second.1).unwrap();
        kept(&third.0);
        assert_eq!(routes::apply(&third.2, &mut third.1).unwrap(), routes::Applied::default());

        assert!(routes::remove(&mut third.1).is_empty());
        assert_eq!(device_to(&laptop, "10.9.9.9"), "lan");
        assert!(routes::remove(&mut second.1).is_empty());
    });
    assert!(devices_go(&laptop));
    assert_eq!(routing(&laptop), before);
}

#[test]
fn applying_again_makes_only_the_difference() {
    require_netns!();
    let (laptop, _router) = laptop();
    let dir = TempDir::new().unwrap();
    let before = routing(&laptop);
    laptop.enter(|| {
        let tun = open(&["100.64.9.1/32"]);
        let mut journal = journal(&dir);
        let mut wanted = wanted(&tun, &["10.0.0.0/8", "172.16.0.0/12"]);
        // A route and two rules for each range.
        assert_eq!(routes::apply(&wanted, &mut journal).unwrap().added, 6);
        assert_eq!(routes::apply(&wanted, &mut journal).unwrap(), routes::Applied::default());

        laptop.ip("rule flush").unwrap();
        laptop.ip("rule add lookup main pref 32766").unwrap();
        assert_eq!(
            routes::apply(&wanted, &mut journal).unwrap().added,
            4,
            "what others took away comes back"
        );
        assert_eq!(device_to(&laptop, "10.9.9.9"), "ssmp0");

        wanted.captured = nets(&["172.16.0.0/12"]);
        wanted.host_bypass = vec!["172.16.0.2".parse().unwrap()];
        let applied = routes::apply(&wanted, &mut journal).unwrap();
        assert_eq!((applied.added, applied.removed), (1, 3));
        assert_eq!(device_to(&laptop, "10.9.9.9"), "lan");
        assert_eq!(device_to(&laptop, "172.16.0.2"), "lan");
        assert_eq!(device_to(&laptop, "172.16.0.3"), "ssmp0");
        assert!(routes::remove(&mut journal).is_empty());
    });
    laptop.ip("rule add lookup default pref 32767").unwrap();
    assert!(devices_go(&laptop));
    assert_eq!(routing(&laptop), before);
}

#[test]
fn our_own_sockets_leave_by_the_real_device_even_when_everything_is_captured() {
    require_netns!();
    let (laptop, router) = laptop();
    let dir = TempDir::new().unwrap();
    let server = router.enter(|| UdpSocket::bind("10.9.9.9:9").unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let target = server.local_addr().unwrap();
    laptop.enter(|| {
        let tun = open(&["100.64.9.1/32", "fd00:9::1/128"]);
        let mut journal = journal(&dir);
        routes::apply(&wanted(&tun, &["0.0.0.0/0", "::/0"]), &mut journal).unwrap();
        assert_eq!(device_to(&laptop, "8.8.8.8"), "ssmp0");
        assert_eq!(device_to(&laptop, "2001:db8::1"), "ssmp0");
        assert_eq!(device_to(&laptop, "10.1.0.1"), "lan", "the gateway");

        let app = udp_for(target.ip());
        bypass::protect(&socket2::Socket::from(app.try_clone().unwrap())).unwrap();
        app.send_to(b"ours", target).unwrap();
        let mut packet = [0; 16];
        let (length, from) = server.recv_from(&mut packet).unwrap();
        assert_eq!(&packet[..length], b"ours");
        server.send_to(b"answer", from).unwrap();
        assert_eq!(app.recv(&mut packet).unwrap(), 6);

        with_runtime(async {
            let tun = tun.into_async().unwrap();
            udp_for(target.ip()).send_to(b"theirs", target).unwrap();
            assert!(read(&tun).await.unwrap().ends_with(b"theirs"), "the first packet here is not ours");
        });
        assert!(routes::remove(&mut journal).is_empty());
    });
}

#[test]
fn the_next_start_undoes_what_a_killed_process_left() {
    require_netns!();
    let (laptop, _router) = laptop();
    let elsewhere = Netns::new("os-elsewhere").unwrap();
    let dir = TempDir::new().unwrap();
    let before = routing(&laptop);
    let mut child = HeldRoutes::start(&laptop, dir.path());
    assert_ne!(routing(&laptop), before);

    laptop.enter(|| {
        let found = Journal::leftovers(dir.path(), &Process::is_alive).unwrap();
        assert!(found.is_empty(), "a living session is left alone: {found:?}");
        let found = Journal::leftovers(dir.path(), &|_| false).unwrap();
        assert!(found.is_empty(), "its lock says so too: {found:?}");
    });
    child.kill_hard();
    assert_eq!(device_to(&laptop, "10.9.9.9"), "lan", "what stays after a crash captures nothing");
    elsewhere.enter(|| {
        let found = Journal::leftovers(dir.path(), &Process::is_alive).unwrap();
        assert!(found.is_empty(), "another namespace has nothing to undo: {found:?}");
    });
    laptop.enter(|| {
        let found = Journal::leftovers(dir.path(), &Process::is_alive).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].pid, child.process.id());
        assert_eq!(found[0].undone, 4);
        assert!(found[0].failures.is_empty());
        assert!(!found[0].path.exists());
    });
    assert!(devices_go(&laptop));
    assert_eq!(routing(&laptop), before);
}

/// Not a test of its own: the process that the test above kills.
#[test]
fn hold_routes_until_killed() {
    let Some(dir) = std::env::var_os("HOLD_ROUTES_IN") else { return };
    let tun = open(&["100.64.9.1/32"]);
    let mut journal = Journal::create(&Path::new(&dir).join("held.journal")).unwrap();
    let mut wanted = wanted(&tun, &["10.0.0.0/8"]);
    wanted.excluded = nets(&["10.50.0.0/16"]);
    routes::apply(&wanted, &mut journal).unwrap();
    std::fs::write(Path::new(&dir).join("ready"), "").unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn errors_say_what_is_in_the_way() {
    require_netns!();
    let (laptop, _router) = laptop();
    laptop.enter(|| {
        let error = try_open(&["10.1.0.2/32"]).unwrap_err();
        assert!(matches!(&error, TunError::AddressInUse { device, .. } if device == "lan"), "{error}");
        let named = |name: &str| Tun::open(&TunConfig { name: Some(name.into()), ..TunConfig::default() });
        assert!(matches!(named("lan").unwrap_err(), TunError::Busy(_)));
        let first = named("mine").unwrap();
        assert!(matches!(named("mine").unwrap_err(), TunError::Busy(_)));
        drop(first);
        // As in `devices_go`.
        let again = std::iter::repeat_with(|| named("mine")).take(1000).find_map(Result::ok);
        assert_eq!(again.expect("the name is free again").name(), "mine");
        let tiny = Tun::open(&TunConfig { mtu: 500, ..TunConfig::default() });
        assert!(matches!(tiny.unwrap_err(), TunError::BadMtu(500)));
    });
    laptop.sysctl("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    laptop.sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    laptop.enter(|| {
        assert!(matches!(try_open(&["fd00:9::1/128"]).unwrap_err(), TunError::NoIpv6 { .. }));
        assert!(try_open(&["100.64.9.1/32"]).is_ok(), "IPv4 works without IPv6");
    });
    assert!(devices_go(&laptop), "a failed attempt leaves no device");
}

#[test]
fn without_root_there_is_no_device() {
    require_netns!();
    let ns = Netns::new("os-nobody").unwrap();
    ns.enter(|| {
        let nobody = rustix::thread::Uid::from_raw(65534);
        // Only this thread becomes somebody else, and it ends with the closure.
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let error = try_open(&[]).unwrap_err();
        assert!(matches!(error, TunError::NotRoot(_)), "{error:?}");
        assert!(error.hint().unwrap().contains("sudo"));
    });
}

#[test]
fn a_bypassed_host_is_heard_through_a_strict_reverse_path_filter() {
    require_netns!();
    let (laptop, router) = laptop();
    let dir = TempDir::new().unwrap();
    laptop.sysctl("net/ipv4/conf/lan/rp_filter", "1").unwrap();
    let server = router.enter(|| UdpSocket::bind("10.9.9.9:9").unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let target = server.local_addr().unwrap();
    laptop.enter(|| {
        let tun = open(&["100.64.9.1/32"]);
        let mut journal = journal(&dir);
        let mut wanted = wanted(&tun, &["10.0.0.0/8"]);
        wanted.host_bypass = vec![target.ip()];
        routes::apply(&wanted, &mut journal).unwrap();
        let app = udp_for(target.ip());
        app.send_to(b"?", target).unwrap();
        let mut packet = [0; 16];
        let (_, from) = server.recv_from(&mut packet).unwrap();
        server.send_to(b"!", from).unwrap();
        assert_eq!(app.recv(&mut packet).unwrap(), 1);
    });
}

#[test]
fn the_watch_tells_when_the_way_out_changes_and_when_our_rules_go() {
    require_netns!();
    let (laptop, _router) = laptop();
    let dir = TempDir::new().unwrap();
    laptop.enter(|| {
        let tun = open(&["100.64.9.1/32"]);
        let wanted = wanted(&tun, &["10.0.0.0/8"]);
        let mut journal = journal(&dir);
        with_runtime(async {
            let mut watch = Watch::open(Some(tun.index())).unwrap();
            routes::apply(&wanted, &mut journal).unwrap();
            veth((&laptop, "docker8", &["10.8.0.1/24"]), (&laptop, "another", &[])).unwrap();
            let quiet = timeout(Duration::from_millis(800), watch.next()).await;
            assert!(quiet.is_err(), "neither our routes nor a container change the way out: {quiet:?}");
            assert_eq!(watch.check(), None);

            laptop.ip("route replace default via 10.1.0.3 dev lan").unwrap();
            assert_eq!(event(&mut watch).await, LinkEvent::NetworkChanged);
            laptop.ip("addr add 10.1.0.77/16 dev lan").unwrap();
            assert_eq!(event(&mut watch).await, LinkEvent::NetworkChanged);
            laptop.ip("rule del to 10.0.0.0/8 lookup main pref 4948").unwrap();
            assert_eq!(event(&mut watch).await, LinkEvent::RoutesTouched);
            assert_eq!(routes::apply(&wanted, &mut journal).unwrap().added, 1);
        });
    });
}

#[test]
fn the_namespace_of_a_panicking_test_goes_away() {
    require_netns!();
    let ns = Netns::new("os-panic").unwrap();
    let path = Path::new("/run/netns").join(ns.name());
    assert!(path.exists());
    std::thread::spawn(move || {
        let _ns = ns;
        panic!("on purpose");
    })
    .join()
    .unwrap_err();
    assert!(!path.exists());
}

#[test]
fn the_caller_owns_the_socket_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("control.sock");
    std::fs::write(&path, "").unwrap();
    identity::chown_to_caller(&path).unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(identity::chown_to_caller(&link).is_err());
}

#[test]
fn under_sudo_the_caller_is_known_and_told_what_was_dropped() {
    require_netns!();
    let dir = TempDir::new().unwrap();
    // This shell stands for sudo: it was started with the caller's settings and starts us without them.
    let us = std::env::current_exe().unwrap();
    let script = r#"env -u AWS_PROFILE -u HTTPS_PROXY "$0" --exact tell_identity --nocapture; true"#;
    let status = Command::new("sh")
        .args(["-c", script])
        .arg(&us)
        .env("TELL_IDENTITY_IN", dir.path())
        .env("SSM_PROXY_RUN_DIR", dir.path().join("run"))
        .envs([("SUDO_UID", "1"), ("SUDO_GID", "1"), ("SUDO_USER", "whoever")])
        .envs([("AWS_PROFILE", "secret-value"), ("HTTPS_PROXY", "http://p"), ("AWS_REGION", "kept")])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let told = std::fs::read_to_string(dir.path().join("told")).unwrap();
    let expected = format!(
        "1 1 daemon /usr/sbin true\nsudo --preserve-env=AWS_PROFILE,HTTPS_PROXY {} --exact tell_identity \
         --nocapture\n",
        us.display()
    );
    assert_eq!(told, expected);
    let owner = std::os::unix::fs::MetadataExt::uid;
    assert_eq!(owner(&std::fs::metadata(dir.path().join("told")).unwrap()), 1);
    let run = std::fs::metadata(dir.path().join("run")).unwrap();
    assert_eq!((owner(&run), std::os::unix::fs::MetadataExt::mode(&run) & 0o777), (0, 0o755));
}

/// Not a test of its own: what the test above starts.
#[test]
fn tell_identity() {
    let Some(dir) = std::env::var_os("TELL_IDENTITY_IN") else { return };
    let caller = identity::Caller::detect();
    let hint = identity::dropped_environment_hint().unwrap();
    assert!(identity::adopt_home().is_err(), "the test harness has threads");
    identity::run_dir().unwrap();
    let path = Path::new(&dir).join("told");
    let (name, home) = (caller.name, caller.home.display());
    std::fs::write(
        &path,
        format!("{} {} {name} {home} {}\n{hint}\n", caller.uid, caller.gid, caller.via_sudo),
    )
    .unwrap();
    identity::chown_to_caller(&path).unwrap();
}

/// A machine whose LAN is 10.1.0.0/16 and which has a container network 10.2.3.0/24, and its router, which
/// also is 10.9.9.9.
fn laptop() -> (Netns, Netns) {
    let laptop = Netns::new("os-laptop").unwrap();
    let router = Netns::new("os-router").unwrap();
    veth(
        (&laptop, "lan", &["10.1.0.2/16", "fd00:1::2/64"]),
        (&router, "lan", &["10.1.0.1/16", "fd00:1::1/64"]),
    )
    .unwrap();
    router.ip("addr add 10.9.9.9/32 dev lo").unwrap();
    // A wire both of whose ends are here does for a bridge, which not every test kernel has.
    veth((&laptop, "docker9", &["10.2.3.1/24"]), (&laptop, "container", &[])).unwrap();
    laptop.ip("route add default via 10.1.0.1").unwrap();
    laptop.ip("-6 route add default via fd00:1::1").unwrap();
    (laptop, router)
}

/// A process in a namespace that has captured 10.0.0.0/8 and waits for its death.
struct HeldRoutes {
    process: Child,
}

impl HeldRoutes {
    fn start(ns: &Netns, dir: &Path) -> Self {
        let process = ns.enter(|| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "hold_routes_until_killed", "--nocapture"])
                .env("HOLD_ROUTES_IN", dir)
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        });
        let held = Self { process };
        for _ in 0..500 {
            if dir.join("ready").exists() {
                return held;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the process never got ready");
    }

    fn kill_hard(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for HeldRoutes {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn open(addresses: &[&str]) -> Tun {
    try_open(addresses).unwrap()
}

fn try_open(addresses: &[&str]) -> Result<Tun, TunError> {
    Tun::open(&TunConfig { addresses: nets(addresses), ..TunConfig::default() })
}

fn wanted(tun: &Tun, captured: &[&str]) -> Wanted {
    Wanted {
        device: tun.index(),
        device_name: tun.name().to_owned(),
        captured: nets(captured),
        ..Wanted::default()
    }
}

fn journal(dir: &TempDir) -> Journal {
    Journal::create(&dir.path().join("test.journal")).unwrap()
}

fn nets(text: &[&str]) -> Vec<IpNet> {
    text.iter().map(|net| net.parse().unwrap()).collect()
}

/// Everything about routing that a user could see.
fn routing(ns: &Netns) -> String {
    ["rule show", "-6 rule show", "route show table all", "-6 route show table all", "-br link show"]
        .map(|command| ns.ip(command).unwrap())
        .concat()
}

/// Whether no device of ours stays. A process that another test is just starting may hold a copy of a
/// descriptor for a moment.
fn devices_go(ns: &Netns) -> bool {
    (0..1000).any(|_| !ns.ip("link show").unwrap().contains("ssmp"))
}

/// The device that `ip route get` names.
fn device_to(ns: &Netns, target: &str) -> String {
    let answer = ns.ip(&format!("route get {target}")).unwrap();
    let mut words = answer.split_whitespace().skip_while(|word| *word != "dev");
    words.nth(1).unwrap_or_else(|| panic!("no device in {answer}")).to_owned()
}

fn with_runtime(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

async fn read(tun: &AsyncTun) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; 65535];
    loop {
        timeout(PATIENCE, std::future::poll_fn(|cx| tun.poll_readable(cx))).await??;
        match tun.try_read(&mut packet) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => {
                packet.truncate(read?.length);
                return Ok(packet);
            }
        }
    }
}

async fn event(watch: &mut Watch) -> LinkEvent {
    timeout(PATIENCE, watch.next()).await.expect("an event in time").unwrap()
}

fn udp_for(target: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    if packet[0] >> 4 == 4 {
        let at = |from: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[from..from + 4]).unwrap());
        return (at(12), at(16));
    }
    let at = |from: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[from..from + 16]).unwrap());
    (at(8), at(24))
}

/// The packet on its way back: no checksum changes when addresses and ports change places.
fn swapped(mut packet: Vec<u8>) -> Vec<u8> {
    let (addresses, size, ports) = if packet[0] >> 4 == 4 { (12, 4, 20) } else { (8, 16, 40) };
    for (from, size) in [(addresses, size), (ports, 2)] {
        let (one, other) = packet[from..from + 2 * size].split_at_mut(size);
        one.swap_with_slice(other);
    }
    packet
}

const PATIENCE: Duration = Duration::from_secs(5);
