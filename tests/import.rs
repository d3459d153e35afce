//! Keys of one's own (BYOK): import tokens and their limits, what is taken and what
//! is refused, and that nothing of a key is left behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{Aead, Payload};
use aes_gcm::aes::Aes192;
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm, KeyInit};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use common::{
    Client, Daemon, Refusal, import_request, outcome, random, said, seal, seal_by, token_request,
};
use prost_types::Duration as PbDuration;
use rootkeyd::api::pb;
use rootkeyd::api::pb::key::State;
use rootkeyd::api::pb::set_instance_policy_request::Policy;
use tonic::Code;
use uuid::Uuid;

/// A key version whose material is known outside the HSM (docs/ciphertext-format.md).
struct Outside {
    material: Vec<u8>,
    header: Vec<u8>,
}

impl Outside {
    /// The primary version of a key, and what was imported as it.
    fn new(material: &[u8], key: &pb::Key) -> Self {
        let id = |name: &str| name.rsplit('/').next().unwrap().parse::<Uuid>().unwrap();
        let ids = [id(&key.name), id(&key.primary_version)];
        let header = [&b"rkw\x01\x01"[..], ids[0].as_bytes(), ids[1].as_bytes()].concat();
        Self { material: material.to_vec(), header }
    }

    fn wrap(&self, dek: &[u8], item: &[u8]) -> Vec<u8> {
        let iv: [u8; 12] = random();
        let aad = self.authenticated(item);
        let payload = Payload { msg: dek, aad: &aad };
        let sealed = match self.material.len() {
            16 => cipher::<Aes128Gcm>(&self.material).encrypt(&iv.into(), payload),
            24 => cipher::<AesGcm<Aes192, U12>>(&self.material).encrypt(&iv.into(), payload),
            _ => cipher::<Aes256Gcm>(&self.material).encrypt(&iv.into(), payload),
        };
        [&self.header[..], &iv, &sealed.unwrap()].concat()
    }

    fn unwrap(&self, wrapped: &[u8], item: &[u8]) -> Vec<u8> {
        let (header, rest) = wrapped.split_at(37);
        assert_eq!(header, self.header);
        let (iv, sealed) = rest.split_first_chunk::<12>().unwrap();
        let aad = self.authenticated(item);
        let payload = Payload { msg: sealed, aad: &aad };
        let opened = match self.material.len() {
            16 => cipher::<Aes128Gcm>(&self.material).decrypt(&(*iv).into(), payload),
            24 => cipher::<AesGcm<Aes192, U12>>(&self.material).decrypt(&(*iv).into(), payload),
            _ => cipher::<Aes256Gcm>(&self.material).decrypt(&(*iv).into(), payload),
        };
        opened.unwrap()
    }

    /// One item of AAD.
    fn authenticated(&self, item: &[u8]) -> Vec<u8> {
        [&self.header[..], &[1, u8::try_from(item.len()).unwrap()], item].concat()
    }
}

fn cipher<C: KeyInit>(material: &[u8]) -> C {
    C::new_from_slice(material).unwrap()
}

