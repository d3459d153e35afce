//! People, by bearer tokens that a gateway sends for them: which token counts, over
//! which connection, and that none is written down anywhere.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use common::{Client, Daemon, Refusal, refusal};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use rootkeyd::api::pb;
use serde_json::{Value, json};
use tonic::Request;

const ADMIN: &str = "spiffe://rootkeyd.dev/admin";
const ANN: &str = "spiffe://rootkeyd.dev/user/ann";
const KEY: &str = "instances/default/keys/none";

/// One key of an issuer of tokens.
struct Signer {
    kid: &'static str,
    algorithm: Algorithm,
    pair: KeyPair,
}

impl Signer {
    fn new(kid: &'static str, algorithm: Algorithm) -> Self {
        let kind =
            if algorithm == Algorithm::EdDSA { &PKCS_ED25519 } else { &PKCS_ECDSA_P256_SHA256 };
        Self { kid, algorithm, pair: KeyPair::generate_for(kind).unwrap() }
    }

    fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let public = self.pair.public_key_raw();
        if self.algorithm == Algorithm::EdDSA {
            return json!({"kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": text(public)});
        }
        let (x, y) = (text(&public[1..33]), text(&public[33..]));
        json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": self.kid, "x": x, "y": y})
    }

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.kid.into());
        let der = self.pair.serialize_der();
        let key = if self.algorithm == Algorithm::EdDSA {
            EncodingKey::from_ed_der(&der)
        } else {
            EncodingKey::from_ec_der(&der)
        };
        encode(&header, claims, &key).unwrap()
    }
}

/// Claims that are fine, for an hour.
fn claims() -> Value {
    let now = get_current_timestamp();
    json!({
        "iss": "https://login.example", "aud": "rootkeyd", "sub": "ann",
        "nbf": now - 60, "exp": now + 3600,
    })
}

