//! ResourceService: what the state of a key means for the resources that it protects.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::super::{convert, methods, pb};
use super::registrations::{asked_of, parent};
use super::{Edge, enter_key, enter_within};
use crate::domain::{Crn, Malformed};
use crate::service::Listed;
use pb::resource_service_server::ResourceService;

#[tonic::async_trait]
impl ResourceService for Edge {
    async fn get_resource_status(
        &self,
        request: Request<pb::GetResourceStatusRequest>,
    ) -> Result<Response<pb::ResourceStatus>, Status> {
        let method = &methods::GET_RESOURCE_STATUS;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let pb::GetResourceStatusRequest { parent, resource } = message;
                let (call, instance) = enter_within(&service, &caller, method, &parent)?;
                let resource: Result<Crn, Malformed> = resource.parse();
                service.resource_status(&call, &instance, &resource?).await
            },
            convert::resource_status,
        )
        .await
    }

    async fn list_resource_statuses(
        &self,
        request: Request<pb::ListResourceStatusesRequest>,
    ) -> Result<Response<pb::ListResourceStatusesResponse>, Status> {
        let method = &methods::LIST_RESOURCE_STATUSES;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let place = parent(&message.parent);
                let asked = place.as_ref().map(asked_of).map_err(|bad| *bad);
                let call = service.enter(&caller, method, asked)?;
                let wanted = convert::statuses_wanted(place?, message)?;
                service.resource_statuses(&call, wanted).await
            },
            |Listed { items, next_page_token }| pb::ListResourceStatusesResponse {
                statuses: items.into_iter().map(convert::resource_status).collect(),
                next_page_token,
            },
        )
        .await
    }

    async fn check_resource_action(
        &self,
        request: Request<pb::CheckResourceActionRequest>,
    ) -> Result<Response<pb::CheckResourceActionResponse>, Status> {
        let method = &methods::CHECK_RESOURCE_ACTION;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let entered = enter_within(&service, &caller, method, &message.parent);
                let (call, instance) = entered?;
                let wanted = convert::action_wanted(instance, message)?;
                service.check_action(&call, wanted).await
            },
            convert::checked,
        )
        .await
    }

    async fn preview_key_impact(
        &self,
        request: Request<pb::PreviewKeyImpactRequest>,
    ) -> Result<Response<pb::KeyImpact>, Status> {
        let method = &methods::PREVIEW_KEY_IMPACT;
        self.run(
            method,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let (call, key) = enter_key(&service, &caller, method, &message.name)?;
                let service = Arc::clone(&service);
                service.key_impact(&call, convert::impact_wanted(key, message)?).await
            },
            convert::impact,
        )
        .await
    }
}
