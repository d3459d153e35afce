//! RegistrationService: which resource is protected by which key.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::super::{convert, methods, pb};
use super::{Edge, enter_key, of_field};
use crate::domain::{InstanceId, KeyName, Malformed, RegistrationName};
use crate::error::Error;
use crate::service::{Asked, Call, Caller, Listed, Method, Service};
use pb::registration_service_server::RegistrationService;

#[tonic::async_trait]
impl RegistrationService for Edge {
    async fn create_registration(
        &self,
        request: Request<pb::CreateRegistrationRequest>,
    ) -> Result<Response<pb::Registration>, Status> {
        let method = &methods::CREATE_REGISTRATION;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let pb::CreateRegistrationRequest { parent, registration } = message;
                let entered = enter_key(&service, &caller, method, &parent);
                let (call, key) = entered.map_err(|error| of_field(error, "parent"))?;
                service.register(&call, key, convert::new_registration(registration)?).await
            },
            convert::registration,
        )
        .await
    }

    async fn update_registration(
        &self,
        request: Request<pb::UpdateRegistrationRequest>,
    ) -> Result<Response<pb::Registration>, Status> {
        let method = &methods::UPDATE_REGISTRATION;
        self.run(
            method,
            request,
            |message| message.registration.as_ref().map_or("", |it| &it.name),
            |service, caller, message| async move {
                let pb::UpdateRegistrationRequest { registration, update_mask } = message;
                let registration = registration.unwrap_or_default();
                let (call, name) = enter_named(&service, &caller, method, &registration.name)?;
                let update = convert::registration_update(registration, update_mask)?;
                service.update_registration(&call, name, update).await
            },
            convert::registration,
        )
        .await
    }

    async fn get_registration(
        &self,
        request: Request<pb::GetRegistrationRequest>,
    ) -> Result<Response<pb::Registration>, Status> {
        let method = &methods::GET_REGISTRATION;
        self.run(
            method,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let (call, name) = enter_named(&service, &caller, method, &message.name)?;
                service.registration(&call, &name).await
            },
            convert::registration,
        )
        .await
    }

    async fn list_registrations(
        &self,
        request: Request<pb::ListRegistrationsRequest>,
    ) -> Result<Response<pb::ListRegistrationsResponse>, Status> {
        let method = &methods::LIST_REGISTRATIONS;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let place = parent(&message.parent);
                let asked = place.as_ref().map(asked_of).map_err(|bad| *bad);
                let call = service.enter(&caller, method, asked)?;
                let wanted = convert::registrations_wanted(place?, message)?;
                service.list_registrations(&call, wanted).await
            },
            |Listed { items, next_page_token }| pb::ListRegistrationsResponse {
                registrations: items.into_iter().map(convert::registration).collect(),
                next_page_token,
            },
        )
        .await
    }

    async fn delete_registration(
        &self,
        request: Request<pb::DeleteRegistrationRequest>,
    ) -> Result<Response<pb::DeleteRegistrationResponse>, Status> {
        let method = &methods::DELETE_REGISTRATION;
        self.run(
            method,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let (call, name) = enter_named(&service, &caller, method, &message.name)?;
                service.unregister(&call, name, message.etag).await
            },
            |()| pb::DeleteRegistrationResponse {},
        )
        .await
    }
}

/// Enters with the permission on the key of a registration.
fn enter_named(
    service: &Arc<Service>,
    caller: &Arc<Caller>,
    method: &'static Method,
    name: &str,
) -> Result<(Call, RegistrationName), Error> {
    let name: Result<RegistrationName, Malformed> = name.parse();
    let asked = name.as_ref().map(|name| Asked::Key(&name.key)).map_err(|bad| *bad);
    let call = service.enter(caller, method, asked)?;
    Ok((call, name?))
}

/// The name of a key; or of every key of an instance.
pub(in crate::api) fn parent(parent: &str) -> Result<(InstanceId, Option<KeyName>), Malformed> {
    if let Some(instance) = parent.strip_suffix("/keys/-") {
        return Ok((InstanceId::from_parent(instance)?, None));
    }
    let key: KeyName = parent.parse().map_err(|bad: Malformed| bad.of("parent"))?;
    Ok((key.instance.clone(), Some(key)))
}

/// What is asked about such a parent.
pub(super) fn asked_of((instance, key): &(InstanceId, Option<KeyName>)) -> Asked<'_> {
    key.as_ref().map_or(Asked::Within(instance), Asked::Key)
}
