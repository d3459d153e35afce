//! AuditService: reads the audit log, follows it, and gives out what proves it.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use super::super::status::status;
use super::super::{convert, methods, pb};
use super::{Edge, answer, caller_of, enter_instance};
use crate::domain::KeyName;
use crate::service::{Asked, Caller, Listed};
use pb::audit_service_server::AuditService;

#[tonic::async_trait]
impl AuditService for Edge {
    type WatchAuditEventsStream = Streamed<pb::WatchAuditEventsResponse>;
    type ExportAuditLogStream = Streamed<pb::ExportAuditLogResponse>;

    async fn list_audit_events(
        &self,
        request: Request<pb::ListAuditEventsRequest>,
    ) -> Result<Response<pb::ListAuditEventsResponse>, Status> {
        let method = &methods::LIST_AUDIT_EVENTS;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let key = message.key.parse::<KeyName>().ok();
                let (call, instance) = match key {
                    // Who manages the key alone may read what was done with it.
                    Some(key) if message.parent == format!("instances/{}", key.instance) => {
                        (service.enter(&caller, method, Ok(Asked::Key(&key)))?, key.instance)
                    }
                    Some(_) | None => enter_instance(&service, &caller, method, &message.parent)?,
                };
                let query = convert::audit_query(instance, message)?;
                service.list_audit_events(&call, query).await
            },
            |Listed { items, next_page_token }| pb::ListAuditEventsResponse {
                audit_events: items.into_iter().map(convert::audit_event).collect(),
                next_page_token,
            },
        )
        .await
    }

    async fn watch_audit_events(
        &self,
        request: Request<pb::WatchAuditEventsRequest>,
    ) -> Result<Response<Self::WatchAuditEventsStream>, Status> {
        let method = &methods::WATCH_AUDIT_EVENTS;
        let caller = caller_of(&request);
        let (message, service) = (request.into_inner(), &self.service);
        let parent = message.parent.clone();
        let stopped = self.stopped.clone();
        let watched = async {
            let (call, instance) = enter_instance(service, &caller, method, &parent)?;
            let wanted = convert::records_wanted(instance, message)?;
            service.watch_audit_events(&call, wanted, stopped).await
        };
        let watched = service.conclude(&caller, method, &parent, watched.await).await;
        let told = |record: crate::audit::Record| pb::WatchAuditEventsResponse {
            resume_token: record.sequence.to_string(),
            audit_event: Some(convert::audit_event(record)),
        };
        answer(watched.map(|records| streamed(&caller, records, told)), &caller.request_id)
    }

    async fn get_checkpoint(
        &self,
        request: Request<pb::GetCheckpointRequest>,
    ) -> Result<Response<pb::Checkpoint>, Status> {
        let method = &methods::GET_CHECKPOINT;
        self.run(
            method,
            request,
            |_message| "",
            |service, caller, message| async move {
                let call = service.enter(&caller, method, Ok(Asked::Daemon))?;
                service.newest_checkpoint(&call, message.fresh).await
            },
            |(signed, key)| pb::Checkpoint {
                size: signed.checkpoint.size,
                note: signed.note,
                public_key: key.pem,
            },
        )
        .await
    }

    async fn export_audit_log(
        &self,
        request: Request<pb::ExportAuditLogRequest>,
    ) -> Result<Response<Self::ExportAuditLogStream>, Status> {
        let method = &methods::EXPORT_AUDIT_LOG;
        let caller = caller_of(&request);
        let pb::ExportAuditLogRequest { first_sequence } = request.into_inner();
        let (service, stopped) = (&self.service, self.stopped.clone());
        let exported = async {
            let call = service.enter(&caller, method, Ok(Asked::Daemon))?;
            service.export_audit_log(&call, first_sequence, stopped).await
        };
        let exported = service.conclude(&caller, method, "", exported.await).await;
        let part = |chunk| pb::ExportAuditLogResponse { chunk };
        answer(exported.map(|parts| streamed(&caller, parts, part)), &caller.request_id)
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn streamed<A, T: 'static>(
    caller: &Caller,
    items: impl Stream<Item = Result<A, crate::error::Error>> + Send + 'static,
    encode: impl Fn(A) -> T + Send + 'static,
) -> Streamed<T> {
    let request_id = caller.request_id.clone();
    Box::pin(items.map(move |item| item.map(&encode).map_err(|error| status(&error, &request_id))))
}
