//! KeyService: the life cycle of root keys.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::super::{convert, methods, pb};
use super::{Edge, enter_instance, enter_key, enter_within};
use crate::domain::{Force, InstanceId, Key, KeyRingId, KeyRingName};
use crate::error::Error;
use crate::service::{Asked, Call, Caller, Listed, Method, Service};
use pb::key_service_server::KeyService;

impl Edge {
    /// A call about a key that answers with the key.
    fn encode_key(&self) -> impl FnOnce(Arc<Key>) -> pb::Key {
        let (service, crn_prefix) = (Arc::clone(&self.service), Arc::clone(&self.crn_prefix));
        move |key| shown(&service, &crn_prefix, &key)
    }
}

fn shown(service: &Service, crn_prefix: &str, key: &Key) -> pb::Key {
    convert::key(key, service.registered_against(key), crn_prefix, service.now())
}

/// A method of KeyService that changes one key: enter, then the use case.
macro_rules! change_key {
    ($self:ident, $request:ident, $method:ident, $use_case:ident, $($field:ident)?) => {
        $self
            .run(
                &methods::$method,
                $request,
                |message| &message.name,
                |service, caller, message| async move {
                    let (call, name) =
                        enter_key(&service, &caller, &methods::$method, &message.name)?;
                    service.$use_case(&call, name $(, message.$field)?).await
                },
                $self.encode_key(),
            )
            .await
    };
}

