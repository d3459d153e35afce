//! A small storage service: encrypted images, volumes, snapshots and shares, and
//! virtual servers that start from them. Each has a LUKS passphrase of its own, a DEK
//! that only rootkeyd can unwrap; and only at attach, start, restore or mount is it
//! asked to.
//!
//! It keeps no key and decides nothing about one: whether something can be done is
//! rootkeyd's answer at that moment.

pub(crate) mod events;
pub(crate) mod failure;
pub(crate) mod luks;
pub(crate) mod machine;
pub(crate) mod metadata;
pub(crate) mod statuses;

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rootkeyd::client::{DekContext, Registration, Secret, StorageClient};

use self::{
    failure::{Failure, file},
    luks::{Export, Extent},
    machine::Machine,
    metadata::{Attachment, Kind, Metadata, Resource, Server},
};

/// The service, on its state directory. Processes share it by a lock.
#[derive(Debug)]
pub(crate) struct VolumeService {
    dir: PathBuf,
    kernel: PathBuf,
    /// Milliseconds that deriving a LUKS key from its passphrase takes. The passphrases
    /// are random, so a short time is no weakness.
    iter_time: u32,
    pub(crate) rootkeyd: StorageClient,
}

impl VolumeService {
    pub(crate) fn open(
        dir: &Path,
        kernel: &Path,
        iter_time: u32,
        rootkeyd: StorageClient,
    ) -> Result<Self, Failure> {
        for folder in ["images", "run"] {
            let folder = dir.join(folder);
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.map_err(file(&folder))?;
        }
        let dir = dir.canonicalize().map_err(file(dir))?;
        Ok(Self { dir, kernel: kernel.into(), iter_time, rootkeyd })
    }

    pub(crate) fn lock(&self) -> Result<Metadata, Failure> {
        Metadata::lock(&self.dir)
    }

    /// A custom image from a plain file, which is nobody's secret.
    pub(crate) async fn create_image(&self, name: &str, key: &str, from: &Path) -> Done {
        let mut metadata = self.lock()?;
        let size = fs::metadata(from).map_err(file(from))?.len();
        self.make(&mut metadata, name, (Kind::Image, size, None), key, |path, dek| {
            luks::fill(from, path, dek)
        })
        .await
    }

    /// A boot volume from an image, under a passphrase of its own.
    pub(crate) async fn provision_from_image(&self, name: &str, key: &str, image: &str) -> Done {
        let mut metadata = self.lock()?;
        let source = self.of_kind(&metadata, image, &[Kind::Image], "booted from")?;
        let old = self.unwrap(&mut metadata, image).await?;
        let new = (Kind::BootVolume, source.size, Some(source.crn));
        self.make(&mut metadata, name, new, key, |path, dek| {
            luks::copy((&self.blocks(image), &old), (path, dek))
        })
        .await
    }

    /// An empty volume or share.
    pub(crate) async fn provision(&self, name: &str, kind: Kind, key: &str, size: u64) -> Done {
        let mut metadata = self.lock()?;
        self.make(&mut metadata, name, (kind, size, None), key, |_, _| Ok(())).await
    }

    /// The blocks of a volume or share as they are now. They are copied encrypted, so
    /// nothing is unwrapped: the DEK of a snapshot is its volume's.
    pub(crate) async fn snapshot(&self, name: &str, of: &str) -> Done {
        let mut metadata = self.lock()?;
        self.new_name(&metadata, name)?;
        let kinds = [Kind::BootVolume, Kind::DataVolume, Kind::Share];
        let source = self.of_kind(&metadata, of, &kinds, "snapshot")?;
        let crn = new_crn(Kind::Snapshot.crn_type());
        let mut snapshot = Resource {
            source: Some(source.crn.clone()),
            kind: Kind::Snapshot,
            holds: source.kind,
            attachment: None,
            crn,
            ..source
        };
        let wanted = registration(&snapshot);
        let registered = self.rootkeyd.register(&snapshot.key, wanted).await?;
        snapshot.registration = registered.name;
        let path = self.blocks(name);
        if let Err(error) = fs::copy(self.blocks(of), &path) {
            self.give_up(&snapshot.registration, &path).await;
            return Err(file(&path)(error));
        }
        metadata.state.resources.insert(name.into(), snapshot);
        metadata.save()
    }

