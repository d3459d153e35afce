//! Key material that comes to be: create, import, rotate.
//!
//! What touches the HSM too is begun with an intent, which `reconcile.rs` finishes
//! or undoes after a crash.

use std::sync::Arc;

use uuid::Uuid;

use super::keys::{Effect, NO_POLICY_FOR_IMPORTED, check_etag};
use super::reconcile::Material;
use super::registry::Slot;
use super::requests::remembered;
use super::{Answer, Call, RequestId, Service, daemon_event, state_detail, within};
use crate::domain::import::SealedMaterial;
use crate::domain::policy::Making;
use crate::domain::{
    Event, History, InstanceId, Key, KeyDetails, KeyId, KeyName, KeyRingId, KeyState, Malformed,
    Moment, RotationPeriod, Timestamp, VersionId,
};
use crate::error::{Error, Reason};
use crate::store::{Change, KeyWrite};

/// What a new key shall be.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its tenant.
    pub instance: InstanceId,
    /// The group that it shall be in.
    pub ring: KeyRingId,
    /// What people say of it; checked against its limits here.
    pub details: KeyDetails,
    /// When it expires, if ever; must be in the future.
    pub expires: Option<Timestamp>,
    /// After how long it is rotated by itself; unset: what the instance's policy says.
    pub rotation: Option<RotationPeriod>,
    /// Whether two principals must want its deletion; the instance's policy can say so
    /// too.
    pub dual_auth: bool,
    /// Its material, sealed to the instance's import token; unset: it is generated.
    pub material: Option<SealedMaterial>,
}

/// Who has a key rotated.
enum Rotator<'a> {
    /// A caller.
    Call(&'a Call, Option<RequestId>),
    /// Its policy.
    Policy,
}

