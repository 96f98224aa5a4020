//! Real servers in the VPC's namespace, each with files of its own in the test's directory.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::netns::Netns;
use crate::vpc::{DEADLINE, Process, TARGET, Vpc};

pub const REDIS_PORT: u16 = 6379;
pub const POSTGRES_PORT: u16 = 5432;
pub const SSH_PORT: u16 = 2222;
pub const HTTP_PORT: u16 = 8080;

pub fn iperf(world: &Vpc) -> Result<Process> {
    let mut command = world.vpc.command("iperf3");
    let mut server = Process::start(command.args(["-s", "--forceflush"]))?;
    server.wait_for("Server listening", DEADLINE)?;
    Ok(server)
}

pub fn redis(world: &Vpc) -> Result<Process> {
    let mut command = world.vpc.command("redis-server");
    command.args(["--port", &REDIS_PORT.to_string(), "--bind", TARGET, "--protected-mode", "no"]);
    command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(world.dir.path());
    let mut server = Process::start(&mut command)?;
    server.wait_for("Ready to accept connections", DEADLINE)?;
    Ok(server)
}

pub fn postgres(world: &Vpc) -> Result<Process> {
    let programs = postgres_programs().context("PostgreSQL's server programs are not installed")?;
    let data = world.dir.path().join("postgres");
    fs::create_dir(&data)?;
    let (uid, gid) = user_ids("postgres")?;
    // The test's directory is the owner's alone; the server must pass through it.
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o711))?;
    chown(&data, Some(uid), Some(gid))?;
    let as_postgres = |program: &str| {
        let mut command = world.vpc.command("setpriv");
        command.args([&format!("--reuid={uid}"), &format!("--regid={gid}"), "--clear-groups"]);
        command.arg(programs.join(program)).arg("-D").arg(&data);
        command
    };
    let made = as_postgres("initdb").args(["-A", "trust", "-U", "postgres", "-N"]).output()?;
    ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    fs::write(data.join("pg_hba.conf"), "host all all all trust\n")?;
    let mut server = Process::start(as_postgres("postgres").args([
        "-c",
        &format!("listen_addresses={TARGET}"),
        "-c",
        &format!("port={POSTGRES_PORT}"),
        "-c",
        "unix_socket_directories=",
        "-c",
        "fsync=off",
    ]))?;
    server.wait_for("ready to accept connections", DEADLINE)?;
    Ok(server)
}

/// An SSH server and the client's key.
pub struct Ssh {
    _server: Process,
    pub key: PathBuf,
}

pub fn ssh(world: &Vpc) -> Result<Ssh> {
    let dir = world.dir.path().join("ssh");
    fs::create_dir(&dir)?;
    let (host, key) = (dir.join("host"), dir.join("key"));
    for file in [&host, &key] {
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file).output()?;
        ensure!(made.status.success(), "ssh-keygen: {}", String::from_utf8_lossy(&made.stderr));
    }
    let authorized = dir.join("authorized");
    fs::copy(key.with_extension("pub"), &authorized)?;
    fs::create_dir_all("/run/sshd")?;
    let config = format!(
        "Port {SSH_PORT}\nListenAddress {TARGET}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\n\
         UsePAM no\nPermitRootLogin yes\nPidFile none\nSubsystem sftp internal-sftp\n",
        host.display(),
        authorized.display()
    );
    let file = dir.join("config");
    fs::write(&file, config)?;
    let mut command = world.vpc.command("/usr/sbin/sshd");
    let mut server = Process::start(command.args(["-D", "-e", "-f"]).arg(&file))?;
    server.wait_for("Server listening", DEADLINE)?;
    Ok(Ssh { _server: server, key })
}

impl Ssh {
    /// Options for ssh and scp alike.
    pub fn options(&self) -> Vec<String> {
        let key = self.key.display().to_string();
        [
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-i",
            &key,
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

/// nginx with one page and a file of `bytes` random bytes named `blob`.
pub fn nginx(world: &Vpc, bytes: usize) -> Result<Process> {
    let dir = world.dir.path().join("nginx");
    fs::create_dir(&dir)?;
    fs::write(dir.join("index.html"), "hello from the VPC\n")?;
    fs::write(dir.join("blob"), noise(bytes, 3))?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o711))?;
    let root = dir.display();
    let config = format!(
        "daemon off; pid {root}/pid; error_log stderr notice; worker_processes 1;\n\
         events {{ worker_connections 2048; }}\n\
         http {{ access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;\n\
         fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
         server {{ listen {TARGET}:{HTTP_PORT} backlog=1024; root {root}; }} }}\n"
    );
    let file = dir.join("config");
    fs::write(&file, config)?;
    let mut command = world.vpc.command("/usr/sbin/nginx");
    let mut server = Process::start(command.arg("-c").arg(&file))?;
    server.wait_for("start worker process", DEADLINE)?;
    Ok(server)
}

/// A listener in a namespace whose connections are served by a function on threads of their own.
pub fn serve(
    namespace: &Netns,
    address: &str,
    each: impl Fn(TcpStream) + Send + Sync + Clone + 'static,
) -> Result<SocketAddr> {
    let listener = namespace.enter(|| TcpListener::bind(address))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let each = each.clone();
            thread::spawn(move || each(stream));
        }
    });
    Ok(address)
}

/// Gives back what it gets.
pub fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// Answers the SHA-256 of all it gets up to the FIN, and then as many bytes of [`noise`] as it got.
pub fn digest_then_noise(mut stream: TcpStream) {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hash.update(&buffer[..count]);
                total += count;
            }
            Err(_) => return,
        }
    }
    if stream.write_all(&hash.finalize()).is_ok() && stream.write_all(&noise(total, 2)).is_ok() {
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// Bytes without a pattern that a lost or repeated piece could hide in.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.flatten().map(|version| version.path().join("bin")).find(|bin| bin.join("postgres").exists())
}

fn user_ids(name: &str) -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.split(':').next() == Some(name));
    let fields: Vec<&str> = line.with_context(|| format!("no user {name}"))?.split(':').collect();
    Ok((fields[2].parse()?, fields[3].parse()?))
}

/// Why the servers of [`postgres`] cannot be used.
pub fn missing_postgres() -> Option<String> {
    (postgres_programs().is_none() || !Path::new("/etc/passwd").exists())
        .then(|| "needs PostgreSQL's server".to_owned())
}
