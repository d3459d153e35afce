//! Messages of AccessService.

use std::net::IpAddr;

use super::super::{methods, pb};
use super::pb_timestamp;
use crate::domain::{
    Binding, BindingSubject, Gift, InstanceId, KeyAction, KeyName, Malformed, PrincipalId, Role,
    Scope, ServiceName,
};
use crate::service::{Explanation, Finding, Method};

/// What a new binding gives.
///
/// # Errors
/// [`Malformed`].
pub(in crate::api) fn new_binding(
    instance: &InstanceId,
    binding: Option<pb::Binding>,
) -> Result<Gift, Malformed> {
    let binding = binding.ok_or_else(|| Malformed::new("binding", "is required"))?;
    let pb::Binding { name: _, principal, role, scope, create_time: _, created_by: _ } = binding;
    let principal: Result<PrincipalId, Malformed> = principal.parse();
    Ok(Gift {
        subject: BindingSubject::Principal(principal.map_err(|bad| bad.of("binding.principal"))?),
        role: role_of(role)?,
        scope: scope_in(instance, &scope, "binding.scope")?,
    })
}

/// What a new authorization of a service gives.
///
/// # Errors
/// [`Malformed`].
pub(in crate::api) fn new_authorization(
    instance: &InstanceId,
    authorization: Option<pb::ServiceAuthorization>,
) -> Result<Gift, Malformed> {
    let missing = || Malformed::new("service_authorization", "is required");
    let pb::ServiceAuthorization { name: _, service, scope, create_time: _, created_by: _ } =
        authorization.ok_or_else(missing)?;
    let service: Result<ServiceName, Malformed> = service.parse();
    let service = service.map_err(|bad| bad.of("service_authorization.service"))?;
    let scope = scope_in(instance, &scope, "service_authorization.scope")?;
    Ok(Gift { subject: BindingSubject::Service(service), role: Role::Reader, scope })
}

/// A binding of a principal.
pub(in crate::api) fn binding(binding: &Binding) -> pb::Binding {
    let Binding { id: _, subject, role, scope, created, created_by } = binding;
    pb::Binding {
        name: binding.name().to_string(),
        principal: subject.to_string(),
        role: pb_role(*role).into(),
        scope: scope.to_string(),
        create_time: Some(pb_timestamp(*created)),
        created_by: created_by.to_string(),
    }
}

/// An authorization of a service.
pub(in crate::api) fn authorization(binding: &Binding) -> pb::ServiceAuthorization {
    let Binding { id: _, subject, role: _, scope, created, created_by } = binding;
    pb::ServiceAuthorization {
        name: binding.name().to_string(),
        service: match subject {
            BindingSubject::Service(name) => name.to_string(),
            BindingSubject::Principal(principal) => principal.to_string(),
        },
        scope: scope.to_string(),
        create_time: Some(pb_timestamp(*created)),
        created_by: created_by.to_string(),
    }
}

/// What permissions are tested on.
#[derive(Debug)]
pub(in crate::api) enum Resource {
    /// By names that do not change.
    Scope(Scope),
    /// A key, by its alias.
    Key(KeyName),
}

impl Resource {
    /// The instance that it is in.
    pub(in crate::api) const fn instance(&self) -> &InstanceId {
        match self {
            Self::Scope(scope) => &scope.instance,
            Self::Key(name) => &name.instance,
        }
    }
}

/// What permissions are tested on.
///
/// # Errors
/// [`Malformed`].
pub(in crate::api) fn tested_resource(resource: &str) -> Result<Resource, Malformed> {
    if let Ok(scope) = resource.parse() {
        return Ok(Resource::Scope(scope));
    }
    let name: Result<KeyName, Malformed> = resource.parse();
    let problem = Malformed::new("resource", "must be an instance, or a key ring or a key of it");
    Ok(Resource::Key(name.map_err(|_other_form| problem)?))
}

