//! A connection that is through: by TLS, or by the Unix socket; and who is at its
//! other end.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::Limits;
use super::cores::Seat;
use crate::domain::PrincipalId;
use crate::service::Standing;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// `None` if nobody we know: then every call is refused.
    pub(super) principal: Option<PrincipalId>,
    /// For the record.
    pub(super) address: Arc<str>,
    /// For policies; `None` if there is none.
    pub(super) ip: Option<IpAddr>,
    /// The certificate; `None` if the system vouches for who it is.
    pub(super) standing: Option<Arc<dyn Standing>>,
    /// When the connection has its age: then its streams end, too.
    pub(super) ends: Instant,
    pub(super) limits: Limits,
}

/// Serves the calls of its peer.
pub(super) struct Connection {
    pub(super) socket: Socket,
    pub(super) peer: Arc<Peer>,
    pub(super) _place: OwnedSemaphorePermit,
    pub(super) _share: Share,
    pub(super) _seat: Seat,
}

pub(super) enum Socket {
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// How many connections there are of each; those of whom we do not know are one.
pub(super) type ByPrincipal = Arc<Mutex<HashMap<Option<PrincipalId>, usize>>>;

/// One of the connections that a principal may have.
pub(super) struct Share(ByPrincipal, Option<PrincipalId>);

impl Share {
    pub(super) fn of(all: &ByPrincipal, peer: &Peer) -> Option<Self> {
        let mut counts = all.lock();
        let count = counts.entry(peer.principal.clone()).or_default();
        if *count >= peer.limits.principal_connections {
            return None;
        }
        *count += 1;
        Some(Self(Arc::clone(all), peer.principal.clone()))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.0.lock();
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Tls(stream) => stream.is_write_vectored(),
            Socket::Unix(stream) => stream.is_write_vectored(),
        }
    }
}
