//! Pure: what `up` was asked for, checked and made into one [`Plan`].

mod lanes;
mod networks;
mod values;

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::time::Duration;

use agent::wire::datagram::LONGEST_SILENCE;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::error::{Exit, UserError};

pub use lanes::{Keepalive, LaneCount, LanePlan, MOST_AUTO};
pub(crate) use networks::overlap;
pub use values::{SessionName, parse_duration};

/// What the user wrote, unchecked. Flags, environment and files all end here.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    pub name: Option<SessionName>,
    pub instance: Option<String>,
    pub instance_tag: Option<String>,
    pub via: Option<String>,
    pub key_file: Option<PathBuf>,
    pub cidrs: Vec<String>,
    pub excludes: Vec<String>,
    pub local: Vec<String>,
    pub mtu: Option<u32>,
    pub timeout: Option<Duration>,
    pub udp_timeout: Option<Duration>,
    pub document: Option<String>,
    pub agent_port: Option<u16>,
    pub ping_interval: Option<Duration>,
    pub compress: Option<Compress>,
    pub lanes: Option<LaneCount>,
    pub keepalive: Option<Keepalive>,
    pub lazy: bool,
    pub idle_timeout: Option<Duration>,
    pub auto_reconnect: Option<bool>,
    pub reconnect_delay: Option<Duration>,
    pub max_retries: Option<u32>,
    pub max_session_duration: Option<Duration>,
    pub profile: Option<String>,
    pub region: Option<String>,
}

/// How the agent is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// An SSM session to this instance.
    Instance(String),
    /// An SSM session to the running instance that has this tag.
    Tag { key: String, value: String },
    /// A plain TCP connection to `addr` (`host:port`, IPv6 in brackets). Without a key file only on loopback.
    Tcp { addr: String, key_file: Option<PathBuf> },
}

/// Whether TCP connections are compressed on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Compress {
    /// Through SSM, which is slower than any compressing.
    #[default]
    Auto,
    Off,
    On,
}

/// One session, ready to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub name: SessionName,
    pub via: Via,
    /// What is captured; none lies inside another.
    pub cidrs: Vec<IpNet>,
    /// Parts of `cidrs` that stay local.
    pub excludes: Vec<IpNet>,
    /// The device's addresses where the user named them; otherwise see [`Plan::local`].
    pub local_given: Option<Vec<IpNet>>,
    /// `None`: what is best on this system.
    pub mtu: Option<u32>,
    /// How long the first connection may take.
    pub timeout: Duration,
    /// How long UDP between a socket and its peers may pause.
    pub udp_timeout: Duration,
    /// The SSM document that opens the port session.
    pub document: String,
    /// Where the agent listens on the instance's loopback.
    pub agent_port: u16,
    /// `None`: what is best for the kind of lane.
    pub ping_interval: Option<Duration>,
    pub compress: Compress,
    pub lanes: LanePlan,
    pub profile: Option<String>,
    pub region: Option<String>,
    /// What the user should know about how the wishes were read, a sentence each.
    pub notes: Vec<String>,
}

pub const DEFAULT_AGENT_PORT: u16 = 742;
pub const DEFAULT_DOCUMENT: &str = "AWS-StartSSHSession";
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
pub const DEFAULT_UDP_TIMEOUT: Duration = Duration::from_secs(300);
/// How many sessions of one machine get addresses of their own without `--local-ip`.
pub const SLOTS: u8 = 63;