/// Files of objects in the token, beside those of the token and of the probe: what
/// the HSM really holds.
fn object_files(daemon: &Daemon) -> usize {
    let files = walk(&daemon.dir.join("tokens"));
    let object = |path: &&PathBuf| path.extension().is_some_and(|it| it == "object");
    // But for the token itself, the canary and the two halves of the signer.
    files.iter().filter(object).count() - 4
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

async fn objects_and_orphans(client: &mut Client) -> (u64, u64) {
    let status = client.hsm_status().await;
    (status.objects, status.orphans)
}

fn refused_field(refused: Refusal) -> (String, String) {
    (refused.reason, refused.metadata.get("field").cloned().unwrap_or_default())
}

#[tokio::test]
async fn keys_of_16_24_and_32_bytes_open_what_the_same_bytes_wrapped_outside() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut service = daemon.client("block-storage").await;
    let token = admin.import_token(1).await;
    assert_eq!(token.algorithms, ["RSAES_OAEP_SHA_1"]);
    for length in [16, 24, 32] {
        let material = &random::<32>()[..length];
        let key = admin.import_key("archive", seal(&token, material)).await.unwrap();
        assert_eq!((key.state(), key.imported), (State::Active, true));
        assert_eq!(key.primary_version, format!("{0}/versions/{1}", key.name, id_of(&key)));
        let outside = Outside::new(material, &key);
        let wrapped = outside.wrap(b"the dek", b"volume 1");
        let opened = service.unwrap(&key.name, &wrapped, &[b"volume 1"]).await.unwrap();
        assert_eq!(opened.dek, &b"the dek"[..], "{length} bytes");
        let other = service.unwrap(&key.name, &wrapped, &[b"volume 2"]).await.unwrap_err();
        assert_eq!(other.reason, "CIPHERTEXT_UNVERIFIED");
        let wrapped = service.wrap(&key.name, b"another", &[b"volume 1"]).await.unwrap();
        assert_eq!(outside.unwrap(&wrapped, b"volume 1"), b"another", "{length} bytes");
    }
    assert_eq!(objects_and_orphans(&mut admin).await, (3, 0));
}

fn id_of(key: &pb::Key) -> &str {
    key.name.rsplit('/').next().unwrap()
}

#[tokio::test]
async fn a_token_has_a_lifetime_of_300_to_86400_seconds_and_1_to_500_retrievals() {
    let daemon = Daemon::start();
    let mut client = daemon.client("writer").await;
    let span = |seconds, nanos| Some(PbDuration { seconds, nanos });
    for lifetime in [span(299, 0), span(86_401, 0), span(300, 1), span(-600, 0), span(0, 0)] {
        let request = pb::CreateImportTokenRequest { lifetime, ..token_request() };
        let refused = client.make_token(request).await.unwrap_err();
        assert_eq!(refused_field(refused), ("FIELD_INVALID".into(), "lifetime".into()));
    }
    for max_allowed_retrievals in [-1, 501, i32::MAX] {
        let request = pb::CreateImportTokenRequest { max_allowed_retrievals, ..token_request() };
        let refused = client.make_token(request).await.unwrap_err();
        let field = "max_allowed_retrievals".into();
        assert_eq!(refused_field(refused), ("FIELD_INVALID".into(), field));
    }
    assert_eq!(object_files(&daemon), 0);
    let none = client.retrieve_token().await.unwrap_err();
    assert_eq!(
        (none.code, none.reason.as_str()),
        (Code::FailedPrecondition, "IMPORT_TOKEN_EXPIRED")
    );
    assert_eq!(none.metadata["key_protect_code"], "IMPORT_TOKEN_EXPIRED_ERR");

    let lived = |token: &pb::ImportToken| {
        token.expire_time.unwrap().seconds - token.create_time.unwrap().seconds
    };
    let made = client.make_token(token_request()).await.unwrap();
    assert_eq!((lived(&made), made.max_allowed_retrievals), (600, 1));
    assert!(made.public_key.is_empty() && made.nonce.is_empty());
    let longest = pb::CreateImportTokenRequest {
        lifetime: span(86_400, 0),
        max_allowed_retrievals: 500,
        ..token_request()
    };
    let made = client.make_token(longest).await.unwrap();
    assert_eq!((lived(&made), made.remaining_retrievals), (86_400, 500));
    let retrieved = client.retrieve_token().await.unwrap();
    assert_eq!((retrieved.remaining_retrievals, retrieved.nonce.len()), (499, 12));
    assert!(retrieved.public_key.starts_with("-----BEGIN PUBLIC KEY-----"));
    let reader = daemon.client("block-storage").await.retrieve_token().await.unwrap_err();
    assert_eq!(reader.reason, "PERMISSION_DENIED");
}

