//! Wrap and unwrap: what goes in comes out, and nothing else does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::collections::{HashMap, HashSet};

use common::{Client, Daemon, Refusal, items, refusal, unwrap_request};
use rootkeyd::api::pb;
use rootkeyd::api::pb::unwrap_dek_result::Outcome;
use tonic::Code;

async fn unwrap_all(client: &mut Client, requests: Vec<pb::UnwrapDekRequest>) -> Vec<Outcome> {
    let request = pb::BatchUnwrapDeksRequest { requests };
    let response = client.crypto.batch_unwrap_deks(request).await.unwrap().into_inner();
    response.results.into_iter().map(|result| result.outcome.unwrap()).collect()
}

#[tokio::test]
async fn deks_of_every_allowed_size_come_back_as_they_were() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    for size in [1, 2, 15, 16, 17, 32, 64, 512, 4096, 7499, 7500] {
        let dek: Vec<u8> = (0..size).map(|i| u8::try_from((i * 7 + size) % 251).unwrap()).collect();
        let wrapped = client.wrap(&key, &dek, &[b"crn:v1:volume"]).await.unwrap();
        assert_eq!(wrapped.len(), size + 65);
        let unwrapped = client.unwrap(&key, &wrapped, &[b"crn:v1:volume"]).await.unwrap();
        assert_eq!(unwrapped.dek, dek);
        assert!(unwrapped.rewrapped_dek.is_empty());
    }
    for size in [0, 7501] {
        let refused = client.wrap(&key, &vec![1; size], &[]).await.unwrap_err();
        assert_eq!(
            (refused.code, refused.reason.as_str()),
            (Code::InvalidArgument, "FIELD_INVALID")
        );
        assert_eq!(refused.metadata["field"], "dek");
    }
}

#[tokio::test]
async fn the_same_dek_is_never_wrapped_to_the_same_bytes() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let mut seen = HashSet::new();
    for _ in 0..50 {
        assert!(seen.insert(client.wrap(&key, b"dek", &[]).await.unwrap()));
    }
}

#[tokio::test]
async fn aad_is_bound_item_by_item_and_in_order() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let wrapped = client.wrap(&key, b"dek", &[b"ab", b"c"]).await.unwrap();
    assert!(client.unwrap(&key, &wrapped, &[b"ab", b"c"]).await.is_ok());
    let others: [&[&[u8]]; 7] = [
        &[],
        &[b"abc"],
        &[b"a", b"bc"],
        &[b"c", b"ab"],
        &[b"ab", b"c", b""],
        &[b"ab"],
        &[b"AB", b"c"],
    ];
    for aad in others {
        let refused = client.unwrap(&key, &wrapped, aad).await.unwrap_err();
        assert_eq!(refused.reason, "CIPHERTEXT_UNVERIFIED", "{aad:?}");
    }

    let longest = vec![vec![b'x'; 255]; 255];
    let longest: Vec<&[u8]> = longest.iter().map(Vec::as_slice).collect();
    let wrapped = client.wrap(&key, b"dek", &longest).await.unwrap();
    assert_eq!(client.unwrap(&key, &wrapped, &longest).await.unwrap().dek, &b"dek"[..]);
    let too_many = vec![&b"x"[..]; 256];
    let too_long = vec![b'x'; 256];
    for aad in [&too_many[..], &[&too_long[..]]] {
        let refused = client.wrap(&key, b"dek", aad).await.unwrap_err();
        assert_eq!(
            (refused.reason.as_str(), refused.metadata["field"].as_str()),
            ("FIELD_INVALID", "aad")
        );
    }
}

