//! Flows that are opened, used once, and then held in silence.
//!
//! Their far ends live in a process of their own, this program again, because each process may have only so many
//! descriptors.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netstack_tests::vpc::{self, Process, Vpc};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The near ends of all idle flows of a world, and the process with their far ends.
pub(crate) struct Held {
    far: Process,
    ports: Vec<u16>,
    near: Vec<TcpStream>,
}

impl Held {
    /// Starts the far side. It has several ports, so that one pair of addresses suffices for any number of flows.
    pub(crate) fn listen(world: &Vpc) -> Result<Self> {
        let mut far = Process::start(world.vpc.command(std::env::current_exe()?).arg(FAR_ENDS))?;
        let line = far.wait_for(PORTS_ARE, vpc::DEADLINE)?;
        let ports = line.trim_start_matches(PORTS_ARE).split_whitespace();
        Ok(Self { far, ports: ports.map(str::parse).collect::<Result<_, _>>()?, near: Vec::new() })
    }

    /// Opens flows until there are so many; each carries a few bytes both ways.
    pub(crate) fn grow_to(&mut self, world: &Vpc, flows: usize) -> Result<()> {
        let target = vpc::TARGET.parse()?;
        let wanted = flows.saturating_sub(self.near.len());
        let (ports, laptop) = (&self.ports, &world.laptop);
        let opened = std::thread::scope(|scope| {
            let open_some = |thread: usize| {
                let count = wanted / THREADS + usize::from(thread < wanted % THREADS);
                let ports = ports.iter().cycle().skip(thread).take(count);
                laptop.enter(|| {
                    ports.map(|port| open(SocketAddr::new(target, *port))).collect::<Result<Vec<_>>>()
                })
            };
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || open_some(thread))).collect();
            let joined = threads.into_iter().map(|thread| thread.join().ok().context("a thread failed")?);
            joined.collect::<Result<Vec<_>>>()
        })?;
        self.near.extend(opened.into_iter().flatten());
        Ok(())
    }

    /// Resets all of them.
    pub(crate) fn end(mut self) -> Result<()> {
        for stream in self.near.drain(..) {
            // Without a reset each would keep its port for a minute.
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
        self.far.end(rustix::process::Signal::KILL)?;
        Ok(())
    }
}

fn open(target: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(target)?;
    stream.set_read_timeout(Some(vpc::DEADLINE))?;
    stream.write_all(&[7; BYTES])?;
    stream.read_exact(&mut [0; BYTES])?;
    Ok(stream)
}

/// The far ends' process: says its ports and holds whatever connects, until it is killed.
pub(crate) fn far_ends() -> Result<()> {
    raise_limit()?;
    let listeners: Vec<_> =
        (0..PORTS).map(|_| TcpListener::bind("0.0.0.0:0")).collect::<std::io::Result<_>>()?;
    let ports: Vec<String> = listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port().to_string()))
        .collect::<Result<_>>()?;
    println!("{PORTS_ARE}{}", ports.join(" "));
    std::thread::scope(|scope| {
        for listener in listeners {
            scope.spawn(move || {
                let answered = listener.incoming().flatten().map(answer);
                // One that breaks is missed by its other end.
                let _held: Vec<_> = answered.filter_map(Result::ok).collect();
            });
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<TcpStream> {
    stream.set_read_timeout(Some(vpc::DEADLINE))?;
    let mut bytes = [0; BYTES];
    stream.read_exact(&mut bytes)?;
    stream.write_all(&bytes)?;
    Ok(stream)
}

/// Lets this process, and what it starts, hold as many descriptors as the system allows; for how many flows that is.
pub(crate) fn raise_limit() -> Result<usize> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let wanted = maximum.map(|maximum| maximum.max(ENOUGH));
    // Only a root with all its rights may go beyond the hard limit.
    if setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum: wanted }).is_err() {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
            .context("raising the limit of descriptors")?;
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(ENOUGH);
    ensure!(limit > SPARE, "the limit of descriptors is only {limit}");
    Ok((limit - SPARE) as usize)
}

/// The argument that makes this program the far ends' process.
pub(crate) const FAR_ENDS: &str = "--far-ends";
const PORTS_ARE: &str = "ports: ";
/// What each flow carries each way.
const BYTES: usize = 100;
const PORTS: usize = 8;
const THREADS: usize = 8;
const ENOUGH: u64 = 65_536;
/// Descriptors for all else, here and at the agent, which keeps 512.
const SPARE: u64 = 1_000;
