//! What stands against the deletion of a key, and what follows it: registrations,
//! as a service writes them, authorizations, force, purge.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use prost_types::FieldMask;
use rootkeyd::api::pb;
use rootkeyd::api::pb::registration::Kind;
use rootkeyd::api::pb::registration_service_client::RegistrationServiceClient;

use crate::common::{Client, Refusal, refusal};

/// Gives the first of two authorizations.
pub async fn set_for_deletion(client: &Client, key: &str) -> Result<pb::Key, Refusal> {
    let request = pb::SetKeyForDeletionRequest { name: key.into() };
    let set = client.keys.clone().set_key_for_deletion(request).await;
    set.map(tonic::Response::into_inner).map_err(refusal)
}

/// Takes it back.
pub async fn unset_for_deletion(client: &Client, key: &str) -> Result<pb::Key, Refusal> {
    let request = pb::UnsetKeyForDeletionRequest { name: key.into() };
    let unset = client.keys.clone().unset_key_for_deletion(request).await;
    unset.map(tonic::Response::into_inner).map_err(refusal)
}

pub async fn delete(client: &Client, key: &str, force: bool) -> Result<pb::Key, Refusal> {
    let request = pb::DeleteKeyRequest { name: key.into(), force, ..Default::default() };
    let deleted = client.keys.clone().delete_key(request).await;
    deleted.map(tonic::Response::into_inner).map_err(refusal)
}

pub async fn purge(client: &Client, key: &str) -> Result<pb::PurgeKeyResponse, Refusal> {
    let request = pb::PurgeKeyRequest { name: key.into() };
    let purged = client.keys.clone().purge_key(request).await;
    purged.map(tonic::Response::into_inner).map_err(refusal)
}

/// Registers volume `volume` against `key`.
pub async fn register(
    client: &Client,
    key: &str,
    (volume, prevent_key_deletion): (&str, bool),
) -> Result<pb::Registration, Refusal> {
    let registration = pb::Registration {
        resource: format!("crn:v1:rootkeyd:public:is:local:a/dev::volume:{volume}"),
        kind: Kind::DataVolume.into(),
        prevent_key_deletion,
        ..Default::default()
    };
    let registration = Some(registration);
    let request = pb::CreateRegistrationRequest { parent: key.into(), registration };
    let made = registrations(client).create_registration(request).await;
    made.map(tonic::Response::into_inner).map_err(refusal)
}

/// Says whether the resource prevents the deletion of its key from now on.
pub async fn prevent(client: &Client, name: &str, prevent_key_deletion: bool) {
    let name = name.into();
    let registration = pb::Registration { name, prevent_key_deletion, ..Default::default() };
    let request = pb::UpdateRegistrationRequest {
        registration: Some(registration),
        update_mask: Some(FieldMask { paths: vec!["prevent_key_deletion".into()] }),
    };
    registrations(client).update_registration(request).await.map_err(refusal).unwrap();
}

pub async fn unregister(client: &Client, name: &str) -> Result<(), Refusal> {
    let request = pb::DeleteRegistrationRequest { name: name.into(), etag: String::new() };
    registrations(client).delete_registration(request).await.map(drop).map_err(refusal)
}

/// Names of the resources that are registered against `key`.
pub async fn registered(client: &Client, key: &str) -> Result<Vec<String>, Refusal> {
    let request = pb::ListRegistrationsRequest { parent: key.into(), ..Default::default() };
    let listed = registrations(client).list_registrations(request).await.map_err(refusal)?;
    Ok(listed.into_inner().registrations.into_iter().map(|it| it.resource).collect())
}

fn registrations(client: &Client) -> RegistrationServiceClient<tonic::transport::Channel> {
    RegistrationServiceClient::new(client.channel.clone())
}
