//! Connections to AWS: TCP (over an HTTP proxy where the environment names one), then TLS.
//!
//! One [`Network`] serves the API and the websockets, so marks, proxy and certificates hold for both.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::api_error::chain;
use super::proxy::{Proxy, ProxyError, ProxySettings, connect_status};

/// Called for every socket before it connects, to keep its packets out of our own device.
pub type Protect = Arc<dyn Fn(&Socket) -> io::Result<()> + Send + Sync>;

/// How this process reaches hosts outside. Cheap to clone.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    protect: Protect,
    proxies: ProxySettings,
    ca_bundles: Vec<PathBuf>,
    /// Loaded once, with the first connection that needs it: reading the system's store takes a while.
    tls: OnceLock<Result<TlsConnector, String>>,
    progress: Mutex<Progress>,
}

/// How connections under way fare, for whoever loses patience with them.
#[derive(Default)]
struct Progress {
    /// What they wait for, the oldest first.
    waits: Vec<(u64, String)>,
    /// Why the last one failed, unless another one came about since.
    failure: Option<String>,
}

/// Notes for as long as it lives what a connection waits for.
struct Wait<'a> {
    network: &'a Network,
    number: u64,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.network.progress().waits.retain(|(number, _)| *number != self.number);
    }
}

impl Network {
    /// Proxies and certificates as the environment says; without `AWS_CA_BUNDLE` it is `ca_bundle`.
    pub fn from_environment(protect: Protect, ca_bundle: Option<PathBuf>) -> Result<Self, ConnectError> {
        let proxies = ProxySettings::from_variables(|name| std::env::var(name).ok())?;
        let named = std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()).map(PathBuf::from);
        let bundle = named.or(ca_bundle);
        Ok(Self::new(protect, proxies, bundle.into_iter().collect()))
    }

    /// Certificates in `ca_bundles` are trusted beside the system's, or beside those that
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR` name instead of the system's.
    pub fn new(protect: Protect, proxies: ProxySettings, ca_bundles: Vec<PathBuf>) -> Self {
        Self(Arc::new(Inner {
            protect,
            proxies,
            ca_bundles,
            tls: OnceLock::new(),
            progress: Mutex::default(),
        }))
    }

    /// Neither proxy nor marks: for tests.
    pub fn direct() -> Self {
        Self::new(Arc::new(|_| Ok(())), ProxySettings::default(), Vec::new())
    }

    /// Why it takes long now: what a connection waits for, or why the last one failed.
    pub fn delay(&self) -> Option<String> {
        let progress = self.progress();
        let waiting = progress.waits.first().map(|(_, what)| format!("it was still waiting for {what}"));
        waiting.or_else(|| progress.failure.clone())
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.0.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait_for(&self, what: String) -> impl Drop + use<'_> {
        let waits = &mut self.progress().waits;
        let number = waits.last().map_or(0, |(last, _)| last + 1);
        waits.push((number, what));
        Wait { network: self, number }
    }

    /// Connects to `host`, with TLS if `secure`. Every step has a deadline.
    pub async fn connect(&self, host: &str, port: u16, secure: bool) -> Result<Stream, ConnectError> {
        let connected = self.try_connect(host, port, secure).await;
        self.progress().failure = connected.as_ref().err().map(|error| chain(error).join(": "));
        connected
    }

    async fn try_connect(&self, host: &str, port: u16, secure: bool) -> Result<Stream, ConnectError> {
        let proxy = self.0.proxies.proxy_for(host, port).filter(|_| secure);
        let tcp = match proxy {
            Some(proxy) => {
                let mut tcp = self.connect_tcp(&proxy.host, proxy.port).await.map_err(|source| {
                    ConnectError::ProxyUnreachable { proxy: proxy.to_string(), source: Box::new(source) }
                })?;
                let _wait = self.wait_for(format!("the answer of the proxy {proxy}"));
                open_tunnel(&mut tcp, proxy, host, port).await?;
                tcp
            }
            None => self.connect_tcp(host, port).await?,
        };
        if secure { self.wrap_tls(tcp, host).await } else { Ok(Stream::Plain(tcp)) }
    }

    async fn connect_tcp(&self, host: &str, port: u16) -> Result<TcpStream, ConnectError> {
        let wait = self.wait_for(format!("the DNS answer for {host}"));
        let addresses = resolve(host, port).await?;
        drop(wait);
        let _wait = self.wait_for(format!("a TCP connection to {host} port {port}"));
        let attempts = race(addresses, |address| self.connect_address(address));
        let result = timeout(CONNECT_TIMEOUT, attempts).await;
        match result {
            Ok(Ok(tcp)) => Ok(tcp),
            Ok(Err(source)) => Err(ConnectError::Tcp { host: host.to_owned(), port, source }),
            Err(_) => Err(ConnectError::Timeout { host: host.to_owned(), what: "TCP connection" }),
        }
    }

    async fn connect_address(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        (self.0.protect)(&socket)?;
        TcpSocket::from_std_stream(socket.into()).connect(address).await
    }

    async fn wrap_tls(&self, tcp: TcpStream, host: &str) -> Result<Stream, ConnectError> {
        let failed = |source| ConnectError::Tls { host: host.to_owned(), source };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(io::Error::other(error)))?;
        let _wait = self.wait_for(format!("the TLS handshake with {host}"));
        let handshake = self.tls().await?.connect(name, tcp);
        match timeout(TLS_TIMEOUT, handshake).await {
            Ok(Ok(tls)) => Ok(Stream::Tls(Box::new(tls))),
            Ok(Err(source)) => Err(failed(source)),
            Err(_) => Err(ConnectError::Timeout { host: host.to_owned(), what: "TLS handshake" }),
        }
    }

    async fn tls(&self) -> Result<TlsConnector, ConnectError> {
        if self.0.tls.get().is_none() {
            let network = self.clone();
            let load = move || {
                network.0.tls.get_or_init(|| load_tls(&network.0.ca_bundles));
            };
            // A failed join leaves the cell empty, which the next line reports.
            let _ = tokio::task::spawn_blocking(load).await;
        }
        match self.0.tls.get() {
            Some(Ok(connector)) => Ok(connector.clone()),
            Some(Err(reason)) => Err(ConnectError::Certificates(reason.clone())),
            None => Err(ConnectError::Certificates("loading them was interrupted".to_owned())),
        }
    }
}

/// A connection, encrypted or not.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// Why a host outside was not reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the name {host} does not resolve")]
    Resolve { host: String, source: io::Error },
    #[error("no TCP connection to {host} port {port}")]
    Tcp { host: String, port: u16, source: io::Error },
    #[error("no {what} with {host} in time")]
    Timeout { host: String, what: &'static str },
    #[error("the proxy {proxy} is not reachable")]
    ProxyUnreachable { proxy: String, source: Box<Self> },
    #[error("the proxy {proxy} gives no way to {host}")]
    ProxyTunnel { proxy: String, host: String, source: ProxyError },
    #[error("the environment's proxy cannot be used")]
    ProxySettings(#[from] ProxyError),
    #[error("the TLS handshake with {host} failed")]
    Tls { host: String, source: io::Error },
    #[error("no certificates to check servers with: {0}")]
    Certificates(String),
}

impl ConnectError {
    /// Whether trying again without changing anything is in vain.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::ProxyTunnel { .. } | Self::ProxySettings(_) | Self::Certificates(_) => true,
            // rustls reports what it refuses as invalid data, a broken connection as something else.
            Self::Tls { source, .. } => source.kind() == io::ErrorKind::InvalidData,
            Self::ProxyUnreachable { source, .. } => source.is_permanent(),
            Self::Resolve { .. } | Self::Tcp { .. } | Self::Timeout { .. } => false,
        }
    }

    /// What to try next.
    pub fn hint(&self) -> String {
        match self {
            Self::Resolve { host, .. } => {
                format!("check the network and DNS (`getent hosts {host}`), and that the region exists")
            }
            Self::Tcp { host, .. } | Self::Timeout { host, .. } => format!(
                "check that {host} is allowed by the firewall; behind a company proxy set HTTPS_PROXY=http://proxy:port"
            ),
            Self::ProxyUnreachable { .. } => "check HTTPS_PROXY, or unset it to connect directly".to_owned(),
            Self::ProxyTunnel { source: ProxyError::Credentials, .. } => {
                "set HTTPS_PROXY=http://user:password@host:port".to_owned()
            }
            Self::ProxyTunnel { host, .. } => {
                format!("ask for {host} to be allowed by the proxy, or add it to NO_PROXY to connect directly")
            }
            Self::ProxySettings(_) => "set HTTPS_PROXY=http://host:port".to_owned(),
            Self::Tls { .. } => {
                "if the company's proxy opens TLS, set AWS_CA_BUNDLE=/path/to/company-ca.pem; else check the clock"
                    .to_owned()
            }
            Self::Certificates(_) => {
                "install the system's CA certificates or set AWS_CA_BUNDLE=/path/to/ca.pem".to_owned()
            }
        }
    }
}

async fn open_tunnel(tcp: &mut TcpStream, proxy: &Proxy, host: &str, port: u16) -> Result<(), ConnectError> {
    let failed =
        |source| ConnectError::ProxyTunnel { proxy: proxy.to_string(), host: host.to_owned(), source };
    let exchange = async {
        tcp.write_all(proxy.connect_request(host, port).as_bytes()).await.map_err(|_| ProxyError::Closed)?;
        read_connect_answer(tcp).await
    };
    match timeout(PROXY_TIMEOUT, exchange).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(ConnectError::Timeout { host: proxy.to_string(), what: "answer to CONNECT" }),
    }
}

/// Byte by byte: what follows the empty line belongs to the tunnel.
async fn read_connect_answer(tcp: &mut TcpStream) -> Result<(), ProxyError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_ANSWER {
            return Err(ProxyError::NotHttp);
        }
        head.push(tcp.read_u8().await.map_err(|_| ProxyError::Closed)?);
    }
    match connect_status(&head)? {
        200..=299 => Ok(()),
        407 => Err(ProxyError::Credentials),
        status => Err(ProxyError::Refused(status)),
    }
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let failed = |source| ConnectError::Resolve { host: host.to_owned(), source };
    let found = match timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port))).await {
        Ok(found) => found.map_err(failed)?,
        Err(_) => return Err(ConnectError::Timeout { host: host.to_owned(), what: "DNS answer" }),
    };
    let addresses = interleave(found.take(MAX_ADDRESSES).collect());
    if addresses.is_empty() {
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, "the answer has no address")));
    }
    Ok(addresses)
}

/// The families in turn, beginning with the resolver's first choice.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (preferred, others): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let longest = preferred.len().max(others.len());
    (0..longest).flat_map(|at| [preferred.get(at), others.get(at)]).flatten().copied().collect()
}

/// Tries the addresses, the next one when one fails or has been silent for a while; the first
/// connection wins. Gives the last error.
async fn race<F>(addresses: Vec<SocketAddr>, connect: impl Fn(SocketAddr) -> F) -> io::Result<TcpStream>
where
    F: Future<Output = io::Result<TcpStream>>,
{
    let mut waiting = addresses.into_iter();
    let mut running = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address to connect to");
    loop {
        if let Some(address) = waiting.next() {
            running.push(connect(address));
        } else if running.is_empty() {
            return Err(last);
        }
        tokio::select! {
            Some(result) = running.next() => match result {
                Ok(tcp) => return Ok(tcp),
                Err(error) => last = error,
            },
            () = sleep(NEXT_ADDRESS_AFTER), if waiting.len() > 0 => {}
        }
    }
}

fn load_tls(bundles: &[PathBuf]) -> Result<TlsConnector, String> {
    let mut roots = rustls::RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    let mut problems: Vec<_> = native.errors.iter().map(ToString::to_string).collect();
    roots.add_parsable_certificates(native.certs);
    for bundle in bundles {
        let certificates = read_bundle(bundle).map_err(|error| format!("{}: {error}", bundle.display()))?;
        roots.add_parsable_certificates(certificates);
    }
    if roots.is_empty() {
        problems.push("the system's store is empty".to_owned());
        return Err(problems.join("; "));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn read_bundle(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?;
    let certificates: Result<Vec<_>, _> = certificates.collect();
    let certificates = certificates.map_err(|error| error.to_string())?;
    if certificates.is_empty() { Err("no certificate in it".to_owned()) } else { Ok(certificates) }
}

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PROXY_TIMEOUT: Duration = Duration::from_secs(15);
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
const KEEPALIVE: Duration = Duration::from_secs(60);
const MAX_ADDRESSES: usize = 16;
const MAX_ANSWER: usize = 16 << 10;