#[tokio::test]
async fn a_used_up_token_still_imports_and_after_a_restart_too_until_it_expires() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("writer").await;
    let token = client.import_token(1).await;
    assert_eq!(token.remaining_retrievals, 0);
    let used_up = client.retrieve_token().await.unwrap_err();
    assert_eq!(used_up.reason, "IMPORT_TOKEN_EXPIRED");
    client.import_key("first", seal(&token, &random::<32>())).await.unwrap();
    daemon.stop().await;
    daemon.start_again();
    let mut client = daemon.client("writer").await;
    assert_eq!(said(client.retrieve_token().await), "IMPORT_TOKEN_EXPIRED");
    daemon.set_clock("+590s");
    client.import_key("second", seal(&token, &random::<32>())).await.unwrap();
    daemon.set_clock("+601s");
    let late = client.import_key("third", seal(&token, &random::<32>())).await.unwrap_err();
    assert_eq!(late.reason, "IMPORT_TOKEN_EXPIRED");
    assert_eq!(late.metadata["subject"], "instances/default/importToken");
    assert_eq!(said(client.retrieve_token().await), "IMPORT_TOKEN_EXPIRED");
    // Its pair goes; the two keys stay.
    daemon.until("the pair is destroyed", async || object_files(&daemon) == 2).await;
    assert_eq!(objects_and_orphans(&mut daemon.client("admin").await).await, (2, 0));
}

#[tokio::test]
async fn a_token_that_is_left_unused_expires_for_who_retrieves_it_too() {
    let daemon = Daemon::start();
    let mut client = daemon.client("writer").await;
    client.import_token(3).await;
    assert_eq!(said(client.retrieve_token().await), "ok");
    daemon.set_clock("+601s");
    assert_eq!(said(client.retrieve_token().await), "IMPORT_TOKEN_EXPIRED");
    daemon.until("the pair is destroyed", async || object_files(&daemon) == 0).await;
}

#[tokio::test]
async fn a_new_token_takes_the_place_of_the_old_whose_pair_is_destroyed() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let old = client.import_token(1).await;
    let of_a_pair = object_files(&daemon);
    assert!(of_a_pair > 0);
    let new = client.import_token(1).await;
    assert_ne!((&old.public_key, &old.nonce), (&new.public_key, &new.nonce));
    let refused = client.import_key("late", seal(&old, &random::<32>())).await.unwrap_err();
    assert_eq!(refused.reason, "MATERIAL_UNSEALED");
    let all_gone = async || object_files(&daemon) == of_a_pair;
    daemon.until("the old pair and the refused key are destroyed", all_gone).await;
    client.import_key("in time", seal(&new, &random::<32>())).await.unwrap();
    assert_eq!(object_files(&daemon), of_a_pair + 1);
    assert_eq!(objects_and_orphans(&mut client).await, (1, 0));
}

/// Spoils sealed material.
type Spoil = fn(&mut pb::SealedKeyMaterial);

