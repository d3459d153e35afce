//! What keys mean for the resources that they protect: statuses, and whether something
//! can be done with one. Nothing is changed.
//!
//! The rules are `domain/resource_status.rs` and `resource_action.rs`. A resource that is registered more than
//! once, and a virtual server with several volumes, is as the worst of them.

use std::sync::Arc;

use super::entry::Sight;
use super::registrations::RegistrationsWanted;
use super::{Answer, Asked, Call, Listed, Service};
use crate::domain::resource_action::Need;
use crate::domain::resource_status::{Attachment, Authorization, Cell, Subject, cell};
use crate::domain::{
    Condition, Crn, CrnPattern, InstanceId, Key, KeyName, Malformed, Permission, Place,
    PrincipalId, Registration, ResourceAction, ResourceKind,
};
use crate::error::{Error, Reason};
use crate::store::RegistrationQuery;

/// What a resource is.
#[derive(Clone, Debug)]
pub struct ResourceReport {
    /// The resource; empty for one that is not made yet.
    pub resource: String,
    /// What it is.
    pub subject: Subject,
    /// Name of its registration; empty for a virtual server.
    pub registration: String,
    /// The virtual server that it is attached to, if any.
    pub attached_to: Option<Crn>,
    /// Name of its key; of a virtual server that of its worst volume.
    pub key: String,
    /// What the key is to it.
    pub condition: Condition,
    /// What it is by that.
    pub cell: Cell,
}

/// Which statuses to list.
#[derive(Clone, Debug)]
pub struct StatusesWanted {
    /// Of this tenant.
    pub instance: InstanceId,
    /// Of this key; of all if unset.
    pub key: Option<KeyName>,
    /// 1 to 5000.
    pub page_size: usize,
    /// From the page before, or empty.
    pub page_token: String,
    /// Of these resources; of all if unset.
    pub resources: Option<CrnPattern>,
}

/// What somebody would do.
#[derive(Clone, Debug)]
pub struct ActionWanted {
    /// In this tenant.
    pub instance: InstanceId,
    /// What.
    pub action: ResourceAction,
    /// With what.
    pub target: Target,
}

/// What an action is done with.
#[derive(Clone, Debug)]
pub enum Target {
    /// A resource that there is.
    Resource(Crn),
    /// One that is to be made, of that kind and under that key.
    New(KeyName, ResourceKind),
}

/// Whether an action can be done.
#[derive(Debug)]
pub struct Checked {
    /// What stands against it, if anything.
    pub refusal: Option<Error>,
    /// What the resource is; or would be.
    pub report: ResourceReport,
}

/// A registration with what its key is to it.
#[derive(Clone, Debug)]
pub(super) struct Protected {
    registration: Registration,
    key: Arc<Key>,
    /// To a service that may use the key.
    condition: Condition,
    authorization: Authorization,
}

/// What a CRN names.
enum Found {
    /// A resource, by its registrations.
    Resource(Vec<Protected>),
    /// A virtual server, by its volumes.
    Server(Vec<Protected>),
}

impl Service {
    /// What one resource is, by keys that the caller may all see.
    ///
    /// # Errors
    /// PERMISSION_DENIED, RESOURCE_NOT_FOUND, or of the store.
    pub async fn resource_status(
        &self,
        call: &Call,
        instance: &InstanceId,
        resource: &Crn,
    ) -> Result<Answer<ResourceReport>, Error> {
        let report = self.find(call, instance, resource).await?.report(resource);
        let about = report.subject_name();
        Ok(Answer::about(report, about))
    }

    /// What the resources of a key or an instance are, by resource.
    ///
    /// # Errors
    /// KEY_NOT_FOUND; FIELD_INVALID for a page token that is none of ours.
    pub async fn resource_statuses(
        &self,
        call: &Call,
        wanted: StatusesWanted,
    ) -> Result<Answer<Listed<ResourceReport>>, Error> {
        let StatusesWanted { instance, key, page_size, page_token, resources } = wanted;
        let about =
            key.as_ref().map_or_else(|| format!("instances/{instance}"), ToString::to_string);
        let preventing = false;
        let wanted =
            RegistrationsWanted { instance, key, page_size, page_token, resources, preventing };
        let Listed { items, next_page_token } = self.list_registrations(call, wanted).await?.value;
        let items = self.protected(items).iter().map(Protected::report).collect();
        Ok(Answer::about(Listed { items, next_page_token }, about))
    }

