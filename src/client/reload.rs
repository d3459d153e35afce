//! A connection that follows its PEM files: when a certificate is renewed, the next
//! call connects with it, and the calls under way end on the connection they have.
//!
//! Files that do not go together (one of two is written, the other not yet) change
//! nothing: the connection that is there goes on, and they are looked at again.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use super::{ClientConfig, ClientError, endpoint};

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    config: ClientConfig,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    channel: Channel,
    files: Stamps,
    /// When the files were last looked at.
    looked: Instant,
}

impl Connection {
    /// Connects at the first call, and again whenever the connection is lost.
    pub(super) fn open(config: ClientConfig) -> Result<Self, ClientError> {
        let files = Stamps::of(&config);
        let channel = kept_alive(&config)?.connect_lazy();
        let current = Mutex::new(Current { channel, files, looked: Instant::now() });
        Ok(Self { config, current })
    }

    /// What to send the next call through.
    pub(super) async fn channel(&self) -> Channel {
        if let Some(files) = self.changed() {
            match self.connect().await {
                Ok(channel) => {
                    tracing::info!(certificate = %self.config.certificate.display(), "reloaded");
                    let mut current = self.current.lock();
                    current.channel = channel;
                    current.files = files;
                }
                Err(error) => tracing::warn!(%error, "the new certificate is not used yet"),
            }
        }
        self.current.lock().channel.clone()
    }

    /// What the files are now, if that is not what they were; asked of the disk once
    /// in [`LOOK_EVERY`], by one caller.
    fn changed(&self) -> Option<Stamps> {
        let mut current = self.current.lock();
        if current.looked.elapsed() < LOOK_EVERY {
            return None;
        }
        current.looked = Instant::now();
        let files = Stamps::of(&self.config);
        (files != current.files).then_some(files)
    }

    async fn connect(&self) -> Result<Channel, ClientError> {
        let unreachable =
            |source| ClientError::Unreachable { endpoint: self.config.endpoint.clone(), source };
        kept_alive(&self.config)?.connect().await.map_err(unreachable)
    }
}

/// A daemon that is gone without a word is noticed while nothing is sent.
fn kept_alive(config: &ClientConfig) -> Result<Endpoint, ClientError> {
    Ok(endpoint(config, USER_AGENT)?
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// By which a file that was written anew is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamps([Option<(u64, u64, i64, i64)>; 3]);

impl Stamps {
    fn of(config: &ClientConfig) -> Self {
        let ClientConfig { endpoint: _, instance: _, ca, certificate, key } = config;
        Self([ca, certificate, key].map(|path| stamp(path).ok()))
    }
}

fn stamp(path: &Path) -> io::Result<(u64, u64, i64, i64)> {
    let file = fs::metadata(path)?;
    Ok((file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
}

const USER_AGENT: &str = concat!("rootkeyd-client/", env!("CARGO_PKG_VERSION"));
const LOOK_EVERY: Duration = Duration::from_secs(1);
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_anew_has_another_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["ca.pem", "a.pem", "a.key"] {
            fs::write(path(name), "one").unwrap();
        }
        let config = ClientConfig {
            endpoint: "https://127.0.0.1:9".into(),
            instance: "default".into(),
            ca: path("ca.pem"),
            certificate: path("a.pem"),
            key: path("a.key"),
        };
        let before = Stamps::of(&config);
        assert_eq!(before, Stamps::of(&config));
        fs::write(path("new"), "two").unwrap();
        fs::rename(path("new"), path("a.pem")).unwrap();
        let after = Stamps::of(&config);
        assert_ne!(before, after);
        fs::remove_file(path("a.key")).unwrap();
        assert_ne!(after, Stamps::of(&config));
    }
}
