//! The daemon itself: its start, its stop, its directory, who may connect, and
//! what it does while the HSM is away.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{Client, DAEMON, Daemon, refusal};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair, SanType};
use rootkeyd::api::pb;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn a_second_daemon_on_the_same_directory_refuses_to_start_and_names_the_first() {
    let daemon = Daemon::start();
    let config = daemon.dir.join("rootkeyd.toml");
    let mut dev = Command::new(DAEMON);
    dev.args(["dev", "--listen", "127.0.0.1:0", "--dir"]).arg(&daemon.dir);
    let mut configured = Command::new(DAEMON);
    configured.arg("--config").arg(&config).env("SOFTHSM2_CONF", daemon.dir.join("softhsm2.conf"));
    for mut second in [dev, configured] {
        let output = second.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(said.contains(&format!("pid {}", daemon.pid())), "{said}");
    }
    assert!(daemon.client("admin").await.create("volumes").await.name.len() > 10);
}

#[tokio::test]
async fn a_directory_can_be_copied_and_served_from_another_path() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let wrapped = client.wrap(&key, b"dek", &[]).await.unwrap();
    daemon.stop().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let copied = elsewhere.path().join("another name");
    copy(&daemon.dir, &copied);
    let other = Daemon::start_in(&copied);
    // Nothing of the first one is looked at.
    fs::rename(&daemon.dir, daemon.dir.with_extension("away")).unwrap();
    let mut client = other.client("admin").await;
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
    client.rotate(&key).await.unwrap();
    assert!(client.unwrap(&key, &wrapped, &[]).await.is_ok());
    fs::rename(daemon.dir.with_extension("away"), &daemon.dir).unwrap();
}