impl Service {
    /// Makes a root key in the HSM: generated there, or unwrapped there from what is
    /// sealed to an import token.
    ///
    /// # Errors
    /// FIELD_INVALID, ALIAS_TAKEN, REQUEST_ID_REUSED, KEY_RING_NOT_FOUND,
    /// CREATE_IMPORT_FORBIDDEN, of the import token, or of HSM and store.
    pub async fn create_key(
        self: &Arc<Self>,
        call: &Call,
        new: NewKey,
        request: Option<RequestId>,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let details = new.details.clone().checked()?;
        let new = NewKey { details, ..new };
        if new.expires.is_some_and(|expires| expires <= self.now().time) {
            return Err(Malformed::new("key.expire_time", "must be in the future").into());
        }
        if new.material.is_some() && new.rotation.is_some() {
            return Err(NO_POLICY_FOR_IMPORTED.into());
        }
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let _alone = service.alone(&call, request).await?;
            if let Some(made) = service.made_before(&call, request).await? {
                return Ok(made);
            }
            let making = if new.material.is_some() { Making::Import } else { Making::Create };
            service.check_making(&new.instance, making)?;
            let _hold = service.tenants.hold(&new.instance, &new.ring)?;
            let id = KeyId::from(Uuid::new_v4());
            let (instance, aliases) = (new.instance.clone(), new.details.aliases.clone());
            service.registry.reserve(&instance, &aliases, id)?;
            let made = service.create_with_id(&call, id, new, request).await;
            if made.is_err() {
                service.registry.free(&instance, &aliases);
            }
            made
        })
        .await
    }

    async fn create_with_id(
        self: &Arc<Self>,
        call: &Call,
        id: KeyId,
        new: NewKey,
        request: Option<RequestId>,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let NewKey { instance, ring, details, expires, rotation, dual_auth, material } = new;
        self.must_be_recordable()?;
        let imported = material.is_some();
        let purpose = format!("create instances/{instance}/keys/{id}");
        let material = self.material(&instance, material)?;
        let made = self.make_object(id, purpose, material).await?;
        let policies = self.tenants.find(&instance)?.info().policies.clone();
        let now = self.now();
        let key = Arc::new(Key {
            id,
            instance,
            ring,
            details,
            imported,
            history: History::begun(now.time, expires),
            versions: Arc::from([made.version(id.into(), now.time)]),
            created_by: call.principal.as_str().into(),
            updated: None,
            rotated: None,
            told: None,
            rotation: rotation.or_else(|| policies.rotation.filter(|_| !imported)),
            dual_auth: dual_auth || policies.dual_auth_delete,
            authorization: None,
            generation: 1,
        });
        let mut event = self.change_event(call, &key);
        event.details.push(("imported".into(), imported.to_string()));
        let change = Change {
            key: Some(KeyWrite::Insert(Arc::clone(&key))),
            end: made.intent().into_iter().collect(),
            request: remembered(call, request, id, now.time),
            events: vec![event.clone()],
            ..Change::default()
        };
        if let Err(error) = self.store.commit(change).await {
            self.abandon_made(&made);
            return Err(error.into());
        }
        failpoint!("create.committed");
        self.named(&made);
        self.registry.insert(Arc::clone(&key));
        failpoint!("create.published");
        self.publish(vec![event]).await;
        Ok(Answer::recorded(key))
    }

    /// Makes a new version, which wraps from now on. An imported key takes new
    /// material, a generated one none.
    ///
    /// # Errors
    /// ROTATION_TOO_SOON, MATERIAL_REQUIRED, MATERIAL_REFUSED, of state, etag,
    /// request id, import token, HSM and store.
    pub async fn rotate_key(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        (etag, material): (String, Option<SealedMaterial>),
        request: Option<RequestId>,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let _alone = service.alone(&call, request).await?;
            if let Some(made) = service.made_before(&call, request).await? {
                return Ok(made);
            }
            let slot = service.registry.find(&name)?;
            let key = slot.key();
            check_material(&key, material.is_some())?;
            check_etag(&key, &etag)?;
            let rotator = Rotator::Call(&call, request);
            let rotated = service.rotate(&slot, &etag, material, rotator).await;
            rotated.map(Answer::recorded).map_err(|error| match error.subject {
                Some(_) => error,
                None => error.about(key.name()),
            })
        })
        .await
    }

    /// Rotates a generated key whose policy says that it is time.
    ///
    /// # Errors
    /// As [`Service::rotate_key`].
    pub(super) async fn rotate_by_policy(self: &Arc<Self>, slot: &Slot) -> Result<(), Error> {
        self.rotate(slot, "", None, Rotator::Policy).await.map(drop)
    }

    async fn rotate(
        self: &Arc<Self>,
        slot: &Slot,
        etag: &str,
        material: Option<SealedMaterial>,
        rotator: Rotator<'_>,
    ) -> Result<Arc<Key>, Error> {
        let key = slot.key();
        key.may_rotate(self.now(), self.settings.profile)?;
        let id = VersionId::from(Uuid::new_v4());
        let purpose = format!("rotate {} to {id}", key.name());
        let material = self.material(&key.instance, material)?;
        // The HSM may take its time: other changes of the key need not wait,
        // and what they did is looked at again below.
        let made = self.make_object(key.id, purpose, material).await?;
        let rotated = async {
            let _changing = within(rotator.deadline(self), slot.changing.lock()).await?;
            let key = slot.key();
            check_etag(&key, etag)?;
            let now = self.now();
            if matches!(rotator, Rotator::Policy) {
                check_due(&key, now)?;
            }
            let added = made.version(id, now.time);
            let new = Arc::new(key.rotated(added, now, self.settings.profile)?);
            let event = rotator.event(self, &new, now);
            let change = Change {
                end: made.intent().into_iter().collect(),
                request: rotator.remembered(key.id, now.time),
                events: vec![event.clone()],
                ..Change::default()
            };
            // Loosen: nothing is wrapped under a version that a crash could take back.
            self.put(slot, &new, Effect::Loosen, change).await?;
            Ok((new, event))
        };
        match rotated.await {
            Ok((key, event)) => {
                self.named(&made);
                self.publish(vec![event]).await;
                Ok(key)
            }
            Err(error) => {
                self.abandon_made(&made);
                Err(error)
            }
        }
    }

    /// Where the HSM gets the material of a new object from.
    fn material(
        &self,
        instance: &InstanceId,
        sealed: Option<SealedMaterial>,
    ) -> Result<Material, Error> {
        let Some(sealed) = sealed else { return Ok(Material::Generate) };
        let token = self.good_import_token(instance)?;
        let known = self.hsm.import_algorithms();
        if !known.is_empty() && !known.contains(&sealed.algorithm) {
            let message = format!("the HSM cannot unwrap {}", sealed.algorithm.name());
            let error = Error::new(Reason::AlgorithmUnsupported, message);
            return Err(error.of_field("material.algorithm"));
        }
        Ok(Material::Import { pair: token.object, nonce: token.nonce, sealed })
    }

    fn check_making(&self, instance: &InstanceId, making: Making) -> Result<(), Error> {
        if self.tenants.find(instance)?.info().policies.allow_making(making) {
            return Ok(());
        }
        let what = match making {
            Making::Create => "to generate root keys",
            Making::Import => "to import root keys",
        };
        let message = format!("the instance's policy forbids {what}");
        Err(Error::new(Reason::CreateImportForbidden, message)
            .about(format!("instances/{instance}")))
    }
}

impl Rotator<'_> {
    fn deadline(&self, service: &Service) -> std::time::Instant {
        match self {
            Self::Call(call, _) => call.caller.deadline,
            Self::Policy => std::time::Instant::now() + service.settings.object_deadline,
        }
    }

    fn event(&self, service: &Service, key: &Key, now: Moment) -> Event {
        match self {
            Self::Call(call, _) => service.change_event(call, key),
            Self::Policy => {
                let mut event = daemon_event("kms.secrets.rotate", now, &key.name());
                event.key_version = key.version_name(key.primary().id);
                event.details.push(state_detail(key.state(now)));
                event.details.push(("by".into(), "rotation policy".into()));
                event
            }
        }
    }

    fn remembered(&self, key: KeyId, time: Timestamp) -> Option<crate::store::Request> {
        match self {
            Self::Call(call, request) => remembered(call, *request, key, time),
            Self::Policy => None,
        }
    }
}

fn check_material(key: &Key, given: bool) -> Result<(), Error> {
    let (reason, message) = match (key.imported, given) {
        (true, true) | (false, false) => return Ok(()),
        (true, false) => (Reason::MaterialRequired, "an imported key is rotated by new material"),
        (false, true) => (Reason::MaterialRefused, "a generated key is rotated without material"),
    };
    Err(Error::new(reason, message).of_field("material").about(key.name()))
}

/// Looked at again under the key's lock: someone may have rotated it meanwhile.
fn check_due(key: &Key, now: Moment) -> Result<(), Error> {
    let due =
        key.state(now) == KeyState::Active && key.rotation_due().is_some_and(|d| d <= now.time);
    if due { Ok(()) } else { Err(super::interrupted()) }
}
