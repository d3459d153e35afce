//! KeyService: the life cycle of root keys.

use std::sync::Arc;

use prost::Message;
use tonic::{Request, Response, Status};

use super::super::{convert, methods, pb};
use super::{Edge, enter_instance, enter_key, scope};
use crate::domain::{InstanceId, Key, Malformed};
use crate::error::Error;
use crate::service::{Listed, Method};
use pb::key_service_server::KeyService;

impl Edge {
    /// A call about a key that answers with the key.
    fn encode_key(&self) -> impl FnOnce(Arc<Key>) -> pb::Key {
        let (crn_prefix, now) = (Arc::clone(&self.crn_prefix), self.service.now());
        move |key| convert::key(&key, &crn_prefix, now)
    }

    fn not_yet<Q, T>(
        &self,
        method: &'static Method,
        request: Request<Q>,
        subject: fn(&Q) -> &str,
        instance: fn(&Q) -> Result<InstanceId, Malformed>,
    ) -> impl Future<Output = Result<Response<T>, Status>> {
        self.run(
            method,
            request,
            subject,
            move |service, caller, message| async move {
                let instance = instance(&message);
                service.enter(&caller, method, scope(&instance))?;
                instance?;
                Err(Error::unimplemented(method.name))
            },
            |never: std::convert::Infallible| match never {},
        )
    }
}

/// A method of KeyService that changes one key: enter, then the use case.
macro_rules! change_key {
    ($self:ident, $request:ident, $method:ident, $use_case:ident) => {
        $self
            .run(
                &methods::$method,
                $request,
                |message| &message.name,
                |service, caller, message| async move {
                    let (call, name) =
                        enter_key(&service, &caller, &methods::$method, &message.name)?;
                    service.$use_case(&call, name, message.etag).await
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
                let (call, instance) =
                    enter_instance(&service, &caller, &methods::CREATE_KEY, &message.parent)?;
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
        let instance = |message: &pb::ImportKeyRequest| InstanceId::from_parent(&message.parent);
        self.not_yet(&methods::IMPORT_KEY, request, |message| &message.parent, instance).await
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
        let (crn_prefix, now) = (Arc::clone(&self.crn_prefix), self.service.now());
        self.run(
            &methods::LIST_KEYS,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let (call, instance) =
                    enter_instance(&service, &caller, &methods::LIST_KEYS, &message.parent)?;
                service.list_keys(&call, &convert::key_query(instance, message)?)
            },
            |Listed { items, next_page_token }| pb::ListKeysResponse {
                keys: items.iter().map(|key| convert::key(key, &crn_prefix, now)).collect(),
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
                let request_id = convert::request_id("RotateKey", &message.request_id, || {
                    pb::RotateKeyRequest { request_id: String::new(), ..message.clone() }
                        .encode_to_vec()
                })?;
                let pb::RotateKeyRequest { name: _, material, etag, request_id: _ } = message;
                if material.is_some() {
                    return Err(Error::unimplemented("material, of an imported key,"));
                }
                service.rotate_key(&call, key, etag, request_id).await
            },
            self.encode_key(),
        )
        .await
    }

    async fn disable_key(
        &self,
        request: Request<pb::DisableKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        change_key!(self, request, DISABLE_KEY, disable_key)
    }

    async fn enable_key(
        &self,
        request: Request<pb::EnableKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        change_key!(self, request, ENABLE_KEY, enable_key)
    }

    async fn set_key_for_deletion(
        &self,
        request: Request<pb::SetKeyForDeletionRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        let method = &methods::SET_KEY_FOR_DELETION;
        self.not_yet(method, request, |m| &m.name, |m| instance_of(&m.name)).await
    }

    async fn unset_key_for_deletion(
        &self,
        request: Request<pb::UnsetKeyForDeletionRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        let method = &methods::UNSET_KEY_FOR_DELETION;
        self.not_yet(method, request, |m| &m.name, |m| instance_of(&m.name)).await
    }

    async fn delete_key(
        &self,
        request: Request<pb::DeleteKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        // `force` is about registrations, of which no key has any yet.
        change_key!(self, request, DELETE_KEY, delete_key)
    }

    async fn restore_key(
        &self,
        request: Request<pb::RestoreKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        change_key!(self, request, RESTORE_KEY, restore_key)
    }

    async fn purge_key(
        &self,
        request: Request<pb::PurgeKeyRequest>,
    ) -> Result<Response<pb::PurgeKeyResponse>, Status> {
        self.not_yet(&methods::PURGE_KEY, request, |m| &m.name, |m| instance_of(&m.name)).await
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

fn instance_of(name: &str) -> Result<InstanceId, Malformed> {
    convert::key_name(name).map(|name| name.instance)
}