#[test]
fn dev_makes_what_its_interface_says_for_its_owner_alone() {
    let daemon = Daemon::start();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for name in ["ca", "server", "admin", "block-storage", "file-storage", "image"] {
        for kind in ["pem", "key"] {
            let file = daemon.dir.join("tls").join(format!("{name}.{kind}"));
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
    }
    for file in ["client.toml", "rootkeyd.toml", "pin", "state/store.sqlite", "state/lock"] {
        assert_eq!(mode(&daemon.dir.join(file)), 0o600, "{file}");
    }
    for directory in ["tls", "tokens", "state", "state/audit"] {
        assert_eq!(mode(&daemon.dir.join(directory)), 0o700, "{directory}");
    }
    let client = fs::read_to_string(daemon.dir.join("client.toml")).unwrap();
    assert!(client.contains(&format!("https://{}", daemon.address)), "{client}");
}

/// `rootkeyd --config`, on the directory of a daemon that was stopped.
struct Configured {
    child: Child,
    address: String,
}

impl Configured {
    fn command(dir: &Path) -> Command {
        let mut command = Command::new(DAEMON);
        command.arg("--config").arg(dir.join("rootkeyd.toml"));
        command.env("SOFTHSM2_CONF", dir.join("softhsm2.conf"));
        command
    }

    fn start(mut command: Command, log: &Path) -> Self {
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        Self { child, address }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory that a daemon has made and left, which serves any free port.
async fn left_behind() -> Daemon {
    let mut daemon = Daemon::start();
    daemon.stop().await;
    daemon
}

async fn health(daemon: &Daemon) -> i32 {
    let channel = daemon.endpoint(Some("admin")).connect().await.unwrap();
    let request = HealthCheckRequest { service: "rootkeyd.v1.CryptoService".into() };
    HealthClient::new(channel).check(request).await.unwrap().into_inner().status
}

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

#[tokio::test]
async fn a_configuration_serves_without_dev_and_takes_the_pin_from_a_credential() {
    let mut daemon = left_behind().await;
    let config = daemon.dir.join("rootkeyd.toml");
    let text = fs::read_to_string(&config).unwrap();
    let credentials = daemon.dir.join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::rename(daemon.dir.join("pin"), credentials.join("hsm-pin")).unwrap();
    fs::write(&config, text.replace("pin_file = \"pin\"", "pin_credential = \"hsm-pin\"")).unwrap();
    let mut command = Configured::command(&daemon.dir);
    command.env("CREDENTIALS_DIRECTORY", &credentials);
    let configured = Configured::start(command, &daemon.log);
    daemon.address.clone_from(&configured.address);
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    assert!(client.wrap(&key, b"dek", &[]).await.is_ok());
    drop(configured);

    fs::write(&config, text.replace("[hsm]", "[hsm]\npasword = \"x\"")).unwrap();
    let output = Configured::command(&daemon.dir).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("pasword"), "{said}");
}

fn token_directory(dir: &Path) -> PathBuf {
    let mut tokens = fs::read_dir(dir.join("tokens")).unwrap();
    tokens.next().unwrap().unwrap().path()
}

async fn hsm_status(client: &Client) -> pb::HsmStatus {
    let mut admin = client.admin.clone();
    admin.get_hsm_status(pb::GetHsmStatusRequest {}).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_token_that_is_lost_refuses_with_hsm_unavailable_and_comes_back_by_itself() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let other = client.create("other").await.name;
    let wrapped = client.wrap(&key, b"dek", &[]).await.unwrap();
    let (token, away) = (token_directory(&daemon.dir), daemon.dir.join("away"));
    for round in 0..3 {
        fs::rename(&token, &away).unwrap();
        if round == 1 {
            // Nobody asks: the daemon notices by itself.
            daemon.until("NOT_SERVING", async || health(&daemon).await == NOT_SERVING).await;
        }
        // While it is noticed an unwrap may still succeed, and be refused for no
        // other reason.
        daemon
            .until("HSM_UNAVAILABLE", async || {
                let Err(refused) = client.clone().unwrap(&key, &wrapped, &[]).await else {
                    return false;
                };
                assert_eq!(refused.reason, "HSM_UNAVAILABLE", "{refused:?}");
                assert!(refused.code == Code::Unavailable && refused.retry_after.is_some());
                true
            })
            .await;
        assert_eq!(health(&daemon).await, NOT_SERVING);
        let status = hsm_status(&client).await;
        assert!(!status.ready && !status.problem.is_empty() && !status.round_trip);
        let create =
            client.create_key(pb::Key { display_name: "new".into(), ..Default::default() });
        assert_eq!(create.await.unwrap_err().reason, "HSM_UNAVAILABLE");
        // What needs no HSM goes on.
        if round == 0 {
            client.disable(&other).await.unwrap();
        }
        fs::rename(&away, &token).unwrap();
        daemon.until("SERVING", async || health(&daemon).await == SERVING).await;
        assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
        let status = hsm_status(&client).await;
        assert!(status.ready && status.round_trip);
        assert_eq!(status.missing, 0);
    }
    assert_eq!(client.wrap(&other, b"dek", &[]).await.unwrap_err().reason, "KEY_SUSPENDED");
}

#[tokio::test]
async fn a_token_that_is_absent_at_start_is_no_reason_not_to_start() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let wrapped = client.wrap(&key, b"dek", &[]).await.unwrap();
    daemon.stop().await;
    let (token, away) = (token_directory(&daemon.dir), daemon.dir.join("away"));
    fs::rename(&token, &away).unwrap();
    let configured = Configured::start(Configured::command(&daemon.dir), &daemon.log);
    daemon.address.clone_from(&configured.address);
    assert_eq!(health(&daemon).await, NOT_SERVING);
    let mut client = daemon.client("admin").await;
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap_err().reason, "HSM_UNAVAILABLE");
    assert!(client.get(&key).await.is_ok());
    assert!(hsm_status(&client).await.problem.contains("no slot has a token"));
    fs::rename(&away, &token).unwrap();
    daemon.until("SERVING", async || health(&daemon).await == SERVING).await;
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
}

#[tokio::test]
async fn a_wrong_pin_is_tried_once_and_again_when_its_file_changes() {
    let mut daemon = left_behind().await;
    let (pin, right) = (daemon.dir.join("pin"), fs::read(daemon.dir.join("pin")).unwrap());
    fs::write(&pin, "not the pin").unwrap();
    let configured = Configured::start(Configured::command(&daemon.dir), &daemon.log);
    daemon.address.clone_from(&configured.address);
    let client = daemon.client("admin").await;
    let problem = hsm_status(&client).await.problem;
    assert!(problem.contains("refused the PIN") && !problem.contains("not the pin"), "{problem}");
    // Long enough for several tries, if it made them.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(daemon.logged().matches("refused the PIN").count(), 1);
    fs::write(&pin, right).unwrap();
    daemon.until("SERVING", async || health(&daemon).await == SERVING).await;
}