impl Plan {
    /// Checks everything that can be checked without asking the system or AWS.
    pub fn new(wishes: Wishes) -> Result<Self, UserError> {
        let via = via(&wishes)?;
        let mut notes = Vec::new();
        let cidrs = networks::captured(&wishes.cidrs, &mut notes)?;
        let excludes = networks::excluded(&wishes.excludes, &cidrs, &mut notes)?;
        let local_given = networks::local(&wishes.local, &cidrs)?;
        let lanes = LanePlan::new(&wishes)?;
        Ok(Self {
            lanes,
            name: wishes.name.unwrap_or_default(),
            via,
            mtu: mtu(wishes.mtu, &cidrs)?,
            cidrs,
            excludes,
            local_given,
            timeout: timeout(wishes.timeout)?,
            udp_timeout: udp_timeout(wishes.udp_timeout)?,
            document: document(wishes.document)?,
            agent_port: agent_port(wishes.agent_port)?,
            ping_interval: ping_interval(wishes.ping_interval)?,
            compress: wishes.compress.unwrap_or_default(),
            profile: wishes.profile,
            region: wishes.region,
            notes,
        })
    }

    /// The device's addresses for the session that holds `slot` (see `session::registry`).
    ///
    /// By default a link-local /30 outside 169.254.169.0/24 and 169.254.170.0/24, where AWS puts instance and
    /// container metadata: no router forwards it, so it can stand in nobody's way, and it is never a target.
    /// With IPv6 ranges, a unique-local /128 is added.
    pub fn local(&self, slot: u8) -> Vec<IpNet> {
        self.local_given.clone().unwrap_or_else(|| default_local(slot, self.wants_v6()))
    }

    /// Whether the agent is asked to compress.
    pub fn wants_compression(&self) -> bool {
        match (self.compress, &self.via) {
            (Compress::On, _) | (Compress::Auto, Via::Instance(_) | Via::Tag { .. }) => true,
            (Compress::Off, _) | (Compress::Auto, Via::Tcp { .. }) => false,
        }
    }

    pub fn wants_v4(&self) -> bool {
        self.cidrs.iter().any(|net| matches!(net, IpNet::V4(_)))
    }

    pub fn wants_v6(&self) -> bool {
        self.cidrs.iter().any(|net| matches!(net, IpNet::V6(_)))
    }
}

impl std::fmt::Display for Via {
    /// As `status` names it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Instance(id) => f.write_str(id),
            Self::Tag { key, value } => write!(f, "{key}={value}"),
            Self::Tcp { addr, .. } => write!(f, "tcp://{addr}"),
        }
    }
}

fn default_local(slot: u8, v6: bool) -> Vec<IpNet> {
    let slot = slot.min(SLOTS);
    let v4 = Ipv4Net::new_assert([169, 254, 77, slot * 4 + 1].into(), 30);
    let v6 = v6.then(|| Ipv6Net::new_assert(LOCAL_V6_BASE | Ipv6Addr::from_bits(u128::from(slot) + 1), 128));
    std::iter::once(IpNet::V4(v4)).chain(v6.map(IpNet::V6)).collect()
}

/// A unique-local prefix drawn at random once, as RFC 4193 wants it.
const LOCAL_V6_BASE: Ipv6Addr = Ipv6Addr::new(0xfd5c, 0x9a1e, 0x77b2, 0, 0, 0, 0, 0);

fn via(wishes: &Wishes) -> Result<Via, UserError> {
    let named = [wishes.instance.is_some(), wishes.instance_tag.is_some(), wishes.via.is_some()];
    if named.iter().filter(|named| **named).count() > 1 {
        return Err(usage("--instance, --instance-tag and --via exclude each other")
            .hint("give one of them: it names the way to the agent"));
    }
    if wishes.key_file.is_some() && wishes.via.is_none() {
        return Err(usage("--key-file goes with --via tcp://HOST:PORT only")
            .cause("an SSM session is authenticated by AWS"));
    }
    if let Some(id) = &wishes.instance {
        values::instance(id).map(Via::Instance)
    } else if let Some(tag) = &wishes.instance_tag {
        values::tag(tag)
    } else if let Some(url) = &wishes.via {
        values::tcp(url, wishes.key_file.clone())
    } else {
        Err(usage("no way to the agent is given")
            .cause("one of --instance, --instance-tag and --via is needed")
            .hint("sudo ssm-proxy up --instance i-0123456789abcdef0 --cidr 10.0.0.0/8"))
    }
}

