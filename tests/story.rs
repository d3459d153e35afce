//! "Managing data encryption" as a story: every row of its three tables, a restored
//! key, and a service whose authorization is removed, by doing the thing with real LUKS
//! volumes and a virtual server that boots from one.
//!
//! The storage service is `examples/volume-service`. It watches the events of the key and
//! answers them, as its `serve` does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]
#![expect(clippy::print_stdout, reason = "how long each chapter took")]

mod common;
#[path = "../examples/volume-service/service/mod.rs"]
#[allow(dead_code, reason = "the command line uses more of it")]
mod service;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Client, Daemon, refusal};
use rootkeyd::api::pb;
use rootkeyd::client::{
    ClientConfig, DekContext, KeyEventType, KeyEvents, RetryPolicy, Secret, StorageClient,
};
use service::failure::Failure;
use service::luks::Extent;
use service::metadata::Kind;
use service::{VolumeService, machine, statuses};

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_resources_follow_their_root_key() {
    let mut story = Story::begin().await;
    story.provision().await;
    story.nothing_is_on_disk_in_the_clear().await;

    story.disable().await;
    story.while_disabled_what_runs_goes_on().await;
    story.while_disabled_nothing_new_begins().await;
    story.while_disabled_a_stopped_server_cannot_start().await;

    story.enable().await;
    story.after_enabling_everything_works().await;

    story.delete().await;
    story.after_deletion_everything_is_offline_and_still_there().await;

    story.restore().await;
    story.after_restoring_the_data_is_intact().await;
    story.rotate_and_rewrap().await;

    story.remove_the_authorization().await;
    story.without_authorization_what_runs_goes_on_and_nothing_begins().await;
    story.what_is_deleted_meanwhile_stays_registered().await;
}

struct Story {
    daemon: Daemon,
    admin: Client,
    service: VolumeService,
    /// Full name of the root key.
    key: String,
    events: KeyEvents,
    began: Instant,
}

impl Story {
    /// An imported key, since only such a one can be restored under profile vpc.
    async fn begin() -> Self {
        let kernel = boot_file("vmlinuz");
        assert!(kernel.exists(), "there is no target/boot: softhsm/setup.sh --boot makes it");
        let daemon = Daemon::start();
        let material = daemon.dir.join("material");
        import_or_rotate(
            &daemon,
            &material,
            &["key", "import", "--name", "Volumes", "--alias", "volumes"],
        );
        let mut admin = daemon.client("admin").await;
        let key = admin.get("instances/default/keys/volumes").await.unwrap();
        assert!(key.imported);
        let service = open(&daemon);
        let (key, events) = (key.name, service.rootkeyd.events(""));
        Self { daemon, admin, service, key, events, began: Instant::now() }
    }

    async fn provision(&mut self) {
        self.chapter("an image, a server from it, volumes, a snapshot, a share");
        let Self { service, daemon, .. } = self;
        let root = daemon.dir.join("root.ext4");
        machine::make_root(&boot_file("busybox"), 8 << 20, &root).unwrap();
        service.create_image("base", "volumes", &root).await.unwrap();
        fs::remove_file(root).unwrap();
        service.provision_from_image("root", "volumes", "base").await.unwrap();
        service.create_server("web", "root").await.unwrap();
        for name in ["data", "alone"] {
            service.provision(name, Kind::DataVolume, "volumes", MIB).await.unwrap();
            service.attach(name, "web").await.unwrap();
            service.write(name, at_start(0xa5)).unwrap();
        }
        service.detach("alone").await.unwrap();
        service.snapshot("snap", "alone").await.unwrap();
        service.provision("share", Kind::Share, "volumes", MIB).await.unwrap();
        service.mount("share").await.unwrap();
        service.write("share", at_start(0xa5)).unwrap();
        service.start("web").await.unwrap();
        let printed = service.machine("web").printed();
        assert!(printed.contains("up, boot 1"), "{printed}");
        assert!(printed.contains("/dev/nvme0n2 a5a5a5a5"), "the data volume is in it: {printed}");
        self.statuses(&[
            ("base", "active", ""),
            ("root", "available", ""),
            ("data", "available", ""),
            ("alone", "available", ""),
            ("snap", "stable", ""),
            ("share", "stable", ""),
            ("web", "available", ""),
        ]);
        let registered = self.service.rootkeyd.registrations(&self.key, "").await.unwrap();
        assert_eq!(registered.len(), 6, "{registered:?}");
        let lineage = registered.iter().filter(|it| !it.source.is_empty()).count();
        assert_eq!(lineage, 2, "of the boot volume its image, of the snapshot its volume");
        let attached = registered.iter().filter(|it| !it.attached_to.is_empty()).count();
        assert_eq!(attached, 2, "boot volume and data volume");
    }