#[tonic::async_trait]
impl KeyService for Edge {
    async fn create_key(
        &self,
        request: Request<pb::CreateKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        self.run(
            &methods::CREATE_KEY,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let ring = message.key.as_ref().map_or("", |key| &key.key_ring);
                let method = &methods::CREATE_KEY;
                let (call, instance) =
                    enter_ring(&service, &caller, method, (&message.parent, ring))?;
                let (new, request_id) = convert::new_key(instance, message)?;
                service.create_key(&call, new, request_id).await
            },
            self.encode_key(),
        )
        .await
    }

    async fn import_key(
        &self,
        request: Request<pb::ImportKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        self.run(
            &methods::IMPORT_KEY,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let ring = message.key.as_ref().map_or("", |key| &key.key_ring);
                let method = &methods::IMPORT_KEY;
                let (call, instance) =
                    enter_ring(&service, &caller, method, (&message.parent, ring))?;
                let (new, request_id) = convert::imported_key(instance, message)?;
                service.create_key(&call, new, request_id).await
            },
            self.encode_key(),
        )
        .await
    }

    async fn get_key(
        &self,
        request: Request<pb::GetKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        self.run(
            &methods::GET_KEY,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let (call, name) = enter_key(&service, &caller, &methods::GET_KEY, &message.name)?;
                service.key(&call, &name)
            },
            self.encode_key(),
        )
        .await
    }

    async fn list_keys(
        &self,
        request: Request<pb::ListKeysRequest>,
    ) -> Result<Response<pb::ListKeysResponse>, Status> {
        let (shows, crn_prefix) = (Arc::clone(&self.service), Arc::clone(&self.crn_prefix));
        self.run(
            &methods::LIST_KEYS,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let (call, instance) =
                    enter_within(&service, &caller, &methods::LIST_KEYS, &message.parent)?;
                service.list_keys(&call, &convert::key_query(instance, message)?)
            },
            |Listed { items, next_page_token }| pb::ListKeysResponse {
                keys: items.iter().map(|key| shown(&shows, &crn_prefix, key)).collect(),
                next_page_token,
            },
        )
        .await
    }

    async fn update_key(
        &self,
        request: Request<pb::UpdateKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        self.run(
            &methods::UPDATE_KEY,
            request,
            |message| message.key.as_ref().map_or("", |key| &key.name),
            |service, caller, message| async move {
                let pb::UpdateKeyRequest { key, update_mask } = message;
                let key = key.unwrap_or_default();
                let (call, name) = enter_key(&service, &caller, &methods::UPDATE_KEY, &key.name)?;
                let (etag, update) = convert::update(key, update_mask)?;
                service.update_key(&call, name, etag, update).await
            },
            self.encode_key(),
        )
        .await
    }

    async fn rotate_key(
        &self,
        request: Request<pb::RotateKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        self.run(
            &methods::ROTATE_KEY,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let (call, key) =
                    enter_key(&service, &caller, &methods::ROTATE_KEY, &message.name)?;
                let (asked, request_id) = convert::rotation(message)?;
                service.rotate_key(&call, key, asked, request_id).await
            },
            self.encode_key(),
        )
        .await
    }

    async fn disable_key(
        &self,
        request: Request<pb::DisableKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        self.run(
            &methods::DISABLE_KEY,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let pb::DisableKeyRequest { name, etag, impact_token } = message;
                let (call, name) = enter_key(&service, &caller, &methods::DISABLE_KEY, &name)?;
                service.disable_key(&call, name, (etag, impact_token)).await
            },
            self.encode_key(),
        )
        .await
    }

    async fn enable_key(
        &self,
        request: Request<pb::EnableKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        change_key!(self, request, ENABLE_KEY, enable_key, etag)
    }

    async fn set_key_for_deletion(
        &self,
        request: Request<pb::SetKeyForDeletionRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        change_key!(self, request, SET_KEY_FOR_DELETION, set_key_for_deletion,)
    }

    async fn unset_key_for_deletion(
        &self,
        request: Request<pb::UnsetKeyForDeletionRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        change_key!(self, request, UNSET_KEY_FOR_DELETION, unset_key_for_deletion,)
    }

    async fn delete_key(
        &self,
        request: Request<pb::DeleteKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        self.run(
            &methods::DELETE_KEY,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let pb::DeleteKeyRequest { name, etag, force, impact_token } = message;
                let (call, name) = enter_key(&service, &caller, &methods::DELETE_KEY, &name)?;
                let force = if force { Force::Yes } else { Force::No };
                service.delete_key(&call, name, (etag, impact_token), force).await
            },
            self.encode_key(),
        )
        .await
    }

    async fn restore_key(
        &self,
        request: Request<pb::RestoreKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        change_key!(self, request, RESTORE_KEY, restore_key, etag)
    }

    async fn purge_key(
        &self,
        request: Request<pb::PurgeKeyRequest>,
    ) -> Result<Response<pb::PurgeKeyResponse>, Status> {
        self.run(
            &methods::PURGE_KEY,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let (call, name) =
                    enter_key(&service, &caller, &methods::PURGE_KEY, &message.name)?;
                service.purge_key(&call, name).await
            },
            |purged| pb::PurgeKeyResponse { purge_time: Some(convert::pb_timestamp(purged)) },
        )
        .await
    }

    async fn list_key_versions(
        &self,
        request: Request<pb::ListKeyVersionsRequest>,
    ) -> Result<Response<pb::ListKeyVersionsResponse>, Status> {
        self.run(
            &methods::LIST_KEY_VERSIONS,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let pb::ListKeyVersionsRequest { parent, page_size, page_token } = message;
                let entered = enter_key(&service, &caller, &methods::LIST_KEY_VERSIONS, &parent);
                let (call, name) = entered?;
                let page_size = convert::page_size_of(page_size)?;
                service.list_versions(&call, &name, (page_size, &page_token))
            },
            |(key, Listed { items, next_page_token }): (Arc<Key>, _)| {
                let versions = items.iter().map(|version| convert::key_version(&key, version));
                let key_versions = versions.collect();
                pb::ListKeyVersionsResponse { key_versions, next_page_token }
            },
        )
        .await
    }
}

/// Enters with the permission on the ring that a new key shall be in; on the whole
/// instance, if that is no name of a ring.
fn enter_ring(
    service: &Service,
    caller: &Arc<Caller>,
    method: &'static Method,
    (parent, ring): (&str, &str),
) -> Result<(Call, InstanceId), Error> {
    let ring = match ring {
        "" => Ok(KeyRingId::default_ring()),
        name => name.parse(),
    };
    let (Ok(instance), Ok(ring)) = (InstanceId::from_parent(parent), ring) else {
        return enter_instance(service, caller, method, parent);
    };
    let ring = KeyRingName { instance, ring };
    let call = service.enter(caller, method, Ok(Asked::Ring(&ring)))?;
    Ok((call, ring.instance))
}
