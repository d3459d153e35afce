//! Why somebody may do something, or may not: every condition of a call that can be
//! looked at without making it, in the order in which the call would be refused.

use std::net::IpAddr;

use super::{Answer, Call, Method, Service};
use crate::domain::{
    Area, Bindings, Instance, KeyAction, KeyName, Permission, Place, PrincipalId, Role, Scope,
};
use crate::error::Error;

/// Whose permissions are asked for, and what for.
#[derive(Clone, Debug)]
pub struct Tested {
    /// Who would call.
    pub principal: PrincipalId,
    /// From where; the policies of the instance are not looked at if it is unset.
    pub address: Option<IpAddr>,
    /// What it would be about.
    pub scope: Scope,
    /// Methods, each with the action on a key that it is, if it is one.
    pub methods: Vec<(&'static Method, Option<KeyAction>)>,
}

/// Whether one method would be let in, and why.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The method.
    pub method: &'static Method,
    /// What was looked at, in the order of refusals; the first that fails decides.
    pub findings: Vec<Finding>,
}

/// One condition.
#[derive(Clone, Debug)]
pub struct Finding {
    /// `permission`, `instance`, `policies`, `key` or `state`.
    pub condition: &'static str,
    /// Whether it is met.
    pub met: bool,
    /// Why, for people.
    pub why: String,
}

impl Explanation {
    /// Whether every condition is met.
    pub fn allowed(&self) -> bool {
        self.findings.iter().all(|finding| finding.met)
    }
}

impl Service {
    /// Explains what a principal may do. The caller asks about itself, or manages
    /// access to what it asks about.
    ///
    /// # Errors
    /// PERMISSION_DENIED, if it asks about another and does not.
    pub fn test_permissions(
        &self,
        call: &Call,
        tested: &Tested,
    ) -> Result<Answer<Vec<Explanation>>, Error> {
        let bindings = self.bindings.load();
        let manages = Self::with_asked(&tested.scope, |asked| {
            self.has(&bindings, &call.principal, Permission::ManageAccess, asked)
        });
        if tested.principal != call.principal && !manages {
            return Err(Error::denied());
        }
        let explain = |(method, action): &(&'static Method, Option<KeyAction>)| {
            let mut findings = self.findings(&bindings, tested, method.permission, *action);
            // Who may not is not told more than a refusal tells.
            let refused = findings.iter().position(|it| !it.met).filter(|_| !manages);
            findings.truncate(refused.map_or(findings.len(), |at| at + 1));
            Explanation { method, findings }
        };
        let explanations = tested.methods.iter().map(explain).collect();
        Ok(Answer::about(explanations, tested.scope.to_string()))
    }

    fn findings(
        &self,
        bindings: &Bindings,
        tested: &Tested,
        permission: Permission,
        action: Option<KeyAction>,
    ) -> Vec<Finding> {
        let Tested { principal, address, scope, methods: _ } = tested;
        let met = |condition, met, why| Finding { condition, met, why };
        let mut found = vec![self.permission_finding(bindings, principal, permission, scope)];
        let Some(tenant) = self.tenants.open(&scope.instance) else {
            found.push(met("instance", false, format!("there is no instance {}", scope.instance)));
            return found;
        };
        if let Some(address) = address {
            let answers = tenant.answers(Some(*address), &self.settings.private_networks);
            found.push(met("policies", answers, policies_why(&tenant.info(), answers)));
        }
        let Area::Key(key) = &scope.area else { return found };
        let Ok(slot) = self.registry.find(&KeyName::of(scope.instance.clone(), *key)) else {
            found.push(met("key", false, "there is no such key".into()));
            return found;
        };
        let key = slot.key();
        let state = key.state(self.now()).name();
        if let Some(action) = action {
            let refused = key.permit(action, self.now(), self.settings.profile).err();
            let why = refused.map_or_else(|| format!("the key is {state}"), |it| it.to_string());
            found.push(met("state", refused.is_none(), why));
        }
        found
    }

    fn permission_finding(
        &self,
        bindings: &Bindings,
        principal: &PrincipalId,
        permission: Permission,
        scope: &Scope,
    ) -> Finding {
        let met = Self::with_asked(scope, |asked| self.has(bindings, principal, permission, asked));
        let operates = permission.is_operators() && bindings.is_operator(principal);
        let why = if operates {
            "the principal is an operator of the daemon".into()
        } else if permission.is_operators() {
            "it needs an operator of the daemon, and the principal is none".into()
        } else if met {
            let by = self.with_place(scope, |place| giving(bindings, principal, permission, place));
            format!("{permission:?} is given by {by}")
        } else {
            let needs = Role::ALL.into_iter().filter(|role| role.allows(permission));
            let needs: Vec<_> = needs.map(Role::name).collect();
            let has: Vec<_> = bindings
                .of(principal)
                .filter(|it| it.scope.instance == scope.instance)
                .map(|it| format!("{} on {} ({})", it.role.name(), it.scope, it.name()))
                .collect();
            let has =
                if has.is_empty() { "nothing in the instance".into() } else { has.join(", ") };
            format!("{permission:?} needs {} here; the principal has {has}", needs.join(" or "))
        };
        Finding { condition: "permission", met: met || operates, why }
    }
}

fn giving(
    bindings: &Bindings,
    principal: &PrincipalId,
    permission: Permission,
    place: Place<'_>,
) -> String {
    let all = bindings.giving(principal, permission, place);
    let texts: Vec<_> =
        all.map(|it| format!("{} on {} ({})", it.role.name(), it.scope, it.name())).collect();
    texts.join(", ")
}

fn policies_why(instance: &Instance, answers: bool) -> String {
    let policies = &instance.policies;
    match (answers, policies.allowed_ip.is_some() || policies.allowed_network.is_some()) {
        (true, true) => "the instance's policies allow that address".into(),
        (true, false) => "the instance has no policy on networks".into(),
        (false, _) => {
            "the instance's allowed_ip or allowed_network policy keeps that address out".into()
        }
    }
}
