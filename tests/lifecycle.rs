//! The life of a key: what each state allows, when it may come back, and what
//! the refusals say, as the seed document and Key Protect have it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::collections::HashSet;
use std::time::Duration;

use common::{Client, Daemon, Refusal, refusal};
use prost_types::{FieldMask, Timestamp};
use rootkeyd::api::pb;
use rootkeyd::api::pb::key::State;
use tonic::Code;

const RESTORABLE: fn(String) -> String =
    |config| config.replace("profile = \"vpc\"", "profile = \"key-protect\"");

/// What became of an operation: `ok`, or the reason.
fn said<T>(result: Result<T, Refusal>) -> String {
    result.map_or_else(|refusal| refusal.reason, |_| "ok".to_owned())
}

async fn do_one(client: &mut Client, operation: &str, key: &str, wrapped: &[u8]) -> String {
    match operation {
        "wrap" => said(client.wrap(key, b"dek", &[]).await),
        "generate" => {
            let request = pb::GenerateDekRequest { key: key.into(), ..Default::default() };
            said(client.crypto.generate_dek(request).await.map_err(refusal))
        }
        "unwrap" => said(client.unwrap(key, wrapped, &[]).await),
        "rewrap" => {
            let request = pb::RewrapDekRequest {
                key: key.into(),
                wrapped_dek: wrapped.to_vec(),
                ..Default::default()
            };
            said(client.crypto.rewrap_dek(request).await.map_err(refusal))
        }
        "rotate" => said(client.rotate(key).await),
        "disable" => said(client.disable(key).await),
        "enable" => said(client.enable(key).await),
        "update" => said(update(client, key, "renamed").await),
        "get" => said(client.get(key).await),
        "versions" => said(versions(client, key, 0, "").await),
        "delete" => said(client.delete(key).await),
        "restore" => said(client.restore(key).await),
        other => panic!("no operation {other}"),
    }
}

async fn update(client: &mut Client, key: &str, name: &str) -> Result<pb::Key, Refusal> {
    let key = pb::Key { name: key.into(), display_name: name.into(), ..Default::default() };
    let update_mask = Some(FieldMask { paths: vec!["display_name".into()] });
    let request = pb::UpdateKeyRequest { key: Some(key), update_mask };
    client.keys.update_key(request).await.map(tonic::Response::into_inner).map_err(refusal)
}

async fn versions(
    client: &mut Client,
    key: &str,
    page_size: i32,
    page_token: &str,
) -> Result<pb::ListKeyVersionsResponse, Refusal> {
    let page_token = page_token.into();
    let request = pb::ListKeyVersionsRequest { parent: key.into(), page_size, page_token };
    client.keys.list_key_versions(request).await.map(tonic::Response::into_inner).map_err(refusal)
}

