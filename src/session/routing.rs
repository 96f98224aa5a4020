//! The routes of a session: made once, kept as the network around them changes, and taken back.

#![expect(clippy::disallowed_methods, reason = "a driver: when the system was last looked at")]

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::IpAddr;
use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::Context as _;
use ipnet::IpNet;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use super::way::Way;
use super::{Device, Progress, Ready, explain};
use crate::config::Plan;
use crate::os::bypass;
use crate::os::link::{LinkEvent, Watch};
use crate::os::routes::{self, Wanted};
use crate::os::undo::{self, Journal};
use crate::tunnel::path::Path;

/// Single hosts inside captured ranges that must stay reachable without us, and what they are.
pub(super) type Hosts = BTreeMap<IpAddr, &'static str>;

pub(super) struct Routing {
    wanted: Wanted,
    journal: Journal,
    plan: Plan,
    path: Path,
    via: String,
    hosts: Hosts,
    /// `None` where the system does not tell of changes.
    watch: Option<Watch>,
    /// Addresses that are being looked up anew.
    looking: Option<JoinHandle<Hosts>>,
    /// When to look whether the machine slept.
    check_at: Instant,
    /// When the routes are to be applied again.
    apply_at: Option<Instant>,
    applied_at: Instant,
    complained: Option<String>,
}

impl Routing {
    pub(super) fn new(run_dir: &FilePath, plan: &Plan, device: &Device, way: &Way) -> anyhow::Result<Self> {
        let file = run_dir.join(format!("{}.{}", plan.name, undo::EXTENSION));
        let journal = Journal::create(&file)
            .with_context(|| format!("the undo journal {} cannot be made", file.display()))?;
        let watch = Watch::open(Some(device.index));
        let watch = watch.inspect_err(|error| info!("changes of the network will not be seen: {error}"));
        let now = Instant::now();
        let wanted = Wanted {
            device: device.index,
            device_name: device.name.clone(),
            captured: plan.cidrs.clone(),
            excluded: plan.excludes.clone(),
            host_bypass: Vec::new(),
        };
        let mut routing = Self {
            wanted,
            journal,
            plan: plan.clone(),
            path: way.path.clone(),
            via: way.name.clone(),
            hosts: Hosts::new(),
            watch: watch.ok(),
            looking: None,
            check_at: now + CHECK_EVERY,
            apply_at: None,
            applied_at: now,
            complained: None,
        };
        // Asked of files alone, so they are there before the first route.
        let nameservers = bypass::nameservers().into_iter().filter(|host| inside(host, &plan.cidrs));
        routing.use_hosts(nameservers.map(|host| (host, "nameserver")).collect());
        Ok(routing)
    }

    /// Single hosts that are to stay outside; those of before do too, because a network that has just come up
    /// may not resolve names yet. In force with the next [`apply`](routes::apply).
    pub(super) fn use_hosts(&mut self, hosts: Hosts) {
        self.hosts.extend(hosts);
        self.wanted.host_bypass = self.hosts.keys().copied().collect();
    }

    /// Hosts that are still being looked up.
    pub(super) fn await_hosts(&mut self, looking: JoinHandle<Hosts>) {
        self.looking = Some(looking);
    }

    /// Captures the networks, and says what of them stays local.
    pub(super) fn begin(&mut self, tell: &dyn Fn(Progress)) -> anyhow::Result<Ready> {
        for conflict in routes::conflicts(&self.plan.cidrs)? {
            if conflict.device != self.wanted.device_name {
                tell(Progress::Warn(format!(
                    "{} was reached through {} until now ({}); the session takes it over until its end",
                    conflict.captured, conflict.device, conflict.net
                )));
            }
        }
        routes::apply(&self.wanted, &mut self.journal).map_err(|error| explain::routes(&error))?;
        let captured = self.plan.cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        tell(Progress::Step(format!("captured {captured} on {}", self.wanted.device_name)));
        let mut stays_local: Vec<(IpNet, String)> =
            self.plan.excludes.iter().map(|net| (*net, "--exclude".to_owned())).collect();
        for local in routes::local_networks_inside(&self.plan.cidrs)? {
            if local.device != self.wanted.device_name {
                stays_local.push((local.net, local.device));
            }
        }
        stays_local.extend(self.hosts.iter().map(|(host, what)| (IpNet::from(*host), (*what).to_owned())));
        Ok(Ready { via: self.via.clone(), device: self.wanted.device_name.clone(), stays_local })
    }