fn mtu(mtu: Option<u32>, cidrs: &[IpNet]) -> Result<Option<u32>, UserError> {
    let Some(wanted) = mtu else { return Ok(None) };
    if !(576..=65535).contains(&wanted) {
        return Err(usage(format!("--mtu {wanted} is out of range")).cause("it must be from 576 to 65535"));
    }
    if wanted < 1280 && cidrs.iter().any(|net| matches!(net, IpNet::V6(_))) {
        return Err(usage(format!("--mtu {wanted} is too small for the IPv6 ranges"))
            .cause("IPv6 needs at least 1280 bytes on every link")
            .hint("--mtu 1280, or leave --mtu away"));
    }
    Ok(mtu)
}

fn timeout(timeout: Option<Duration>) -> Result<Duration, UserError> {
    let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
    if (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&timeout) {
        Ok(timeout)
    } else {
        Err(usage("--timeout is out of range").cause("it must be from 1s to 1h"))
    }
}

fn udp_timeout(timeout: Option<Duration>) -> Result<Duration, UserError> {
    let timeout = timeout.unwrap_or(DEFAULT_UDP_TIMEOUT);
    if (Duration::from_secs(1)..=LONGEST_SILENCE).contains(&timeout) {
        Ok(timeout)
    } else {
        let minutes = LONGEST_SILENCE.as_secs() / 60;
        let cause = format!("it must be from 1s to {minutes}m: the agent forgets what is silent for longer");
        Err(usage("--udp-timeout is out of range").cause(cause))
    }
}

fn ping_interval(interval: Option<Duration>) -> Result<Option<Duration>, UserError> {
    match interval {
        Some(interval) if !(Duration::from_millis(100)..=Duration::from_secs(600)).contains(&interval) => {
            Err(usage("--ping-interval is out of range").cause("it must be from 100ms to 10m"))
        }
        Some(_) | None => Ok(interval),
    }
}

fn document(document: Option<String>) -> Result<String, UserError> {
    let document = document.unwrap_or_else(|| DEFAULT_DOCUMENT.to_owned());
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.:/".contains(c);
    if (3..=128).contains(&document.len()) && document.chars().all(allowed) {
        Ok(document)
    } else {
        Err(usage(format!("{document:?} is not the name of an SSM document"))
            .cause("names have 3 to 128 letters, digits and _ - . : /"))
    }
}

fn agent_port(port: Option<u16>) -> Result<u16, UserError> {
    match port {
        Some(0) => Err(usage("--agent-port 0 is no port").hint("--agent-port 742")),
        Some(port) => Ok(port),
        None => Ok(DEFAULT_AGENT_PORT),
    }
}

fn usage(what: impl Into<String>) -> UserError {
    UserError::new(Exit::Usage, what)
}

#[cfg(test)]
mod tests {
    use agent::dial::DialConfig;

    use super::*;

    #[test]
    fn the_shortest_wish_gets_the_documented_defaults() {
        let plan = Plan::new(wishes(&["10.0.0.0/8"])).unwrap();

        assert_eq!(plan.name.as_str(), "default");
        assert_eq!(plan.via, Via::Instance("i-0123456789abcdef0".into()));
        assert_eq!((plan.timeout, plan.udp_timeout), (Duration::from_secs(30), Duration::from_secs(300)));
        assert_eq!((plan.document.as_str(), plan.agent_port, plan.mtu), ("AWS-StartSSHSession", 742, None));
        assert_eq!(shown(&plan.local(0)), ["169.254.77.1/30"]);
        assert!(plan.notes.is_empty());
    }