/// Every cell of `facts/key-protect.md` 1.3 that this version has, through the
/// socket and the token. Each cell gets a key of its own.
#[tokio::test]
async fn every_state_allows_and_refuses_what_the_table_says() {
    const S: &str = "KEY_SUSPENDED";
    const D: &str = "KEY_DEACTIVATED";
    const X: &str = "KEY_DESTROYED";
    const NS: &str = "KEY_NOT_SUSPENDED";
    const ND: &str = "KEY_NOT_DESTROYED";
    #[rustfmt::skip]
    let table = [ //   active  suspended  deactivated  destroyed
        ("wrap",     ["ok",   S,         D,           X]),
        ("generate", ["ok",   S,         D,           X]),
        ("unwrap",   ["ok",   S,         "ok",        X]),
        ("rewrap",   ["ok",   S,         "ok",        X]),
        ("rotate",   ["ok",   S,         D,           X]),
        ("disable",  ["ok",   S,         D,           X]),
        ("enable",   [NS,     "ok",      NS,          X]),
        ("update",   ["ok",   "ok",      "ok",        X]),
        ("get",      ["ok",   "ok",      "ok",        "ok"]),
        ("versions", ["ok",   "ok",      "ok",        "ok"]),
        ("delete",   ["ok",   "ok",      "ok",        X]),
        ("restore",  [ND,     ND,        ND,          "KEY_NOT_IMPORTED"]),
    ];
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    daemon.set_clock("2030-01-01T00:00:00Z");
    let mut keys = Vec::new();
    for (operation, row) in table {
        for (column, expected) in row.into_iter().enumerate() {
            let mut key = pb::Key { display_name: "cell".into(), ..Default::default() };
            if column == 2 {
                key.expire_time = Some(Timestamp { seconds: 1_893_456_060, nanos: 0 });
            }
            let name = client.create_key(key).await.unwrap().name;
            let wrapped = client.wrap(&name, b"dek", &[]).await.unwrap();
            match column {
                1 => drop(client.disable(&name).await.unwrap()),
                3 => drop(client.delete(&name).await.unwrap()),
                _ => {}
            }
            keys.push((operation, column, expected, name, wrapped));
        }
    }
    // Past the expiration date and the 30 seconds of rest.
    daemon.set_clock("2030-01-01T00:01:00Z");
    for (operation, column, expected, name, wrapped) in keys {
        let became = do_one(&mut client, operation, &name, &wrapped).await;
        assert_eq!(became, expected, "{operation}, state {column}");
    }
}

#[tokio::test]
async fn a_suspended_key_refuses_as_the_seed_says_and_comes_back() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut service = daemon.client("block-storage").await;
    let key = admin.create("volumes").await.name;
    let wrapped = service.wrap(&key, b"dek", &[]).await.unwrap();
    daemon.set_clock("2030-01-01T00:00:00Z");
    let disabled = admin.disable(&key).await.unwrap();
    assert_eq!(disabled.state(), State::Suspended);

    let refused = service.unwrap(&key, &wrapped, &[]).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (Code::FailedPrecondition, "KEY_SUSPENDED")
    );
    assert_eq!(refused.metadata["status_reason"], "encryption_key_disabled");
    assert_eq!(refused.metadata["key_protect_code"], "KEY_ACTION_INVALID_STATE_ERR");
    assert_eq!(refused.metadata["subject"], key);

    daemon.set_clock("2030-01-01T00:00:29.5Z");
    let early = admin.enable(&key).await.unwrap_err();
    assert_eq!((early.code, early.reason.as_str()), (Code::FailedPrecondition, "TOO_EARLY"));
    assert_eq!(early.retry_after, Some(Duration::from_millis(500)));
    assert_eq!(early.metadata["key_protect_code"], "REQ_TOO_EARLY_ERR");
    daemon.set_clock("2030-01-01T00:00:30Z");
    assert_eq!(admin.enable(&key).await.unwrap().state(), State::Active);
    assert_eq!(service.unwrap(&key, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
}

#[tokio::test]
async fn a_deleted_key_refuses_as_the_seed_says_and_only_an_imported_one_is_restored() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let wrapped = client.wrap(&key, b"dek", &[]).await.unwrap();
    let deleted = client.delete(&key).await.unwrap();
    assert_eq!(deleted.state(), State::Destroyed);
    let days = |time: &Option<Timestamp>| {
        let since = deleted.delete_time.unwrap().seconds;
        (time.unwrap().seconds - since) / 86_400
    };
    assert_eq!((days(&deleted.restore_expire_time), days(&deleted.purge_time)), (30, 90));

    let refused = client.unwrap(&key, &wrapped, &[]).await.unwrap_err();
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (Code::FailedPrecondition, "KEY_DESTROYED")
    );
    assert_eq!(refused.metadata["status_reason"], "encryption_key_deleted");
    assert_eq!(refused.metadata["key_protect_code"], "KEY_DELETED_ERR");
    daemon.set_clock("+31s");
    let refused = client.restore(&key).await.unwrap_err();
    assert_eq!(refused.reason, "KEY_NOT_IMPORTED");
    assert_eq!(refused.metadata["key_protect_code"], "KEY_IMPT_REQ_ERR");
}

