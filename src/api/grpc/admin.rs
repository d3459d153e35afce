//! AdminService: the daemon itself, and its HSM.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::super::{convert, methods, pb};
use super::Edge;
use crate::service::{Asked, Service};
use pb::admin_service_server::AdminService;

#[tonic::async_trait]
impl AdminService for Edge {
    async fn get_server_info(
        &self,
        request: Request<pb::GetServerInfoRequest>,
    ) -> Result<Response<pb::ServerInfo>, Status> {
        let method = &methods::GET_SERVER_INFO;
        let work = |service: Arc<Service>, caller, _| async move {
            let call = service.enter(&caller, method, Ok(Asked::Daemon))?;
            Ok(service.server_report(&call))
        };
        self.run(method, request, |_| "", work, convert::server_info).await
    }

    async fn get_hsm_status(
        &self,
        request: Request<pb::GetHsmStatusRequest>,
    ) -> Result<Response<pb::HsmStatus>, Status> {
        let method = &methods::GET_HSM_STATUS;
        let work = |service: Arc<Service>, caller, _| async move {
            let call = service.enter(&caller, method, Ok(Asked::Daemon))?;
            Ok(service.hsm_report(&call).await)
        };
        self.run(method, request, |_| "", work, convert::hsm_status).await
    }
}