    async fn nothing_is_on_disk_in_the_clear(&mut self) {
        self.chapter("no data and no passphrase is on disk, or in an argument");
        let resource = self.service.lock().unwrap().resource("data").unwrap().clone();
        let context = DekContext::of(&resource.key, &resource.crn);
        let wrapped = hex::decode(&resource.wrapped_dek).unwrap();
        let dek: Secret = self.service.rootkeyd.unwrap(&context, &wrapped).await.unwrap().dek;
        let raw = dek.expose().to_vec();
        let needles = [hex::encode(&raw).into_bytes(), raw, vec![0xa5; 64]];
        let mut searched = Vec::new();
        for path in files(&self.daemon.dir) {
            // Sockets cannot be read; image and boot volume have neither.
            let Ok(bytes) = fs::read(&path) else { continue };
            if bytes.len() > 4 << 20 {
                continue;
            }
            for needle in &needles {
                let found = bytes.windows(needle.len()).any(|window| window == needle);
                assert!(!found, "{} holds it", path.display());
            }
            searched.push(path);
        }
        for file in ["data.luks", "alone.luks", "snap.luks", "state.json", "web.console"] {
            assert!(searched.iter().any(|path| path.ends_with(file)), "{file}: {searched:?}");
        }
        for entry in fs::read_dir("/proc").unwrap() {
            let arguments = fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
            let found = arguments.windows(64).any(|window| window == needles[0]);
            assert!(!found, "{}", String::from_utf8_lossy(&arguments));
        }
    }

    // --- table 1: disabled ---------------------------------------------------

    async fn disable(&mut self) {
        self.admin.disable(&self.key).await.unwrap();
        self.event(KeyEventType::Disable).await;
    }

    async fn while_disabled_what_runs_goes_on(&mut self) {
        self.chapter("disabled: what runs goes on");
        self.statuses(&[
            ("base", "unusable", DISABLED),
            ("root", "available", ""),
            ("data", "available", ""),
            ("alone", "available", ""),
            ("snap", "unusable", DISABLED),
            ("share", "stable", ""),
            ("web", "available", ""),
        ]);
        self.the_server_works("web").await;
        for name in ["data", "share"] {
            self.service.read(name, at_start(0xa5)).unwrap();
            self.service.write(name, after_start(0x5a)).unwrap();
            self.service.read(name, after_start(0x5a)).unwrap();
        }
    }

    async fn while_disabled_nothing_new_begins(&mut self) {
        self.chapter("disabled: nothing new begins");
        let before = self.left_behind().await;
        let service = &self.service;
        // Image, stand-alone data volume, snapshot, share, new volume.
        refused(service.provision_from_image("new", "volumes", "base").await, SUSPENDED);
        refused(service.attach("alone", "web").await, SUSPENDED);
        refused(service.restore("new", "snap").await, SUSPENDED);
        refused(service.provision("new", Kind::Share, "volumes", MIB).await, SUSPENDED);
        refused(service.provision("new", Kind::DataVolume, "volumes", MIB).await, SUSPENDED);
        refused(service.snapshot("new", "data").await, ("KEY_NOT_ACTIVE", ""));
        assert_eq!(self.left_behind().await, before, "what was refused leaves nothing behind");
    }

    async fn while_disabled_a_stopped_server_cannot_start(&mut self) {
        self.chapter("disabled: once stopped, a server cannot start");
        let service = &self.service;
        service.stop("web").unwrap();
        refused(service.start("web").await, SUSPENDED);
        assert!(!service.runs("web"));
        // It was available until the server was stopped.
        assert!(matches!(service.read("data", at_start(0xa5)), Err(Failure::Offline { .. })));
        service.read("share", at_start(0xa5)).unwrap();
    }

    // --- table 2: enabled ----------------------------------------------------

    async fn enable(&mut self) {
        self.daemon.set_clock("+1h");
        self.admin.enable(&self.key).await.unwrap();
        self.event(KeyEventType::Enable).await;
    }