#[tokio::test]
async fn under_key_protects_rules_any_key_is_restored_between_30_seconds_and_30_days() {
    let daemon = Daemon::start_edited(RESTORABLE);
    let mut client = daemon.client("admin").await;
    daemon.set_clock("2030-01-01T00:00:00Z");
    let (key, late) = (client.create("volumes").await.name, client.create("late").await.name);
    let wrapped = client.wrap(&key, b"dek", &[]).await.unwrap();
    client.disable(&key).await.unwrap();
    client.delete(&key).await.unwrap();
    client.delete(&late).await.unwrap();
    daemon.set_clock("2030-01-01T00:00:29Z");
    let early = client.restore(&key).await.unwrap_err();
    assert_eq!(
        (early.reason.as_str(), early.retry_after),
        ("TOO_EARLY", Some(Duration::from_secs(1)))
    );
    daemon.set_clock("2030-01-31T00:00:00Z");
    // It was suspended when it was deleted; the seed: restored is active.
    let restored = client.restore(&key).await.unwrap();
    assert_eq!((restored.state(), restored.delete_time), (State::Active, None));
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
    daemon.set_clock("2030-01-31T00:00:01Z");
    let refused = client.restore(&late).await.unwrap_err();
    assert_eq!(refused.reason, "RESTORE_WINDOW_CLOSED");
    assert_eq!(refused.metadata["key_protect_code"], "KEY_RESTORE_EXPIRED");
}

#[tokio::test]
async fn a_key_expires_in_the_second_of_its_date_and_an_expired_one_does_not_come_back() {
    let daemon = Daemon::start_edited(RESTORABLE);
    let mut client = daemon.client("admin").await;
    daemon.set_clock("2030-01-01T00:00:00Z");
    let expires = |seconds: i64| pb::Key {
        display_name: "short".into(),
        expire_time: Some(Timestamp { seconds: 1_893_456_000 + seconds, nanos: 0 }),
        ..Default::default()
    };
    let past = client.create_key(expires(0)).await.unwrap_err();
    assert_eq!(past.metadata["field"], "key.expire_time");
    let key = client.create_key(expires(60)).await.unwrap().name;
    let suspended = client.create_key(expires(60)).await.unwrap().name;
    let deleted = client.create_key(expires(60)).await.unwrap().name;
    client.disable(&suspended).await.unwrap();
    client.delete(&deleted).await.unwrap();
    let wrapped = client.wrap(&key, b"dek", &[]).await.unwrap();
    daemon.set_clock("2030-01-01T00:00:59.999Z");
    assert_eq!(client.get(&key).await.unwrap().state(), State::Active);
    daemon.set_clock("2030-01-01T00:01:00Z");
    assert_eq!(client.get(&key).await.unwrap().state(), State::Deactivated);
    assert_eq!(client.wrap(&key, b"dek", &[]).await.unwrap_err().reason, "KEY_DEACTIVATED");
    assert!(client.unwrap(&key, &wrapped, &[]).await.is_ok());
    assert_eq!(client.enable(&suspended).await.unwrap_err().reason, "KEY_EXPIRED");
    assert_eq!(client.restore(&deleted).await.unwrap_err().reason, "KEY_EXPIRED");
}

