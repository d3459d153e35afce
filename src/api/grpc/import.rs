//! ImportService: the tokens that imported material is sealed to.

use tonic::{Request, Response, Status};

use super::super::{convert, methods, pb};
use super::{Edge, LONGEST_DEADLINE, enter_instance};
use crate::service::Asked;
use pb::import_service_server::ImportService;

#[tonic::async_trait]
impl ImportService for Edge {
    async fn create_import_token(
        &self,
        mut request: Request<pb::CreateImportTokenRequest>,
    ) -> Result<Response<pb::ImportToken>, Status> {
        let method = &methods::CREATE_IMPORT_TOKEN;
        // The HSM makes an RSA-4096 pair, which takes longer than other calls.
        if !request.metadata().contains_key("grpc-timeout") {
            request.set_timeout(LONGEST_DEADLINE);
        }
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let (call, instance) = enter_instance(&service, &caller, method, &message.parent)?;
                let asked = convert::new_import_token(message)?;
                service.create_import_token(&call, instance, asked).await
            },
            |token| convert::import_token(token, false),
        )
        .await
    }

    async fn get_import_token(
        &self,
        request: Request<pb::GetImportTokenRequest>,
    ) -> Result<Response<pb::ImportToken>, Status> {
        let method = &methods::GET_IMPORT_TOKEN;
        self.run(
            method,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let instance = convert::import_token_instance(&message.name);
                let call = service.enter(
                    &caller,
                    method,
                    instance.as_ref().map(Asked::Instance).map_err(|bad| *bad),
                )?;
                service.retrieve_import_token(&call, instance?).await
            },
            |token| convert::import_token(token, true),
        )
        .await
    }
}
