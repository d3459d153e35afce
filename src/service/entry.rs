//! Who may enter, and what is seen from there: the caller is known, has the method's
//! permission where the request asks for it, and the instance answers where it is.
//!
//! The whole instance is asked first, which is one look-up; only a caller who has a
//! part of it costs the look-up of a key. The decision is `domain/access.rs`.

use std::sync::Arc;

use super::{Call, Caller, Method, Service};
use crate::domain::{
    Bindings, InstanceId, Key, KeyName, KeyRingName, Malformed, Permission, Place, PrincipalId,
};
use crate::error::{Error, Reason};

/// What a request asks about.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// The daemon itself.
    Daemon,
    /// Whatever the caller has.
    Anywhere,
    /// An instance, of which the answer shows what the caller may see.
    Within(&'a InstanceId),
    /// The whole of an instance.
    Instance(&'a InstanceId),
    /// A ring, which may not be there.
    Ring(&'a KeyRingName),
    /// A key, which may not be there.
    Key(&'a KeyName),
    /// A key that is there, as it is.
    Known(&'a Key),
}

impl Asked<'_> {
    const fn instance(&self) -> Option<&InstanceId> {
        match self {
            Self::Daemon | Self::Anywhere => None,
            Self::Within(instance) | Self::Instance(instance) => Some(instance),
            Self::Ring(name) => Some(&name.instance),
            Self::Key(name) => Some(&name.instance),
            Self::Known(key) => Some(&key.instance),
        }
    }
}

/// What a caller may see of an instance.
pub(super) struct Sight {
    bindings: Arc<Bindings>,
    principal: PrincipalId,
    permission: Permission,
    /// Everything: nothing else needs to be asked.
    all: bool,
}

impl Service {
    /// Lets a caller in who has the method's permission for what is asked.
    ///
    /// # Errors
    /// UNAUTHENTICATED, PERMISSION_DENIED, and only then FIELD_INVALID.
    pub fn enter(
        &self,
        caller: &Arc<Caller>,
        method: &'static Method,
        asked: Result<Asked<'_>, Malformed>,
    ) -> Result<Call, Error> {
        let principal = caller.principal.as_ref().ok_or_else(Error::unauthenticated)?;
        if let Some(standing) = &caller.standing {
            let standing = standing.check(self.now().time);
            standing.map_err(|why| Error::new(Reason::Unauthenticated, why))?;
        }
        // A caller who may nothing is not told what is wrong with the form.
        let allowed = match &asked {
            Ok(asked) => self.lets_in(caller, principal, method.permission, *asked),
            Err(_malformed) => self.bindings.load().allow_anywhere(principal, method.permission),
        };
        if !allowed {
            return Err(Error::denied());
        }
        asked?;
        self.must_not_recover(method)?;
        Ok(Call { caller: Arc::clone(caller), principal: principal.clone(), method })
    }

    /// Asks for the permission of a call once more, for something else.
    ///
    /// # Errors
    /// PERMISSION_DENIED.
    pub(super) fn enter_too(&self, call: &Call, asked: Asked<'_>) -> Result<(), Error> {
        self.enter(&call.caller, call.method, Ok(asked)).map(drop)
    }

    fn lets_in(
        &self,
        caller: &Caller,
        principal: &PrincipalId,
        permission: Permission,
        asked: Asked<'_>,
    ) -> bool {
        let has = self.has(&self.bindings.load(), principal, permission, asked);
        let answers = |instance| self.answers(caller, principal, permission, instance);
        has && asked.instance().is_none_or(answers)
    }

    /// Whether somebody has a permission for what is asked, wherever it is called from.
    pub(super) fn has(
        &self,
        bindings: &Bindings,
        principal: &PrincipalId,
        permission: Permission,
        asked: Asked<'_>,
    ) -> bool {
        let allow = |place| bindings.allow(principal, permission, place);
        match asked {
            Asked::Daemon => bindings.allow_daemon(principal, permission),
            Asked::Anywhere => bindings.allow_anywhere(principal, permission),
            Asked::Within(instance) => bindings.allow_within(principal, permission, instance),
            Asked::Instance(instance) => allow(Place::Instance(instance)),
            Asked::Ring(KeyRingName { instance, ring }) => allow(Place::Ring(instance, ring)),
            Asked::Key(name) => self.allow_key(bindings, principal, permission, name),
            Asked::Known(key) => allow(Place::of(key)),
        }
    }

    /// A key that is not there is nobody's who has not the whole instance.
    fn allow_key(
        &self,
        bindings: &Bindings,
        principal: &PrincipalId,
        permission: Permission,
        name: &KeyName,
    ) -> bool {
        bindings.allow(principal, permission, Place::Instance(&name.instance))
            || (bindings.allow_within(principal, permission, &name.instance)
                && self.registry.find_even_purging(name).is_ok_and(|slot| {
                    bindings.allow(principal, permission, Place::of(&slot.key()))
                }))
    }

    /// Whether the instance is there and its policies let the caller in from where
    /// it is. An operator who manages the instance gets at its policies from
    /// everywhere: else a wrong one could never be put right.
    fn answers(
        &self,
        caller: &Caller,
        principal: &PrincipalId,
        permission: Permission,
        instance: &InstanceId,
    ) -> bool {
        let Some(tenant) = self.tenants.open(instance) else { return false };
        let rescue =
            permission == Permission::ManagePolicies && self.bindings.load().is_operator(principal);
        rescue || tenant.answers(caller.source_ip, &self.settings.private_networks)
    }

    /// What the caller may see of an instance that the call entered.
    pub(super) fn sight(&self, call: &Call, instance: &InstanceId) -> Sight {
        let (principal, permission) = (call.principal.clone(), call.method.permission);
        let bindings = self.bindings.load_full();
        let all = bindings.allow(&principal, permission, Place::Instance(instance));
        Sight { bindings, principal, permission, all }
    }
}

impl Sight {
    /// Whether it is the whole instance.
    pub(super) const fn is_all(&self) -> bool {
        self.all
    }

    /// Whether this is in it.
    pub(super) fn shows(&self, place: Place<'_>) -> bool {
        self.all || self.bindings.allow(&self.principal, self.permission, place)
    }
}
