//! Whom the daemon lets in, by certificate: what TLS refuses and what the log says
//! of it, and what happens to connections when certificates, CAs and revocation
//! lists change under them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Client, Daemon};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Greets as a client with this certificate and chain, or none, and waits for
/// HTTP/2 to begin: under TLS 1.3 a client is done before the server decides.
async fn greet(daemon: &Daemon, identity: Option<(&str, &str)>) -> io::Result<ProtocolVersion> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(daemon.dir.join("tls/ca.pem")).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(&daemon.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    stream.flush().await?;
    // The head of the daemon's SETTINGS.
    stream.read_exact(&mut [0; 9]).await?;
    Ok(stream.get_ref().1.protocol_version().unwrap())
}

/// The certificate and key of a name, as `rootkeyd dev` made them.
fn made_by_dev(daemon: &Daemon, name: &str) -> (String, String) {
    let read = |end| fs::read_to_string(daemon.dir.join(format!("tls/{name}.{end}"))).unwrap();
    (read("pem"), read("key"))
}

#[tokio::test]
async fn without_a_client_certificate_there_is_no_connection() {
    let daemon = Daemon::start();
    let (certificate, key) = made_by_dev(&daemon, "image");
    let greeted = greet(&daemon, Some((&certificate, &key))).await.unwrap();
    assert_eq!(greeted, ProtocolVersion::TLSv1_3);
    let refused = greet(&daemon, None).await.unwrap_err().to_string();
    assert!(refused.contains("CertificateRequired"), "{refused}");

    daemon
        .until("why is in the log", async || daemon.logged().contains("peer sent no certificates"))
        .await;

    // Nor for the services that ask for no permission.
    let Ok(channel) = daemon.endpoint(None).connect().await else { return };
    let checked = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    assert!(checked.is_err(), "{checked:?}");
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let daemon = Daemon::start();
    // Written out, since the rustls of this workspace knows no TLS 1.2.
    let extensions = [
        &[0, 10, 0, 6, 0, 4, 0, 29, 0, 23][..], // supported_groups: X25519, P-256
        &[0, 11, 0, 2, 1, 0],                   // ec_point_formats: uncompressed
        &[0, 13, 0, 8, 0, 6, 4, 3, 8, 4, 4, 1], // signature_algorithms
        &[0, 23, 0, 0],                         // extended_master_secret
        &[0, 16, 0, 5, 0, 3, 2, b'h', b'2'],    // ALPN: h2
    ]
    .concat();
    let mut hello = vec![3, 3];
    hello.extend([7; 32]); // random
    hello.push(0); // no session id
    hello.extend([0, 8, 0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x2c, 0xc0, 0x30]); // ECDHE with AES-GCM
    hello.extend([1, 0]); // no compression
    hello.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    hello.extend(extensions);
    let length = u16::try_from(hello.len()).unwrap();
    let mut record = vec![22, 3, 1];
    record.extend((length + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend(length.to_be_bytes());
    record.extend(hello);

    let mut stream = TcpStream::connect(&daemon.address).await.unwrap();
    stream.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    // One alert, fatal: protocol_version (RFC 8446, section 6.2).
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
    daemon
        .until("why is in the log", async || daemon.logged().contains("peer is incompatible"))
        .await;
    let (certificate, key) = made_by_dev(&daemon, "image");
    let greeted = greet(&daemon, Some((&certificate, &key))).await.unwrap();
    assert_eq!(greeted, ProtocolVersion::TLSv1_3);
}

/// The CA of `dev`, or another one of the same name if there is no key.
fn issuer(key: Option<&str>) -> Issuer<'static, KeyPair> {
    let key = key.map_or_else(KeyPair::generate, KeyPair::from_pem).unwrap();
    Issuer::new(ca_params(), key)
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "rootkeyd dev CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A client certificate with these URIs, and its key.
fn issue(
    issuer: &Issuer<'static, KeyPair>,
    uris: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> (String, String) {
    let mut params = CertificateParams::default();
    // That a common name looks like a SPIFFE ID is worth nothing.
    params.distinguished_name.push(DnType::CommonName, ADMIN);
    params.subject_alt_names =
        uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (date_time_ymd(2024, 1, 1), date_time_ymd(2054, 1, 1));
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

const ADMIN: &str = "spiffe://rootkeyd.dev/admin";

#[tokio::test]
async fn the_key_exchange_is_hybrid_where_the_client_offers_it() {
    let daemon = Daemon::start();
    let tls = daemon.dir.join("tls");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(tls.join("ca.pem")).unwrap()).unwrap();
    let certificate = CertificateDer::from_pem_file(tls.join("admin.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(tls.join("admin.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(&daemon.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let group = connection.get_ref().1.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn a_certificate_that_does_not_do_gets_no_answer_and_the_log_says_why() {
    let daemon = Daemon::start();
    let ours = issuer(Some(&made_by_dev(&daemon, "ca").1));
    let fine = issue(&ours, &[ADMIN], |_params| {});
    greet(&daemon, Some((&fine.0, &fine.1))).await.unwrap();
    let two = [ADMIN, "spiffe://rootkeyd.dev/service/image"];
    let cases = [
        // Of the same name, by another key.
        ("BadSignature", issue(&issuer(None), &[ADMIN], |_params| {})),
        (
            "certificate expired",
            issue(&ours, &[ADMIN], |it| it.not_after = date_time_ymd(2025, 1, 1)),
        ),
        ("not valid yet", issue(&ours, &[ADMIN], |it| it.not_before = date_time_ymd(2053, 1, 1))),
        (
            "certificate does not allow extended key usage",
            issue(&ours, &[ADMIN], |it| {
                it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
        ),
        ("it has several URI names", issue(&ours, &two, |_params| {})),
        // Its common name looks like a SPIFFE ID.
        ("it has no SPIFFE ID", issue(&ours, &[], |_params| {})),
        ("it has no SPIFFE ID", issue(&ours, &["https://rootkeyd.dev/admin"], |_params| {})),
        ("its SPIFFE ID is malformed", issue(&ours, &["spiffe://rootkeyd.dev/a//b"], |_params| {})),
    ];
    for (why, (certificate, key)) in cases {
        let before = daemon.logged().len();
        let refused = greet(&daemon, Some((&certificate, &key))).await.unwrap_err().to_string();
        assert!(refused.contains("alert"), "{refused}");
        let told = async || daemon.logged()[before..].contains(why);
        daemon.until(why, told).await;
        let log = daemon.logged()[before..].to_owned();
        assert!(log.contains("WARN") && log.contains("a TLS handshake was refused"), "{log}");
    }
}

#[tokio::test]
async fn a_name_that_is_mapped_is_its_principal_and_the_common_name_is_nobody() {
    let mapping = "\n[[tls.principals]]\nsan = \"dns:backup.example\"\nprincipal = \"spiffe://rootkeyd.dev/admin\"\n";
    let daemon = Daemon::start_edited(|config| format!("{config}{mapping}"));
    let ours = issuer(Some(&made_by_dev(&daemon, "ca").1));
    let mapped = |name: &str| {
        let name = SanType::DnsName(name.try_into().unwrap());
        issue(&ours, &[], |params| params.subject_alt_names = vec![name])
    };
    let other = mapped("other.example");
    greet(&daemon, Some((&other.0, &other.1))).await.unwrap_err();
    let mut client = connect(&daemon, &mapped("backup.example")).await;
    let key = client.create("by a mapped name").await;
    assert_eq!(key.created_by, ADMIN);
}

#[tokio::test]
async fn who_is_revoked_while_connected_is_refused_at_the_next_call_and_cannot_come_back() {
    let mut daemon = Daemon::start();
    daemon.terminate();
    let ours = issuer(Some(&made_by_dev(&daemon, "ca").1));
    write_crl(&daemon, &ours, &[]);
    let config = daemon.dir.join("rootkeyd.toml");
    let with_crl =
        fs::read_to_string(&config).unwrap().replace("[hsm]", "crl = [\"tls/crl.pem\"]\n\n[hsm]");
    fs::write(&config, with_crl).unwrap();
    daemon.start_again();
    let numbered = |number: u64| {
        issue(&ours, &[ADMIN], |params| params.serial_number = Some(SerialNumber::from(number)))
    };
    let (rogue, good) = (numbered(66), numbered(67));
    let mut rogue_client = connect(&daemon, &rogue).await;
    let mut good_client = connect(&daemon, &good).await;
    let key = rogue_client.create("volumes").await;

    write_crl(&daemon, &ours, &[66]);
    reload(&daemon).await;
    let refused = rogue_client.get(&key.name).await.unwrap_err();
    assert_eq!(refused.reason, "UNAUTHENTICATED");
    assert!(refused.message.contains("Revoked"), "{refused:?}");
    assert_eq!(rogue_client.disable(&key.name).await.unwrap_err().reason, "UNAUTHENTICATED");
    good_client.get(&key.name).await.unwrap();
    let before = daemon.logged().len();
    greet(&daemon, Some((&rogue.0, &rogue.1))).await.unwrap_err();
    daemon.until("why is in the log", async || daemon.logged()[before..].contains("Revoked")).await;

    let records = good_client.audit_events().await;
    let refused = records.iter().filter(|record| record.reason == "UNAUTHENTICATED");
    let refused: Vec<_> = refused.map(|it| (it.principal.as_str(), it.subject.as_str())).collect();
    assert_eq!(refused, [(ADMIN, key.name.as_str()); 2]);
}

#[tokio::test]
async fn a_certificate_that_expires_while_connected_is_refused_at_the_next_call() {
    let daemon = Daemon::start();
    let ours = issuer(Some(&made_by_dev(&daemon, "ca").1));
    let short = issue(&ours, &[ADMIN], |params| params.not_after = date_time_ymd(2030, 1, 1));
    let mut client = connect(&daemon, &short).await;
    let key = client.create("volumes").await;
    daemon.set_clock("+3650d");
    let refused = client.get(&key.name).await.unwrap_err();
    assert_eq!(
        (refused.reason.as_str(), refused.message.as_str()),
        ("UNAUTHENTICATED", "the client certificate is expired")
    );
    daemon.client("admin").await.get(&key.name).await.unwrap();
}

#[tokio::test]
async fn files_that_are_broken_change_nothing_but_the_log() {
    let daemon = Daemon::start();
    let key = daemon.dir.join("tls/server.key");
    let good = fs::read(&key).unwrap();
    replace(&key, b"not a key");
    daemon.signal(Signal::HUP);
    let told = async || daemon.logged().contains("the old ones go on");
    daemon.until("the trouble is in the log", told).await;
    daemon.client("admin").await.create("volumes").await;
    replace(&key, &good);
    reload(&daemon).await;
    daemon.client("admin").await.create("more volumes").await;
}

#[tokio::test]
async fn a_connection_ends_at_its_age_and_no_call_fails() {
    let daemon =
        Daemon::start_edited(|config| format!("{config}\n[limits]\nconnection_age_seconds = 1\n"));
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await;
    let mut sources = BTreeSet::new();
    while sources.len() < 4 {
        for _ in 0..50 {
            client.get(&key.name).await.unwrap();
        }
        let records = client.audit_events().await;
        sources.extend(records.into_iter().map(|record| record.source_address));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ca_and_leaves_are_replaced_under_load_and_no_call_fails() {
    let daemon = Daemon::start();
    let old = made_by_dev(&daemon, "ca");
    let (new_ca, new) = another_ca();
    let old_leaf = issue(&issuer(Some(&old.1)), &[ADMIN], |_params| {});
    let new_leaf = issue(&new, &[ADMIN], |_params| {});
    let mut left_behind = connect(&daemon, &old_leaf).await;
    let key = left_behind.create("volumes").await;

    let daemon = Arc::new(daemon);
    let leaf = Arc::new(parking_lot::Mutex::new(old_leaf));
    let calls = Arc::new(AtomicU64::new(0));
    let loads = (0..4).map(|_| {
        let (daemon, leaf, calls, key) =
            (Arc::clone(&daemon), Arc::clone(&leaf), Arc::clone(&calls), key.name.clone());
        tokio::spawn(async move {
            // Until it is told to end, by a leaf that is none.
            loop {
                let identity = leaf.lock().clone();
                if identity.0.is_empty() {
                    return;
                }
                let mut client = connect(&daemon, &identity).await;
                for _ in 0..20 {
                    client.get(&key).await.unwrap();
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    let loads: Vec<_> = loads.collect();
    let more = async || {
        let enough = calls.load(Ordering::Relaxed) + 400;
        daemon.until("the load goes on", async || calls.load(Ordering::Relaxed) >= enough).await;
    };
    more().await;
    replace(&daemon.dir.join("tls/ca.pem"), format!("{}{new_ca}", old.0).as_bytes());
    reload(&daemon).await;
    let server = issue(&new, &[], |params| {
        let address = std::net::IpAddr::from([127, 0, 0, 1]);
        params.subject_alt_names = vec![SanType::IpAddress(address)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    replace(&daemon.dir.join("tls/server.key"), server.1.as_bytes());
    replace(&daemon.dir.join("tls/server.pem"), server.0.as_bytes());
    reload(&daemon).await;
    more().await;
    *leaf.lock() = new_leaf.clone();
    more().await;
    left_behind.get(&key.name).await.unwrap();
    replace(&daemon.dir.join("tls/ca.pem"), new_ca.as_bytes());
    reload(&daemon).await;
    more().await;
    *leaf.lock() = (String::new(), String::new());
    for load in loads {
        load.await.unwrap();
    }
    // Who did not take part has no certificate that is trusted any more.
    assert_eq!(left_behind.get(&key.name).await.unwrap_err().reason, "UNAUTHENTICATED");
    connect(&daemon, &new_leaf).await.get(&key.name).await.unwrap();
}

async fn connect(daemon: &Daemon, (certificate, key): &(String, String)) -> Client {
    let endpoint = daemon.endpoint_as(Some(Identity::from_pem(certificate, key)));
    let channel: Channel = endpoint.connect().await.unwrap();
    Client::new(channel)
}

/// Whole or not at all.
fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, bytes).unwrap();
    fs::rename(new, path).unwrap();
}

/// Has the daemon read its files again, and waits until it has.
async fn reload(daemon: &Daemon) {
    let count = || daemon.logged().matches("revocations were reloaded").count();
    let before = count();
    daemon.signal(Signal::HUP);
    daemon.until("the files are reloaded", async || count() > before).await;
}

fn write_crl(daemon: &Daemon, issuer: &Issuer<'static, KeyPair>, revoked: &[u64]) {
    let revoked_certs = revoked.iter().map(|number| RevokedCertParams {
        serial_number: SerialNumber::from(*number),
        revocation_time: date_time_ymd(2025, 1, 1),
        reason_code: None,
        invalidity_date: None,
    });
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2025, 1, 1),
        next_update: date_time_ymd(2054, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked_certs.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let pem = list.signed_by(issuer).unwrap().pem().unwrap();
    replace(&daemon.dir.join("tls/crl.pem"), pem.as_bytes());
}

/// A CA that the daemon does not know yet: its certificate, and it.
fn another_ca() -> (String, Issuer<'static, KeyPair>) {
    let (params, key) = (ca_params(), KeyPair::generate().unwrap());
    let pem = params.self_signed(&key).unwrap().pem();
    (pem, Issuer::new(params, key))
}
