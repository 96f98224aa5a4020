//! What no tunnel of two processes can be better than: two relays in the place of client and agent that copy bytes
//! from socket to socket and do nothing else, without a TUN device, a netstack, a mux or a trunk.
//!
//! Each is this program again, so that the system counts it like client and agent.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use netstack_tests::vpc::{self, Process, Vpc};
use tokio::net::{TcpListener, TcpStream};

use crate::process::Usage;

/// The way to one port of the target over two relays.
pub(crate) struct Relays {
    near: Process,
    far: Process,
    /// Where the near one listens, on the laptop's loopback.
    pub(crate) address: SocketAddr,
}

impl Relays {
    pub(crate) fn to(world: &Vpc, port: u16) -> Result<Self> {
        let target = format!("{}:{port}", vpc::TARGET);
        let (far, between) = start(world.vpc.command(std::env::current_exe()?), vpc::LINK, &target)?;
        let (near, address) =
            start(world.laptop.command(std::env::current_exe()?), "127.0.0.1", &between.to_string())?;
        Ok(Self { near, far, address })
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(&self.near, &self.far)
    }
}

fn start(mut command: std::process::Command, host: &str, target: &str) -> Result<(Process, SocketAddr)> {
    let mut relay = Process::start(command.args([RELAY, &format!("{host}:0"), target]))?;
    let line = relay.wait_for(HEARD_AT, vpc::DEADLINE)?;
    let address = line.trim_start_matches(HEARD_AT).parse()?;
    Ok((relay, address))
}

/// A relay's process: says where it listens, and relays until it is killed.
pub(crate) fn relay(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut address =
        || arguments.next().context("a relay needs two addresses")?.parse().context("an address");
    let (listen, target): (SocketAddr, SocketAddr) = (address()?, address()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(async {
        let listener = TcpListener::bind(listen).await?;
        println!("{HEARD_AT}{}", listener.local_addr()?);
        loop {
            let (near, _) = listener.accept().await?;
            tokio::task::spawn_local(async move {
                // A connection that breaks is missed by its ends.
                let _ = join(near, target).await;
            });
        }
    }))
}

async fn join(mut near: TcpStream, target: SocketAddr) -> Result<()> {
    let mut far = TcpStream::connect(target).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, PIECE, PIECE).await?;
    Ok(())
}

/// The argument that makes this program a relay.
pub(crate) const RELAY: &str = "--relay";
const HEARD_AT: &str = "heard at ";
const PIECE: usize = 256 << 10;