#[tokio::test]
async fn a_root_key_object_that_is_gone_is_hsm_key_missing_and_its_key_is_kept() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let token = token_directory(&daemon.dir);
    let objects = || -> Vec<PathBuf> {
        let entries = fs::read_dir(&token).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|e| e == "object")).collect()
    };
    let key = client.create("kept").await.name;
    let before = objects();
    let gone = client.create("gone").await.name;
    let object = objects().into_iter().find(|path| !before.contains(path)).unwrap();
    let (of_key, of_gone) = (
        client.wrap(&key, b"dek", &[]).await.unwrap(),
        client.wrap(&gone, b"dek", &[]).await.unwrap(),
    );
    daemon.stop().await;
    fs::remove_file(object).unwrap();
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    let refused = client.unwrap(&gone, &of_gone, &[]).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::DataLoss, "HSM_KEY_MISSING"));
    assert_eq!(refused.metadata["key_protect_code"], "INCOMPLETE_METADATA_ERR");
    assert!(client.unwrap(&key, &of_key, &[]).await.is_ok());
    assert!(client.get(&gone).await.is_ok());
    let status = hsm_status(&client).await;
    assert_eq!((status.missing, status.orphans), (1, 0));
    assert!(daemon.logged().contains("HSM_KEY_MISSING"));
}

#[tokio::test]
async fn an_object_that_no_key_names_is_reported_and_left_alone() {
    let mut daemon = left_behind().await;
    let token = token_directory(&daemon.dir);
    // Another daemon's key in our token: its store knows nothing of ours.
    daemon.start_again();
    daemon.client("admin").await.create("volumes").await;
    daemon.stop().await;
    let count = || fs::read_dir(&token).unwrap().count();
    let before = count();
    for file in ["store.sqlite", "store.sqlite-wal"] {
        let _ = fs::remove_file(daemon.dir.join("state").join(file));
    }
    daemon.start_again();
    let client = daemon.client("admin").await;
    assert_eq!(hsm_status(&client).await.orphans, 1);
    daemon.stop().await;
    assert_eq!(count(), before);
}