#[tokio::test]
async fn a_request_id_makes_one_key_and_is_not_for_another_request() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let request = |display_name: &str| pb::CreateKeyRequest {
        parent: "instances/default".into(),
        key: Some(pb::Key { display_name: display_name.into(), ..Default::default() }),
        request_id: "0b0e7f1c-95c9-4a0e-8a3e-1f2d3c4b5a69".into(),
    };
    let first = client.keys.create_key(request("volumes")).await.unwrap().into_inner();
    let (again, at_once) = {
        let (mut one, mut two) = (client.clone(), client.clone());
        let two = async { two.keys.create_key(request("volumes")).await };
        tokio::join!(one.keys.create_key(request("volumes")), two)
    };
    assert_eq!(again.unwrap().into_inner(), first);
    assert_eq!(at_once.unwrap().into_inner(), first);
    let other = refusal(client.keys.create_key(request("other")).await.unwrap_err());
    assert_eq!(other.reason, "REQUEST_ID_REUSED");

    // Another principal's id is another id; and a restart forgets nothing.
    daemon.stop().await;
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    assert_eq!(client.keys.create_key(request("volumes")).await.unwrap().into_inner(), first);
    let rotate = pb::RotateKeyRequest {
        name: first.name.clone(),
        request_id: "1b0e7f1c-95c9-4a0e-8a3e-1f2d3c4b5a69".into(),
        ..Default::default()
    };
    let rotated = client.keys.rotate_key(rotate.clone()).await.unwrap().into_inner();
    assert_eq!(client.keys.rotate_key(rotate).await.unwrap().into_inner(), rotated);
    assert_eq!(versions(&mut client, &first.name, 0, "").await.unwrap().key_versions.len(), 2);
    daemon.set_clock("+24h");
    let anew = client.keys.create_key(request("volumes")).await.unwrap().into_inner();
    assert_ne!(anew.name, first.name);
}

#[tokio::test]
async fn the_same_request_id_at_once_makes_one_key() {
    let daemon = Daemon::start();
    let client = daemon.client("admin").await;
    let request = || pb::CreateKeyRequest {
        parent: "instances/default".into(),
        key: Some(pb::Key {
            display_name: "volumes".into(),
            aliases: vec!["volumes".into()],
            ..Default::default()
        }),
        request_id: "2b0e7f1c-95c9-4a0e-8a3e-1f2d3c4b5a69".into(),
    };
    let calls = (0..8).map(|_| {
        let mut client = client.clone();
        async move { client.keys.create_key(request()).await.unwrap().into_inner().name }
    });
    let names: HashSet<_> = futures_util::future::join_all(calls).await.into_iter().collect();
    assert_eq!(names.len(), 1);
    let mut client = client;
    let listed = list(&mut client, pb::ListKeysRequest::default()).await;
    assert_eq!(listed.keys.len(), 1);
    let status = client.admin.get_hsm_status(pb::GetHsmStatusRequest {}).await;
    let status = status.unwrap().into_inner();
    assert_eq!((status.objects, status.orphans), (1, 0));
}

#[tokio::test]
async fn an_etag_of_another_generation_aborts() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await;
    let disable = |etag: &str| pb::DisableKeyRequest {
        name: key.name.clone(),
        etag: etag.into(),
        ..Default::default()
    };
    update(&mut client, &key.name, "renamed").await.unwrap();
    let stale = refusal(client.keys.disable_key(disable(&key.etag)).await.unwrap_err());
    assert_eq!((stale.code, stale.reason.as_str()), (Code::Aborted, "ETAG_MISMATCH"));
    let fresh = client.get(&key.name).await.unwrap();
    assert_ne!(fresh.etag, key.etag);
    assert!(client.keys.disable_key(disable(&fresh.etag)).await.is_ok());
}

