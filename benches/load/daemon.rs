//! The daemon that is measured, as `rootkeyd dev` makes it in a directory of its own, with
//! everything on: mutual TLS, authorization, a durable audit record for each DEK. And the
//! echo beside it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rootkeyd::api::pb;
use rootkeyd::api::pb::crypto_service_client::CryptoServiceClient;
use rootkeyd::api::pb::key_service_client::KeyServiceClient;
use rootkeyd::domain::Aad;
use rootkeyd::envelope::authenticated;
use rusqlite::Connection;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::callers::Target;
use crate::connect;
use crate::peer::Peer;

#[path = "../../tests/chaos-pkcs11/layout.rs"]
#[allow(dead_code, unreachable_pub, reason = "the module uses the other part")]
mod layout;

pub struct Daemon {
    /// Ends with it.
    _peer: Peer,
    address: String,
    pub directory: PathBuf,
    pub target: Target,
    /// Name of the key version that wraps.
    pub version: String,
    pub wrapped: usize,
    network: Option<Network>,
}

/// The module in front of SoftHSM that is as slow as a network.
struct Network(File);

impl Network {
    fn at(path: &Path) -> Self {
        fs::write(path, vec![0; layout::WORDS * 8]).unwrap();
        let network = Self(File::options().write(true).open(path).unwrap());
        let slow = ["C_Encrypt", "C_Decrypt"];
        let bit = |name| 1_u64 << layout::FUNCTIONS.iter().position(|it| *it == name).unwrap();
        network.set(layout::LATENCY_OF, slow.map(bit).iter().sum());
        network
    }

    fn set(&self, word: usize, value: u64) {
        self.0.write_all_at(&value.to_ne_bytes(), word as u64 * 8).unwrap();
    }
}

impl Daemon {
    /// With SoftHSM.
    pub fn start(runtime: &Runtime, directory: &Path) -> Self {
        make(directory);
        configure(directory, |config| format!("{config}{LIMITS}"));
        let peer = begin(&mut dev(directory));
        Self::with(runtime, directory, peer, None)
    }

    /// With a simulated network HSM of 16 sessions.
    pub fn start_network(runtime: &Runtime, directory: &Path) -> Self {
        make(directory);
        let (shim, control) = (shim(), directory.join("control"));
        let module = module_of(directory);
        let real = format!("module = {:?}", module.display().to_string());
        let ours = format!("module = {:?}\nworkers = {SESSIONS}", shim.display().to_string());
        configure(directory, |config| config.replace(&real, &ours) + LIMITS);
        let network = Network::at(&control);
        let mut command = dev(directory);
        command.env("CHAOS_PKCS11_MODULE", &module).env("CHAOS_PKCS11_CONTROL", &control);
        Self::with(runtime, directory, begin(&mut command), Some(network))
    }

    fn with(
        runtime: &Runtime,
        directory: &Path,
        (peer, address): (Peer, String),
        network: Option<Network>,
    ) -> Self {
        let channels = channels(runtime, (directory, "admin"), &address, CONNECTIONS);
        let key = pb::Key { display_name: "bench".into(), ..Default::default() };
        let request = pb::CreateKeyRequest {
            parent: "instances/default".into(),
            key: Some(key),
            request_id: String::new(),
        };
        let mut keys = KeyServiceClient::new(channels[0].clone());
        let key = runtime.block_on(keys.create_key(request)).unwrap().into_inner().name;
        let wrap = pb::WrapDekRequest {
            register: None,
            key: key.clone(),
            dek: vec![1; DEK],
            aad: vec![RESOURCE.into()],
            resource: String::new(),
        };
        let mut crypto = CryptoServiceClient::new(channels[0].clone());
        let wrapped = runtime.block_on(crypto.wrap_dek(wrap.clone())).unwrap().into_inner();
        let unwrap = pb::UnwrapDekRequest {
            key,
            wrapped_dek: wrapped.wrapped_dek.to_vec(),
            aad: wrap.aad.clone(),
            resource: String::new(),
        };
        let target = Target { pid: peer.pid(), channels, unwrap, wrap };
        Self {
            _peer: peer,
            address,
            directory: directory.into(),
            target,
            version: wrapped.key_version,
            wrapped: wrapped.wrapped_dek.len(),
            network,
        }
    }

    /// So many connections with the certificate of `name`.
    pub fn connect(&self, runtime: &Runtime, name: &str, count: usize) -> Vec<Channel> {
        channels(runtime, (&self.directory, name), &self.address, count)
    }

    /// How long a call to the HSM takes from now on, in microseconds.
    pub fn set_latency(&self, micros: u64) {
        self.network.as_ref().unwrap().set(layout::LATENCY, micros);
    }

