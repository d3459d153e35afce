//! AuditService: reads the audit log.

use tonic::{Request, Response, Status};

use super::super::{convert, methods, pb};
use super::{Edge, enter_instance};
use crate::domain::KeyName;
use crate::service::{Asked, Listed};
use pb::audit_service_server::AuditService;

#[tonic::async_trait]
impl AuditService for Edge {
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
}