#[tokio::test]
async fn whatever_is_wrong_with_a_wrapped_dek_the_refusal_is_one_and_the_same() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let other = client.create("others").await.name;
    let wrapped = client.wrap(&key, b"a dek of some length", &[b"aad"]).await.unwrap();
    let of_other = client.wrap(&other, b"a dek of some length", &[b"aad"]).await.unwrap();

    let mut spoilt: Vec<Vec<u8>> = Vec::new();
    for bit in 0..wrapped.len() * 8 {
        let mut flipped = wrapped.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        spoilt.push(flipped);
    }
    spoilt.extend((0..wrapped.len()).map(|length| wrapped[..length].to_vec()));
    spoilt.push([&wrapped[..], b"\0"].concat());
    spoilt.push([&wrapped[..], &wrapped[..]].concat());
    spoilt.push(of_other);
    spoilt.push(b"rkw".to_vec());
    spoilt.push(vec![0xff; 9000]);

    let mut refusals = HashSet::new();
    for chunk in spoilt.chunks(1000) {
        let requests = chunk.iter().map(|bytes| unwrap_request(&key, bytes, &[b"aad"])).collect();
        for outcome in unwrap_all(&mut client, requests).await {
            let Outcome::Refusal(refusal) = outcome else {
                panic!("a spoilt wrapped DEK unwrapped")
            };
            let pb::UnwrapDekRefusal { code, reason, message, metadata } = refusal;
            let metadata: std::collections::BTreeMap<_, _> = metadata.into_iter().collect();
            refusals.insert((code, reason, message, metadata));
        }
    }
    let other_aad = client.unwrap(&key, &wrapped, &[b"aad", b""]).await.unwrap_err();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    let (code, reason, message, _) = refusals.into_iter().next().unwrap();
    assert_eq!((code, reason.as_str()), (3, "CIPHERTEXT_UNVERIFIED"));
    assert_eq!((other_aad.reason, other_aad.message), (reason, message));
    // And the right one still unwraps: the session was not harmed.
    assert!(client.unwrap(&key, &wrapped, &[b"aad"]).await.is_ok());
}

#[tokio::test]
async fn unary_refusals_of_every_kind_of_damage_are_equal_to_the_byte() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let wrapped = client.wrap(&key, b"dek", &[b"aad"]).await.unwrap();
    let mut damaged = Vec::new();
    for place in [0, 3, 4, 5, 21, 37, 49, wrapped.len() - 1] {
        let mut bytes = wrapped.clone();
        bytes[place] ^= 0x40;
        damaged.push(bytes);
    }
    damaged.push(wrapped[..wrapped.len() - 1].to_vec());
    damaged.push(Vec::new());
    let mut seen = Vec::<Refusal>::new();
    for bytes in damaged {
        seen.push(client.unwrap(&key, &bytes, &[b"aad"]).await.unwrap_err());
    }
    assert!(seen.iter().all(|refusal| *refusal == seen[0]), "{seen:#?}");
    assert_eq!(seen[0].metadata["key_protect_code"], "UNPROCESSABLE_CIPHERTEXT_ERR");
}

#[tokio::test]
async fn a_dek_of_an_older_version_unwraps_and_comes_back_rewrapped() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await;
    let wrapped = client.wrap(&key.name, b"dek", &[b"aad"]).await.unwrap();
    let rotated = client.rotate(&key.name).await.unwrap();
    assert_ne!(rotated.primary_version, key.primary_version);
    assert!(rotated.rotate_time.is_some());

    let unwrapped = client.unwrap(&key.name, &wrapped, &[b"aad"]).await.unwrap();
    assert_eq!(unwrapped.dek, &b"dek"[..]);
    assert_eq!(unwrapped.key_version, key.primary_version);
    assert_eq!(unwrapped.rewrapped_key_version, rotated.primary_version);
    let again = client.unwrap(&key.name, &unwrapped.rewrapped_dek, &[b"aad"]).await.unwrap();
    assert_eq!(again.dek, &b"dek"[..]);
    assert_eq!(again.key_version, rotated.primary_version);
    assert!(again.rewrapped_dek.is_empty() && again.rewrapped_key_version.is_empty());
}