#[tokio::test]
async fn sigterm_answers_what_was_begun_and_ends_well() {
    let mut daemon = Daemon::start();
    for _ in 0..5 {
        let mut client = daemon.client("admin").await;
        let key = client.create("volumes").await.name;
        let calls: Vec<_> = (0..16)
            .map(|_| {
                let (mut client, key) = (client.clone(), key.clone());
                tokio::spawn(async move {
                    for _ in 0..10_000 {
                        let request = pb::WrapDekRequest {
                            key: key.clone(),
                            dek: b"dek".to_vec(),
                            ..Default::default()
                        };
                        if let Err(status) = client.crypto.wrap_dek(request).await {
                            return status;
                        }
                    }
                    panic!("the daemon did not stop")
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(client);
        // Exit code 0: no crash in the module either.
        daemon.stop().await;
        for call in calls {
            let status = call.await.unwrap();
            let gone = [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal];
            assert!(gone.contains(&status.code()), "{status:?}");
        }
        daemon.start_again();
    }
    daemon.stop().await;
    rootkeyd::audit::verify(&daemon.dir.join("state/audit")).unwrap();
}

/// A client certificate of the daemon's own CA.
fn issue(daemon: &Daemon, uris: &[&str]) -> (String, String) {
    let tls = daemon.dir.join("tls");
    let ca = fs::read_to_string(tls.join("ca.key")).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "rootkeyd dev CA");
    let issuer = Issuer::new(params, KeyPair::from_pem(&ca).unwrap());
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "spiffe://rootkeyd.dev/admin");
    params.subject_alt_names =
        uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
}

#[tokio::test]
async fn a_certificate_that_names_nobody_or_two_is_unauthenticated_and_recorded() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let key = admin.create("volumes").await.name;
    let cases: [&[&str]; 3] = [
        &[],
        &["spiffe://rootkeyd.dev/admin", "spiffe://rootkeyd.dev/other"],
        &["https://rootkeyd.dev/admin"],
    ];
    for uris in cases {
        let (certificate, private_key) = issue(&daemon, uris);
        let tls = daemon.dir.join("tls");
        fs::write(tls.join("nobody.pem"), certificate).unwrap();
        fs::write(tls.join("nobody.key"), private_key).unwrap();
        let mut nobody = daemon.client("nobody").await;
        let refused = nobody.get(&key).await.unwrap_err();
        assert_eq!(
            (refused.code, refused.reason.as_str()),
            (Code::Unauthenticated, "UNAUTHENTICATED")
        );
    }
    let events = admin.audit_events().await;
    let recorded = events.iter().filter(|event| event.reason == "UNAUTHENTICATED");
    assert!(recorded.clone().all(|event| event.principal.is_empty() && event.subject == key));
    assert_eq!(recorded.count(), 3);

    // Known to TLS, and bound to nothing.
    let (certificate, private_key) = issue(&daemon, &["spiffe://rootkeyd.dev/stranger"]);
    fs::write(daemon.dir.join("tls/stranger.pem"), certificate).unwrap();
    fs::write(daemon.dir.join("tls/stranger.key"), private_key).unwrap();
    let refused = daemon.client("stranger").await.get(&key).await.unwrap_err();
    assert_eq!(refused.reason, "PERMISSION_DENIED");
}

#[tokio::test]
async fn without_a_certificate_of_the_ca_there_is_no_connection() {
    let daemon = Daemon::start();
    let other = Daemon::start();
    for name in ["admin.pem", "admin.key"] {
        let from = other.dir.join("tls").join(name);
        fs::copy(from, daemon.dir.join("tls").join(name.replace("admin", "foreign"))).unwrap();
    }
    for name in [None, Some("foreign")] {
        // TLS 1.3 tells the client only when it sends.
        let refused = match daemon.endpoint(name).connect().await {
            Err(_refused) => continue,
            Ok(channel) => {
                let request = pb::GetServerInfoRequest {};
                Client::new(channel).admin.get_server_info(request).await.unwrap_err()
            }
        };
        assert!([Code::Unavailable, Code::Unknown].contains(&refused.code()), "{refused:?}");
    }
}

/// The version and key exchange of a connection, if it comes about.
async fn handshake(
    daemon: &Daemon,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> std::io::Result<(rustls::ProtocolVersion, rustls::NamedGroup)> {
    let tls = daemon.dir.join("tls");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(tls.join("ca.pem")).unwrap()).unwrap();
    let certificate = CertificateDer::from_pem_file(tls.join("admin.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(tls.join("admin.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address: SocketAddr = daemon.address.parse().unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let connection = connector.connect(name, stream).await?;
    let connection = connection.get_ref().1;
    let group = connection.negotiated_key_exchange_group().unwrap().name();
    Ok((connection.protocol_version().unwrap(), group))
}

#[tokio::test]
async fn tls_is_1_3_alone_with_a_hybrid_key_exchange() {
    let daemon = Daemon::start();
    let (version, group) = handshake(&daemon, rustls::ALL_VERSIONS).await.unwrap();
    assert_eq!(version, rustls::ProtocolVersion::TLSv1_3);
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert!(handshake(&daemon, &[&rustls::version::TLS12]).await.is_err());
}

#[tokio::test]
async fn the_server_says_what_it_is() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    client.create("volumes").await;
    let info = async |client: &mut Client| {
        client
            .admin
            .get_server_info(pb::GetServerInfoRequest {})
            .await
            .map_err(refusal)
            .unwrap()
            .into_inner()
    };
    let first = info(&mut client).await;
    assert_eq!(
        (first.version.as_str(), first.profile.as_str()),
        (env!("CARGO_PKG_VERSION"), "vpc")
    );
    assert_eq!(first.key_count, 1);
    daemon.stop().await;
    daemon.start_again();
    let second = info(&mut daemon.client("admin").await).await;
    assert_ne!(first.boot_id, second.boot_id);
    assert!(second.audit_event_count >= first.audit_event_count);
}