    /// Takes everything back.
    pub(super) fn end(&mut self, tell: &dyn Fn(Progress)) {
        for failure in routes::remove(&mut self.journal) {
            tell(Progress::Warn(format!("could not undo {}: {}", failure.change, failure.error)));
        }
        tell(Progress::Step("removed the routes".to_owned()));
    }

    /// Waits for the next change around us and follows it; true when connections of before are to be
    /// doubted. May be dropped and called again at any time.
    pub(super) async fn watch(&mut self, tell: &dyn Fn(Progress)) -> bool {
        let event = tokio::select! {
            event = next_event(&mut self.watch) => event,
            hosts = finished(&mut self.looking) => {
                self.looking = None;
                self.use_hosts(hosts);
                self.apply_soon();
                return false;
            }
            () = sleep_until(self.check_at) => {
                self.check_at = Instant::now() + CHECK_EVERY;
                self.watch.as_mut().and_then(Watch::check).map(Ok)
            }
            () = due(self.apply_at) => {
                self.apply(tell);
                return false;
            }
        };
        match event {
            None => false,
            Some(Ok(LinkEvent::RoutesTouched)) => {
                self.apply_soon();
                false
            }
            Some(Ok(event @ (LinkEvent::NetworkChanged | LinkEvent::Woke))) => {
                info!("{event:?}: asking every lane whether it lives");
                self.apply_soon();
                self.looking = Some(look_up_hosts(&self.plan, &self.path));
                true
            }
            Some(Err(error)) => {
                info!("changes of the network are not seen any more: {error}");
                self.watch = None;
                false
            }
        }
    }

    /// At once, but not again and again when somebody keeps taking routes away.
    fn apply_soon(&mut self) {
        self.apply_at.get_or_insert(Instant::now().max(self.applied_at + APPLY_PAUSE));
    }

    fn apply(&mut self, tell: &dyn Fn(Progress)) {
        self.apply_at = None;
        self.applied_at = Instant::now();
        let applied = routes::apply(&self.wanted, &mut self.journal);
        match applied {
            Ok(applied) => {
                debug!("routes: {} added, {} removed", applied.added, applied.removed);
                self.complained = None;
            }
            Err(error) => self.complain(&error, tell),
        }
    }

    fn complain(&mut self, error: &io::Error, tell: &dyn Fn(Progress)) {
        let what = format!("the routes could not be made anew after a change of the network: {error}");
        if self.complained.as_ref() != Some(&what) {
            tell(Progress::Warn(what.clone()));
            self.complained = Some(what);
        }
    }
}

/// Looks up what must stay outside: nameservers, proxies, and the hosts of the way itself.
pub(super) fn look_up_hosts(plan: &Plan, path: &Path) -> JoinHandle<Hosts> {
    let (captured, path) = (plan.cidrs.clone(), path.clone());
    tokio::spawn(async move {
        let proxies = tokio::time::timeout(LOOKUP, tokio::task::spawn_blocking(bypass::proxies));
        let (proxies, far) = tokio::join!(proxies, path.addresses());
        let proxies = proxies.ok().and_then(Result::ok).unwrap_or_default();
        let way = if matches!(path, Path::Ssm(_)) { "AWS" } else { "the agent" };
        let told = |hosts: Vec<IpAddr>, what| hosts.into_iter().map(move |host| (host, what));
        let all =
            told(far, way).chain(told(proxies, "proxy")).chain(told(bypass::nameservers(), "nameserver"));
        all.filter(|(host, _)| inside(host, &captured)).collect()
    })
}

fn inside(host: &IpAddr, captured: &[IpNet]) -> bool {
    !host.is_loopback() && captured.iter().any(|range| range.contains(host))
}

async fn next_event(watch: &mut Option<Watch>) -> Option<io::Result<LinkEvent>> {
    match watch {
        Some(watch) => Some(watch.next().await),
        None => pending().await,
    }
}

async fn finished(looking: &mut Option<JoinHandle<Hosts>>) -> Hosts {
    match looking {
        Some(looking) => looking.await.unwrap_or_default(),
        None => pending().await,
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// Not every system tells that the machine slept.
const CHECK_EVERY: Duration = Duration::from_secs(5);
const APPLY_PAUSE: Duration = Duration::from_secs(1);
const LOOKUP: Duration = Duration::from_secs(2);