#[tokio::test]
async fn rewrap_moves_a_dek_to_the_primary_version_without_showing_it() {
    let daemon = Daemon::start();
    let mut client = daemon.client("block-storage").await;
    let mut admin = daemon.client("admin").await;
    let key = admin.create("volumes").await;
    let wrapped = client.wrap(&key.name, b"dek", &[b"aad"]).await.unwrap();
    let rotated = admin.rotate(&key.name).await.unwrap();
    let rewrap = |wrapped: &[u8], aad: &[&[u8]]| pb::RewrapDekRequest {
        key: key.name.clone(),
        wrapped_dek: wrapped.to_vec(),
        aad: items(aad),
        resource: String::new(),
    };
    let rewrapped =
        client.crypto.rewrap_dek(rewrap(&wrapped, &[b"aad"])).await.unwrap().into_inner();
    assert_eq!(rewrapped.previous_key_version, key.primary_version);
    assert_eq!(rewrapped.key_version, rotated.primary_version);
    let unwrapped = client.unwrap(&key.name, &rewrapped.wrapped_dek, &[b"aad"]).await.unwrap();
    assert_eq!(unwrapped.dek, &b"dek"[..]);

    // Of the primary version: new bytes all the same.
    let again = rewrap(&rewrapped.wrapped_dek, &[b"aad"]);
    let again = client.crypto.rewrap_dek(again).await.unwrap().into_inner();
    assert_eq!(again.previous_key_version, again.key_version);
    assert_ne!(again.wrapped_dek, rewrapped.wrapped_dek);
    let refused = client.crypto.rewrap_dek(rewrap(&wrapped, &[b"other"])).await.unwrap_err();
    assert_eq!(refusal(refused).reason, "CIPHERTEXT_UNVERIFIED");
}

#[tokio::test]
async fn generated_deks_are_random_and_of_the_size_asked_for() {
    let daemon = Daemon::start();
    let mut client = daemon.client("block-storage").await;
    let key = daemon.client("admin").await.create("volumes").await.name;
    let request = |size_bytes, wrapped_only| pb::GenerateDekRequest {
        register: None,
        key: key.clone(),
        size_bytes,
        aad: items(&[b"aad"]),
        resource: "crn:v1:volume".into(),
        wrapped_only,
    };
    let mut seen = HashSet::new();
    for (size, length) in [(0, 32), (16, 16), (33, 33), (512, 512)] {
        let made = client.crypto.generate_dek(request(size, false)).await.unwrap().into_inner();
        assert_eq!(made.dek.len(), length);
        let unwrapped = client.unwrap(&key, &made.wrapped_dek, &[b"aad"]).await.unwrap();
        assert_eq!(unwrapped.dek, made.dek);
        assert!(seen.insert(made.dek[..16].to_vec()));
    }
    let made = client.crypto.generate_dek(request(32, true)).await.unwrap().into_inner();
    assert!(made.dek.is_empty());
    assert_eq!(client.unwrap(&key, &made.wrapped_dek, &[b"aad"]).await.unwrap().dek.len(), 32);
    for size in [1, 15, 513, u32::MAX] {
        let refused = refusal(client.crypto.generate_dek(request(size, false)).await.unwrap_err());
        assert_eq!(refused.metadata["field"], "size_bytes");
    }
}

