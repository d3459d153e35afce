//! `access …`: who may do what. Bindings of principals, authorizations of services,
//! and why somebody may do something or may not.

use clap::{Subcommand, ValueEnum};
use comfy_table::Table;
use serde::Serialize;

use super::{
    failure::Failure,
    output::{Output, fields, human_time, last_segment, rfc3339, rows},
    paging::Paging,
};
use crate::{api::pb, client::Client};

#[derive(Debug, Subcommand)]
pub(super) enum AccessCommand {
    /// Give a role to a principal
    Bind(Bind),
    /// List who has which role
    Bindings(List),
    /// Take a role back from a principal
    Unbind(Remove),
    /// Let a service use root keys
    Authorize(Authorize),
    /// List which services may use root keys
    Authorizations(List),
    /// Let a service use root keys no more
    Deauthorize(Remove),
    /// Say why a principal may call a method, or why not
    Explain(Explain),
}

impl AccessCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        match self {
            Self::Bind(Bind { principal, role, scope }) => {
                let binding = pb::Binding {
                    principal,
                    role: pb::Role::from(role).into(),
                    scope: scope.name(client).await?,
                    ..pb::Binding::default()
                };
                let (parent, binding) = (client.parent(), Some(binding));
                let request = pb::CreateBindingRequest { parent, binding };
                let made = client.access().create_binding(request).await?.into_inner();
                output.show(&BindingView::from(made), BindingView::table)
            }
            Self::Bindings(List { paging }) => list_bindings(paging, client, output).await,
            Self::Unbind(Remove { id }) => {
                let name = client.binding_name("bindings", &id);
                let request = pb::DeleteBindingRequest { name: name.clone() };
                client.access().delete_binding(request).await?;
                output.deleted(&name)
            }
            Self::Authorize(Authorize { service, scope }) => {
                let new = pb::ServiceAuthorization {
                    service,
                    scope: scope.name(client).await?,
                    ..pb::ServiceAuthorization::default()
                };
                let (parent, service_authorization) = (client.parent(), Some(new));
                let request =
                    pb::CreateServiceAuthorizationRequest { parent, service_authorization };
                let made =
                    client.access().create_service_authorization(request).await?.into_inner();
                output.show(&BindingView::from(made), BindingView::table)
            }
            Self::Authorizations(List { paging }) => {
                list_authorizations(paging, client, output).await
            }
            Self::Deauthorize(Remove { id }) => {
                let name = client.binding_name("serviceAuthorizations", &id);
                let request = pb::DeleteServiceAuthorizationRequest { name: name.clone() };
                client.access().delete_service_authorization(request).await?;
                output.deleted(&name)
            }
            Self::Explain(command) => command.run(client, output).await,
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rootkeyctl access bind spiffe://rootkeyd.dev/auditor Reader\n  rootkeyctl access bind spiffe://rootkeyd.dev/payments Writer --ring payments"
)]
pub(super) struct Bind {
    /// Its SPIFFE ID
    principal: String,
    #[arg(value_enum)]
    role: RoleArg,
    #[command(flatten)]
    scope: ScopeArgs,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rootkeyctl access authorize block-storage\n  rootkeyctl access authorize image --key boot"
)]
pub(super) struct Authorize {
    /// Such as block-storage, file-storage or image
    service: String,
    #[command(flatten)]
    scope: ScopeArgs,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rootkeyctl access bindings\n  rootkeyctl access authorizations --all"
)]
pub(super) struct List {
    #[command(flatten)]
    paging: Paging,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rootkeyctl access unbind 5f2b3d9e-7a51-4f0c-9d3e-0a1b2c3d4e5f\n  rootkeyctl access deauthorize 5f2b3d9e-7a51-4f0c-9d3e-0a1b2c3d4e5f"
)]
pub(super) struct Remove {
    /// Its UUID or full name, as the list shows it
    id: String,
}