    /// A server that answers as this one, beside it.
    pub fn echo(&self, runtime: &Runtime, options: &[&str]) -> (Peer, Target) {
        let (dek, wrapped) = (DEK.to_string(), self.wrapped.to_string());
        let tls = self.directory.join("tls");
        let arguments = ["echo", tls.to_str().unwrap(), &dek, &wrapped, &self.version];
        let mut peer = Peer::start(Peer::role(&arguments).args(options));
        let address = peer.line("listening on ");
        let channels = channels(runtime, (&self.directory, "admin"), &address, CONNECTIONS);
        let target = Target { pid: peer.pid(), channels, ..self.target.clone() };
        (peer, target)
    }

    /// Loops on this one's token, with its key.
    pub fn token_loop(&self) -> Peer {
        let pin = self.directory.join("pin");
        let (dek, aad) = (DEK.to_string(), self.authenticated().to_string());
        let object = self.object();
        let real = module_of(&self.directory);
        let module = if self.network.is_some() { shim() } else { real.clone() };
        let [module, pin] = [&module, &pin].map(|path| path.to_str().unwrap());
        let mut command = Peer::role(&["token", module, pin, &object, &dek, &aad]);
        command.env("SOFTHSM2_CONF", self.directory.join("softhsm2.conf"));
        let control = self.directory.join("control");
        command.env("CHAOS_PKCS11_MODULE", &real).env("CHAOS_PKCS11_CONTROL", &control);
        let mut peer = Peer::start(&mut command);
        peer.line("ready");
        peer
    }

    /// Length of what is authenticated in the token, in bytes.
    fn authenticated(&self) -> usize {
        let mut ids = self.version.split('/').filter_map(|part| part.parse::<Uuid>().ok());
        let (key, version) = (ids.next().unwrap(), ids.next().unwrap());
        let aad = Aad::new(vec![RESOURCE.into()]).unwrap();
        authenticated(key.into(), version.into(), &aad).len()
    }

    /// CKA_ID of the root key, in hex.
    fn object(&self) -> String {
        let version: Uuid = self.version.rsplit('/').next().unwrap().parse().unwrap();
        let store = Connection::open(self.directory.join("state/store.sqlite")).unwrap();
        let query = "SELECT lower(hex(object)) FROM key_versions WHERE id = ?";
        store.query_row(query, [version.as_bytes()], |row| row.get(0)).unwrap()
    }

    /// Bytes in the audit log.
    pub fn audit_bytes(&self) -> u64 {
        let files = fs::read_dir(self.directory.join("state/audit")).unwrap();
        let logs = files
            .map(|file| file.unwrap())
            .filter(|file| file.path().extension().is_some_and(|extension| extension == "log"));
        logs.map(|file| file.metadata().unwrap().len()).sum()
    }
}

fn dev(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rootkeyd"));
    command.args(["dev", "--listen", "127.0.0.1:0", "--dir"]).arg(directory);
    command.env("ROOTKEYD_LOG", "warn").stderr(Stdio::inherit());
    command
}

fn begin(command: &mut Command) -> (Peer, String) {
    let mut peer = Peer::start(command);
    let address = peer.line("listening on ");
    (peer, address)
}

/// Has the daemon make its directory.
fn make(directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    begin(&mut dev(directory)).0.stop();
}

fn configure(directory: &Path, edit: impl FnOnce(String) -> String) {
    let config = directory.join("rootkeyd.toml");
    fs::write(&config, edit(fs::read_to_string(&config).unwrap())).unwrap();
}

/// The PKCS#11 module of SoftHSM, as the daemon found it.
fn module_of(directory: &Path) -> PathBuf {
    let config = fs::read_to_string(directory.join("rootkeyd.toml")).unwrap();
    let made = directory.join("module");
    if let Ok(known) = fs::read_to_string(&made) {
        return known.into();
    }
    let module = config.lines().find_map(|line| line.strip_prefix("module = ")).unwrap();
    fs::write(&made, module.trim_matches('"')).unwrap();
    module.trim_matches('"').into()
}

/// Cargo puts examples beside the binaries.
fn shim() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_rootkeyd")).parent().unwrap();
    let shim = built.join("examples/libchaos_pkcs11.so");
    assert!(shim.exists(), "cargo build --release --example chaos_pkcs11");
    shim
}

fn channels(
    runtime: &Runtime,
    (directory, name): (&Path, &str),
    address: &str,
    count: usize,
) -> Vec<Channel> {
    let endpoint = connect::endpoint((directory, name), address);
    (0..count).map(|_| runtime.block_on(endpoint.connect()).unwrap()).collect()
}

/// Sessions of the simulated network HSM, of which each does one call at a time.
pub const SESSIONS: usize = 16;
/// Among which the callers are dealt out.
pub const CONNECTIONS: usize = 8;
/// Length of a DEK, in bytes.
const DEK: usize = 32;
/// The AAD of each DEK.
const RESOURCE: &str = "crn:v1:rootkeyd:public:is:local:a/bench::volume:1";
/// One principal does all of it: the rate is looked at, and never reached.
const LIMITS: &str = "\n[limits]\ndata_per_second = 1000000000\n";
