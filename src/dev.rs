//! `rootkeyd dev`: a daemon that needs no configuration. On first use it makes
//! in a directory all that it needs: a SoftHSM token, a PIN, a CA with
//! certificates, and a configuration, which it then serves like any other.
//!
//! The directory can be copied while the daemon is stopped: every path in it is
//! relative but SoftHSM's own, and that file is written at each start.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use jiff::{Span, SpanRelativeTo};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use thiserror::Error;

use crate::clock::{ClockSource, RawTime};
use crate::config::{Config, ConfigError};
use crate::domain::Timestamp;
use crate::hsm::make_token;
use crate::secret::Secret;

/// Why the directory cannot be used, in a sentence.
#[derive(Debug, Error)]
pub enum DevError {
    /// A file cannot be made, read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// SoftHSM is not installed.
    #[error("SoftHSM is not installed; `make setup` installs it")]
    NoSoftHsm,
    /// SoftHSM did not make the token.
    #[error("the token cannot be made: {0}")]
    Token(String),
    /// No certificate could be made.
    #[error("a certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// There is no randomness.
    #[error("the system has no random bytes to give")]
    Random,
    /// The configuration in the directory cannot be used.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The file of the test clock holds no time.
    #[error("{}: {problem}", path.display())]
    Clock {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// Makes sure that this process runs with `SOFTHSM2_CONF` set to the directory's
/// own file: if it does not, it starts itself anew. SoftHSM reads nothing but
/// the environment, which must not be changed in a process with threads.
///
/// # Errors
/// [`DevError`], if it cannot start itself.
pub fn with_softhsm(directory: &Path) -> Result<(), DevError> {
    make_directory(directory)?;
    let directory = directory.canonicalize().map_err(|source| file(directory, source))?;
    let conf = directory.join("softhsm2.conf");
    if std::env::var_os(SOFTHSM2_CONF).is_some_and(|set| set == *conf) {
        return Ok(());
    }
    let tokens = directory.join("tokens");
    make_directory(&tokens)?;
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n\
         slots.removable = false\n",
        tokens.display()
    );
    write_file(&conf, text.as_bytes())?;
    let program = std::env::current_exe().map_err(|source| file(&conf, source))?;
    // Returns only if it failed.
    let source =
        Command::new(&program).args(std::env::args_os().skip(1)).env(SOFTHSM2_CONF, conf).exec();
    Err(file(&program, source))
}

/// Makes in `directory` what is missing, and reads its configuration.
///
/// # Errors
/// [`DevError`].
pub fn prepare(directory: &Path, listen: SocketAddr) -> Result<Config, DevError> {
    let tls = directory.join("tls");
    make_directory(&tls)?;
    let module = softhsm_module()?;
    let pin = directory.join("pin");
    if !pin.exists() {
        let mut random = [0; 12];
        getrandom::fill(&mut random).map_err(|_none| DevError::Random)?;
        write_file(&pin, hex::encode(random).as_bytes())?;
    }
    let text = Secret::new(fs::read(&pin).map_err(|source| file(&pin, source))?);
    let tokens = directory.join("tokens");
    let is_new = fs::read_dir(&tokens).is_ok_and(|mut it| it.next().is_none());
    let patience = if is_new { Duration::ZERO } else { TOKEN_PATIENCE };
    make_token(&module, TOKEN_LABEL, &text, patience).map_err(DevError::Token)?;
    make_certificates(&tls, listen.ip())?;
    let config = directory.join("rootkeyd.toml");
    if !config.exists() {
        write_file(&config, configuration(&module, listen).as_bytes())?;
    }
    let mut config = Config::read(&config)?;
    config.listen = listen;
    Ok(config)
}

/// Writes `client.toml`, for clients of the daemon that listens on `address`.
///
/// # Errors
/// [`DevError`].
pub fn write_client_config(directory: &Path, address: SocketAddr) -> Result<(), DevError> {
    let host = if address.ip().is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    };
    let text = format!(
        "# Written by `rootkeyd dev` at each start. Paths are relative to this file.\n\
         endpoint = \"https://{host}\"\n\
         instance = \"{INSTANCE}\"\n\
         ca = \"tls/ca.pem\"\n\
         certificate = \"tls/admin.pem\"\n\
         key = \"tls/admin.key\"\n"
    );
    write_file(&directory.join("client.toml"), text.as_bytes())
}

