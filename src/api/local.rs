//! The Unix socket: callers of this machine, who they are by the uid or gid that the
//! kernel tells. There is no TLS on it. Who is not listed is nobody, and each of its
//! calls is refused and recorded.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::{UnixListener, UnixStream};

use super::Limits;
use super::connection::{Connection, Peer, Share, Socket};
use super::server::{ACCEPT_PAUSE, Desk, Hall};
use crate::domain::PrincipalId;

/// Where the socket is, and who may be there.
#[derive(Clone, Debug)]
pub struct Local {
    /// The socket.
    pub path: PathBuf,
    /// The first that fits counts.
    pub principals: Vec<LocalPrincipal>,
}

/// A user or group of this machine that is a principal.
#[derive(Clone, Debug)]
pub struct LocalPrincipal {
    /// Which.
    pub who: Who,
    /// Who that is.
    pub principal: PrincipalId,
}

/// A process, as the kernel tells.
#[derive(Clone, Copy, Debug)]
pub enum Who {
    /// Its user.
    Uid(u32),
    /// Its primary group.
    Gid(u32),
}

impl Local {
    /// Makes the socket, for its owner and group. A file that is left of a daemon
    /// that ended is removed; one that somebody listens on is not.
    ///
    /// # Errors
    /// What the system said.
    pub async fn bind(&self) -> io::Result<UnixListener> {
        match UnixStream::connect(&self.path).await {
            Ok(_answered) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                if fs::symlink_metadata(&self.path)?.file_type().is_socket() {
                    fs::remove_file(&self.path)?;
                }
            }
            // No such file, most likely; else binding says what is wrong.
            Err(_other) => {}
        }
        let listener = UnixListener::bind(&self.path)?;
        fs::set_permissions(&self.path, Permissions::from_mode(0o660))?;
        Ok(listener)
    }

    fn peer(&self, stream: &UnixStream, limits: Limits) -> io::Result<Peer> {
        let process = stream.peer_cred()?;
        let known = self.principals.iter().find(|it| match it.who {
            Who::Uid(uid) => uid == process.uid(),
            Who::Gid(gid) => gid == process.gid(),
        });
        Ok(Peer {
            principal: known.map(|it| it.principal.clone()),
            address: format!("unix:uid={},gid={}", process.uid(), process.gid()).into(),
            ip: None,
            standing: None,
            ends: Instant::now() + limits.connection_age,
            limits,
        })
    }
}

/// Accepts until told to stop.
pub(super) async fn accept(listener: UnixListener, local: Local, mut hall: Hall) {
    loop {
        let Ok(place) = Arc::clone(&hall.places).acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = hall.stopped.wait_for(|stop| *stop) => break,
        };
        let greeted =
            accepted.and_then(|(stream, _)| Ok((local.peer(&stream, hall.limits)?, stream)));
        let (peer, stream) = match greeted {
            Ok(greeted) => greeted,
            Err(error) => {
                tracing::warn!(%error, "a local connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(share) = Share::of(&hall.by_principal, &peer) else {
            tracing::warn!(address = &*peer.address, "its principal has too many connections");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a local connection could not be handed over");
                continue;
            }
        };
        let (Desk { core, connections }, seat) = hall.desk();
        core.runtime.spawn(async move {
            let connection = UnixStream::from_std(stream).map(|stream| {
                let socket = Socket::Unix(stream);
                Connection { socket, peer: peer.into(), _place: place, _share: share, _seat: seat }
            });
            // Err: the daemon stops.
            drop(connections.send(connection).await);
        });
    }
    // So that the next daemon finds nothing that is left; if it stays, that one removes it.
    let _ = fs::remove_file(&local.path);
}
