//! What there is to reach in the VPC.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use netstack_tests::servers::noise;

use crate::netns::Netns;

pub(crate) const TARGET: &str = "10.20.1.5";
pub(crate) const HTTP_PORT: u16 = 80;
pub(crate) const ECHO_PORT: u16 = 7;
/// Nothing listens there.
pub(crate) const CLOSED_PORT: u16 = 81;

/// Starts the web server and the echo. They end with the process.
pub(crate) fn start(vpc: &Netns) -> Result<()> {
    serve(vpc, HTTP_PORT, |stream| {
        // A visitor who went away has what it wanted.
        let _ = answer(stream);
    })?;
    serve(vpc, ECHO_PORT, netstack_tests::servers::echo)
}

fn serve(vpc: &Netns, port: u16, each: fn(TcpStream)) -> Result<()> {
    let listener = vpc
        .inside(|| TcpListener::bind((TARGET, port)))
        .with_context(|| format!("listen on {TARGET}:{port} in the VPC"))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || each(stream));
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new((&stream).take(MOST_REQUEST)).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let _headers = lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).count();
    match request.split(' ').nth(1) {
        Some("/") => reply(&mut stream, "200 OK", "text/html", PAGE.as_bytes()),
        Some("/10MB") => reply(&mut stream, "200 OK", "application/octet-stream", &noise(10_000_000, 1)),
        Some(_) | None => reply(&mut stream, "404 Not Found", "text/plain", b"there are / and /10MB\n"),
    }
}

fn reply(stream: &mut TcpStream, status: &str, kind: &str, body: &[u8]) -> io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(body)
}

const MOST_REQUEST: u64 = 16 * 1024;
const PAGE: &str = "\
<!doctype html>
<title>Hello from the VPC</title>
<h1>Hello from the VPC</h1>
<p>This server listens on 10.20.1.5, in a network that the laptop has no wire to.
<p>Each byte came as your database's would: agent, SSM session, ssm-proxy, TUN device.
";