/// Clocks for tests: what `path` says, at each reading. `system` is the time of
/// `system`; `+31s` is 31 seconds later; an RFC 3339 time stands still. That is how
/// much time has passed, by both clocks. After ` wall ` the same can follow for the
/// date alone: `system wall +365d` is a date that is a year ahead of the time that has
/// passed. A file that cannot be understood later leaves the clocks where they were.
///
/// # Errors
/// [`DevError`], if the file cannot be understood now. A missing one is made.
pub fn file_clocks(path: &Path, system: &ClockSource) -> Result<ClockSource, DevError> {
    if !path.exists() {
        write_file(path, b"system\n")?;
    }
    let bad = |problem: String| DevError::Clock { path: path.into(), problem };
    let text = fs::read_to_string(path).map_err(|source| file(path, source))?;
    let last = Mutex::new(parse_clocks(&text).map_err(bad)?);
    let (path, system) = (path.to_owned(), Arc::clone(&system.read));
    let read = move || {
        let read = fs::read_to_string(&path).map_err(|error| error.to_string());
        let mut last = last.lock();
        match read.and_then(|text| parse_clocks(&text)) {
            Ok(setting) => *last = setting,
            Err(problem) => tracing::error!(path = %path.display(), problem, "the test clock"),
        }
        last.at(system().time)
    };
    Ok(ClockSource { boot: "test clock".into(), read: Arc::new(read) })
}

/// What the test clocks are set to: the time that has passed, and the date.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Settings {
    passed: Setting,
    date: Setting,
}

impl Settings {
    fn at(self, system: Timestamp) -> RawTime {
        let passed = self.passed.at(system).as_micros();
        RawTime { time: self.date.at(system), steady: u64::try_from(passed).unwrap_or(0) }
    }
}

fn parse_clocks(text: &str) -> Result<Settings, String> {
    let (passed, date) = text.split_once(" wall ").unwrap_or((text, text));
    Ok(Settings { passed: parse_clock(passed)?, date: parse_clock(date)? })
}

/// What a test clock is set to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Setting {
    /// Later than the system by so many microseconds, which may be negative.
    Offset(i64),
    /// Standing.
    At(Timestamp),
}

impl Setting {
    fn at(self, system: Timestamp) -> Timestamp {
        match self {
            Self::Offset(micros) => {
                Timestamp::from_micros(system.as_micros().saturating_add(micros))
            }
            Self::At(time) => time,
        }
    }
}

fn parse_clock(text: &str) -> Result<Setting, String> {
    let text = text.trim();
    let micros = |micros: i128| i64::try_from(micros).unwrap_or(i64::MAX);
    if text == "system" {
        return Ok(Setting::Offset(0));
    }
    if text.starts_with(['+', '-']) {
        let span: Span = text.parse().map_err(|error: jiff::Error| error.to_string())?;
        let days = SpanRelativeTo::days_are_24_hours();
        let span = span.to_duration(days).map_err(|error| error.to_string())?;
        return Ok(Setting::Offset(micros(span.as_micros())));
    }
    let time: jiff::Timestamp = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    Ok(Setting::At(Timestamp::from_micros(time.as_microsecond())))
}

fn configuration(module: &Path, listen: SocketAddr) -> String {
    let mut text = format!(
        "# Made by `rootkeyd dev` on first use; rootkeyd.example.toml explains every field.\n\
         # --listen overrides listen.address.\n\
         state_dir = \"state\"\n\
         profile = \"vpc\"\n\
         crn_prefix = \"crn:v1:rootkeyd:public:kms:local:a/dev\"\n\
         operators = [\"spiffe://{TRUST_DOMAIN}/admin\"]\n\n\
         [listen]\naddress = \"{listen}\"\n\n\
         [tls]\ncertificate = \"tls/server.pem\"\nkey = \"tls/server.key\"\n\
         client_ca = \"tls/ca.pem\"\n\n\
         [hsm]\nmodule = {:?}\ntoken_label = \"{TOKEN_LABEL}\"\npin_file = \"pin\"\n\
         sync_directory = \"tokens\"\n\n\
         # Secrets of development may be swapped out.\n\
         [memory]\nlock = \"off\"\n",
        module.display().to_string()
    );
    for (name, path, role) in CLIENTS {
        let scope = format!("scope = \"instances/{INSTANCE}\"\n");
        text.push_str(&match path.strip_prefix("service/") {
            Some(service) => {
                format!("\n# tls/{name}.pem\n[[authorizations]]\nservice = \"{service}\"\n{scope}")
            }
            None => format!(
                "\n# tls/{name}.pem\n[[bindings]]\n\
                 principal = \"spiffe://{TRUST_DOMAIN}/{path}\"\nrole = \"{role}\"\n{scope}"
            ),
        });
    }
    text
}

/// A CA and the clients' certificates on first use; the server's at each start,
/// since it names the address.
fn make_certificates(tls: &Path, listen: IpAddr) -> Result<(), DevError> {
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "rootkeyd dev CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for_long(&mut ca);
    let (ca_pem, ca_key) = (tls.join("ca.pem"), tls.join("ca.key"));
    if !ca_key.exists() || !ca_pem.exists() {
        let key = KeyPair::generate()?;
        write_file(&ca_pem, ca.self_signed(&key)?.pem().as_bytes())?;
        write_file(&ca_key, key.serialize_pem().as_bytes())?;
    }
    let key = fs::read_to_string(&ca_key).map_err(|source| file(&ca_key, source))?;
    let issuer = Issuer::new(ca, KeyPair::from_pem(&key)?);

    for (name, path, _) in CLIENTS {
        if !tls.join(name).with_extension("pem").exists() {
            let mut params = CertificateParams::default();
            let id = format!("spiffe://{TRUST_DOMAIN}/{path}");
            params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
            issue(tls, name, params, ExtendedKeyUsagePurpose::ClientAuth, &issuer)?;
        }
    }
    let mut params = CertificateParams::new(vec!["localhost".into()])?;
    let mut addresses =
        vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), listen];
    addresses.dedup();
    params.subject_alt_names.extend(addresses.into_iter().map(SanType::IpAddress));
    issue(tls, "server", params, ExtendedKeyUsagePurpose::ServerAuth, &issuer)
}