fn with(name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims();
    claims[name] = value.into();
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

/// A daemon that takes tokens of these keys from the admin.
fn start(signers: &[&Signer]) -> Daemon {
    Daemon::start_edited(|config| {
        let jwks = config_folder_write(signers);
        format!(
            "{config}\n[tokens]\njwks = {jwks:?}\nissuer = \"https://login.example\"\n\
             audience = \"rootkeyd\"\ntrust_domain = \"rootkeyd.dev\"\ngateways = [{ADMIN:?}]\n\
             [[bindings]]\nprincipal = {ANN:?}\nrole = \"Reader\"\ninstance = \"default\"\n"
        )
    })
}

/// Where the keys are; the folder goes on until the test process ends.
fn config_folder_write(signers: &[&Signer]) -> String {
    let folder = tempfile::tempdir().unwrap().keep();
    let jwks = folder.join("jwks.json");
    write_keys(&jwks, signers);
    jwks.to_str().unwrap().to_owned()
}

/// Whole or not at all.
fn write_keys(path: &Path, signers: &[&Signer]) {
    let keys: Vec<_> = signers.iter().map(|signer| signer.jwk()).collect();
    let new = path.with_extension("new");
    fs::write(&new, json!({ "keys": keys }).to_string()).unwrap();
    fs::rename(new, path).unwrap();
}

async fn ask(client: &mut Client, authorization: &str) -> Refusal {
    let mut request = Request::new(pb::GetKeyRequest { name: KEY.into() });
    request.metadata_mut().insert("authorization", authorization.parse().unwrap());
    refusal(client.keys.get_key(request).await.unwrap_err())
}

/// The key is not there: whoever is told so was let in.
async fn counts(client: &mut Client, token: &str) {
    assert_eq!(ask(client, &format!("Bearer {token}")).await.reason, "KEY_NOT_FOUND");
}

#[tokio::test]
async fn a_person_is_who_the_token_says_and_may_no_more_than_that() {
    let signers = [Signer::new("a", Algorithm::ES256), Signer::new("b", Algorithm::EdDSA)];
    let daemon = start(&[&signers[0], &signers[1]]);
    let mut gateway = daemon.client("admin").await;
    for signer in &signers {
        counts(&mut gateway, &signer.sign(&claims())).await;
        counts(&mut gateway, &signer.sign(&with("aud", json!(["other", "rootkeyd"])))).await;
    }
    let mut request =
        Request::new(pb::DisableKeyRequest { name: KEY.into(), ..Default::default() });
    let token = format!("Bearer {}", signers[0].sign(&claims()));
    request.metadata_mut().insert("authorization", token.parse().unwrap());
    let refused = refusal(gateway.keys.disable_key(request).await.unwrap_err());
    assert_eq!(refused.reason, "PERMISSION_DENIED");
    // The gateway for itself.
    assert_eq!(gateway.disable(KEY).await.unwrap_err().reason, "KEY_NOT_FOUND");
    let records = gateway.audit_events().await;
    let disabled: Vec<_> = records.iter().filter(|it| it.action.contains("disable")).collect();
    assert_eq!((&*disabled[1].principal, &*disabled[1].reason), (ANN, "PERMISSION_DENIED"));
    assert_eq!(disabled[0].principal, ADMIN);
}

#[tokio::test]
async fn a_token_that_does_not_verify_is_refused_recorded_and_never_written_down() {
    let (signer, other) = (Signer::new("a", Algorithm::ES256), Signer::new("a", Algorithm::ES256));
    let unknown = Signer::new("unknown", Algorithm::ES256);
    let mut daemon = start(&[&signer]);
    let mut gateway = daemon.client("admin").await;
    let now = get_current_timestamp();
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let none = format!("{}.{}.", part(json!({"alg": "none", "kid": "a"})), part(claims()));
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("a".into());
    let by_public_key = EncodingKey::from_secret(signer.pair.public_key_raw());
    let by_public_pem = EncodingKey::from_secret(signer.pair.public_key_pem().as_bytes());
    let good = signer.sign(&claims());
    let cases = [
        ("expired", signer.sign(&with("exp", now - 1)), "expired"),
        ("not yet", signer.sign(&with("nbf", now + 1800)), "not valid yet"),
        ("wrong aud", signer.sign(&with("aud", "other")), "does not verify"),
        ("wrong iss", signer.sign(&with("iss", "https://evil.example")), "does not verify"),
        ("no exp", signer.sign(&without("exp")), "does not verify"),
        ("no nbf", signer.sign(&without("nbf")), "does not verify"),
        ("no aud", signer.sign(&without("aud")), "does not verify"),
        ("no iss", signer.sign(&without("iss")), "does not verify"),
        ("no sub", signer.sign(&without("sub")), "does not verify"),
        ("another's sub", signer.sign(&with("sub", "../admin")), "sub"),
        ("wrong key", other.sign(&claims()), "does not verify"),
        ("unknown kid", unknown.sign(&claims()), "kid"),
        ("alg none", none, "cannot be read"),
        ("HS256", encode(&header, &claims(), &by_public_key).unwrap(), "algorithm"),
        ("HS256 by PEM", encode(&header, &claims(), &by_public_pem).unwrap(), "algorithm"),
        ("no token", "nonsense".into(), "cannot be read"),
    ];
    for (case, token, why) in &cases {
        let refused = ask(&mut gateway, &format!("Bearer {token}")).await;
        assert_eq!(refused.reason, "UNAUTHENTICATED", "{case}: {refused:?}");
        assert!(refused.message.contains(why), "{case}: {refused:?}");
    }
    let refused = ask(&mut gateway, &format!("Basic {good}")).await;
    assert_eq!(refused.reason, "UNAUTHENTICATED");
    counts(&mut gateway, &good).await;
    // Over a certificate that is no gateway's, though it may read keys itself.
    let mut service = daemon.client("block-storage").await;
    assert_eq!(service.get(KEY).await.unwrap_err().reason, "KEY_NOT_FOUND");
    let refused = ask(&mut service, &format!("Bearer {good}")).await;
    assert_eq!(refused.reason, "UNAUTHENTICATED");
    assert!(refused.message.contains("gateway"), "{refused:?}");

    let records = gateway.audit_events().await;
    let refused = records.iter().filter(|record| record.reason == "UNAUTHENTICATED");
    assert_eq!(refused.count(), cases.len() + 2);
    daemon.stop().await;
    let mut written = daemon.logged().into_bytes();
    for entry in fs::read_dir(daemon.dir.join("state/audit")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            written.extend(fs::read(path).unwrap());
        }
    }
    assert!(written.windows(5).any(|it| it == b"admin"), "nothing was read");
    let tokens = cases.iter().map(|(_, token, _)| token).chain([&good]);
    for part in tokens.flat_map(|token| token.split('.')).filter(|part| part.len() > 10) {
        assert!(!written.windows(part.len()).any(|it| it == part.as_bytes()), "{part}");
    }
}

#[tokio::test]
async fn without_tokens_in_the_configuration_none_counts() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let token = Signer::new("a", Algorithm::ES256).sign(&claims());
    assert_eq!(ask(&mut client, &format!("Bearer {token}")).await.reason, "UNAUTHENTICATED");
}

#[tokio::test]
async fn keys_that_change_are_followed_and_broken_ones_change_nothing() {
    let (old, new) = (Signer::new("a", Algorithm::ES256), Signer::new("b", Algorithm::ES256));
    let daemon = start(&[&old]);
    let mut gateway = daemon.client("admin").await;
    let config = fs::read_to_string(daemon.dir.join("rootkeyd.toml")).unwrap();
    let jwks = config.split("jwks = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    counts(&mut gateway, &old.sign(&claims())).await;
    write_keys(Path::new(&jwks), &[&new]);
    let told = async || daemon.logged().contains("the keys of tokens were reloaded");
    daemon.until("the keys are read", told).await;
    counts(&mut gateway, &new.sign(&claims())).await;
    let refused = ask(&mut gateway, &format!("Bearer {}", old.sign(&claims()))).await;
    assert_eq!(refused.reason, "UNAUTHENTICATED");
    write_keys(Path::new(&jwks), &[]);
    let told = async || daemon.logged().contains("the new keys of tokens cannot be used");
    daemon.until("the trouble is in the log", told).await;
    counts(&mut gateway, &new.sign(&claims())).await;
}