    /// Whether something can be done with a resource now, or why not. A caller who may
    /// not see every key concerned cannot ask: half an answer would be a wrong one.
    ///
    /// # Errors
    /// PERMISSION_DENIED, RESOURCE_NOT_FOUND, KEY_NOT_FOUND, FIELD_INVALID, or of the store.
    pub async fn check_action(
        &self,
        call: &Call,
        wanted: ActionWanted,
    ) -> Result<Answer<Checked>, Error> {
        let ActionWanted { instance, action, target } = wanted;
        let (report, refusal) = match target {
            Target::New(key, kind) => self.check_new_resource(call, action, &key, kind)?,
            Target::Resource(resource) => {
                let found = self.find(call, &instance, &resource).await?;
                let report = found.report(&resource);
                let attachment = attachment(report.attached_to.as_ref());
                let need = action.needs(report.subject, attachment)?;
                let starts_or_stops = match action {
                    ResourceAction::StartInstance | ResourceAction::StopInstance => true,
                    ResourceAction::Provision
                    | ResourceAction::Attach
                    | ResourceAction::Detach
                    | ResourceAction::Restore
                    | ResourceAction::Mount
                    | ResourceAction::ReadWrite
                    | ResourceAction::BootFromImage
                    | ResourceAction::Delete => false,
                };
                let concerned = match found {
                    // All volumes of the virtual server, not this one alone.
                    Found::Resource(_) if starts_or_stops => {
                        let problem = "must be attached to a virtual server";
                        let server = report.attached_to.clone();
                        let server = server.ok_or_else(|| Malformed::new("resource", problem))?;
                        self.volumes_of(call, &instance, &server).await?
                    }
                    Found::Resource(all) | Found::Server(all) => all,
                };
                (report, refusal(need, &concerned))
            }
        };
        let about = report.subject_name();
        Ok(Answer::about(Checked { refusal, report }, about))
    }

    fn check_new_resource(
        &self,
        call: &Call,
        action: ResourceAction,
        key: &KeyName,
        kind: ResourceKind,
    ) -> Result<(ResourceReport, Option<Error>), Error> {
        let subject = Subject::Registered(kind);
        let need = action.needs(subject, Attachment::StandAlone)?;
        self.enter_too(call, Asked::Key(key))?;
        let key = self.registry.find(key)?.key();
        let condition = Condition::of(&key, self.now());
        let authorization = self.authorization(&call.principal, &key);
        let refusal = need.met(condition, authorization).err();
        let condition = condition.with(authorization);
        let report = ResourceReport {
            resource: String::new(),
            subject,
            registration: String::new(),
            attached_to: None,
            key: key.name(),
            condition,
            cell: cell(subject, condition, Attachment::StandAlone),
        };
        Ok((report, refusal.map(|hindrance| Error::from(hindrance).about(key.name()))))
    }

    /// What that CRN names, with the worst first.
    async fn find(
        &self,
        call: &Call,
        instance: &InstanceId,
        resource: &Crn,
    ) -> Result<Found, Error> {
        let query = RegistrationQuery {
            instance: instance.clone(),
            key: None,
            resources: Some(CrnPattern::Exactly(resource.clone())),
            preventing: false,
            after: None,
            limit: MOST_TOGETHER,
        };
        let sight = self.sight(call, instance);
        let registrations = self.protected(self.store.list_registrations(query).await?);
        check_sight(&sight, &registrations)?;
        if !registrations.is_empty() {
            return Ok(Found::Resource(worst_first(registrations)));
        }
        let volumes = self.volumes_of(call, instance, resource).await?;
        if !volumes.is_empty() {
            return Ok(Found::Server(volumes));
        }
        if !sight.is_all() {
            return Err(Error::denied());
        }
        let message = format!(
            "no resource {resource} is registered, and no registered volume is attached to it"
        );
        let error = Error::new(Reason::ResourceNotFound, message);
        Err(error.about(format!("instances/{instance}")))
    }