    async fn after_enabling_everything_works(&mut self) {
        self.chapter("enabled: everything works");
        self.statuses(&[
            ("base", "active", ""),
            ("root", "available", ""),
            ("data", "available", ""),
            ("alone", "available", ""),
            ("snap", "stable", ""),
            ("share", "stable", ""),
            ("web", "available", ""),
        ]);
        let service = &self.service;
        // The instance, its boot volume and its data volume.
        assert!(!service.runs("web"), "nothing is started by itself");
        service.start("web").await.unwrap();
        let printed = service.machine("web").printed();
        assert!(printed.contains("up, boot 2"), "its root is as it was: {printed}");
        service.read("data", after_start(0x5a)).unwrap();
        // The image makes another server; to that the stand-alone volume is attached.
        service.provision_from_image("root-2", "volumes", "base").await.unwrap();
        service.create_server("spare", "root-2").await.unwrap();
        service.attach("alone", "spare").await.unwrap();
        service.read("alone", at_start(0xa5)).unwrap();
        // The snapshot.
        service.restore("restored", "snap").await.unwrap();
        service.attach("restored", "spare").await.unwrap();
        service.read("restored", at_start(0xa5)).unwrap();
        // The share: mount targets, reading, writing.
        service.unmount("share").unwrap();
        service.mount("share").await.unwrap();
        service.read("share", after_start(0x5a)).unwrap();
        service.write("share", after_start(0x5b)).unwrap();
    }

    // --- table 3: deleted ----------------------------------------------------

    async fn delete(&mut self) {
        self.chapter("deleted, by force, since resources are registered");
        let refused = self.admin.delete(&self.key).await.unwrap_err();
        assert_eq!(refused.reason, "KEY_REGISTERED");
        let request = pb::DeleteKeyRequest {
            name: self.key.clone(),
            force: true,
            ..pb::DeleteKeyRequest::default()
        };
        self.admin.keys.delete_key(request).await.map_err(refusal).unwrap();
        // Nobody can take a DEK back: to stop is the service's part.
        self.the_server_works("web").await;
        let done = self.event(KeyEventType::Delete).await;
        assert!(done.contains(&"server web is stopped".to_owned()), "{done:?}");
        assert!(done.contains(&"share share is suspended".to_owned()), "{done:?}");
        assert!(done.contains(&"volume alone is closed".to_owned()), "{done:?}");
    }

    async fn after_deletion_everything_is_offline_and_still_there(&mut self) {
        self.chapter("deleted: everything is offline, and still there");
        self.statuses(&[
            ("base", "unusable", DELETED),
            ("root", "unusable", DELETED),
            ("data", "unusable", DELETED),
            ("alone", "unusable", DELETED),
            ("snap", "unusable", DELETED),
            ("share", "suspended", DELETED),
            ("web", "unusable", DELETED),
        ]);
        let service = &self.service;
        assert!(!service.runs("web"));
        for name in ["data", "alone", "share"] {
            let read = service.read(name, at_start(0xa5));
            assert!(matches!(read, Err(Failure::Offline { .. })), "{name}: {read:?}");
        }
        refused(service.start("web").await, DESTROYED);
        refused(service.start("spare").await, DESTROYED);
        refused(service.provision_from_image("new", "volumes", "base").await, DESTROYED);
        refused(service.restore("new", "snap").await, DESTROYED);
        refused(service.mount("share").await, DESTROYED);
        refused(service.provision("new", Kind::Share, "volumes", MIB).await, DESTROYED);
        // A volume can be detached and deleted, but not attached.
        service.detach("restored").await.unwrap();
        refused(service.attach("restored", "spare").await, DESTROYED);
        service.delete("restored").await.unwrap();
        let names: Vec<_> = service.lock().unwrap().state.resources.keys().cloned().collect();
        assert_eq!(names, ["alone", "base", "data", "root", "root-2", "share", "snap"]);
        for name in names {
            assert!(service.blocks(&name).exists(), "the data of {name} still exists");
        }
    }

    // --- restored ------------------------------------------------------------

    async fn restore(&mut self) {
        let before = self.attachment("data");
        self.daemon.set_clock("+2h");
        self.admin.restore(&self.key).await.unwrap();
        self.event(KeyEventType::Restore).await;
        assert_ne!(self.attachment("data"), before, "the attachment id is another one");
    }

