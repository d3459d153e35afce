//! Instances and their policies: create, read, list, delete; set a policy, read what
//! the metrics policy counts.

use std::sync::Arc;

use uuid::Uuid;

use super::registry::Count;
use super::tenants::{Calls, Tenant};
use super::{Answer, Call, Listed, Service, within};
use crate::domain::{
    Binding, BindingSubject, Instance, InstanceId, Malformed, Outcome, Policies, PolicyChange,
    PrincipalId, Role, Scope,
};
use crate::error::{Error, Reason};
use crate::store::{Change, InstanceWrite, StoreError};

/// An instance that shall be.
#[derive(Clone, Debug)]
pub struct NewInstance {
    /// Its name.
    pub id: InstanceId,
    /// For people; at most 90 characters.
    pub display_name: String,
    /// Who gets the role Manager; nobody named: the caller.
    pub managers: Vec<PrincipalId>,
}

/// An instance, and how many keys it has.
#[derive(Clone, Debug)]
pub struct InstanceReport {
    /// What it is.
    pub instance: Arc<Instance>,
    /// Keys of every state.
    pub keys: u64,
    /// Those that are not deleted.
    pub live_keys: u64,
}

/// What the metrics policy counted: action, reason, calls.
pub type Metrics = Vec<(&'static str, String, Calls)>;

impl Service {
    /// Makes an instance, and gives the role Manager on it.
    ///
    /// # Errors
    /// FIELD_INVALID, INSTANCE_EXISTS, or of the store.
    pub async fn create_instance(
        self: &Arc<Self>,
        call: &Call,
        new: NewInstance,
    ) -> Result<Answer<InstanceReport>, Error> {
        let NewInstance { id, display_name, mut managers } = new;
        let bad_name =
            display_name.chars().count() > 90 || display_name.chars().any(char::is_control);
        if bad_name {
            let problem = "must be at most 90 characters, without control characters";
            return Err(Malformed::new("display_name", problem).into());
        }
        if managers.is_empty() {
            managers.push(call.principal.clone());
        }
        managers.sort_unstable();
        managers.dedup();
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let _making = within(call.caller.deadline, service.making_instances.lock()).await?;
            let subject = format!("instances/{id}");
            if service.tenants.any(&id).is_some() {
                let message = format!("there is an instance {id}, or was one");
                return Err(Error::new(Reason::InstanceExists, message).about(subject));
            }
            let created = Some((service.now().time, call.principal.as_str().into()));
            let (deleted, policies) = (None, Policies::default());
            let instance = Instance { id: id.clone(), display_name, created, deleted, policies };
            let bind = |principal| Binding {
                id: Uuid::new_v4().into(),
                subject: BindingSubject::Principal(principal),
                role: Role::Manager,
                scope: Scope::all(id.clone()),
                created: service.now().time,
                created_by: call.principal.as_str().into(),
            };
            let bindings: Vec<_> = managers.into_iter().map(bind).collect();
            let mut event =
                service.event(&call.caller, call.method.action, (&subject, Outcome::Success));
            for binding in &bindings {
                event.details.push(("manager".into(), binding.subject.to_string()));
            }
            let change = Change {
                instance: Some(InstanceWrite::Insert(instance.clone(), bindings.clone())),
                events: vec![event.clone()],
                ..Change::default()
            };
            service.store.commit(change).await?;
            let tenant = service.tenants.insert(instance);
            service.rebind(|all| all.extend(bindings.into_iter().map(Arc::new)));
            service.publish(vec![event]).await;
            Ok(Answer::recorded(service.report(&tenant)))
        })
        .await
    }

    /// One instance.
    ///
    /// # Errors
    /// INSTANCE_NOT_FOUND.
    pub fn instance(&self, _call: &Call, id: &InstanceId) -> Result<Answer<InstanceReport>, Error> {
        let report = self.report(&*self.tenants.find(id)?);
        Ok(Answer::about(report, format!("instances/{id}")))
    }

    /// Instances of the daemon, by name.
    ///
    /// # Errors
    /// FIELD_INVALID for a page token that is none of ours.
    pub fn list_instances(
        &self,
        _call: &Call,
        (page_size, page_token): (usize, &str),
    ) -> Result<Answer<Listed<InstanceReport>>, Error> {
        let mut after = match page_token {
            "" => None,
            token => Some(token.parse::<InstanceId>().map_err(|bad| bad.of("page_token"))?),
        };
        let mut items = Vec::new();
        let next_page_token = loop {
            let found = self.tenants.after(after.as_ref(), page_size + 1);
            let last = found.len() <= page_size;
            for tenant in found.iter().filter(|tenant| tenant.info().deleted.is_none()) {
                items.push(self.report(tenant));
            }
            after = found.last().map(|tenant| tenant.id.clone());
            if items.len() > page_size {
                items.truncate(page_size);
                break items[page_size - 1].instance.id.to_string();
            }
            if last {
                break String::new();
            }
        };
        Ok(Answer::about(Listed { items, next_page_token }, ""))
    }

    /// Deletes an instance all of whose keys are deleted.
    ///
    /// # Errors
    /// INSTANCE_NOT_FOUND, INSTANCE_NOT_EMPTY, or of the store.
    pub async fn delete_instance(
        self: &Arc<Self>,
        call: &Call,
        id: InstanceId,
    ) -> Result<Answer<()>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let tenant = service.tenants.find(&id)?;
            let _changing = within(call.caller.deadline, tenant.changing.lock()).await?;
            let before = tenant.info();
            if before.deleted.is_some() {
                return service.tenants.find(&id).map(|_| Answer::recorded(()));
            }
            tenant.close(&service.registry)?;
            let deleted = Instance { deleted: Some(service.now().time), ..(*before).clone() };
            // It takes something away: seen by everybody first.
            tenant.set_info(deleted.clone());
            let subject = format!("instances/{id}");
            let event =
                service.event(&call.caller, call.method.action, (&subject, Outcome::Success));
            let change = Change {
                instance: Some(InstanceWrite::Update(deleted)),
                events: vec![event.clone()],
                ..Change::default()
            };
            if let Err(error) = service.store.commit(change).await {
                tenant.set_info((*before).clone());
                tenant.reopen();
                return Err(error.into());
            }
            service.rebind(|all| all.retain(|binding| binding.scope.instance != id));
            service.publish(vec![event]).await;
            Ok(Answer::recorded(()))
        })
        .await
    }

    /// Policies of an instance.
    ///
    /// # Errors
    /// INSTANCE_NOT_FOUND.
    pub fn policies(&self, _call: &Call, id: &InstanceId) -> Result<Answer<Arc<Instance>>, Error> {
        let info = self.tenants.find(id)?.info();
        Ok(Answer::about(info, format!("instances/{id}")))
    }

    /// Replaces one policy of an instance.
    ///
    /// # Errors
    /// INSTANCE_NOT_FOUND, ETAG_MISMATCH, or of the store.
    pub async fn set_policy(
        self: &Arc<Self>,
        call: &Call,
        id: InstanceId,
        (change, etag): (PolicyChange, String),
    ) -> Result<Answer<Arc<Instance>>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let tenant = service.tenants.find(&id)?;
            let _changing = within(call.caller.deadline, tenant.changing.lock()).await?;
            let before = tenant.info();
            let subject = format!("instances/{id}");
            if !etag.is_empty() && etag != before.policies.etag() {
                return Err(Error::from(StoreError::Conflict).about(subject));
            }
            let mut event =
                service.event(&call.caller, call.method.action, (&subject, Outcome::Success));
            event.details = vec![
                ("policy".into(), change.name().into()),
                ("old_value".into(), format!("{:?}", before.policies.now_of(&change))),
                ("new_value".into(), format!("{change:?}")),
            ];
            let policies =
                before.policies.changed(change, service.now().time, call.principal.as_str());
            let after = Instance { policies, ..(*before).clone() };
            // Where a policy takes something away it must hold when this returns, and
            // where it gives something it may hold a moment early: it is no key's state.
            tenant.set_info(after.clone());
            let change = Change {
                instance: Some(InstanceWrite::Update(after)),
                events: vec![event.clone()],
                ..Change::default()
            };
            if let Err(error) = service.store.commit(change).await {
                tenant.set_info((*before).clone());
                return Err(error.into());
            }
            if tenant.info().policies.metrics {
                service.tenants.start_counting();
            } else {
                tenant.forget_calls();
            }
            service.publish(vec![event]).await;
            Ok(Answer::recorded(tenant.info()))
        })
        .await
    }

    /// What the metrics policy counted since the daemon started.
    ///
    /// # Errors
    /// INSTANCE_NOT_FOUND.
    pub fn metrics(&self, _call: &Call, id: &InstanceId) -> Result<Answer<Metrics>, Error> {
        let calls = self.tenants.find(id)?.calls();
        Ok(Answer::about(calls, format!("instances/{id}")))
    }

    fn report(&self, tenant: &Tenant) -> InstanceReport {
        let Count { total, live } = tenant.count(&self.registry);
        InstanceReport { instance: tenant.info(), keys: total, live_keys: live }
    }
}