    /// Volumes that are attached to a virtual server, the worst first.
    async fn volumes_of(
        &self,
        call: &Call,
        instance: &InstanceId,
        server: &Crn,
    ) -> Result<Vec<Protected>, Error> {
        let attached = self.store.list_attached(instance, server.as_str(), MOST_TOGETHER).await?;
        let mut volumes = self.protected(attached);
        volumes.retain(|it| it.subject().is_volume());
        check_sight(&self.sight(call, instance), &volumes)?;
        Ok(worst_first(volumes))
    }

    /// Those whose key is there.
    pub(super) fn protected(&self, registrations: Vec<Registration>) -> Vec<Protected> {
        let now = self.now();
        let with_key = |registration: Registration| {
            let key = self.registry.by_id(registration.key)?.key();
            if key.history.purging.is_some() {
                return None;
            }
            let condition = Condition::of(&key, now);
            let registered_by = registration.created_by.parse::<PrincipalId>();
            let authorization = registered_by
                .map_or(Authorization::Removed, |principal| self.authorization(&principal, &key));
            Some(Protected { registration, key, condition, authorization })
        };
        registrations.into_iter().filter_map(with_key).collect()
    }

    fn authorization(&self, principal: &PrincipalId, key: &Key) -> Authorization {
        if self.bindings.load().allow(principal, Permission::UseKeys, Place::of(key)) {
            Authorization::Held
        } else {
            Authorization::Removed
        }
    }
}

impl ResourceReport {
    /// What the record is about.
    fn subject_name(&self) -> String {
        if self.registration.is_empty() { self.key.clone() } else { self.registration.clone() }
    }
}

impl Found {
    fn report(&self, resource: &Crn) -> ResourceReport {
        match self {
            Self::Resource(registrations) => {
                registrations.first().expect("found is not empty").report()
            }
            Self::Server(volumes) => {
                let worst = volumes.first().expect("found is not empty");
                let condition = worst.told();
                ResourceReport {
                    resource: resource.to_string(),
                    subject: Subject::VirtualServer,
                    registration: String::new(),
                    attached_to: None,
                    key: worst.key.name(),
                    condition,
                    cell: cell(Subject::VirtualServer, condition, Attachment::StandAlone),
                }
            }
        }
    }
}

impl Protected {
    const fn subject(&self) -> Subject {
        Subject::Registered(self.registration.kind)
    }

    /// Of what holds at once, what is told.
    pub(super) fn told(&self) -> Condition {
        self.condition.with(self.authorization)
    }

    fn report(&self) -> ResourceReport {
        self.report_in(self.told())
    }

    pub(super) fn report_in(&self, condition: Condition) -> ResourceReport {
        let registration = &self.registration;
        let attachment = attachment(registration.attached_to.as_ref());
        ResourceReport {
            resource: registration.resource.to_string(),
            subject: self.subject(),
            registration: registration.name(),
            attached_to: registration.attached_to.clone(),
            key: self.key.name(),
            condition,
            cell: cell(self.subject(), condition, attachment),
        }
    }
}

/// By condition; of alike ones a boot volume, then by resource as they came.
fn worst_first(mut all: Vec<Protected>) -> Vec<Protected> {
    let rank = |it: &Protected| {
        (std::cmp::Reverse(it.told()), it.registration.kind != ResourceKind::BootVolume)
    };
    all.sort_by_key(rank);
    all
}

/// What stands against an action that needs so much of each.
fn refusal(need: Need, concerned: &[Protected]) -> Option<Error> {
    let refused = |it: &Protected| {
        let hindrance = need.met(it.condition, it.authorization).err()?;
        Some(Error::from(hindrance).about(it.key.name()))
    };
    concerned.iter().find_map(refused)
}

fn check_sight(sight: &Sight, concerned: &[Protected]) -> Result<(), Error> {
    let seen = concerned.iter().all(|it| sight.shows(Place::of(&it.key)));
    if seen { Ok(()) } else { Err(Error::denied()) }
}

const fn attachment(to: Option<&Crn>) -> Attachment {
    match to {
        Some(_) => Attachment::Attached,
        None => Attachment::StandAlone,
    }
}

/// Registrations of one resource, or volumes of one virtual server, that are looked
/// at. A virtual server has 13 volumes at most.
const MOST_TOGETHER: usize = 1_000;
