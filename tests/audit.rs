//! The audit log: no answer without its record, a refusal's too.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::collections::HashMap;

use common::{Client, Daemon, refusal, unwrap_request};
use prost_types::FieldMask;
use rootkeyd::api::pb;
use rootkeyd::api::pb::audit_event::Outcome;
use tonic::Request;

/// The records of a request id: action, subject, and `ok` or the reason.
async fn recorded(client: &mut Client, id: &str) -> Vec<(String, String, String)> {
    let events = client.audit_events().await.into_iter().filter(|event| event.request_id == id);
    let said = |event: &pb::AuditEvent| match event.outcome() {
        Outcome::Success => "ok".to_owned(),
        Outcome::Refused => event.reason.clone(),
        Outcome::Unspecified => panic!("an outcome that is none"),
    };
    events.map(|event| (event.action.clone(), event.subject.clone(), said(&event))).collect()
}

fn with_id<T>(message: T, id: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-request-id", id.parse().unwrap());
    request
}

#[tokio::test]
async fn every_method_leaves_a_record_with_its_action() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await;
    let name = key.name.clone();
    let parent = "instances/default".to_owned();
    let wrapped = client.wrap(&name, b"dek", &[]).await.unwrap();
    let etag = String::new();
    macro_rules! call {
        ($service:ident . $method:ident, $id:literal, $message:expr) => {{
            let response = client.$service.$method(with_id($message, $id)).await;
            let response = response.map(drop).map_err(refusal);
            response.map_or_else(|refusal| refusal.reason, |()| "ok".to_owned())
        }};
    }
    let unwrap = unwrap_request(&name, &wrapped, &[]);
    let rewrap = pb::RewrapDekRequest {
        key: name.clone(),
        wrapped_dek: wrapped.clone(),
        ..Default::default()
    };
    let wrap = pb::WrapDekRequest { key: name.clone(), dek: b"dek".to_vec(), ..Default::default() };
    let generate = pb::GenerateDekRequest { key: name.clone(), ..Default::default() };
    let batch = pb::BatchUnwrapDeksRequest { requests: vec![unwrap.clone()] };
    let create = pb::CreateKeyRequest {
        parent: parent.clone(),
        key: Some(pb::Key { display_name: "other".into(), ..Default::default() }),
        request_id: String::new(),
    };
    let update = pb::UpdateKeyRequest {
        key: Some(pb::Key { name: name.clone(), tags: vec!["tag".into()], ..Default::default() }),
        update_mask: Some(FieldMask { paths: vec!["tags".into()] }),
    };
    let keys = pb::ListKeysRequest { parent: parent.clone(), ..Default::default() };
    let versions = pb::ListKeyVersionsRequest { parent: name.clone(), ..Default::default() };
    let audit = pb::ListAuditEventsRequest { parent: parent.clone(), ..Default::default() };
    let rotate = pb::RotateKeyRequest { name: name.clone(), ..Default::default() };
    let delete = pb::DeleteKeyRequest {
        name: name.clone(),
        etag: etag.clone(),
        force: true,
        ..Default::default()
    };
    let import = pb::ImportKeyRequest { parent: parent.clone(), ..Default::default() };
    #[rustfmt::skip]
    let said = [
        ("w", call!(crypto.wrap_dek, "w", wrap), "ok", "kms.secrets.wrap", &name),
        ("u", call!(crypto.unwrap_dek, "u", unwrap), "ok", "kms.secrets.unwrap", &name),
        ("r", call!(crypto.rewrap_dek, "r", rewrap), "ok", "kms.secrets.rewrap", &name),
        ("g", call!(crypto.generate_dek, "g", generate), "ok", "kms.secrets.wrap", &name),
        ("b", call!(crypto.batch_unwrap_deks, "b", batch), "ok", "kms.secrets.unwrap", &name),
        ("get", call!(keys.get_key, "get", pb::GetKeyRequest { name: name.clone() }), "ok", "kms.secrets-metadata.read", &name),
        ("list", call!(keys.list_keys, "list", keys), "ok", "kms.secrets.list", &parent),
        ("vers", call!(keys.list_key_versions, "vers", versions), "ok", "kms.secrets-key-versions.list", &name),
        ("upd", call!(keys.update_key, "upd", update), "ok", "kms.secrets.patch", &name),
        ("rot", call!(keys.rotate_key, "rot", rotate), "ok", "kms.secrets.rotate", &name),
        ("dis", call!(keys.disable_key, "dis", pb::DisableKeyRequest { name: name.clone(), etag: etag.clone(), ..Default::default() }), "ok", "kms.secrets.disable", &name),
        ("en", call!(keys.enable_key, "en", pb::EnableKeyRequest { name: name.clone(), etag: etag.clone() }), "TOO_EARLY", "kms.secrets.enable", &name),
        ("del", call!(keys.delete_key, "del", delete), "ok", "kms.secrets.delete", &name),
        ("res", call!(keys.restore_key, "res", pb::RestoreKeyRequest { name: name.clone(), etag: etag.clone() }), "KEY_NOT_IMPORTED", "kms.secrets.restore", &name),
        ("imp", call!(keys.import_key, "imp", import), "FIELD_INVALID", "kms.secrets.create", &parent),
        ("set", call!(keys.set_key_for_deletion, "set", pb::SetKeyForDeletionRequest { name: name.clone() }), "KEY_DESTROYED", "kms.secrets.setkeyfordeletion", &name),
        ("uns", call!(keys.unset_key_for_deletion, "uns", pb::UnsetKeyForDeletionRequest { name: name.clone() }), "KEY_DESTROYED", "kms.secrets.unsetkeyfordeletion", &name),
        ("pur", call!(keys.purge_key, "pur", pb::PurgeKeyRequest { name: name.clone() }), "PERMISSION_DENIED", "kms.secrets.purge", &name),
        ("aud", call!(audit.list_audit_events, "aud", audit), "ok", "rootkeyd.audit.list", &parent),
    ];
    for (id, said, expected, action, subject) in said {
        assert_eq!(said, expected, "{id}");
        let expected = [(action.to_owned(), subject.clone(), expected.to_owned())];
        assert_eq!(recorded(&mut client, id).await, expected, "{id}");
    }
    let created = client.keys.create_key(with_id(create, "cre")).await.unwrap().into_inner().name;
    let expected = [("kms.secrets.create".to_owned(), created, "ok".to_owned())];
    assert_eq!(recorded(&mut client, "cre").await, expected);
}