    /// A new volume or share from a snapshot, under a passphrase of its own.
    pub(crate) async fn restore(&self, name: &str, snapshot: &str) -> Done {
        let mut metadata = self.lock()?;
        let source = self.of_kind(&metadata, snapshot, &[Kind::Snapshot], "restored")?;
        let old = self.unwrap(&mut metadata, snapshot).await?;
        let new = (source.holds, source.size, Some(source.crn));
        self.make(&mut metadata, name, new, &source.key, |path, dek| {
            luks::copy((&self.blocks(snapshot), &old), (path, dek))
        })
        .await
    }

    /// A virtual server with this boot volume, stopped.
    pub(crate) async fn create_server(&self, name: &str, boot_volume: &str) -> Done {
        let mut metadata = self.lock()?;
        self.new_name(&metadata, name)?;
        self.of_kind(&metadata, boot_volume, &[Kind::BootVolume], "booted")?;
        if metadata.resource(boot_volume)?.attachment.is_some() {
            return Err(Failure::InUse { name: boot_volume.into() });
        }
        let server = Server { crn: new_crn("instance"), boot_volume: boot_volume.into() };
        metadata.state.servers.insert(name.into(), server);
        self.tie(&mut metadata, boot_volume, Some(name)).await?;
        metadata.save()
    }

    /// Unwraps the DEK of each of its volumes, opens them, and boots. One refusal, and
    /// nothing is started.
    pub(crate) async fn start(&self, name: &str) -> Done {
        let mut metadata = self.lock()?;
        let boot_volume = metadata.server(name)?.boot_volume.clone();
        if self.runs(name) {
            return Err(Failure::InUse { name: name.into() });
        }
        let dek = self.unwrap(&mut metadata, &boot_volume).await?;
        let volumes: Vec<_> =
            metadata.attached(name).into_iter().filter(|it| *it != boot_volume).collect();
        let mut opened = Vec::new();
        let mut started = Ok(());
        for volume in &volumes {
            if self.export(volume).process.running().is_none() {
                started = self.open_export(&mut metadata, volume).await;
                opened.push(volume);
            }
            if started.is_err() {
                break;
            }
        }
        if started.is_ok() {
            let sockets: Vec<_> = volumes.iter().map(|it| self.export(it).socket).collect();
            let boot = (self.blocks(&boot_volume), &dek);
            started = self.machine(name).start(&self.kernel, (&boot.0, boot.1), &sockets).await;
        }
        if started.is_err() {
            for volume in opened {
                self.export(volume).close()?;
            }
        }
        started
    }

    /// Powers it off; its volumes stay attached to it, and are closed.
    pub(crate) fn stop(&self, name: &str) -> Done {
        let metadata = self.lock()?;
        metadata.server(name)?;
        self.power_off(&metadata, name)
    }

    /// Attaches a data volume to a server and opens it; a server that runs has it from
    /// its next start on.
    pub(crate) async fn attach(&self, volume: &str, server: &str) -> Done {
        let mut metadata = self.lock()?;
        metadata.server(server)?;
        let found = self.of_kind(&metadata, volume, &[Kind::DataVolume], "attached")?;
        if found.attachment.is_some() {
            return Err(Failure::InUse { name: volume.into() });
        }
        self.open_export(&mut metadata, volume).await?;
        if let Err(error) = self.tie(&mut metadata, volume, Some(server)).await {
            self.export(volume).close()?;
            return Err(error);
        }
        metadata.save()
    }

    /// Needs no key.
    pub(crate) async fn detach(&self, volume: &str) -> Done {
        let mut metadata = self.lock()?;
        let found = self.of_kind(&metadata, volume, &[Kind::DataVolume], "detached")?;
        if found.attachment.is_some_and(|it| self.runs(&it.server)) {
            return Err(Failure::InUse { name: volume.into() });
        }
        self.export(volume).close()?;
        self.tie(&mut metadata, volume, None).await?;
        metadata.save()
    }

    pub(crate) async fn mount(&self, share: &str) -> Done {
        let mut metadata = self.lock()?;
        self.of_kind(&metadata, share, &[Kind::Share], "mounted")?;
        if self.export(share).process.running().is_some() {
            return Err(Failure::InUse { name: share.into() });
        }
        self.open_export(&mut metadata, share).await
    }

    pub(crate) fn unmount(&self, share: &str) -> Done {
        let metadata = self.lock()?;
        self.of_kind(&metadata, share, &[Kind::Share], "unmounted")?;
        self.export(share).close()
    }

    /// To what is attached or mounted.
    pub(crate) fn write(&self, name: &str, extent: Extent) -> Done {
        self.io(name, "write", extent)
    }

