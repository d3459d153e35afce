//! AccessService: who may do what.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::super::{convert, methods, pb};
use super::{Edge, enter_within};
use crate::domain::{
    Area, BindingCollection, BindingName, InstanceId, Malformed, PrincipalId, Scope,
};
use crate::error::Error;
use crate::service::{Asked, Call, Caller, Listed, Method, Service, Tested};
use convert::Resource;
use pb::access_service_server::AccessService;

#[tonic::async_trait]
impl AccessService for Edge {
    async fn create_binding(
        &self,
        request: Request<pb::CreateBindingRequest>,
    ) -> Result<Response<pb::Binding>, Status> {
        let method = &methods::CREATE_BINDING;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let pb::CreateBindingRequest { parent, binding } = message;
                let scope = binding.as_ref().map_or("", |binding| &binding.scope);
                let call = enter_scope(&service, &caller, method, &parent, scope)?;
                let instance = InstanceId::from_parent(&parent)?;
                service.bind(&call, convert::new_binding(&instance, binding)?).await
            },
            |binding| convert::binding(&binding),
        )
        .await
    }

    async fn list_bindings(
        &self,
        request: Request<pb::ListBindingsRequest>,
    ) -> Result<Response<pb::ListBindingsResponse>, Status> {
        let method = &methods::LIST_BINDINGS;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let pb::ListBindingsRequest { parent, page_size, page_token } = message;
                let (call, instance) = enter_within(&service, &caller, method, &parent)?;
                let page = (convert::page_size_of(page_size)?, page_token.as_str());
                service.list_bindings(&call, (instance, BindingCollection::Bindings), page)
            },
            |Listed { items, next_page_token }| pb::ListBindingsResponse {
                bindings: items.iter().map(|binding| convert::binding(binding)).collect(),
                next_page_token,
            },
        )
        .await
    }

    async fn delete_binding(
        &self,
        request: Request<pb::DeleteBindingRequest>,
    ) -> Result<Response<pb::DeleteBindingResponse>, Status> {
        let method = &methods::DELETE_BINDING;
        self.run(
            method,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let name = BindingCollection::Bindings.parse(&message.name);
                let (call, name) = enter_binding(&service, &caller, method, name)?;
                service.unbind(&call, name).await
            },
            |()| pb::DeleteBindingResponse {},
        )
        .await
    }

    async fn create_service_authorization(
        &self,
        request: Request<pb::CreateServiceAuthorizationRequest>,
    ) -> Result<Response<pb::ServiceAuthorization>, Status> {
        let method = &methods::CREATE_SERVICE_AUTHORIZATION;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let pb::CreateServiceAuthorizationRequest { parent, service_authorization: new } =
                    message;
                let scope = new.as_ref().map_or("", |new| &new.scope);
                let call = enter_scope(&service, &caller, method, &parent, scope)?;
                let instance = InstanceId::from_parent(&parent)?;
                service.bind(&call, convert::new_authorization(&instance, new)?).await
            },
            |binding| convert::authorization(&binding),
        )
        .await
    }

    async fn list_service_authorizations(
        &self,
        request: Request<pb::ListServiceAuthorizationsRequest>,
    ) -> Result<Response<pb::ListServiceAuthorizationsResponse>, Status> {
        let method = &methods::LIST_SERVICE_AUTHORIZATIONS;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let pb::ListServiceAuthorizationsRequest { parent, page_size, page_token } =
                    message;
                let (call, instance) = enter_within(&service, &caller, method, &parent)?;
                let page = (convert::page_size_of(page_size)?, page_token.as_str());
                let collection = BindingCollection::ServiceAuthorizations;
                service.list_bindings(&call, (instance, collection), page)
            },
            |Listed { items, next_page_token }| pb::ListServiceAuthorizationsResponse {
                service_authorizations: items.iter().map(|it| convert::authorization(it)).collect(),
                next_page_token,
            },
        )
        .await
    }

    async fn delete_service_authorization(
        &self,
        request: Request<pb::DeleteServiceAuthorizationRequest>,
    ) -> Result<Response<pb::DeleteServiceAuthorizationResponse>, Status> {
        let method = &methods::DELETE_SERVICE_AUTHORIZATION;
        self.run(
            method,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let name = BindingCollection::ServiceAuthorizations.parse(&message.name);
                let (call, name) = enter_binding(&service, &caller, method, name)?;
                service.unbind(&call, name).await
            },
            |()| pb::DeleteServiceAuthorizationResponse {},
        )
        .await
    }

    async fn test_permissions(
        &self,
        request: Request<pb::TestPermissionsRequest>,
    ) -> Result<Response<pb::TestPermissionsResponse>, Status> {
        let method = &methods::TEST_PERMISSIONS;
        self.run(
            method,
            request,
            |message| &message.resource,
            |service, caller, message| async move {
                let resource = convert::tested_resource(&message.resource);
                let asked =
                    resource.as_ref().map(|it| Asked::Within(it.instance())).map_err(|bad| *bad);
                let call = service.enter(&caller, method, asked)?;
                service.test_permissions(&call, &tested(&service, &caller, resource?, &message)?)
            },
            convert::permissions,
        )
        .await
    }
}

/// Enters with the permission on the scope that something is given on; on the whole
/// instance, if that has not the form of a scope of it.
fn enter_scope(
    service: &Arc<Service>,
    caller: &Arc<Caller>,
    method: &'static Method,
    parent: &str,
    scope: &str,
) -> Result<Call, Error> {
    let instance = InstanceId::from_parent(parent);
    let scope = scope.parse::<Scope>().ok();
    match (&instance, scope) {
        (Ok(instance), Some(scope)) if scope.instance == *instance => {
            Service::with_asked(&scope, |asked| service.enter(caller, method, Ok(asked)))
        }
        (instance, _) => {
            let asked = instance.as_ref().map(Asked::Instance).map_err(|bad| *bad);
            service.enter(caller, method, asked)
        }
    }
}

/// Enters with the permission on the scope of a binding; on the whole instance, if
/// there is no such binding.
fn enter_binding(
    service: &Arc<Service>,
    caller: &Arc<Caller>,
    method: &'static Method,
    name: Result<BindingName, Malformed>,
) -> Result<(Call, BindingName), Error> {
    let name = match name {
        Ok(name) => name,
        Err(malformed) => {
            service.enter(caller, method, Err(malformed))?;
            return Err(malformed.into());
        }
    };
    let none = || Scope { instance: name.instance.clone(), area: Area::All };
    let scope = service.scope_of(&name).unwrap_or_else(none);
    let call = Service::with_asked(&scope, |asked| service.enter(caller, method, Ok(asked)))?;
    Ok((call, name))
}

/// What is tested: without a principal the caller itself, from where it calls.
fn tested(
    service: &Service,
    caller: &Caller,
    resource: Resource,
    message: &pb::TestPermissionsRequest,
) -> Result<Tested, Error> {
    let pb::TestPermissionsRequest { resource: _, methods, principal, source_address } = message;
    let own = caller.principal.clone().ok_or_else(Error::unauthenticated)?;
    let principal: PrincipalId = match principal.as_str() {
        "" => own.clone(),
        text => text.parse()?,
    };
    let address = convert::address(source_address)?;
    let address = address.or_else(|| caller.source_ip.filter(|_| principal == own));
    let methods = convert::tested_methods(methods)?;
    let scope = match resource {
        Resource::Scope(scope) => scope,
        Resource::Key(name) => service.scope_of_key(&name)?,
    };
    Ok(Tested { principal, address, scope, methods })
}
