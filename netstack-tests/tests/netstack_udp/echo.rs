//! Echoes, and what may not be done.

use super::*;

#[test]
fn an_echo_keeps_identifier_sequence_and_payload() {
    for family in FAMILIES {
        let mut world = World::new(Config::default());
        let (app, target) = (family.app(0).ip(), family.peer(1, 0).ip());
        world.give(&echo(app, target, 77, 1, b"pingping"));
        let flow = FlowId(0);
        let (source, to) = (SocketAddr::new(app, 77), SocketAddr::new(target, 0));
        let connect = Event::Connect { flow, kind: Kind::Echo, source, target: to };
        assert_eq!(world.events(), [connect, Event::Readable { flow }]);
        world.give(&echo(app, target, 77, 2, b"pong?"));
        world.give(&echo(app, target, 78, 3, b"another"));
        assert_eq!(world.stack.counters().flows_now, 2);
        let sent = world.read(flow);
        assert_eq!(
            sent,
            [
                (SocketAddr::new(target, 1), b"pingping".to_vec()),
                (SocketAddr::new(target, 2), b"pong?".to_vec())
            ]
        );
        world.write(flow, SocketAddr::new(target, 2), b"pong?");
        world.write(flow, SocketAddr::new(family.peer(2, 0).ip(), 2), b"from a stranger");
        let packets = world.packets();
        assert_eq!(packets.len(), 1);
        let reply = &packets[0][family.header..];
        assert_eq!(reply[..2], [if family.header == 20 { 0 } else { 129 }, 0]);
        assert_eq!(reply[4..], [&[0, 77, 0, 2], &b"pong?"[..]].concat());
        family.check_icmp_sum(target, app, reply);
        world.events();
        world.wait(Duration::from_secs(31));
        assert_eq!(world.events().len(), 2);
        assert_eq!(world.stack.counters().flows_now, 0);
    }
}

#[test]
fn trouble_of_an_echo_quotes_its_sequence_number() {
    for family in FAMILIES {
        let mut world = World::new(Config::default());
        let (app, target) = (family.app(0).ip(), family.peer(1, 0).ip());
        for sequence in 1..=3 {
            world.give(&echo(app, target, 77, sequence, b"pingping"));
        }
        world.trouble(FlowId(0), SocketAddr::new(target, 2), Trouble::Refusal(Refusal::HostUnreachable));
        let error = world.error(family);
        assert_eq!(error.quote[family.header + 4..], [0, 77, 0, 2]);
        assert_eq!(error.code, if family.header == 20 { 1 } else { 3 });
    }
}

#[test]
fn what_the_agent_may_not_do_is_said_at_once_for_a_while() {
    for family in FAMILIES {
        let code = if family.header == 20 { (3, 13) } else { (1, 1) };
        for kind in [Kind::Echo, Kind::Udp] {
            let mut world = World::new(Config::default());
            let packet = |port| match kind {
                Kind::Echo => echo(family.app(0).ip(), family.peer(1, 0).ip(), port, 1, b"pingping"),
                Kind::Udp | Kind::Tcp | Kind::Dns => udp(family.app(port), family.peer(1, 53), b"pingping"),
            };
            world.give(&packet(1));
            assert_eq!(world.events().len(), 2);
            world.stack.refuse(FlowId(0), Refusal::Prohibited, world.now);
            let error = world.error(family);
            assert_eq!((error.kind, error.code), code);
            for port in [1, 2] {
                world.give(&packet(port));
                assert!(world.events().is_empty(), "the agent is not asked again");
                let error = world.error(family);
                assert_eq!((error.kind, error.code), code);
                assert_eq!(error.quote, packet(port));
            }
            for _ in 0..1000 {
                world.give(&packet(1));
            }
            assert!(world.packets().len() < 100);
            assert!(world.stack.counters().dropped(DropReason::ReplyRate) > 900);
            world.now += Duration::from_secs(31);
            world.give(&packet(1));
            assert_eq!(world.events().len(), 2);
        }
    }
}

#[test]
fn a_refusal_of_one_target_holds_for_that_packet_only() {
    let mut world = World::new(Config::default());
    for why in [Refusal::Denied, Refusal::Exhausted] {
        world.give(&echo(V4.app(0).ip(), V4.peer(1, 0).ip(), 1, 1, b""));
        assert_eq!(world.events().len(), 2);
        world.stack.refuse(FlowId(0), why, world.now);
        assert_eq!(world.error(V4).kind, 3);
    }
}