    /// Compares what is there with the pattern.
    pub(crate) fn read(&self, name: &str, extent: Extent) -> Done {
        self.io(name, "read", extent)
    }

    fn io(&self, name: &str, verb: &str, extent: Extent) -> Done {
        self.lock()?.resource(name)?;
        let export = self.export(name);
        if export.process.running().is_none() {
            return Err(Failure::Offline { name: name.into() });
        }
        if export.io(verb, extent)? {
            Ok(())
        } else {
            Err(Failure::OtherData { name: name.into() })
        }
    }

    /// Deletes what nobody uses; in any state of its key.
    pub(crate) async fn delete(&self, name: &str) -> Done {
        let mut metadata = self.lock()?;
        if metadata.state.servers.contains_key(name) {
            return self.delete_server(metadata, name).await;
        }
        let found = metadata.resource(name)?.clone();
        if found.attachment.is_some() || self.export(name).process.running().is_some() {
            return Err(Failure::InUse { name: name.into() });
        }
        // First here: what is registered and gone is seen, what is there and not
        // registered is not.
        let path = self.blocks(name);
        fs::remove_file(&path).or_else(luks::missing_is_fine).map_err(file(&path))?;
        self.rootkeyd.unregister(&found.registration).await?;
        metadata.state.resources.remove(name);
        metadata.save()
    }

    async fn delete_server(&self, mut metadata: Metadata, name: &str) -> Done {
        if self.runs(name) {
            return Err(Failure::InUse { name: name.into() });
        }
        for volume in metadata.attached(name) {
            self.export(&volume).close()?;
            self.tie(&mut metadata, &volume, None).await?;
        }
        metadata.state.servers.remove(name);
        metadata.save()
    }

    /// Every DEK that a key wraps, under its newest version.
    pub(crate) async fn rewrap(&self, key: &str) -> Result<Vec<String>, Failure> {
        let mut metadata = self.lock()?;
        self.rewrap_all(&mut metadata, key, "").await
    }

    /// Whether a virtual server runs.
    pub(crate) fn runs(&self, server: &str) -> bool {
        self.machine(server).process.running().is_some()
    }

    pub(crate) fn machine(&self, server: &str) -> Machine {
        Machine::of(&self.dir.join("run"), server)
    }

    pub(crate) fn export(&self, name: &str) -> Export {
        Export::of(&self.dir.join("run"), name)
    }

    /// The LUKS file.
    pub(crate) fn blocks(&self, name: &str) -> PathBuf {
        self.dir.join("images").join(format!("{name}.luks"))
    }

    // --- what they are made of ---------------------------------------------

    /// A DEK from rootkeyd, registered; a LUKS file under it; and what fills it.
    async fn make(
        &self,
        metadata: &mut Metadata,
        name: &str,
        (kind, size, source): (Kind, u64, Option<String>),
        key: &str,
        fill: impl FnOnce(&Path, &Secret) -> Done,
    ) -> Done {
        self.new_name(metadata, name)?;
        let crn = new_crn(kind.crn_type());
        let mut resource = Resource {
            aad: crn.clone(),
            crn,
            kind,
            holds: kind,
            size,
            key: key.into(),
            wrapped_dek: String::new(),
            key_version: String::new(),
            registration: String::new(),
            source,
            attachment: None,
            mark: None,
        };
        let wanted = registration(&resource);
        let new = self.rootkeyd.generate(&context(&resource), DEK_BYTES, Some(wanted)).await?;
        resource.wrapped_dek = to_hex(&new.wrapped.bytes);
        resource.key_version = new.wrapped.key_version;
        // The answer does not name the registration that was made with it.
        let found = self.rootkeyd.registrations(key, &resource.crn).await?.into_iter().next();
        let registered = found.ok_or_else(|| Failure::NotThere { name: resource.crn.clone() })?;
        resource.key = key_of(&registered.name).into();
        resource.registration = registered.name;
        let path = self.blocks(name);
        let made = luks::create(&path, size, &new.dek, self.iter_time);
        if let Err(error) = made.and_then(|()| fill(&path, &new.dek)) {
            self.give_up(&resource.registration, &path).await;
            return Err(error);
        }
        metadata.state.resources.insert(name.into(), resource);
        metadata.save()
    }

    /// What is not made is not registered. The failure that led here is what is told.
    async fn give_up(&self, registration: &str, path: &Path) {
        let _told = fs::remove_file(path);
        let _told = self.rootkeyd.unregister(registration).await;
    }