    async fn after_restoring_the_data_is_intact(&mut self) {
        self.chapter("restored: the data is intact");
        self.statuses(&[
            ("base", "active", ""),
            ("root", "available", ""),
            ("data", "available", ""),
            ("alone", "available", ""),
            ("snap", "stable", ""),
            ("share", "stable", ""),
            ("web", "available", ""),
        ]);
        let service = &self.service;
        assert!(!service.runs("web"), "nothing is started by itself");
        service.start("web").await.unwrap();
        let printed = service.machine("web").printed();
        assert!(printed.contains("up, boot 3"), "its root is as it was: {printed}");
        assert!(printed.contains("/dev/nvme0n2 a5a5a5a5"), "{printed}");
        service.read("data", after_start(0x5a)).unwrap();
        service.mount("share").await.unwrap();
        service.read("share", after_start(0x5b)).unwrap();
        service.detach("alone").await.unwrap();
        service.attach("alone", "spare").await.unwrap();
        service.read("alone", at_start(0xa5)).unwrap();
        service.detach("alone").await.unwrap();
        service.restore("restored", "snap").await.unwrap();
    }

    async fn rotate_and_rewrap(&mut self) {
        self.chapter("rotated: every DEK is rewrapped, nothing else changes");
        self.daemon.set_clock("+4h");
        let material = self.daemon.dir.join("material");
        import_or_rotate(&self.daemon, &material, &["key", "rotate", "volumes"]);
        let newest = self.admin.get(&self.key).await.unwrap().primary_version;
        let done = self.event(KeyEventType::Rotate).await;
        assert_eq!(done.len(), 8, "{done:?}");
        for registration in self.service.rootkeyd.registrations(&self.key, "").await.unwrap() {
            assert_eq!(registration.key_version, newest, "{}", registration.resource);
        }
        for (name, resource) in &self.service.lock().unwrap().state.resources {
            assert_eq!(resource.key_version, newest, "{name}");
        }
        self.the_server_works("web").await;
        self.service.attach("alone", "spare").await.unwrap();
        self.service.read("alone", at_start(0xa5)).unwrap();
        self.service.detach("alone").await.unwrap();
    }

    // --- authorization removed -----------------------------------------------

    async fn remove_the_authorization(&mut self) {
        self.chapter("the service's authorization is removed");
        let authorization = self.admin.authorization_of("block-storage").await;
        self.admin.deauthorize(&authorization).await.unwrap();
    }

    async fn without_authorization_what_runs_goes_on_and_nothing_begins(&mut self) {
        let service = &self.service;
        self.the_server_works("web").await;
        service.read("data", after_start(0x5a)).unwrap();
        service.read("share", after_start(0x5b)).unwrap();
        refused(service.attach("alone", "spare").await, DENIED);
        refused(service.restore("new", "snap").await, DENIED);
        refused(service.provision_from_image("new", "volumes", "base").await, DENIED);
        refused(service.provision("new", Kind::DataVolume, "volumes", MIB).await, DENIED);
        service.stop("web").unwrap();
        refused(service.start("web").await, DENIED);
        service.unmount("share").unwrap();
        refused(service.mount("share").await, DENIED);
        self.statuses(&[
            ("base", "active", ""),
            ("root", "available", ""),
            ("data", "available", ""),
            ("snap", "stable", ""),
            ("share", "stable", ""),
            ("web", "available", ""),
        ]);
    }

    /// What the seed warns of: the key stays registered with a resource that is gone,
    /// until the authorization is back.
    async fn what_is_deleted_meanwhile_stays_registered(&mut self) {
        refused(self.service.delete("restored").await, DENIED);
        assert!(!self.service.blocks("restored").exists());
        self.chapter("the authorization is back");
        self.admin.authorize("block-storage", "instances/default").await.unwrap();
        let before = self.left_behind().await;
        self.service.delete("restored").await.unwrap();
        let after = self.left_behind().await;
        assert_eq!((after.0, after.1), (before.0 - 1, before.1 - 1));
        self.service.mount("share").await.unwrap();
        self.service.read("share", after_start(0x5b)).unwrap();
    }

    // --- how it is told ------------------------------------------------------

