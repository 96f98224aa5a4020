//! What compression brings over one lane of the simulated service at its faithful pace, and what it must not cost.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use netstack_tests::netns;
use netstack_tests::patience::now;
use netstack_tests::servers::{self, noise};
use netstack_tests::ssm;
use netstack_tests::vpc::{DEADLINE, INSTANCE, Process, TARGET, Vpc};
use rustix::process::Signal;

#[test]
fn text_comes_at_three_times_the_rate_of_the_lane_and_noise_no_slower() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let world = Vpc::new(&[])?;
    let kinds: [Sort; 4] = [("log", log), ("csv", csv), ("sql", sql), ("noise", |length| noise(length, 9))];
    let plain = Rates::of(&world, "off", &kinds, 2_000_000)?;
    let packed = Rates::of(&world, "auto", &kinds, 6_000_000)?;
    println!("MB/s {:.2?} -> {:.2?}", plain.rates, packed.rates);
    println!("CPU s/MB of noise {:.4} -> {:.4}", plain.noise_cpu, packed.noise_cpu);

    for (at, (kind, _)) in kinds.iter().enumerate() {
        let gain = packed.rates[at] / plain.rates[at];
        let least = if *kind == "noise" { 0.97 } else { 3.0 };
        assert!(gain >= least, "{kind}: {gain:.2} times {:.2} MB/s", plain.rates[at]);
    }
    assert!(packed.noise_cpu < plain.noise_cpu * 1.5, "{} s/MB", packed.noise_cpu);
    let told = |flow: &serde_json::Value| flow["bytes_rx"].as_f64().zip(flow["wire_rx"].as_f64());
    let gains: Vec<f64> = packed.flows.iter().filter_map(told).map(|(bytes, wire)| bytes / wire).collect();
    assert!(gains.len() == 4 && gains[..3].iter().all(|gain| *gain > 3.0), "{gains:?}");
    assert!((0.999..=1.0).contains(&gains[3]), "{gains:?}");
    assert!(packed.flows.iter().all(|flow| flow["compress_ms"].is_number()), "{:?}", packed.flows);
    assert!(plain.flows.iter().all(|flow| flow["compress_ms"].is_null()), "{:?}", plain.flows);
    Ok(())
}

#[test]
fn an_agent_that_forbids_it_gets_plain_flows() -> Result<()> {
    if let Some(reason) = netns::why_not() {
        netns::skipped(&reason);
        return Ok(());
    }
    let world = Vpc::new(&["--compress", "off"])?;

    let rates = Rates::of(&world, "on", &[("sql", sql)], 100_000)?;

    assert!(rates.flows.iter().all(|flow| flow["compress_ms"].is_null()), "{:?}", rates.flows);
    assert_eq!(rates.flows[0]["bytes_rx"], rates.flows[0]["wire_rx"]);
    Ok(())
}

