//! How the SSM agent's model reaches the target of `localhost:PORT`.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A connection to a target.
pub trait Target: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Target for T {}

/// Opens a connection to a port of the instance.
pub type Dial = Arc<dyn Fn(u16) -> BoxFuture<'static, io::Result<Box<dyn Target>>> + Send + Sync>;

/// As the SSM agent does: `localhost` and the port itself.
pub fn to_localhost() -> Dial {
    by_tcp(|port| TcpStream::connect(("localhost", port)))
}

/// Each port leads to the address in the map; others are refused.
pub fn to_ports(address_by_port: HashMap<u16, SocketAddr>) -> Dial {
    by_tcp(move |port| {
        let address = address_by_port.get(&port).copied();
        async move { TcpStream::connect(address.ok_or_else(|| unmapped(port))?).await }
    })
}

/// Each port leads to the unix socket in the map; others are refused.
pub fn to_unix_sockets(path_by_port: HashMap<u16, PathBuf>) -> Dial {
    Arc::new(move |port| {
        let path = path_by_port.get(&port).cloned();
        Box::pin(async move {
            let stream = UnixStream::connect(path.ok_or_else(|| unmapped(port))?).await?;
            Ok(Box::new(stream) as Box<dyn Target>)
        })
    })
}

/// By a function that makes the TCP connection.
pub fn by_tcp<F>(connect: impl Fn(u16) -> F + Send + Sync + 'static) -> Dial
where
    F: Future<Output = io::Result<TcpStream>> + Send + 'static,
{
    Arc::new(move |port| {
        let connecting = connect(port);
        Box::pin(async move {
            let stream = connecting.await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Target>)
        })
    })
}

/// By a blocking function on a thread of its own, which may first enter another network namespace
/// (`setns` changes the calling thread only).
pub fn by_thread(connect: impl Fn(u16) -> io::Result<StdTcpStream> + Send + Sync + 'static) -> Dial {
    let connect = Arc::new(connect);
    by_tcp(move |port| {
        let connect = Arc::clone(&connect);
        async move {
            let (done, connected) = tokio::sync::oneshot::channel();
            // A thread that changed its namespace must not go back to a pool.
            std::thread::Builder::new().name("ssm-dial".to_owned()).spawn(move || {
                // The session may have ended meanwhile.
                let _ = done.send(connect(port));
            })?;
            let stream = connected.await.map_err(|_| io::Error::other("the dialling thread panicked"))??;
            stream.set_nonblocking(true)?;
            TcpStream::from_std(stream)
        }
    })
}

fn unmapped(port: u16) -> io::Error {
    let text = format!("the simulator maps no target to port {port}");
    io::Error::new(io::ErrorKind::ConnectionRefused, text)
}