/// Where it holds; the whole instance if nothing is given.
#[derive(Debug, clap::Args)]
pub(super) struct ScopeArgs {
    /// Only for the root keys of this key ring
    #[arg(long, conflicts_with = "key")]
    ring: Option<String>,
    /// Only for this root key
    #[arg(long)]
    key: Option<String>,
}

impl ScopeArgs {
    async fn name(self, client: &Client) -> Result<String, Failure> {
        match (self.ring, self.key) {
            (Some(ring), _) => Ok(client.ring_name(&ring)),
            (None, Some(key)) => {
                // By its UUID: an alias can come to name another key.
                let request = pb::GetKeyRequest { name: client.key_name(&key) };
                Ok(client.keys().get_key(request).await?.into_inner().name)
            }
            (None, None) => Ok(client.parent()),
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum RoleArg {
    Reader,
    ReaderPlus,
    Writer,
    Manager,
    KeyPurge,
}

impl From<RoleArg> for pb::Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Reader => Self::Reader,
            RoleArg::ReaderPlus => Self::ReaderPlus,
            RoleArg::Writer => Self::Writer,
            RoleArg::Manager => Self::Manager,
            RoleArg::KeyPurge => Self::KeyPurge,
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rootkeyctl access explain spiffe://rootkeyd.dev/service/image CryptoService/UnwrapDek boot\n  rootkeyctl access explain spiffe://rootkeyd.dev/officer PolicyService/SetInstancePolicy"
)]
pub(super) struct Explain {
    /// The SPIFFE ID of who would call
    principal: String,
    /// Such as CryptoService/UnwrapDek
    method: String,
    /// The root key that it would be about; the whole instance if none is given
    key: Option<String>,
    /// The IP address that it would call from
    #[arg(long, value_name = "IP", default_value = "")]
    from: String,
}

impl Explain {
    async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let Self { principal, method, key, from } = self;
        let resource = key.map_or_else(|| client.parent(), |key| client.key_name(&key));
        let request = pb::TestPermissionsRequest {
            resource,
            methods: vec![method],
            principal,
            source_address: from,
        };
        let answer = client.access().test_permissions(request).await?.into_inner();
        let views: Vec<_> = answer.permissions.into_iter().map(PermissionView::from).collect();
        output.show(views.as_slice(), PermissionView::list)
    }
}

async fn list_bindings(paging: Paging, client: &Client, output: Output) -> Result<(), Failure> {
    let page = async |page_token| {
        let (parent, page_size) = (client.parent(), 0);
        let request = pb::ListBindingsRequest { parent, page_size, page_token };
        let pb::ListBindingsResponse { bindings, next_page_token } =
            client.access().list_bindings(request).await?.into_inner();
        Ok((bindings, next_page_token))
    };
    paging.show(output, "bindings", page, BindingView::list).await
}

async fn list_authorizations(
    paging: Paging,
    client: &Client,
    output: Output,
) -> Result<(), Failure> {
    let page = async |page_token| {
        let (parent, page_size) = (client.parent(), 0);
        let request = pb::ListServiceAuthorizationsRequest { parent, page_size, page_token };
        let pb::ListServiceAuthorizationsResponse { service_authorizations, next_page_token } =
            client.access().list_service_authorizations(request).await?.into_inner();
        Ok((service_authorizations, next_page_token))
    };
    paging.show(output, "authorizations", page, BindingView::list).await
}

/// A binding or an authorization, as it is shown.
#[derive(Debug, Serialize)]
struct BindingView {
    name: String,
    id: String,
    /// Principal, or service.
    subject: String,
    role: &'static str,
    scope: String,
    create_time: Option<String>,
    created_by: String,
}

impl From<pb::Binding> for BindingView {
    fn from(binding: pb::Binding) -> Self {
        let role = role_name(binding.role());
        let pb::Binding { name, principal, role: _, scope, create_time, created_by } = binding;
        Self {
            id: last_segment(&name).to_owned(),
            name,
            subject: principal,
            role,
            scope,
            create_time: create_time.as_ref().and_then(rfc3339),
            created_by,
        }
    }
}

