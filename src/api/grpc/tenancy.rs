//! InstanceService, KeyRingService and PolicyService: the tenants, their rings and
//! their policies.

use tonic::{Request, Response, Status};

use super::super::{convert, methods, pb};
use super::{Edge, enter_instance, enter_within};
use crate::domain::{InstanceId, KeyRingId, KeyRingName, Malformed};
use crate::service::{Asked, Listed};
use pb::instance_service_server::InstanceService;
use pb::key_ring_service_server::KeyRingService;
use pb::policy_service_server::PolicyService;

#[tonic::async_trait]
impl KeyRingService for Edge {
    async fn create_key_ring(
        &self,
        request: Request<pb::CreateKeyRingRequest>,
    ) -> Result<Response<pb::KeyRing>, Status> {
        let method = &methods::CREATE_KEY_RING;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let pb::CreateKeyRingRequest { parent, key_ring_id } = message;
                let (call, instance) = enter_instance(&service, &caller, method, &parent)?;
                let id: Result<KeyRingId, Malformed> = key_ring_id.parse();
                let id = id.map_err(|malformed| malformed.of("key_ring_id"))?;
                service.create_ring(&call, instance, id).await
            },
            convert::ring,
        )
        .await
    }

    async fn list_key_rings(
        &self,
        request: Request<pb::ListKeyRingsRequest>,
    ) -> Result<Response<pb::ListKeyRingsResponse>, Status> {
        let method = &methods::LIST_KEY_RINGS;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let pb::ListKeyRingsRequest { parent, page_size, page_token } = message;
                let (call, instance) = enter_within(&service, &caller, method, &parent)?;
                let page_size = convert::page_size_of(page_size)?;
                service.list_rings(&call, instance, (page_size, &page_token))
            },
            |Listed { items, next_page_token }| pb::ListKeyRingsResponse {
                key_rings: items.into_iter().map(convert::ring).collect(),
                next_page_token,
            },
        )
        .await
    }

    async fn delete_key_ring(
        &self,
        request: Request<pb::DeleteKeyRingRequest>,
    ) -> Result<Response<pb::DeleteKeyRingResponse>, Status> {
        let method = &methods::DELETE_KEY_RING;
        self.run(
            method,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let pb::DeleteKeyRingRequest { name, force } = message;
                let name: Result<KeyRingName, Malformed> = name.parse();
                let asked = name.as_ref().map(Asked::Ring).map_err(|bad| *bad);
                let call = service.enter(&caller, method, asked)?;
                service.delete_ring(&call, name?, force).await
            },
            |moved_key_count| pb::DeleteKeyRingResponse { moved_key_count },
        )
        .await
    }
}

#[tonic::async_trait]
impl PolicyService for Edge {
    async fn get_instance_policies(
        &self,
        request: Request<pb::GetInstancePoliciesRequest>,
    ) -> Result<Response<pb::InstancePolicies>, Status> {
        let method = &methods::GET_INSTANCE_POLICIES;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let (call, instance) = enter_instance(&service, &caller, method, &message.parent)?;
                service.policies(&call, &instance)
            },
            |instance| convert::policies(&instance),
        )
        .await
    }

    async fn set_instance_policy(
        &self,
        request: Request<pb::SetInstancePolicyRequest>,
    ) -> Result<Response<pb::InstancePolicies>, Status> {
        let method = &methods::SET_INSTANCE_POLICY;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let (call, instance) = enter_instance(&service, &caller, method, &message.parent)?;
                service.set_policy(&call, instance, convert::policy_change(message)?).await
            },
            |instance| convert::policies(&instance),
        )
        .await
    }

    async fn get_instance_metrics(
        &self,
        request: Request<pb::GetInstanceMetricsRequest>,
    ) -> Result<Response<pb::InstanceMetrics>, Status> {
        let method = &methods::GET_INSTANCE_METRICS;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let (call, instance) = enter_instance(&service, &caller, method, &message.parent)?;
                service.metrics(&call, &instance)
            },
            convert::metrics,
        )
        .await
    }
}

#[tonic::async_trait]
impl InstanceService for Edge {
    async fn create_instance(
        &self,
        request: Request<pb::CreateInstanceRequest>,
    ) -> Result<Response<pb::Instance>, Status> {
        let method = &methods::CREATE_INSTANCE;
        self.run(
            method,
            request,
            |message| &message.instance_id,
            |service, caller, message| async move {
                let call = service.enter(&caller, method, Ok(Asked::Daemon))?;
                service.create_instance(&call, convert::new_instance(message)?).await
            },
            convert::instance,
        )
        .await
    }

    async fn get_instance(
        &self,
        request: Request<pb::GetInstanceRequest>,
    ) -> Result<Response<pb::Instance>, Status> {
        let method = &methods::GET_INSTANCE;
        self.run(
            method,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let name = InstanceId::from_parent(&message.name).map_err(|bad| bad.of("name"));
                let asked = name.as_ref().map(Asked::Instance).map_err(|bad| *bad);
                let call = service.enter(&caller, method, asked)?;
                service.instance(&call, &name?)
            },
            convert::instance,
        )
        .await
    }

    async fn list_instances(
        &self,
        request: Request<pb::ListInstancesRequest>,
    ) -> Result<Response<pb::ListInstancesResponse>, Status> {
        let method = &methods::LIST_INSTANCES;
        self.run(
            method,
            request,
            |_| "",
            |service, caller, message| async move {
                let pb::ListInstancesRequest { page_size, page_token } = message;
                let call = service.enter(&caller, method, Ok(Asked::Daemon))?;
                let page_size = convert::page_size_of(page_size)?;
                service.list_instances(&call, (page_size, &page_token))
            },
            |Listed { items, next_page_token }| pb::ListInstancesResponse {
                instances: items.into_iter().map(convert::instance).collect(),
                next_page_token,
            },
        )
        .await
    }

    async fn delete_instance(
        &self,
        request: Request<pb::DeleteInstanceRequest>,
    ) -> Result<Response<pb::DeleteInstanceResponse>, Status> {
        let method = &methods::DELETE_INSTANCE;
        self.run(
            method,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let call = service.enter(&caller, method, Ok(Asked::Daemon))?;
                let name = InstanceId::from_parent(&message.name).map_err(|bad| bad.of("name"));
                service.delete_instance(&call, name?).await
            },
            |()| pb::DeleteInstanceResponse {},
        )
        .await
    }
}
