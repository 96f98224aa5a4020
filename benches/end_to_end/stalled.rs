//! Readers that take nothing: what waits for them must fit into a window.

use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::Options;
use crate::flows::SILENCE;
use crate::row::Row;
use crate::world::World;

pub(crate) fn rows(_: &Options) -> Result<Vec<Row>> {
    let world = World::tcp()?;
    // What the first flows touch is no flow's own.
    world.measured(1, &[])?;
    world.measured(1, &["-R"])?;
    let listener = world.vpc.vpc.enter(|| TcpListener::bind("0.0.0.0:0"))?;
    let [_, target] = World::both_ways(listener.local_addr()?.port())?;
    let mut rows = Vec::new();
    for (name, application_reads) in [("application", false), ("target", true)] {
        std::thread::sleep(SILENCE);
        let usage = world.usage()?;
        let near = world.vpc.laptop.enter(|| TcpStream::connect(target))?;
        let far = listener.accept()?.0;
        let (mut writer, _reader) = if application_reads { (near, far) } else { (far, near) };
        let written = write_until_stuck(&mut writer).context("writing to a reader that stalls")?;
        let [client, agent] = usage.grown()?.map(|bytes| bytes / 1e6);
        let what = format!("{name} that reads nothing");
        rows.push(Row::new(format!("{what}, bytes taken, kernels' included"), written as f64 / 1e6, "MB"));
        rows.push(Row::new(format!("{what}, client grows"), client, "MB").at_most(WINDOW));
        rows.push(Row::new(format!("{what}, agent grows"), agent, "MB").at_most(WINDOW));
    }
    Ok(rows)
}

/// Writes until nothing was taken for 2 s; how much was.
fn write_until_stuck(stream: &mut TcpStream) -> Result<usize> {
    stream.set_nonblocking(true)?;
    let bytes = vec![7; 1 << 16];
    let (mut written, mut last) = (0, Instant::now());
    while last.elapsed() < Duration::from_secs(2) && written < MOST {
        match stream.write(&bytes) {
            Ok(count) => {
                written += count;
                last = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(written)
}

/// The largest window of a flow, in MB.
const WINDOW: f64 = 4.2;
/// A path that takes so much has no bound.
const MOST: usize = 1 << 30;