#[tokio::test]
async fn an_alias_is_given_moved_and_freed() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let named = |aliases: &[&str]| pb::Key {
        display_name: "volumes".into(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        ..Default::default()
    };
    let one = client.create_key(named(&["boot", "data"])).await.unwrap();
    let taken = client.create_key(named(&["data"])).await.unwrap_err();
    assert_eq!((taken.code, taken.reason.as_str()), (Code::AlreadyExists, "ALIAS_TAKEN"));
    let two = client.create_key(named(&[])).await.unwrap();
    let mut set = async |key: &pb::Key, aliases: &[&str]| {
        let key = pb::Key { name: key.name.clone(), ..named(aliases) };
        let update_mask = Some(FieldMask { paths: vec!["aliases".into()] });
        let request = pb::UpdateKeyRequest { key: Some(key), update_mask };
        client.keys.update_key(request).await.map(tonic::Response::into_inner).map_err(refusal)
    };
    assert_eq!(set(&two, &["data"]).await.unwrap_err().reason, "ALIAS_TAKEN");
    assert_eq!(set(&one, &["boot"]).await.unwrap().aliases, ["boot"]);
    assert_eq!(set(&two, &["data"]).await.unwrap().aliases, ["data"]);
    assert_eq!(client.get("instances/default/keys/data").await.unwrap().name, two.name);
    assert_eq!(client.get("instances/default/keys/boot").await.unwrap().name, one.name);
    assert_eq!(client.get("instances/default/keys/none").await.unwrap_err().code, Code::NotFound);
}