/// Methods, each with the action on a key that it is.
///
/// # Errors
/// [`Malformed`], if there is no such.
pub(in crate::api) fn tested_methods(
    names: &[String],
) -> Result<Vec<(&'static Method, Option<KeyAction>)>, Malformed> {
    if !(1..=MOST_METHODS).contains(&names.len()) {
        return Err(Malformed::new("methods", "must be 1 to 100"));
    }
    let unknown = Malformed::new("methods", "must be of the form CryptoService/UnwrapDek");
    let find = |name: &String| {
        let method = methods::ALL.iter().copied().find(|method| method.name == *name);
        let action = methods::KEY_ACTIONS.iter().find(|(of, _)| *of == name);
        Ok((method.ok_or(unknown)?, action.map(|(_, action)| *action)))
    };
    names.iter().map(find).collect()
}

/// An IP address, if there is one.
///
/// # Errors
/// [`Malformed`].
pub(in crate::api) fn address(text: &str) -> Result<Option<IpAddr>, Malformed> {
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse();
    let problem = Malformed::new("source_address", "must be an IP address");
    address.map(Some).map_err(|_other_form| problem)
}

/// Explanations.
pub(in crate::api) fn permissions(all: Vec<Explanation>) -> pb::TestPermissionsResponse {
    let permission = |explanation: Explanation| {
        let allowed = explanation.allowed();
        let Explanation { method, findings } = explanation;
        let condition = |Finding { condition, met, why }| pb::PermissionCondition {
            condition: condition.into(),
            met,
            explanation: why,
        };
        let conditions = findings.into_iter().map(condition).collect();
        pb::MethodPermission { method: method.name.into(), allowed, conditions }
    };
    pb::TestPermissionsResponse { permissions: all.into_iter().map(permission).collect() }
}

fn scope_in(instance: &InstanceId, text: &str, field: &'static str) -> Result<Scope, Malformed> {
    let scope: Scope = text.parse().map_err(|bad: Malformed| bad.of(field))?;
    if scope.instance != *instance {
        return Err(Malformed::new(field, "must be in the instance that is the parent"));
    }
    Ok(scope)
}

fn role_of(role: i32) -> Result<Role, Malformed> {
    let unknown = Malformed::new("binding.role", "must be one of the roles");
    match pb::Role::try_from(role).map_err(|_unknown| unknown)? {
        pb::Role::Unspecified => Err(unknown),
        pb::Role::Reader => Ok(Role::Reader),
        pb::Role::ReaderPlus => Ok(Role::ReaderPlus),
        pb::Role::Writer => Ok(Role::Writer),
        pb::Role::Manager => Ok(Role::Manager),
        pb::Role::KeyPurge => Ok(Role::KeyPurge),
    }
}

const fn pb_role(role: Role) -> pb::Role {
    match role {
        Role::Reader => pb::Role::Reader,
        Role::ReaderPlus => pb::Role::ReaderPlus,
        Role::Writer => pb::Role::Writer,
        Role::Manager => pb::Role::Manager,
        Role::KeyPurge => pb::Role::KeyPurge,
    }
}

const MOST_METHODS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_of_another_instance_and_a_role_that_is_none_are_refused() {
        let instance: InstanceId = "here".parse().unwrap();
        let of = |role: i32, scope: &str, principal: &str| {
            let (scope, principal) = (scope.to_owned(), principal.to_owned());
            let binding = pb::Binding { principal, role, scope, ..pb::Binding::default() };
            new_binding(&instance, Some(binding)).map_err(|bad| bad.field)
        };
        let reader = i32::from(pb::Role::Reader);
        assert!(of(reader, "instances/here/keyRings/boot", "spiffe://td/a").is_ok());
        assert_eq!(of(reader, "instances/there", "spiffe://td/a"), Err("binding.scope"));
        assert_eq!(of(reader, "instances/here", "service:image"), Err("binding.principal"));
        assert_eq!(of(0, "instances/here", "spiffe://td/a"), Err("binding.role"));
        assert_eq!(of(77, "instances/here", "spiffe://td/a"), Err("binding.role"));
        assert!(new_binding(&instance, None).is_err());
        assert!(new_authorization(&instance, None).is_err());
    }

    #[test]
    fn every_action_on_a_key_is_of_a_method_that_there_is() {
        for (name, _) in methods::KEY_ACTIONS {
            assert!(methods::ALL.iter().any(|method| method.name == *name), "{name}");
        }
        assert!(tested_methods(&["CryptoService/UnwrapDek".into()]).unwrap()[0].1.is_some());
        assert!(tested_methods(&["CryptoService/Other".into()]).is_err());
        assert!(tested_methods(&[]).is_err());
    }
}
