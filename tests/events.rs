//! Services are told of what happens to keys: at least once, in order, over
//! reconnects and kill -9; they acknowledge, and rewrap in campaigns.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::time::Duration;

use common::{Client, Daemon, refusal};
use rootkeyd::api::pb;
use rootkeyd::api::pb::event_service_client::EventServiceClient;
use rootkeyd::api::pb::key_event::Type;
use rootkeyd::api::pb::registration_service_client::RegistrationServiceClient;
use rootkeyd::api::pb::rewrap_campaign::State as CampaignState;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// One service's clients.
struct Service {
    client: Client,
    events: EventServiceClient<Channel>,
    registrations: RegistrationServiceClient<Channel>,
}

impl Service {
    async fn of(daemon: &Daemon, name: &str) -> Self {
        let client = daemon.client(name).await;
        let channel = client.channel.clone();
        Self {
            client,
            events: EventServiceClient::new(channel.clone()),
            registrations: RegistrationServiceClient::new(channel),
        }
    }

    async fn register(&mut self, key: &str, number: usize) -> pb::Registration {
        let registration = Some(pb::Registration {
            resource: crn(number),
            kind: pb::registration::Kind::DataVolume.into(),
            ..Default::default()
        });
        let request = pb::CreateRegistrationRequest { parent: key.into(), registration };
        self.registrations.create_registration(request).await.unwrap().into_inner()
    }

    async fn watch(&mut self, resume_token: &str) -> Streaming<pb::KeyEvent> {
        let request = pb::WatchKeyEventsRequest {
            parent: "instances/default".into(),
            resume_token: resume_token.into(),
        };
        self.events.watch_key_events(request).await.unwrap().into_inner()
    }

    async fn acknowledge(&mut self, event: &pb::KeyEvent) -> Result<bool, Status> {
        let (key, event_id, failure) = (event.key.clone(), event.id, String::new());
        let request = pb::AcknowledgeKeyEventRequest { key, event_id, failure };
        let answer = self.events.acknowledge_key_event(request).await?;
        Ok(answer.into_inner().all_acknowledged)
    }
}

fn crn(number: usize) -> String {
    format!("crn:v1:rootkeyd:public:is:local:a/dev::volume:{number:06}")
}

/// The next event; a minute is longer than any may take.
async fn next(events: &mut Streaming<pb::KeyEvent>) -> pb::KeyEvent {
    let event = tokio::time::timeout(Duration::from_secs(60), events.message()).await;
    event.expect("an event in time").unwrap().expect("a stream that goes on")
}

async fn sync(client: &Client, key: &str) -> Result<u32, Status> {
    let mut events = EventServiceClient::new(client.channel.clone());
    let answer = events.sync_key(pb::SyncKeyRequest { name: key.into() }).await?;
    Ok(answer.into_inner().services)
}