#[tokio::test]
async fn what_is_sealed_wrongly_is_refused_by_its_fault_and_leaves_nothing_in_the_hsm() {
    const BAD: &str = "FIELD_INVALID";
    #[rustfmt::skip]
    let spoils: [(&str, &str, Spoil); 10] = [
        ("NONCE_UNVERIFIED",      "", |it| it.nonce_iv[0] ^= 1),
        ("NONCE_UNVERIFIED",      "", |it| it.encrypted_nonce[3] ^= 1),
        ("NONCE_UNVERIFIED",      "", |it| it.encrypted_nonce[27] ^= 128),
        ("MATERIAL_UNSEALED",     "", |it| it.encrypted_key[17] ^= 1),
        ("MATERIAL_UNSEALED",     "", |it| it.encrypted_key = vec![0; 512]),
        (BAD, "material.encrypted_key",   |it| it.encrypted_key.truncate(511)),
        (BAD, "material.encrypted_nonce", |it| it.encrypted_nonce.push(0)),
        (BAD, "material.nonce_iv",        |it| it.nonce_iv = vec![1; 16]),
        (BAD, "material.algorithm",       |it| it.algorithm = "RSA1_5".into()),
        (BAD, "material.nonce_iv",        |it| it.nonce_iv.clear()),
    ];
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let token = client.import_token(1).await;
    let of_a_pair = object_files(&daemon);
    for (number, (reason, field, spoil)) in spoils.into_iter().enumerate() {
        let mut material = seal(&token, &random::<32>());
        spoil(&mut material);
        let refused = client.import_key("spoilt", material).await.unwrap_err();
        assert_eq!(refused_field(refused), (reason.into(), field.into()), "spoil {number}");
    }
    let mut other = token.clone();
    other.nonce[5] ^= 1;
    let wrong = client.import_key("nonce", seal(&other, &random::<32>())).await.unwrap_err();
    assert_eq!((wrong.code, wrong.reason.as_str()), (Code::InvalidArgument, "NONCE_INCORRECT"));
    assert_eq!(wrong.metadata["key_protect_code"], "INCORRECT_NONCE_ERR");
    for length in [1, 15, 17, 31, 33, 64] {
        let material = seal(&token, &random::<64>()[..length]);
        let refused = client.import_key("odd", material).await.unwrap_err();
        assert_eq!(refused.reason, "MATERIAL_UNSEALED", "{length} bytes");
    }
    let sha_256 = seal_by("RSAES_OAEP_SHA_256", &token, &random::<32>());
    let refused = client.import_key("sha 256", sha_256).await.unwrap_err();
    let expected = ("ALGORITHM_UNSUPPORTED".into(), "material.algorithm".into());
    assert_eq!(refused_field(refused), expected);
    // What is sealed by one hash and said to be sealed by the other.
    let mut said_otherwise = seal_by("RSAES_OAEP_SHA_256", &token, &random::<32>());
    said_otherwise.algorithm = "RSAES_OAEP_SHA_1".into();
    let refused = client.import_key("other", said_otherwise).await.unwrap_err();
    assert_eq!(refused.reason, "MATERIAL_UNSEALED");
    let none =
        pb::ImportKeyRequest { material: None, ..import_request("none", seal(&token, &[1; 16])) };
    assert_eq!(
        refused_field(outcome(client.keys.import_key(none).await).unwrap_err()).1,
        "material"
    );

    let gone = async || object_files(&daemon) == of_a_pair;
    daemon.until("nothing is left of what was refused", gone).await;
    assert_eq!(objects_and_orphans(&mut client).await, (0, 0));
    let list = pb::ListKeysRequest { parent: "instances/default".into(), ..Default::default() };
    assert!(outcome(client.keys.list_keys(list).await).unwrap().keys.is_empty());
    assert_eq!(said(client.import_key("good", seal(&token, &random::<32>())).await), "ok");
}

#[tokio::test]
async fn sha_256_is_taken_where_the_operator_allows_software_to_unwrap_it() {
    let daemon = Daemon::start_edited(|config| config + "\n[import]\nsoftware_unwrap = true\n");
    let mut client = daemon.client("admin").await;
    let token = client.import_token(1).await;
    assert_eq!(token.algorithms, ["RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1"]);
    for algorithm in &token.algorithms {
        let material: [u8; 32] = random();
        let sealed = seal_by(algorithm, &token, &material);
        let key = client.import_key("archive", sealed.clone()).await.unwrap();
        let wrapped = Outside::new(&material, &key).wrap(b"dek", b"a");
        assert_eq!(client.unwrap(&key.name, &wrapped, &[b"a"]).await.unwrap().dek, &b"dek"[..]);
        let mut tampered = sealed;
        tampered.encrypted_key[100] ^= 1;
        let refused = client.import_key("tampered", tampered).await.unwrap_err();
        assert_eq!(refused.reason, "MATERIAL_UNSEALED", "{algorithm}");
    }
    daemon
        .until("two keys", async || {
            objects_and_orphans(&mut daemon.client("admin").await).await == (2, 0)
        })
        .await;
}