#[tokio::test]
async fn a_record_says_who_what_where_and_on_which_resource() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut service = daemon.client("block-storage").await;
    let key = admin.create("volumes").await;
    let request = pb::GenerateDekRequest {
        key: key.name.clone(),
        resource: "crn:v1:rootkeyd:public:is:local:a/1::volume:v".into(),
        ..Default::default()
    };
    service.crypto.generate_dek(with_id(request, "id-1")).await.unwrap();
    let events = admin.audit_events().await;
    let event = events.iter().find(|event| event.request_id == "id-1").unwrap();
    assert_eq!(event.principal, "spiffe://rootkeyd.dev/service/block-storage");
    assert!(event.source_address.starts_with("127.0.0.1:"));
    assert_eq!(event.resource, "crn:v1:rootkeyd:public:is:local:a/1::volume:v");
    assert_eq!(event.key_version, key.primary_version);
    assert!(event.time.is_some());
    let created = events.iter().find(|event| event.action == "kms.secrets.create").unwrap();
    assert_eq!(created.details["key_state"], "active");
}

#[tokio::test]
async fn a_record_says_how_grave_it_is_by_action_and_by_outcome() {
    use pb::audit_event::Severity;
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut service = daemon.client("block-storage").await;
    let key = admin.create("volumes").await.name;
    let disable = pb::DisableKeyRequest { name: key.clone(), ..Default::default() };
    service.keys.disable_key(with_id(disable.clone(), "denied")).await.unwrap_err();
    admin.keys.disable_key(with_id(disable, "done")).await.unwrap();
    let wrap = pb::WrapDekRequest { key, dek: b"dek".to_vec(), ..Default::default() };
    admin.crypto.wrap_dek(with_id(wrap, "suspended")).await.unwrap_err();
    let get = pb::GetKeyRequest { name: "instances/default/keys/nobody".into() };
    admin.keys.get_key(with_id(get, "absent")).await.unwrap_err();

    let events = admin.audit_events().await;
    let cases = [
        ("denied", 401, Severity::Critical),
        ("done", 200, Severity::Warning),
        ("suspended", 409, Severity::Warning),
        ("absent", 404, Severity::Normal),
    ];
    for (id, code, severity) in cases {
        let event = events.iter().find(|event| event.request_id == id).unwrap();
        assert_eq!((event.reason_code, event.severity()), (code, severity), "{id}");
    }
}

