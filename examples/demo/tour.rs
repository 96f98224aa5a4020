//! What the demo shows, step by step.

#![expect(clippy::disallowed_methods, reason = "shows how long things take")]

use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ssm_proxy::error::{Exit, UserError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::servers::{self, CLOSED_PORT, ECHO_PORT, TARGET};
use crate::show;
use crate::world::{CIDR, INSTANCE, World};

pub(crate) async fn run(world: &mut World) -> Result<()> {
    world.make_networks().await?;
    servers::start(&world.vpc)?;
    show::ok(&format!("VPC: a namespace with a web server and a TCP echo on {TARGET}"));
    world.start_agent().await?;
    show::ok(&format!("VPC: ssm-proxy-agent on instance {INSTANCE}"));
    let endpoint = world.start_simulator()?;
    show::ok(&format!("laptop: a namespace where only the simulated SSM is to be reached, {endpoint}"));

    bring_up(world).await?;
    fetch(world).await?;
    let echo = talk(world).await?;
    look(world).await?;
    drop(echo);
    knock_at_closed_port(world).await
}

async fn bring_up(world: &mut World) -> Result<()> {
    let arguments = ["up", "--instance", INSTANCE, "--cidr", CIDR];
    show::command(&format!("ssm-proxy {}", arguments.join(" ")));
    let start = Instant::now();
    world.start_up(&arguments).await?;
    show::ok(&format!("up after {}", milliseconds(start.elapsed())));
    Ok(())
}

async fn fetch(world: &World) -> Result<()> {
    let start = Instant::now();
    let page = on_laptop(world, "curl", &["-sS", &format!("http://{TARGET}/")]).await?;
    ensure!(page.contains("Hello from the VPC"), "the page is another than the server's");
    show::ok(&format!("plain curl has the page after {}", milliseconds(start.elapsed())));
    Ok(())
}

/// Says a word to the echo. The connection comes back, to be seen in `flows`.
async fn talk(world: &World) -> Result<TcpStream> {
    let mut echo =
        connect(world, ECHO_PORT).await?.with_context(|| format!("connect to {TARGET}:{ECHO_PORT}"))?;
    let start = Instant::now();
    let word = b"anybody there?";
    let mut answer = [0; 14];
    timeout(PATIENCE, async {
        echo.write_all(word).await?;
        echo.read_exact(&mut answer).await
    })
    .await
    .context("the echo stays silent")??;
    ensure!(answer == *word, "the echo gave back something else");
    let text = String::from_utf8_lossy(&answer);
    show::ok(&format!(
        "the echo says {text:?} after {}; that connection stays open",
        milliseconds(start.elapsed())
    ));
    Ok(echo)
}

async fn look(world: &World) -> Result<()> {
    on_laptop(world, "ssm-proxy", &["status"]).await?;
    on_laptop(world, "ssm-proxy", &["flows"]).await?;
    Ok(())
}

async fn knock_at_closed_port(world: &World) -> Result<()> {
    let url = format!("http://{TARGET}:{CLOSED_PORT}/");
    show::command(&format!("curl -sS {url}"));
    let output = output(world, "curl", &["-sS", &url]).await?;
    show::output(&String::from_utf8_lossy(&output.stderr));
    let Err(error) = connect(world, CLOSED_PORT).await? else {
        bail!("a connection to the closed port {CLOSED_PORT} was accepted");
    };
    ensure!(error.kind() == io::ErrorKind::ConnectionRefused, "port {CLOSED_PORT} is refused, but: {error}");
    show::ok(
        "the network tells the truth: nothing listens there, so connect() fails with Connection refused",
    );
    Ok(())
}

/// Shows and runs a command on the laptop; gives what it printed.
async fn on_laptop(world: &World, program: &str, arguments: &[&str]) -> Result<String> {
    let typed = format!("{program} {}", arguments.join(" "));
    show::command(&typed);
    let output = output(world, program, arguments).await?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    show::output(&stdout);
    if !output.status.success() {
        let error = UserError::new(Exit::Failure, format!("{typed} ended with {}", output.status));
        return Err(error.cause(stderr.trim()).into());
    }
    Ok(stdout.into_owned())
}

async fn output(world: &World, program: &str, arguments: &[&str]) -> Result<std::process::Output> {
    let mut command = match program {
        "ssm-proxy" => world.on_laptop(world.client()),
        _ => world.on_laptop(program),
    };
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = timeout(PATIENCE, command.output()).await;
    done.with_context(|| format!("{program} does not end"))?.with_context(|| format!("start {program}"))
}

/// The inner result is the network's answer.
async fn connect(world: &World, port: u16) -> Result<io::Result<TcpStream>> {
    let laptop = world.laptop.clone();
    let address: SocketAddr = format!("{TARGET}:{port}").parse()?;
    let (done, connected) = oneshot::channel();
    // A thread that is inside a namespace cannot go back to a pool.
    std::thread::spawn(move || {
        let stream = laptop.enter_here().and_then(|()| StdTcpStream::connect_timeout(&address, PATIENCE));
        // Nobody waits any more after Ctrl-C.
        let _ = done.send(stream);
    });
    let stream = connected.await.context("the connecting thread died")?;
    Ok(stream.and_then(|stream| {
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

const PATIENCE: Duration = Duration::from_secs(30);