#[tokio::test]
async fn an_imported_key_is_rotated_by_new_material_and_a_generated_one_without() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let token = client.import_token(1).await;
    let generated = client.create("generated").await.name;
    let (first, second): ([u8; 32], [u8; 16]) = (random(), random());
    let key = client.import_key("archive", seal(&token, &first)).await.unwrap();
    let old = Outside::new(&first, &key);

    let refused = client.rotate(&key.name).await.unwrap_err();
    assert_eq!(refused.metadata["key_protect_code"], "KEY_PAYLOAD_REQ_ERR");
    assert_eq!(refused_field(refused), ("MATERIAL_REQUIRED".into(), "material".into()));
    let material = Some(seal(&token, &second));
    let rotate = |name: &str| pb::RotateKeyRequest {
        name: name.into(),
        material: material.clone(),
        request_id: "0b0e7f1c-95c9-4a0e-8a3e-1f2d3c4b5a69".into(),
        ..Default::default()
    };
    let refused = outcome(client.keys.rotate_key(rotate(&generated)).await).unwrap_err();
    assert_eq!(refused_field(refused), ("MATERIAL_REFUSED".into(), "material".into()));
    let rotated = outcome(client.keys.rotate_key(rotate(&key.name)).await).unwrap();
    assert_ne!(rotated.primary_version, key.primary_version);
    let again = outcome(client.keys.rotate_key(rotate(&key.name)).await).unwrap();
    assert_eq!(again, rotated);

    let new = Outside::new(&second, &rotated);
    for outside in [&old, &new] {
        let wrapped = outside.wrap(b"dek", b"a");
        let opened = client.unwrap(&key.name, &wrapped, &[b"a"]).await.unwrap();
        assert_eq!(opened.dek, &b"dek"[..]);
    }
    let wrapped = client.wrap(&key.name, b"dek", &[b"a"]).await.unwrap();
    assert_eq!(new.unwrap(&wrapped, b"a"), b"dek");
    let update = pb::UpdateKeyRequest {
        key: Some(pb::Key {
            name: key.name.clone(),
            rotation_period: Some(PbDuration { seconds: 30 * 86_400, nanos: 0 }),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["rotation_period".into()] }),
    };
    let refused = outcome(client.keys.update_key(update).await).unwrap_err();
    assert_eq!(refused_field(refused), ("FIELD_INVALID".into(), "key.rotation_period".into()));
}

#[tokio::test]
async fn an_imported_key_is_restored_under_profile_vpc_and_unwraps_again() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let token = client.import_token(1).await;
    let key = client.import_key("archive", seal(&token, &random::<32>())).await.unwrap().name;
    let wrapped = client.wrap(&key, b"dek", &[]).await.unwrap();
    client.delete(&key).await.unwrap();
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap_err().reason, "KEY_DESTROYED");
    let early = client.restore(&key).await.unwrap_err();
    assert_eq!(early.reason, "TOO_EARLY");
    assert!(early.retry_after.unwrap() <= Duration::from_secs(30));
    daemon.set_clock("+31s");
    assert_eq!(client.restore(&key).await.unwrap().state(), State::Active);
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
    daemon.stop().await;
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
}

#[tokio::test]
async fn a_policy_forbids_to_generate_or_to_import_keys() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let token = client.import_token(1).await;
    let access = |create_root_key, import_root_key| {
        Policy::KeyCreateImportAccess(pb::KeyCreateImportAccessPolicy {
            enabled: true,
            create_root_key,
            import_root_key,
            enforce_token: None,
        })
    };
    const F: &str = "CREATE_IMPORT_FORBIDDEN";
    let off = pb::KeyCreateImportAccessPolicy::default();
    let table = [
        (access(Some(false), None), F, "ok"),
        // Replaced whole: what is left out is allowed again.
        (access(None, Some(false)), "ok", F),
        (access(Some(false), Some(false)), F, F),
        (Policy::KeyCreateImportAccess(off), "ok", "ok"),
    ];
    for (policy, creates, imports) in table {
        client.set_policy("instances/default", policy.clone()).await.unwrap();
        let key = pb::Key { display_name: "made".into(), ..Default::default() };
        assert_eq!(said(client.create_key(key).await), creates, "{policy:?}");
        let imported = client.import_key("imported", seal(&token, &random::<32>())).await;
        assert_eq!(said(imported), imports, "{policy:?}");
    }
    client.set_policy("instances/default", access(Some(false), None)).await.unwrap();
    let refused = client.create_key(pb::Key { display_name: "made".into(), ..Default::default() });
    let refused = refused.await.unwrap_err();
    assert_eq!(refused.code, Code::FailedPrecondition);
    assert_eq!(refused.metadata["key_protect_code"], "KEY_CREATE_IMPORT_ACCESS_ERR");
}