    #[test]
    fn every_slot_has_addresses_of_its_own() {
        let plan = Plan::new(wishes(&["10.0.0.0/8", "fd00:1::/32"])).unwrap();

        let all: Vec<_> = (0..=SLOTS).flat_map(|slot| plan.local(slot)).collect();

        assert_eq!(shown(&all[2..4]), ["169.254.77.5/30", "fd5c:9a1e:77b2::2/128"]);
        let networks: std::collections::BTreeSet<_> = all.iter().map(IpNet::trunc).collect();
        assert_eq!(networks.len(), 2 * (usize::from(SLOTS) + 1));
    }

    #[test]
    fn addresses_the_user_named_win_over_the_slot() {
        let plan =
            Plan::new(Wishes { local: vec!["192.0.2.1/30".into()], ..wishes(&["10.0.0.0/8"]) }).unwrap();

        assert_eq!(shown(&plan.local(5)), ["192.0.2.1/30"]);
    }

    #[test]
    fn exactly_one_way_to_the_agent() {
        let two = Wishes { via: Some("tcp://127.0.0.1:742".into()), ..wishes(&["10.0.0.0/8"]) };
        let none = Wishes { instance: None, ..wishes(&["10.0.0.0/8"]) };
        let stray_key = Wishes { key_file: Some("k".into()), ..wishes(&["10.0.0.0/8"]) };

        for (wishes, expected) in [(two, "exclude each other"), (none, "no way"), (stray_key, "--key-file")] {
            let error = Plan::new(wishes).unwrap_err();
            assert_eq!(error.exit, Exit::Usage);
            assert!(error.what.contains(expected), "{error:?}");
        }
    }

    #[test]
    fn compression_is_for_ssm_unless_told_otherwise() {
        let tcp =
            || Wishes { instance: None, via: Some("tcp://127.0.0.1:742".into()), ..wishes(&["10.0.0.0/8"]) };
        let wants = |wishes, compress| Plan::new(Wishes { compress, ..wishes }).unwrap().wants_compression();

        assert!(wants(wishes(&["10.0.0.0/8"]), None) && !wants(tcp(), None));
        assert!(wants(tcp(), Some(Compress::On)) && !wants(wishes(&["10.0.0.0/8"]), Some(Compress::Off)));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let base = || wishes(&["10.0.0.0/8", "fd00:1::/32"]);
        let wrong = [
            Wishes { mtu: Some(575), ..base() },
            Wishes { mtu: Some(65536), ..base() },
            Wishes { mtu: Some(1279), ..base() },
            Wishes { timeout: Some(Duration::from_millis(999)), ..base() },
            Wishes { timeout: Some(Duration::from_secs(3601)), ..base() },
            Wishes { udp_timeout: Some(Duration::from_millis(999)), ..base() },
            Wishes { udp_timeout: Some(LONGEST_SILENCE + Duration::from_secs(1)), ..base() },
            Wishes { ping_interval: Some(Duration::ZERO), ..base() },
            Wishes { agent_port: Some(0), ..base() },
            Wishes { document: Some("no spaces".into()), ..base() },
        ];

        for wishes in wrong {
            let text = format!("{wishes:?}");
            assert_eq!(Plan::new(wishes).expect_err(&text).exit, Exit::Usage);
        }
        assert!(Plan::new(Wishes { mtu: Some(1280), ..base() }).is_ok());
        assert!(Plan::new(Wishes { udp_timeout: Some(DialConfig::default().idle), ..base() }).is_ok());
        assert!(Plan::new(Wishes { mtu: Some(576), ..wishes(&["10.0.0.0/8"]) }).is_ok());
    }

    fn wishes(cidrs: &[&str]) -> Wishes {
        Wishes {
            instance: Some("i-0123456789abcdef0".into()),
            cidrs: cidrs.iter().map(ToString::to_string).collect(),
            ..Wishes::default()
        }
    }

    fn shown(nets: &[IpNet]) -> Vec<String> {
        nets.iter().map(ToString::to_string).collect()
    }
}