/// The name of what is downloaded, and what makes so many bytes of it.
type Sort = (&'static str, fn(usize) -> Vec<u8>);

/// How downloads of each kind went in one session.
struct Rates {
    /// MB/s
    rates: Vec<f64>,
    /// Both ends, seconds for a MB.
    noise_cpu: f64,
    flows: Vec<serde_json::Value>,
}

impl Rates {
    fn of(world: &Vpc, compress: &str, kinds: &[Sort], length: usize) -> Result<Self> {
        let simulator = world.simulator(ssm::Config::default())?;
        let arguments = ["--instance", INSTANCE, "--lanes", "1", "--compress", compress];
        let mut client = world.up(&simulator.env(), &arguments)?;
        let (mut rates, mut noise_cpu) = (Vec::new(), 0.0);
        for (kind, make) in kinds {
            let length = if *kind == "noise" { 2_000_000 } else { length };
            let sent = make(length);
            let cpu = cpu(world, &client)?;
            let rate = download(world, sent)?;
            noise_cpu = (self::cpu(world, &client)? - cpu) / (length as f64 / 1e6);
            rates.push(rate);
        }
        let output = world.client(&[], &["flows", "--json"]).output()?;
        let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let flows = told["sessions"][0]["flows"].as_array().context("flows are told")?.clone();
        let status = client.end(Signal::INT)?;
        ensure!(status.code() == Some(130), "it ended with {status}");
        simulator.assert_clean();
        Ok(Self { rates, noise_cpu, flows })
    }
}

/// MB/s from the second quarter on, when windows have grown; every byte is compared.
fn download(world: &Vpc, sent: Vec<u8>) -> Result<f64> {
    let bytes = sent.clone();
    let each = move |mut stream: TcpStream| {
        // The other side counts what came.
        let _ = stream.write_all(&bytes);
    };
    let address = servers::serve(&world.vpc, &format!("{TARGET}:0"), each)?;
    let mut stream = world.laptop.enter(|| TcpStream::connect_timeout(&address, DEADLINE))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut got = vec![0; sent.len()];
    let (first, rest) = got.split_at_mut(sent.len() / 4);
    stream.read_exact(first)?;
    let began = now();
    stream.read_exact(rest)?;
    let rate = rest.len() as f64 / began.elapsed().as_secs_f64() / 1e6;
    ensure!(got == sent, "other bytes came than were sent");
    ensure!(stream.read(&mut [0])? == 0, "more came than was sent");
    Ok(rate)
}

/// Processor seconds of both ends.
fn cpu(world: &Vpc, client: &Process) -> Result<f64> {
    let agent = world.agent.as_ref().context("the agent runs")?.id();
    let of = |id: u32| -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("a name in brackets")?;
        let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
        Ok(ticks.iter().sum::<f64>() / rustix::param::clock_ticks_per_second() as f64)
    };
    Ok(of(agent)? + of(client.id())?)
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn word(&mut self) -> &'static str {
        const WORDS: [&str; 12] = [
            "select",
            "update",
            "request",
            "response",
            "user",
            "order",
            "item",
            "session",
            "timeout",
            "connection",
            "database",
            "invoice",
        ];
        WORDS[self.below(WORDS.len() as u64) as usize]
    }
}

fn text(length: usize, mut line: impl FnMut(&mut Dice, usize, &mut String) -> std::fmt::Result) -> Vec<u8> {
    let (mut dice, mut text) = (Dice(0x5eed), String::new());
    for number in 0.. {
        if text.len() >= length || line(&mut dice, number, &mut text).is_err() {
            break;
        }
    }
    text.truncate(length);
    text.into_bytes()
}

fn log(length: usize) -> Vec<u8> {
    text(length, |dice, number, out| {
        let (second, milli) = (number / 20, dice.below(1000));
        let (hour, minute, second) = (second / 3600 % 24, second / 60 % 60, second % 60);
        write!(out, "2026-11-21T{hour:02}:{minute:02}:{second:02}.{milli:03}Z ")?;
        let level = ["INFO", "INFO", "WARN", "DEBUG"][dice.below(4) as usize];
        write!(out, "{level} app[{}] {} {} ", 1000 + dice.below(50), dice.word(), dice.word())?;
        let (id, took) = (dice.below(100_000_000), dice.below(1000));
        let status = [200, 200, 200, 404, 500][dice.below(5) as usize];
        writeln!(
            out,
            "id={id} took={took}ms path=/api/v1/{}/{} status={status}",
            dice.word(),
            dice.below(10_000)
        )
    })
}

fn csv(length: usize) -> Vec<u8> {
    text(length, |dice, number, out| {
        write!(out, "{number},{},{}@example.com,", dice.word(), dice.word())?;
        let country = ["DE", "US", "FR"][dice.below(3) as usize];
        let (cents, month, day) = (dice.below(1_000_000), 1 + dice.below(12), 1 + dice.below(28));
        writeln!(out, "{}.{:02},{country},2026-{month:02}-{day:02}", cents / 100, cents % 100)
    })
}

fn sql(length: usize) -> Vec<u8> {
    text(length, |dice, number, out| {
        write!(out, "INSERT INTO orders (id, customer, product, amount, created_at) VALUES ({number}, ")?;
        let (customer, cents) = (dice.below(1000), dice.below(100_000));
        let (month, day, hour) = (1 + dice.below(12), 1 + dice.below(28), dice.below(24));
        writeln!(
            out,
            "'customer{customer}', '{}', {}.{:02}, '2026-{month:02}-{day:02} {hour:02}:00:00');",
            dice.word(),
            cents / 100,
            cents % 100
        )
    })
}