    /// Stores a DEK that came back rewrapped.
    async fn unwrap(&self, metadata: &mut Metadata, name: &str) -> Result<Secret, Failure> {
        let resource = metadata.resource_mut(name)?;
        let wrapped = from_hex(&resource.wrapped_dek);
        let unwrapped = self.rootkeyd.unwrap(&context(resource), &wrapped).await?;
        if let Some(new) = unwrapped.rewrapped {
            resource.wrapped_dek = to_hex(&new.bytes);
            resource.key_version = new.key_version;
            let update = Registration {
                name: resource.registration.clone(),
                key_version: resource.key_version.clone(),
                ..Registration::default()
            };
            metadata.save()?;
            // The volume can be opened all the same; the event of the rotation, which is
            // under way, says it again.
            let _told = self.rootkeyd.update(update, &["key_version"]).await;
        }
        Ok(unwrapped.dek)
    }

    async fn rewrap_one(&self, resource: &mut Resource) -> Done {
        let wrapped = from_hex(&resource.wrapped_dek);
        let rewrapped = self.rootkeyd.rewrap(&context(resource), &wrapped).await?;
        resource.wrapped_dek = to_hex(&rewrapped.wrapped.bytes);
        resource.key_version = rewrapped.wrapped.key_version;
        let update = Registration {
            name: resource.registration.clone(),
            key_version: resource.key_version.clone(),
            ..Registration::default()
        };
        self.rootkeyd.update(update, &["key_version"]).await?;
        Ok(())
    }

    async fn open_export(&self, metadata: &mut Metadata, name: &str) -> Done {
        let dek = self.unwrap(metadata, name).await?;
        self.export(name).open(&self.blocks(name), &dek)
    }

    /// Says at rootkeyd and here what a volume is attached to.
    async fn tie(&self, metadata: &mut Metadata, volume: &str, server: Option<&str>) -> Done {
        let attached_to = match server {
            Some(server) => metadata.server(server)?.crn.clone(),
            None => String::new(),
        };
        let resource = metadata.resource_mut(volume)?;
        let name = resource.registration.clone();
        let update = Registration { name, attached_to, ..Registration::default() };
        self.rootkeyd.update(update, &["attached_to"]).await?;
        resource.attachment = server.map(Attachment::new);
        Ok(())
    }

    fn power_off(&self, metadata: &Metadata, name: &str) -> Done {
        self.machine(name).stop()?;
        metadata.attached(name).iter().try_for_each(|volume| self.export(volume).close())
    }

    fn of_kind(
        &self,
        metadata: &Metadata,
        name: &str,
        kinds: &[Kind],
        action: &'static str,
    ) -> Result<Resource, Failure> {
        let resource = metadata.resource(name)?;
        if kinds.contains(&resource.kind) {
            return Ok(resource.clone());
        }
        Err(Failure::Kind { name: name.into(), action })
    }

    /// A name is also a file's, and stands in QEMU's options.
    fn new_name(&self, metadata: &Metadata, name: &str) -> Done {
        let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 40 || !name.chars().all(fine) {
            return Err(Failure::Name { name: name.into() });
        }
        metadata.free(name)
    }
}

impl Attachment {
    fn new(server: &str) -> Self {
        Self { id: new_uuid(), server: server.into() }
    }
}

fn context(resource: &Resource) -> DekContext {
    let aad = vec![resource.aad.as_bytes().to_vec()];
    DekContext { key: resource.key.clone(), aad, resource: resource.crn.clone() }
}

fn registration(resource: &Resource) -> Registration {
    Registration {
        resource: resource.crn.clone(),
        kind: resource.kind.registered_as().into(),
        key_version: resource.key_version.clone(),
        source: resource.source.clone().unwrap_or_default(),
        ..Registration::default()
    }
}

/// `instances/i/keys/k/registrations/r` is of `instances/i/keys/k`.
fn key_of(registration: &str) -> &str {
    registration.split_once("/registrations/").map_or(registration, |(key, _)| key)
}

fn new_crn(kind: &str) -> String {
    format!("crn:v1:rootkeyd:public:is:local:a/dev::{kind}:{}", new_uuid())
}

/// The kernel's; version 4.
fn new_uuid() -> String {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid");
    uuid.expect("Linux has random UUIDs to give").trim().to_owned()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is no hexadecimal unwraps to nothing: rootkeyd refuses it.
fn from_hex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2).map_while(|pair| std::str::from_utf8(pair).ok());
    pairs.map_while(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}

type Done = Result<(), Failure>;

/// 256 bits, in hexadecimal a passphrase of 64 characters.
const DEK_BYTES: u32 = 32;