impl From<pb::ServiceAuthorization> for BindingView {
    fn from(authorization: pb::ServiceAuthorization) -> Self {
        let pb::ServiceAuthorization { name, service, scope, create_time, created_by } =
            authorization;
        Self {
            id: last_segment(&name).to_owned(),
            name,
            subject: service,
            role: role_name(pb::Role::Reader),
            scope,
            create_time: create_time.as_ref().and_then(rfc3339),
            created_by,
        }
    }
}

impl BindingView {
    fn list(views: &[Self]) -> Table {
        let row = |view: &Self| {
            vec![view.id.clone(), view.subject.clone(), view.role.into(), view.scope.clone()]
        };
        rows(&["ID", "WHO", "ROLE", "WHERE"], views.iter().map(row))
    }

    fn table(&self) -> Table {
        fields([
            ("id", self.id.clone()),
            ("full name", self.name.clone()),
            ("who", self.subject.clone()),
            ("role", self.role.into()),
            ("where", self.scope.clone()),
            ("created", human_time(self.create_time.as_ref())),
            ("created by", self.created_by.clone()),
        ])
    }
}

/// Why a method would be let in, or why not.
#[derive(Debug, Serialize)]
struct PermissionView {
    method: String,
    allowed: bool,
    conditions: Vec<ConditionView>,
}

#[derive(Debug, Serialize)]
struct ConditionView {
    condition: String,
    met: bool,
    explanation: String,
}

impl From<pb::MethodPermission> for PermissionView {
    fn from(permission: pb::MethodPermission) -> Self {
        let pb::MethodPermission { method, allowed, conditions } = permission;
        let view = |condition: pb::PermissionCondition| {
            let pb::PermissionCondition { condition, met, explanation } = condition;
            ConditionView { condition, met, explanation }
        };
        Self { method, allowed, conditions: conditions.into_iter().map(view).collect() }
    }
}

impl PermissionView {
    fn list(views: &[Self]) -> Table {
        let word = |met: bool| if met { "yes" } else { "no" }.to_owned();
        let of_view = |view: &Self| {
            let verdict = if view.allowed { "allowed" } else { "refused" };
            let first = vec![view.method.clone(), verdict.to_owned(), String::new()];
            let condition = |it: &ConditionView| {
                vec![format!("  {}", it.condition), word(it.met), it.explanation.clone()]
            };
            std::iter::once(first).chain(view.conditions.iter().map(condition)).collect::<Vec<_>>()
        };
        rows(&["METHOD", "MET", "WHY"], views.iter().flat_map(of_view))
    }
}

const fn role_name(role: pb::Role) -> &'static str {
    match role {
        pb::Role::Unspecified => "-",
        pb::Role::Reader => "Reader",
        pb::Role::ReaderPlus => "ReaderPlus",
        pb::Role::Writer => "Writer",
        pb::Role::Manager => "Manager",
        pb::Role::KeyPurge => "KeyPurge",
    }
}

pub(super) const EXAMPLES: &str = "\
Examples:
  rootkeyctl access bind spiffe://rootkeyd.dev/auditor Reader
  rootkeyctl access authorize block-storage --ring payments
  rootkeyctl access authorizations
  rootkeyctl access deauthorize 5f2b3d9e-7a51-4f0c-9d3e-0a1b2c3d4e5f
  rootkeyctl access explain spiffe://rootkeyd.dev/service/image CryptoService/UnwrapDek boot";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_shows_the_verdict_and_every_condition() {
        let met = |condition: &str, met| pb::PermissionCondition {
            condition: condition.into(),
            met,
            explanation: format!("why {condition}"),
        };
        let view = PermissionView::from(pb::MethodPermission {
            method: "CryptoService/UnwrapDek".into(),
            allowed: false,
            conditions: vec![met("permission", true), met("state", false)],
        });
        let text = PermissionView::list(&[view]).to_string();
        for part in ["refused", "why permission", "why state", "yes", "no"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