    fn chapter(&self, title: &str) {
        println!("{:5.1} s  {title}", self.began.elapsed().as_secs_f32());
    }

    /// The daemon tells the service what happened, the service does what it asks; and
    /// nothing, when it comes twice.
    async fn event(&mut self, kind: KeyEventType) -> Vec<String> {
        let event = tokio::time::timeout(Duration::from_secs(60), self.events.next()).await;
        let event = event.expect("an event in time").unwrap();
        assert_eq!((event.r#type(), &event.key), (kind, &self.key));
        let done = self.service.answer(&event).await.unwrap();
        let again = self.service.answer(&event).await.unwrap();
        assert!(again[0].ends_with("was dealt with already"), "{again:?}");
        assert!(self.service.rootkeyd.acknowledge(&event, "").await.unwrap(), "all have");
        done
    }

    #[track_caller]
    fn statuses(&self, wanted: &[(&str, &str, &str)]) {
        let metadata = self.service.lock().unwrap();
        for (name, status, reason) in wanted {
            let is = match metadata.server(name) {
                Ok(server) => statuses::of_server(&metadata, server),
                Err(_) => statuses::of_resource(metadata.resource(name).unwrap()),
            };
            assert_eq!(is, (*status, *reason), "{name}");
        }
    }

    fn attachment(&self, name: &str) -> String {
        let metadata = self.service.lock().unwrap();
        metadata.resource(name).unwrap().attachment.clone().unwrap().id
    }

    /// Its system prints once a second.
    async fn the_server_works(&self, name: &str) {
        assert!(self.service.runs(name));
        let machine = self.service.machine(name);
        let before = machine.printed().len();
        self.daemon.until("the server prints", async || machine.printed().len() > before).await;
    }

    /// Registrations, entries and files.
    async fn left_behind(&self) -> (usize, usize, usize) {
        let registered = self.service.rootkeyd.registrations(&self.key, "").await.unwrap().len();
        let entries = self.service.lock().unwrap().state.resources.len();
        (registered, entries, fs::read_dir(self.daemon.dir.join("service/images")).unwrap().count())
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        let Ok(metadata) = self.service.lock() else { return };
        for name in metadata.state.servers.keys() {
            let _best = self.service.machine(name).stop();
        }
        for name in metadata.state.resources.keys() {
            let _best = self.service.export(name).close();
        }
    }
}

fn open(daemon: &Daemon) -> VolumeService {
    let mut config = ClientConfig::load(&daemon.dir.join("client.toml")).unwrap();
    config.use_identity("block-storage");
    let policy = RetryPolicy { deadline: Duration::from_secs(60), ..RetryPolicy::default() };
    let rootkeyd = StorageClient::open(config, policy).unwrap();
    VolumeService::open(&daemon.dir.join("service"), &boot_file("vmlinuz"), 50, rootkeyd).unwrap()
}

/// Gives the command new material in a file, which goes at once.
fn import_or_rotate(daemon: &Daemon, material: &Path, command: &[&str]) {
    let mut random = [0; 32];
    getrandom::fill(&mut random).unwrap();
    fs::write(material, random).unwrap();
    let output = daemon.cli(command).arg("--file").arg(material).output().unwrap();
    fs::remove_file(material).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn refused(result: Result<(), Failure>, (reason, status_reason): (&str, &str)) {
    match result {
        Err(Failure::Refused(refusal)) => {
            assert_eq!(refusal.reason, reason, "{refusal}");
            assert_eq!(refusal.status_reason.as_deref().unwrap_or_default(), status_reason);
            assert_eq!(refusal.why().status_reason().unwrap_or_default(), status_reason);
        }
        other => panic!("not refused with {reason}: {other:?}"),
    }
}

fn at_start(pattern: u8) -> Extent {
    Extent { pattern, offset: 0, length: 65536 }
}

fn after_start(pattern: u8) -> Extent {
    Extent { pattern, offset: 65536, length: 65536 }
}

fn boot_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/boot").join(name)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

const MIB: u64 = 1 << 20;
const DISABLED: &str = "encryption_key_disabled";
const DELETED: &str = "encryption_key_deleted";
const SUSPENDED: (&str, &str) = ("KEY_SUSPENDED", DISABLED);
const DESTROYED: (&str, &str) = ("KEY_DESTROYED", DELETED);
const DENIED: (&str, &str) = ("PERMISSION_DENIED", "");
