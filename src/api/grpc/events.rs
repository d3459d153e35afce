//! EventService: services are told of what happens to keys, and rewrap after a
//! rotation.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::super::status::status;
use super::super::{convert, methods, pb};
use super::{Edge, answer, caller_of, enter_key, enter_within, of_field, stream_ends};
use crate::domain::KeyName;
use crate::domain::campaign::rate;
use crate::error::Error;
use crate::service::{Asked, Call, Caller, Method, Service};
use pb::event_service_server::EventService;

#[tonic::async_trait]
impl EventService for Edge {
    type WatchKeyEventsStream = Pin<Box<dyn Stream<Item = Result<pb::KeyEvent, Status>> + Send>>;

    async fn watch_key_events(
        &self,
        request: Request<pb::WatchKeyEventsRequest>,
    ) -> Result<Response<Self::WatchKeyEventsStream>, Status> {
        let method = &methods::WATCH_KEY_EVENTS;
        let caller = caller_of(&request);
        let ends = stream_ends(&request, self.stopped.clone());
        let pb::WatchKeyEventsRequest { parent, resume_token } = request.into_inner();
        let service = &self.service;
        let entered = enter_within(service, &caller, method, &parent);
        let watched = match entered {
            Ok((call, instance)) => {
                let stopped = self.stopped.clone();
                service.watch_key_events(&call, instance, &resume_token, stopped).await
            }
            Err(error) => Err(error),
        };
        let watched = service.conclude(&caller, method, &parent, watched).await;
        let request_id = caller.request_id.clone();
        let events = watched.map(|events| {
            let told = events.map(move |event| {
                event.map(convert::key_event).map_err(|error| status(&error, &request_id))
            });
            Box::pin(told.take_until(Box::pin(ends))) as Self::WatchKeyEventsStream
        });
        answer(events, &caller.request_id)
    }

    async fn acknowledge_key_event(
        &self,
        request: Request<pb::AcknowledgeKeyEventRequest>,
    ) -> Result<Response<pb::AcknowledgeKeyEventResponse>, Status> {
        let method = &methods::ACKNOWLEDGE_KEY_EVENT;
        self.run(
            method,
            request,
            |message| &message.key,
            |service, caller, message| async move {
                let entered = enter_key(&service, &caller, method, &message.key);
                let (call, key) = entered.map_err(|error| of_field(error, "key"))?;
                service.acknowledge_key_event(&call, convert::event_answer(key, message)).await
            },
            |all_acknowledged| pb::AcknowledgeKeyEventResponse { all_acknowledged },
        )
        .await
    }

    async fn sync_key(
        &self,
        request: Request<pb::SyncKeyRequest>,
    ) -> Result<Response<pb::SyncKeyResponse>, Status> {
        let method = &methods::SYNC_KEY;
        self.run(
            method,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let (call, name) = enter_key(&service, &caller, method, &message.name)?;
                service.sync_key(&call, name).await
            },
            |services| pb::SyncKeyResponse { services },
        )
        .await
    }

    async fn create_rewrap_campaign(
        &self,
        request: Request<pb::CreateRewrapCampaignRequest>,
    ) -> Result<Response<pb::RewrapCampaign>, Status> {
        let method = &methods::CREATE_REWRAP_CAMPAIGN;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let pb::CreateRewrapCampaignRequest { parent, rate_per_minute } = message;
                let entered = enter_key(&service, &caller, method, &parent);
                let (call, key) = entered.map_err(|error| of_field(error, "parent"))?;
                service.create_campaign(&call, key, rate(rate_per_minute)?).await
            },
            convert::campaign,
        )
        .await
    }

    async fn get_rewrap_campaign(
        &self,
        request: Request<pb::GetRewrapCampaignRequest>,
    ) -> Result<Response<pb::RewrapCampaign>, Status> {
        let method = &methods::GET_REWRAP_CAMPAIGN;
        self.run(
            method,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let (call, key) = enter_campaign(&service, &caller, method, &message.name)?;
                service.campaign(&call, &key).await
            },
            convert::campaign,
        )
        .await
    }

    async fn pause_rewrap_campaign(
        &self,
        request: Request<pb::PauseRewrapCampaignRequest>,
    ) -> Result<Response<pb::RewrapCampaign>, Status> {
        let method = &methods::PAUSE_REWRAP_CAMPAIGN;
        self.run(
            method,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let (call, key) = enter_campaign(&service, &caller, method, &message.name)?;
                service.pause_campaign(&call, key).await
            },
            convert::campaign,
        )
        .await
    }

    async fn resume_rewrap_campaign(
        &self,
        request: Request<pb::ResumeRewrapCampaignRequest>,
    ) -> Result<Response<pb::RewrapCampaign>, Status> {
        let method = &methods::RESUME_REWRAP_CAMPAIGN;
        self.run(
            method,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let (call, key) = enter_campaign(&service, &caller, method, &message.name)?;
                service.resume_campaign(&call, key).await
            },
            convert::campaign,
        )
        .await
    }
}

/// Enters with the permission on a campaign's key.
fn enter_campaign(
    service: &Arc<Service>,
    caller: &Arc<Caller>,
    method: &'static Method,
    name: &str,
) -> Result<(Call, KeyName), Error> {
    let key = convert::campaign_key(name);
    let call = service.enter(caller, method, key.as_ref().map(Asked::Key).map_err(|bad| *bad))?;
    Ok((call, key?))
}