#[tokio::test]
async fn a_request_id_imports_one_key_and_is_not_for_other_material() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("writer").await;
    let token = client.import_token(1).await;
    let request = pb::ImportKeyRequest {
        request_id: "0b0e7f1c-95c9-4a0e-8a3e-1f2d3c4b5a69".into(),
        ..import_request("archive", seal(&token, &random::<32>()))
    };
    let first = outcome(client.keys.import_key(request.clone()).await).unwrap();
    assert_eq!(outcome(client.keys.import_key(request.clone()).await).unwrap(), first);
    let material = Some(seal(&token, &random::<32>()));
    let other = pb::ImportKeyRequest { material, ..request.clone() };
    assert_eq!(said(outcome(client.keys.import_key(other).await)), "REQUEST_ID_REUSED");
    daemon.stop().await;
    daemon.start_again();
    // The token is over, and the answer is not.
    daemon.set_clock("+601s");
    let mut client = daemon.client("writer").await;
    assert_eq!(outcome(client.keys.import_key(request).await).unwrap(), first);
    assert_eq!(objects_and_orphans(&mut daemon.client("admin").await).await.0, 1);
}

#[tokio::test]
async fn no_imported_key_is_in_any_file_outside_the_token() {
    let mut daemon = Daemon::start_with_env(&[("ROOTKEYD_LOG", "trace")]);
    let mut client = daemon.client("admin").await;
    let token = client.import_token(1).await;
    let material: [[u8; 32]; 4] = [random(), random(), random(), random()];
    let key = client.import_key("archive", seal(&token, &material[0])).await.unwrap();
    let rotate = pb::RotateKeyRequest {
        name: key.name.clone(),
        material: Some(seal(&token, &material[1])),
        ..Default::default()
    };
    outcome(client.keys.rotate_key(rotate).await).unwrap();
    let mut nonce = seal(&token, &material[2]);
    nonce.nonce_iv[0] ^= 1;
    assert_eq!(said(client.import_key("refused", nonce).await), "NONCE_UNVERIFIED");
    let odd = seal(&token, &material[3][..31]);
    assert_eq!(said(client.import_key("refused", odd).await), "MATERIAL_UNSEALED");
    let wrapped = client.wrap(&key.name, b"dek", &[]).await.unwrap();
    client.unwrap(&key.name, &wrapped, &[]).await.unwrap();
    daemon.stop().await;

    let needles: Vec<_> = material.iter().flat_map(|key| forms(&key[..31])).collect();
    assert!(daemon.logged().contains("TRACE"));
    let files: Vec<_> = walk(&daemon.dir);
    let files = files.iter().filter(|path| !path.starts_with(daemon.dir.join("tokens")));
    for file in files {
        let bytes = fs::read(file).unwrap();
        for needle in &needles {
            let found = bytes.windows(needle.len()).any(|window| window == needle);
            assert!(!found, "a part of a key is in {}", file.display());
        }
    }
}

/// The middle of a key: raw, in hex, and in base64 at each of the three places where
/// it can begin there.
fn forms(key: &[u8]) -> Vec<Vec<u8>> {
    let middle = &key[6..18];
    let mut forms = vec![
        middle.to_vec(),
        hex::encode(middle).into(),
        hex::encode_upper(middle).into(),
        format!("{middle:?}").trim_matches(['[', ']']).into(),
    ];
    for at in 4..7 {
        // 12 bytes are whole groups of letters.
        forms.push(STANDARD_NO_PAD.encode(&key[at..at + 12]).into());
        forms.push(URL_SAFE_NO_PAD.encode(&key[at..at + 12]).into());
    }
    forms
}
