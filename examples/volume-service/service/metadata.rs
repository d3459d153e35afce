//! What the service remembers: one JSON file, written whole or not at all, read and
//! changed by one process at a time.
//!
//! A DEK is in it wrapped, and in no other form.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rootkeyd::client::ResourceKind;
use serde::{Deserialize, Serialize};

use super::failure::{Failure, file};

/// What is in the state directory, while no other process changes it.
#[derive(Debug)]
pub(crate) struct Metadata {
    pub(crate) state: State,
    path: PathBuf,
    /// Holds the lock of the directory.
    _lock: File,
}

#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct State {
    /// By name.
    pub(crate) resources: BTreeMap<String, Resource>,
    /// By name.
    pub(crate) servers: BTreeMap<String, Server>,
    /// Id of the last key event that was dealt with: one that comes twice is not.
    pub(crate) last_event: u64,
}

/// A volume, snapshot, image or share: a LUKS file with a passphrase of its own.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Resource {
    pub(crate) crn: String,
    pub(crate) kind: Kind,
    /// What its blocks are restored to: of a snapshot, the kind of what it was taken of.
    pub(crate) holds: Kind,
    pub(crate) size: u64,
    /// Full name of the root key.
    pub(crate) key: String,
    /// Hexadecimal.
    pub(crate) wrapped_dek: String,
    pub(crate) key_version: String,
    /// CRN that the DEK is bound to: the resource's own; of a snapshot, its volume's,
    /// whose blocks it has.
    pub(crate) aad: String,
    /// Name of the registration at rootkeyd.
    pub(crate) registration: String,
    /// CRN of what it was made from.
    pub(crate) source: Option<String>,
    pub(crate) attachment: Option<Attachment>,
    /// What the events of the key said last.
    pub(crate) mark: Option<Mark>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Image,
    BootVolume,
    DataVolume,
    Snapshot,
    Share,
}

impl Kind {
    pub(crate) fn registered_as(self) -> ResourceKind {
        match self {
            Self::Image => ResourceKind::CustomImage,
            Self::BootVolume => ResourceKind::BootVolume,
            Self::DataVolume => ResourceKind::DataVolume,
            Self::Snapshot => ResourceKind::Snapshot,
            Self::Share => ResourceKind::FileShare,
        }
    }

    /// Segment of the CRN.
    pub(crate) fn crn_type(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::BootVolume | Self::DataVolume => "volume",
            Self::Snapshot => "snapshot",
            Self::Share => "share",
        }
    }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Attachment {
    pub(crate) id: String,
    /// Name of the virtual server.
    pub(crate) server: String,
}

/// The root key is not what the resource needs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mark {
    KeyDisabled,
    KeyDeleted,
}

/// A virtual server. Whether it runs is asked of its process.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Server {
    pub(crate) crn: String,
    /// Name of its boot volume.
    pub(crate) boot_volume: String,
}

impl Metadata {
    /// Waits for the lock of the directory, and reads.
    pub(crate) fn lock(dir: &Path) -> Result<Self, Failure> {
        let (lock, path) = (dir.join("lock"), dir.join("state.json"));
        let held = OpenOptions::new().create(true).append(true).mode(0o600).open(&lock);
        let held = held.and_then(|held| held.lock().map(|()| held)).map_err(file(&lock))?;
        let state = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|source| Failure::Metadata { path: path.clone(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(file(&path)(error)),
        };
        Ok(Self { state, path, _lock: held })
    }

    /// Durable when it returns.
    pub(crate) fn save(&self) -> Result<(), Failure> {
        let temporary = self.path.with_extension("new");
        let text = serde_json::to_vec_pretty(&self.state)
            .map_err(|source| Failure::Metadata { path: self.path.clone(), source })?;
        let write = || {
            let mut options = OpenOptions::new();
            let mut new =
                options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            new.write_all(&text)?;
            new.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            File::open(self.path.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()
        };
        write().map_err(file(&self.path))
    }

    pub(crate) fn resource(&self, name: &str) -> Result<&Resource, Failure> {
        self.state.resources.get(name).ok_or_else(|| Failure::NotThere { name: name.into() })
    }

    pub(crate) fn resource_mut(&mut self, name: &str) -> Result<&mut Resource, Failure> {
        let found = self.state.resources.get_mut(name);
        found.ok_or_else(|| Failure::NotThere { name: name.into() })
    }

    pub(crate) fn server(&self, name: &str) -> Result<&Server, Failure> {
        self.state.servers.get(name).ok_or_else(|| Failure::NotThere { name: name.into() })
    }

    /// Names of the volumes that are attached to a server, its boot volume not among them.
    pub(crate) fn attached(&self, server: &str) -> Vec<String> {
        let to = |resource: &Resource| {
            resource.attachment.as_ref().is_some_and(|it| it.server == server)
        };
        let resources = self.state.resources.iter();
        resources.filter(|(_, it)| to(it)).map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn free(&self, name: &str) -> Result<(), Failure> {
        if self.state.resources.contains_key(name) || self.state.servers.contains_key(name) {
            return Err(Failure::Taken { name: name.into() });
        }
        Ok(())
    }
}