fn issue(
    tls: &Path,
    name: &str,
    mut params: CertificateParams,
    purpose: ExtendedKeyUsagePurpose,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<(), DevError> {
    params.distinguished_name.push(DnType::CommonName, format!("rootkeyd dev {name}"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    valid_for_long(&mut params);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    write_file(&tls.join(format!("{name}.key")), key.serialize_pem().as_bytes())?;
    write_file(&tls.join(format!("{name}.pem")), certificate.pem().as_bytes())
}

fn valid_for_long(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2024, 1, 1);
    params.not_after = date_time_ymd(2054, 1, 1);
}

fn softhsm_module() -> Result<PathBuf, DevError> {
    let found = SOFTHSM_MODULES.iter().map(PathBuf::from).find(|module| module.exists());
    found.ok_or(DevError::NoSoftHsm)
}

fn make_directory(path: &Path) -> Result<(), DevError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| file(path, source))
}

/// Writes a file for its owner alone, whole or not at all.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), DevError> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || {
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| file(path, source))
}

fn file(path: &Path, source: io::Error) -> DevError {
    DevError::File { path: path.into(), source }
}

/// How long a token that was made before may not be seen.
const TOKEN_PATIENCE: Duration = Duration::from_secs(2);
const SOFTHSM2_CONF: &str = "SOFTHSM2_CONF";
const TOKEN_LABEL: &str = "rootkeyd";
const TRUST_DOMAIN: &str = "rootkeyd.dev";
const INSTANCE: &str = "default";

/// Certificates, SPIFFE paths and roles. The services have what the seed gives
/// them: the role Reader.
const CLIENTS: [(&str, &str, &str); 7] = [
    ("admin", "admin", "Manager"),
    // A second Manager, for what needs two people.
    ("officer", "officer", "Manager"),
    ("writer", "writer", "Writer"),
    ("key-purge", "key-purge", "KeyPurge"),
    ("block-storage", "service/block-storage", "Reader"),
    ("file-storage", "service/file-storage", "Reader"),
    ("image", "service/image", "Reader"),
];

/// Where distributions put SoftHSM.
const SOFTHSM_MODULES: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_test_clock_is_the_systems_or_shifted_or_stands() {
        let system = Timestamp::from_seconds(1_000);
        let at = |text: &str| parse_clock(text).unwrap().at(system);
        assert_eq!(at("system\n"), system);
        assert_eq!(at("+31s"), system + Duration::from_secs(31));
        assert_eq!(at("-1s"), Timestamp::from_seconds(999));
        assert_eq!(at("+2h 5m"), system + Duration::from_secs(7_500));
        assert_eq!(at("+365d 1h"), system + Duration::from_secs(365 * 86_400 + 3_600));
        assert_eq!(at("1970-01-01T00:00:05Z"), Timestamp::from_seconds(5));
        for text in ["", "31s", "tomorrow", "+", "system 5", "+1mo"] {
            assert!(parse_clock(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_date_can_be_wrong_while_time_passes_rightly() {
        let system = Timestamp::from_seconds(1_000);
        let at = |text: &str| parse_clocks(text).unwrap().at(system);
        let raw = |time, steady: u64| RawTime {
            time: Timestamp::from_seconds(time),
            steady: steady * 1_000_000,
        };
        assert_eq!(at("+31s"), raw(1_031, 1_031));
        assert_eq!(at("system wall +31s\n"), raw(1_031, 1_000));
        assert_eq!(at("+1h wall -500s"), raw(500, 4_600));
        assert_eq!(at("-2000s"), raw(-1_000, 0));
        assert!(parse_clocks("system wall").is_err() && parse_clocks(" wall +1s").is_err());
    }

    #[test]
    fn a_test_clock_that_is_spoilt_stays_where_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clock");
        let system = RawTime { time: Timestamp::from_seconds(7), steady: 0 };
        let system = ClockSource { boot: String::new(), read: Arc::new(move || system) };
        let clocks = file_clocks(&path, &system).unwrap();
        let now = || (clocks.read)().time;
        assert_eq!(now(), Timestamp::from_seconds(7));
        fs::write(&path, "+3s").unwrap();
        assert_eq!(now(), Timestamp::from_seconds(10));
        fs::write(&path, "nonsense").unwrap();
        assert_eq!(now(), Timestamp::from_seconds(10));
    }
}