#[tokio::test]
async fn records_are_chained_without_a_gap_over_pages_and_a_restart() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let (one, two) = (client.create("one").await.name, client.create("two").await.name);
    for number in 0..40 {
        let key = if number % 4 == 0 { &two } else { &one };
        client.wrap(key, b"dek", &[]).await.unwrap();
    }
    daemon.stop().await;
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    client.wrap(&one, b"dek", &[]).await.unwrap();
    let events = client.audit_events().await;
    for pair in events.windows(2) {
        assert_eq!(pair[0].sequence, pair[1].sequence + 1);
        assert_eq!(pair[0].previous_hash, pair[1].hash);
    }
    assert_eq!(events.last().unwrap().sequence, 1);

    let (mut of_two, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListAuditEventsRequest {
            parent: "instances/default".into(),
            page_size: 3,
            page_token,
            key: two.clone(),
        };
        let page = client.audit.list_audit_events(request).await.unwrap().into_inner();
        of_two.extend(page.audit_events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(of_two.len(), 11);
    assert!(of_two.iter().all(|event| event.subject == two));
    let bad = pb::ListAuditEventsRequest {
        parent: "instances/default".into(),
        page_token: "nonsense".into(),
        ..Default::default()
    };
    let refused = refusal(client.audit.list_audit_events(bad).await.unwrap_err());
    assert_eq!(refused.metadata["field"], "page_token");
}

#[tokio::test]
async fn each_item_of_batch_and_stream_has_a_record_of_its_own() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let good = client.wrap(&key, b"dek", &[]).await.unwrap();
    let bad = good[..60].to_vec();
    let requests: Vec<_> = (0..150)
        .map(|i| unwrap_request(&key, if i % 3 == 0 { &bad } else { &good }, &[]))
        .collect();
    let batch = pb::BatchUnwrapDeksRequest { requests: requests.clone() };
    client.crypto.batch_unwrap_deks(with_id(batch, "batch")).await.unwrap();
    let stream = requests
        .into_iter()
        .zip(0..)
        .map(|(request, id)| pb::StreamUnwrapDeksRequest { id, request: Some(request) });
    let stream = tokio_stream::iter(stream.collect::<Vec<_>>());
    let answers = client.crypto.stream_unwrap_deks(with_id(stream, "stream")).await.unwrap();
    let mut answers = answers.into_inner();
    while answers.message().await.unwrap().is_some() {}

    for id in ["batch", "stream"] {
        let mut counts = HashMap::new();
        for (action, subject, said) in recorded(&mut client, id).await {
            assert_eq!((action.as_str(), &subject), ("kms.secrets.unwrap", &key));
            *counts.entry(said).or_insert(0) += 1;
        }
        let expected = [("ok".to_owned(), 100), ("CIPHERTEXT_UNVERIFIED".to_owned(), 50)];
        assert_eq!(counts, HashMap::from(expected), "{id}");
    }
}

/// A call with a body of our own making, as another program would send it.
async fn raw(client: &Client, path: &'static str, id: &str, body: Vec<u8>) -> tonic::Status {
    let mut grpc = tonic::client::Grpc::new(client.channel.clone());
    grpc = grpc.max_encoding_message_size(usize::MAX);
    grpc.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    let answer: Result<tonic::Response<Vec<u8>>, _> =
        grpc.unary(with_id(body, id), path, RawCodec).await;
    answer.map(drop).unwrap_err()
}

/// Sends bytes as they are.
struct RawCodec;

impl tonic::codec::Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn encode(
        &mut self,
        item: Vec<u8>,
        buffer: &mut tonic::codec::EncodeBuf<'_>,
    ) -> Result<(), tonic::Status> {
        bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl tonic::codec::Decoder for RawCodec {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn decode(
        &mut self,
        _buffer: &mut tonic::codec::DecodeBuf<'_>,
    ) -> Result<Option<Vec<u8>>, tonic::Status> {
        Ok(Some(Vec::new()))
    }
}

#[tokio::test]
async fn what_never_reaches_a_method_is_refused_with_a_reason_and_recorded() {
    let mut daemon = Daemon::start();
    let client = daemon.client("admin").await;
    let cases = [
        ("/rootkeyd.v1.CryptoService/UnwrapDek", "refused-bytes", vec![0xff; 40], "FIELD_INVALID"),
        (
            "/rootkeyd.v1.KeyService/GetKey",
            "refused-long-key",
            vec![0x0a; 100_000],
            "FIELD_INVALID",
        ),
        (
            "/rootkeyd.v1.CryptoService/WrapDek",
            "refused-long-dek",
            vec![0; 17 << 20],
            "FIELD_INVALID",
        ),
        ("/rootkeyd.v1.KeyService/NoSuchMethod", "refused-no-method", Vec::new(), "UNIMPLEMENTED"),
        (
            "/rootkeyd.v1.CryptoService/StreamUnwrapDeks",
            "refused-in-stream",
            vec![0xff; 40],
            "FIELD_INVALID",
        ),
    ];
    for (path, id, body, reason) in cases {
        let refused = refusal(raw(&client, path, id, body).await);
        assert_eq!(refused.reason, reason, "{path}");
    }
    // They name no instance, so that no instance's list has them: the log does.
    daemon.stop().await;
    let segment = std::fs::read(daemon.dir.join("state/audit/00000000000000000001.log")).unwrap();
    let log = String::from_utf8_lossy(&segment);
    for id in ["bytes", "long-key", "long-dek", "no-method", "in-stream"] {
        assert!(log.contains(&format!("refused-{id}")), "{id} is not in the log");
    }
    rootkeyd::audit::verify(&daemon.dir.join("state/audit")).unwrap();
}