#[tokio::test]
async fn each_item_of_a_batch_succeeds_or_fails_alone() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let (one, two) = (client.create("one").await.name, client.create("two").await.name);
    let of_one = client.wrap(&one, b"dek one", &[]).await.unwrap();
    let of_two = client.wrap(&two, b"dek two", &[]).await.unwrap();
    client.disable(&two).await.unwrap();
    let missing = "instances/default/keys/00000000-0000-4000-8000-000000000000";
    let outcomes = unwrap_all(
        &mut client,
        vec![
            unwrap_request(&one, &of_one, &[]),
            unwrap_request(&two, &of_two, &[]),
            unwrap_request(&one, &of_two, &[]),
            unwrap_request(missing, &of_one, &[]),
            unwrap_request("instances/elsewhere/keys/volumes", &of_one, &[]),
            unwrap_request("nonsense", &of_one, &[]),
            unwrap_request(&one, &of_one, &[]),
        ],
    )
    .await;
    let said: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Response(response) => String::from_utf8(response.dek.to_vec()).unwrap(),
            Outcome::Refusal(refusal) => refusal.reason.clone(),
        })
        .collect();
    let expected = [
        "dek one",
        "KEY_SUSPENDED",
        "CIPHERTEXT_UNVERIFIED",
        "KEY_NOT_FOUND",
        "PERMISSION_DENIED",
        "FIELD_INVALID",
        "dek one",
    ];
    assert_eq!(said, expected);
    let Outcome::Refusal(suspended) = &outcomes[1] else { unreachable!() };
    assert_eq!(suspended.metadata["status_reason"], "encryption_key_disabled");
}

#[tokio::test]
async fn a_batch_is_of_1_to_1000() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let wrapped = client.wrap(&key, b"dek", &[]).await.unwrap();
    let thousand = vec![unwrap_request(&key, &wrapped, &[]); 1000];
    let outcomes = unwrap_all(&mut client, thousand.clone()).await;
    assert_eq!(outcomes.len(), 1000);
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Response(r) if *r.dek == b"dek"[..]))
    );
    for requests in [Vec::new(), vec![unwrap_request(&key, &wrapped, &[]); 1001]] {
        let request = pb::BatchUnwrapDeksRequest { requests };
        let refused = refusal(client.crypto.batch_unwrap_deks(request).await.unwrap_err());
        assert_eq!(refused.metadata["field"], "requests");
    }
}

#[tokio::test]
async fn a_stream_answers_every_request_by_its_id() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let mut expected = HashMap::new();
    let mut requests = Vec::new();
    for id in 0..500_u64 {
        let dek = format!("dek {id}").into_bytes();
        let mut wrapped = client.wrap(&key, &dek, &[]).await.unwrap();
        if id % 10 == 3 {
            wrapped[60] ^= 1;
        } else {
            expected.insert(id, dek);
        }
        let request = (id % 10 != 7).then(|| unwrap_request(&key, &wrapped, &[]));
        if request.is_none() {
            expected.remove(&id);
        }
        requests.push(pb::StreamUnwrapDeksRequest { id, request });
    }
    let stream = tokio_stream::iter(requests);
    let mut answers = client.crypto.stream_unwrap_deks(stream).await.unwrap().into_inner();
    let mut seen = HashSet::new();
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(seen.insert(answer.id), "{} was answered twice", answer.id);
        match answer.result.unwrap().outcome.unwrap() {
            Outcome::Response(response) => assert_eq!(expected[&answer.id], response.dek.to_vec()),
            Outcome::Refusal(refusal) => {
                let reason =
                    if answer.id % 10 == 7 { "FIELD_INVALID" } else { "CIPHERTEXT_UNVERIFIED" };
                assert_eq!(refusal.reason, reason);
                assert!(!expected.contains_key(&answer.id));
            }
        }
    }
    assert_eq!(seen.len(), 500);
}

#[tokio::test]
async fn a_key_is_named_by_its_uuid_or_an_alias() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = pb::Key {
        display_name: "volumes".into(),
        aliases: vec!["volumes-eu".into()],
        ..Default::default()
    };
    let key = client.create_key(key).await.unwrap();
    let alias = "instances/default/keys/volumes-eu";
    let wrapped = client.wrap(alias, b"dek", &[]).await.unwrap();
    assert_eq!(client.unwrap(&key.name, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
    assert_eq!(client.unwrap(alias, &wrapped, &[]).await.unwrap().key_version, key.primary_version);
}