async fn list(client: &mut Client, request: pb::ListKeysRequest) -> pb::ListKeysResponse {
    let request = pb::ListKeysRequest { parent: "instances/default".into(), ..request };
    client.keys.list_keys(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn keys_are_listed_by_state_and_search_and_page_without_gap_or_repeat() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let mut made = Vec::new();
    for number in 0..23 {
        made.push(client.create(&format!("Volume {number}")).await.name);
    }
    client.disable(&made[3]).await.unwrap();
    client.delete(&made[5]).await.unwrap();
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListKeysRequest { page_size: 5, page_token, ..Default::default() };
        let page = list(&mut client, request).await;
        assert!(page.keys.len() <= 5);
        seen.extend(page.keys.into_iter().map(|key| key.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let expected: Vec<_> = made.iter().filter(|name| **name != made[5]).cloned().collect();
    assert_eq!(seen, expected);

    let of = |states: &[State], search: &str| pb::ListKeysRequest {
        states: states.iter().map(|state| i32::from(*state)).collect(),
        search: search.into(),
        ..Default::default()
    };
    let cases = [
        (of(&[State::Destroyed], ""), vec![&made[5]]),
        (of(&[State::Suspended, State::Destroyed], ""), vec![&made[3], &made[5]]),
        (of(&[], "vOLUME 22"), vec![&made[22]]),
        (of(&[], made[7].rsplit('/').next().unwrap()), vec![&made[7]]),
        (of(&[], "nothing like it"), vec![]),
    ];
    for (request, expected) in cases {
        let listed = list(&mut client, request).await;
        assert_eq!(listed.keys.iter().map(|key| &key.name).collect::<Vec<_>>(), expected);
        assert!(listed.next_page_token.is_empty());
    }
}

#[tokio::test]
async fn versions_are_listed_newest_first_in_pages() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await;
    let mut made = vec![key.primary_version.clone()];
    for hour in 1..5 {
        daemon.set_clock(&format!("+{hour}h"));
        made.insert(0, client.rotate(&key.name).await.unwrap().primary_version);
    }
    assert!(key.primary_version.ends_with(key.name.rsplit('/').next().unwrap()));
    let first = versions(&mut client, &key.name, 3, "").await.unwrap();
    let rest = versions(&mut client, &key.name, 3, &first.next_page_token).await.unwrap();
    let all: Vec<_> = first.key_versions.into_iter().chain(rest.key_versions).collect();
    assert_eq!(
        all.iter().map(|version| &version.name).collect::<Vec<_>>(),
        made.iter().collect::<Vec<_>>()
    );
    assert_eq!(all.iter().filter(|version| version.primary).count(), 1);
    assert!(all[0].primary && rest.next_page_token.is_empty());
    let bad = versions(&mut client, &key.name, 3, "99").await.unwrap_err();
    assert_eq!(bad.metadata["field"], "page_token");
}

#[tokio::test]
async fn bad_input_names_the_field() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let good = pb::Key { display_name: "volumes".into(), ..Default::default() };
    let cases = [
        ("key.display_name", pb::Key { display_name: "x".into(), ..good.clone() }),
        ("key.description", pb::Key { description: "x".repeat(241), ..good.clone() }),
        ("key.aliases", pb::Key { aliases: vec!["a b".into()], ..good.clone() }),
        ("key.tags", pb::Key { tags: vec!["a,b".into()], ..good.clone() }),
    ];
    for (field, key) in cases {
        let refused = client.create_key(key).await.unwrap_err();
        assert_eq!(
            (refused.reason.as_str(), refused.metadata["field"].as_str()),
            ("FIELD_INVALID", field)
        );
    }
    let request = pb::CreateKeyRequest {
        parent: "instances/default".into(),
        key: Some(good),
        request_id: "not a uuid".into(),
    };
    let refused = refusal(client.keys.create_key(request).await.unwrap_err());
    assert_eq!(refused.metadata["field"], "request_id");
    assert_eq!(
        client.get("instances/default/keys/a b").await.unwrap_err().metadata["field"],
        "name"
    );
    let wrap = pb::WrapDekRequest {
        key: "instances/default/keys/none".into(),
        dek: b"dek".to_vec(),
        resource: "line\nbreak".into(),
        ..Default::default()
    };
    let refused = refusal(client.crypto.wrap_dek(wrap).await.unwrap_err());
    assert_eq!(refused.metadata["field"], "resource");
}

#[tokio::test]
async fn a_service_uses_keys_and_decides_nothing() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let key = admin.create("volumes").await.name;
    for name in ["block-storage", "file-storage", "image"] {
        let mut service = daemon.client(name).await;
        let wrapped = service.wrap(&key, b"dek", &[]).await.unwrap();
        assert!(service.unwrap(&key, &wrapped, &[]).await.is_ok());
        assert!(service.get(&key).await.is_ok());
        for operation in ["rotate", "disable", "enable", "update", "delete", "restore"] {
            let became = do_one(&mut service, operation, &key, &wrapped).await;
            assert_eq!(became, "PERMISSION_DENIED", "{name} {operation}");
        }
        let create =
            service.create_key(pb::Key { display_name: "ab".into(), ..Default::default() });
        assert_eq!(create.await.unwrap_err().reason, "PERMISSION_DENIED");
        let audit =
            pb::ListAuditEventsRequest { parent: "instances/default".into(), ..Default::default() };
        let refused = refusal(service.audit.list_audit_events(audit).await.unwrap_err());
        assert_eq!(refused.reason, "PERMISSION_DENIED");
        let status = service.admin.get_hsm_status(pb::GetHsmStatusRequest {}).await;
        assert_eq!(refusal(status.unwrap_err()).reason, "PERMISSION_DENIED");
    }
    // Whether a key exists elsewhere is not told, nor whether the form was right.
    let elsewhere = admin.get("instances/other/keys/none").await.unwrap_err();
    assert_eq!(elsewhere.message, "permission denied (or it might not exist)");
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_a_restart() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let mut full = pb::Key {
        display_name: "volumes".into(),
        description: "of the cluster".into(),
        aliases: vec!["volumes".into()],
        tags: vec!["env dev".into()],
        ..Default::default()
    };
    full = client.create_key(full).await.unwrap();
    let wrapped = client.wrap(&full.name, b"dek", &[b"aad"]).await.unwrap();
    client.rotate(&full.name).await.unwrap();
    let other = client.create("other").await.name;
    client.disable(&other).await.unwrap();
    let before = (client.get(&full.name).await.unwrap(), client.get(&other).await.unwrap());
    daemon.stop().await;
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    assert_eq!((client.get(&full.name).await.unwrap(), client.get(&other).await.unwrap()), before);
    let unwrapped = client.unwrap("instances/default/keys/volumes", &wrapped, &[b"aad"]).await;
    assert_eq!(unwrapped.unwrap().dek, &b"dek"[..]);
    assert_eq!(client.wrap(&other, b"dek", &[]).await.unwrap_err().reason, "KEY_SUSPENDED");
}