#[tokio::test]
async fn every_change_of_a_key_is_told_in_order_to_the_services_that_it_concerns() {
    let daemon = Daemon::start_edited(|config| {
        config.replace("profile = \"vpc\"", "profile = \"key-protect\"")
    });
    let mut admin = daemon.client("admin").await;
    daemon.set_clock("2030-01-01T00:00:00Z");
    let expire = |seconds| pb::Key {
        display_name: "volumes".into(),
        expire_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        ..Default::default()
    };
    let key = admin.create_key(expire(1_893_456_000 + 86_400)).await.unwrap();
    let mut block = Service::of(&daemon, "block-storage").await;
    let mut file = Service::of(&daemon, "file-storage").await;
    block.register(&key.name, 1).await;
    let mut told = block.watch("").await;

    let rotated = admin.rotate(&key.name).await.unwrap();
    admin.disable(&key.name).await.unwrap();
    daemon.set_clock("2030-01-01T00:00:30Z");
    admin.enable(&key.name).await.unwrap();
    let request =
        pb::DeleteKeyRequest { name: key.name.clone(), force: true, ..Default::default() };
    admin.keys.delete_key(request).await.unwrap();
    daemon.set_clock("2030-01-01T00:01:00Z");
    admin.restore(&key.name).await.unwrap();
    let early = refusal(sync(&admin, &key.name).await.unwrap_err());
    assert_eq!(
        (early.reason.as_str(), early.retry_after),
        ("TOO_EARLY", Some(Duration::from_secs(3600)))
    );
    daemon.set_clock("2030-01-01T01:01:00Z");
    assert_eq!(sync(&admin, &key.name).await.unwrap(), 1);
    assert_eq!(refusal(sync(&admin, &key.name).await.unwrap_err()).reason, "TOO_EARLY");
    daemon.set_clock("2030-01-02T00:00:00Z");

    let expected = [
        (Type::Rotate, "active"),
        (Type::Disable, "suspended"),
        (Type::Enable, "active"),
        (Type::Delete, "destroyed"),
        (Type::Restore, "active"),
        (Type::Sync, "active"),
        (Type::Expire, "deactivated"),
    ];
    let mut last = 0;
    for (kind, state) in expected {
        let event = next(&mut told).await;
        assert_eq!(
            (event.r#type(), event.key_state.as_str(), &event.key),
            (kind, state, &key.name)
        );
        assert!(event.id > last, "in order");
        last = event.id;
        let due = event.acknowledge_time.unwrap().seconds - event.time.unwrap().seconds;
        assert_eq!(due, 4 * 3_600);
        if kind == Type::Rotate {
            assert_eq!(event.previous_version, key.primary_version);
            assert_eq!(event.primary_version, rotated.primary_version);
        }
    }
    // A service without a resource under the key is told nothing; nobody else may watch.
    let mut nothing = file.watch("").await;
    let quiet = tokio::time::timeout(Duration::from_millis(300), nothing.message()).await;
    assert!(quiet.is_err());
    let request =
        pb::WatchKeyEventsRequest { parent: "instances/default".into(), ..Default::default() };
    let mut events = EventServiceClient::new(admin.channel.clone());
    assert_eq!(refusal(events.watch_key_events(request).await.unwrap_err()).reason, "SERVICE_ONLY");
}

#[tokio::test]
async fn nothing_is_lost_over_a_reconnect_a_restart_and_kill_9() {
    let mut daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut block = Service::of(&daemon, "block-storage").await;
    let mut keys = Vec::new();
    for number in 0..3 {
        keys.push(admin.create(&format!("volumes {number}")).await.name);
        block.register(keys.last().unwrap(), number).await;
    }
    let mut told = block.watch("").await;
    admin.disable(&keys[0]).await.unwrap();
    let first = next(&mut told).await;
    drop(told);
    admin.disable(&keys[1]).await.unwrap();
    daemon.kill();
    daemon.start_again();
    let mut admin = daemon.client("admin").await;
    let mut block = Service::of(&daemon, "block-storage").await;
    // From the token on; without one from the oldest that is not acknowledged.
    let mut told = block.watch(&first.resume_token).await;
    assert_eq!(next(&mut told).await.key, keys[1]);
    let mut again = block.watch("").await;
    assert_eq!(next(&mut again).await.key, keys[0]);
    let second = next(&mut again).await;
    assert!(block.acknowledge(&first).await.unwrap());
    assert!(block.acknowledge(&second).await.unwrap());
    admin.disable(&keys[2]).await.unwrap();
    let mut rest = block.watch("").await;
    assert_eq!(next(&mut rest).await.key, keys[2]);
    let request = pb::WatchKeyEventsRequest {
        parent: "instances/default".into(),
        resume_token: "yesterday".into(),
    };
    let refused = refusal(block.events.watch_key_events(request).await.unwrap_err());
    assert_eq!(refused.metadata["field"], "resume_token");
    // A stop ends the streams in good order.
    daemon.stop().await;
}

#[tokio::test]
async fn acknowledgements_are_recorded_and_those_that_are_late_too() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let key = admin.create("volumes").await.name;
    let other = admin.create("other").await.name;
    let mut block = Service::of(&daemon, "block-storage").await;
    let mut file = Service::of(&daemon, "file-storage").await;
    block.register(&key, 1).await;
    file.register(&key, 2).await;
    admin.rotate(&key).await.unwrap();
    let event = next(&mut block.watch("").await).await;
    assert!(!block.acknowledge(&event).await.unwrap(), "file-storage has not yet");
    assert!(!block.acknowledge(&event).await.unwrap(), "once more changes nothing");
    let wrong = pb::KeyEvent { key: other, ..event.clone() };
    assert_eq!(refusal(block.acknowledge(&wrong).await.unwrap_err()).reason, "EVENT_NOT_FOUND");
    let none = pb::KeyEvent { id: 999, ..event.clone() };
    assert_eq!(refusal(block.acknowledge(&none).await.unwrap_err()).reason, "EVENT_NOT_FOUND");

    let acknowledgements = async |client: &mut Client| -> Vec<pb::AuditEvent> {
        let events = client.audit_events().await;
        let ours = |event: &pb::AuditEvent| event.action == "kms.secrets-event.ack";
        events.into_iter().filter(|event| ours(event) && event.subject == key).collect()
    };
    let given = acknowledgements(&mut admin).await;
    let of_rotation =
        |it: &&pb::AuditEvent| it.details.get("event_type").is_some_and(|t| t == "rotate");
    let given = given.iter().find(of_rotation).unwrap();
    assert_eq!(given.details["service"], "block-storage");
    assert!(given.details.contains_key("old_key_version"));

    daemon.set_clock("+3h 59m");
    common::tick(&daemon, &admin).await;
    let late = |events: &[pb::AuditEvent]| {
        events.iter().filter(|it| it.details.get("reason_code").is_some_and(|c| c == "408")).count()
    };
    assert_eq!(late(&acknowledgements(&mut admin).await), 0);
    daemon.set_clock("+4h 1m");
    let found = async || late(&acknowledgements(&mut daemon.client("admin").await).await) == 1;
    daemon.until("the overdue acknowledgement is recorded", found).await;
    common::tick(&daemon, &admin).await;
    assert_eq!(late(&acknowledgements(&mut admin).await), 1, "once");
    // It can still be given.
    assert!(file.acknowledge(&event).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_brings_every_resource_to_the_new_version_over_a_pause_and_kill_9() {
    let mut daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let key = admin.create("volumes").await.name;
    let mut block = Service::of(&daemon, "block-storage").await;
    let mut wrapped = std::collections::HashMap::new();
    for number in 0..60 {
        block.register(&key, number).await;
        let dek = format!("dek {number}").into_bytes();
        wrapped.insert(crn(number), block.client.wrap(&key, &dek, &[]).await.unwrap());
    }
    let rotated = admin.rotate(&key).await.unwrap();
    let mut campaigns = EventServiceClient::new(admin.channel.clone());
    let name = format!("{key}/rewrapCampaign");
    let none = campaigns.get_rewrap_campaign(pb::GetRewrapCampaignRequest { name: name.clone() });
    assert_eq!(refusal(none.await.unwrap_err()).reason, "CAMPAIGN_NOT_FOUND");
    // 20 a second: three seconds at least.
    let create = || pb::CreateRewrapCampaignRequest { parent: key.clone(), rate_per_minute: 1200 };
    let begun = campaigns.create_rewrap_campaign(create()).await.unwrap().into_inner();
    assert_eq!((begun.total, begun.rewrapped, begun.state()), (60, 0, CampaignState::Running));
    assert_eq!(begun.target_version, rotated.primary_version);
    let twice = campaigns.create_rewrap_campaign(create()).await.unwrap_err();
    assert_eq!(refusal(twice).reason, "CAMPAIGN_EXISTS");

    let mut asked: Vec<String> = Vec::new();
    let mut resume_token = String::new();
    for round in 0.. {
        let mut told = block.watch(&resume_token).await;
        while asked.len() < 60 {
            let event = next(&mut told).await;
            resume_token = event.resume_token.clone();
            if event.r#type() != Type::Rewrap {
                continue;
            }
            let rewrap = pb::RewrapDekRequest {
                key: key.clone(),
                wrapped_dek: wrapped[&event.resource].clone(),
                ..Default::default()
            };
            let new = block.client.crypto.rewrap_dek(rewrap).await.unwrap().into_inner();
            assert_eq!(new.key_version, rotated.primary_version);
            let registration = pb::Registration {
                name: event.registration.clone(),
                key_version: new.key_version,
                ..Default::default()
            };
            let paths = vec!["key_version".to_owned()];
            let update = pb::UpdateRegistrationRequest {
                registration: Some(registration),
                update_mask: Some(prost_types::FieldMask { paths }),
            };
            block.registrations.update_registration(update).await.unwrap();
            block.acknowledge(&event).await.unwrap();
            asked.push(event.resource);
            if (round, asked.len()) == (0, 15) || (round, asked.len()) == (1, 30) {
                break;
            }
        }
        match round {
            0 => {
                let pause = pb::PauseRewrapCampaignRequest { name: name.clone() };
                let mut campaigns = EventServiceClient::new(admin.channel.clone());
                let paused = campaigns.pause_rewrap_campaign(pause).await.unwrap().into_inner();
                assert_eq!(paused.state(), CampaignState::Paused);
                let handed = paused.requested;
                common::tick(&daemon, &admin).await;
                let get = pb::GetRewrapCampaignRequest { name: name.clone() };
                let still = campaigns.get_rewrap_campaign(get).await.unwrap().into_inner();
                assert_eq!(still.requested, handed, "a pause holds it");
                let resume = pb::ResumeRewrapCampaignRequest { name: name.clone() };
                campaigns.resume_rewrap_campaign(resume).await.unwrap();
            }
            1 => {
                daemon.kill();
                daemon.start_again();
                admin = daemon.client("admin").await;
                block = Service::of(&daemon, "block-storage").await;
            }
            _ => break,
        }
    }
    let mut once = asked.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!((asked.len(), once.len()), (60, 60), "each resource is asked for once");
    let mut campaigns = EventServiceClient::new(admin.channel.clone());
    let done = async || {
        let get = pb::GetRewrapCampaignRequest { name: name.clone() };
        let now = campaigns.get_rewrap_campaign(get).await.unwrap().into_inner();
        now.state() == CampaignState::Done && now.rewrapped == 60
    };
    daemon.until("the campaign is done", done).await;
}
