//! Whom the listener trusts now: certificate, key, CAs and revocation lists, read
//! anew when a file changes and at SIGHUP. Files that do not go together, or that
//! are broken, change nothing but the log. A connection that is there goes on, and
//! each of its calls is held to what is trusted then (docs/adr/0014).

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fmt, fs};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::time_provider::TimeProvider;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::tls::{Identity, TlsError, Verifier, server_config};
use super::tokens::Verified;
use crate::auth::mtls::{Holder, holder_of};
use crate::domain::Timestamp;
use crate::service::{Service, Standing};

/// See the module.
pub(super) struct Trust {
    identity: Identity,
    /// Has its own files: a broken one must not hold up revocations, nor they it.
    tokens: Option<Verified>,
    clock: Arc<DaemonClock>,
    current: ArcSwap<Generation>,
}

/// What was read at one time.
struct Generation {
    number: u64,
    config: Arc<ServerConfig>,
    verifier: Arc<Verifier>,
}

/// The certificate that a connection began with, and how it stands.
pub(super) struct Presented {
    trust: Arc<Trust>,
    chain: Vec<CertificateDer<'static>>,
    not_after: Timestamp,
    /// The generation that it was last verified by.
    verified_by: AtomicU64,
}

impl Trust {
    pub(super) fn read(identity: &Identity, service: &Arc<Service>) -> Result<Arc<Self>, TlsError> {
        let clock = Arc::new(DaemonClock(Arc::clone(service)));
        let (config, verifier) = server_config(identity, Arc::clone(&clock) as _)?;
        let current = ArcSwap::from_pointee(Generation { number: 1, config, verifier });
        let tokens = identity.tokens.as_ref().map(Verified::read).transpose()?;
        Ok(Arc::new(Self { identity: identity.clone(), tokens, clock, current }))
    }

    /// Whose tokens count, if any.
    pub(super) fn tokens(&self) -> Option<&Verified> {
        self.tokens.as_ref()
    }

    /// For the next connection.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().config)
    }

    /// Who came through the handshake.
    pub(super) fn presented(
        self: &Arc<Self>,
        chain: &[CertificateDer<'_>],
    ) -> Option<(Holder, Presented)> {
        let certificate = chain.first()?;
        let holder = holder_of(certificate, &self.identity.principals).ok()?;
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let not_after = holder.not_after;
        // Zero: the files may have changed during the handshake.
        let verified_by = AtomicU64::new(0);
        Some((holder, Presented { trust: Arc::clone(self), chain, not_after, verified_by }))
    }

    /// Follows the files until the daemon stops.
    pub(super) async fn follow(self: Arc<Self>, mut stopped: watch::Receiver<bool>) {
        let mut hangups = signal(SignalKind::hangup()).ok();
        let mut stamps = self.stamps();
        loop {
            let hung_up = async {
                match &mut hangups {
                    Some(hangups) => drop(hangups.recv().await),
                    None => std::future::pending().await,
                }
            };
            let asked = tokio::select! {
                () = hung_up => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
                _ = stopped.wait_for(|stop| *stop) => return,
            };
            let found = self.stamps();
            if asked || found != stamps {
                stamps = found;
                self.reload();
            }
        }
    }

    fn reload(&self) {
        if let Some(tokens) = &self.tokens {
            tokens.reload();
        }
        match server_config(&self.identity, Arc::clone(&self.clock) as _) {
            Ok((config, verifier)) => {
                let number = self.current.load().number + 1;
                self.current.store(Arc::new(Generation { number, config, verifier }));
                tracing::info!(number, "certificate, key, client CA and revocations were reloaded");
            }
            Err(error) => {
                tracing::error!(%error, "the new TLS files cannot be used; the old ones go on");
            }
        }
    }

    fn stamps(&self) -> Vec<Option<Stamp>> {
        let Identity { certificate, key, client_ca, crl, principals: _, tokens: _ } =
            &self.identity;
        let tokens = self.tokens.iter().map(Verified::file);
        [certificate, key, client_ca].into_iter().chain(crl).chain(tokens).map(stamp).collect()
    }
}

impl Standing for Presented {
    fn check(&self, now: Timestamp) -> Result<(), String> {
        if now >= self.not_after {
            return Err("the client certificate is expired".into());
        }
        let current = self.trust.current.load();
        if self.verified_by.load(Ordering::Acquire) == current.number {
            return Ok(());
        }
        let [certificate, intermediates @ ..] = &self.chain[..] else {
            return Err("there is no client certificate".into());
        };
        let verified = current.verifier.verify_client_cert(certificate, intermediates, unix(now));
        verified.map_err(|error| format!("the client certificate is not trusted now: {error}"))?;
        self.verified_by.store(current.number, Ordering::Release);
        Ok(())
    }
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presented").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// TLS goes by the clock that everything else goes by.
struct DaemonClock(Arc<Service>);

impl TimeProvider for DaemonClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix(self.0.now().time))
    }
}

impl fmt::Debug for DaemonClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DaemonClock")
    }
}

fn unix(time: Timestamp) -> UnixTime {
    let micros = u64::try_from(time.as_micros()).unwrap_or(0);
    UnixTime::since_unix_epoch(Duration::from_micros(micros))
}

/// By which a file that was written anew is known.
type Stamp = (u64, u64, i64, i64);

fn stamp(path: &PathBuf) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some((file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
}

const LOOK_EVERY: Duration = Duration::from_secs(2);
