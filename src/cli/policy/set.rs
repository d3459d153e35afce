//! `policy set …`: each policy as it is typed. The request replaces a policy whole,
//! so each command says all of it: what holds, or `--off`.

use clap::{ArgGroup, Subcommand, ValueEnum};

use crate::{
    api::pb::{self, allowed_network_policy::Network, set_instance_policy_request::Policy},
    cli::rotation_period::{RotationPeriod, rotation_period},
};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum SetCommand {
    /// Whether new root keys need two principals to be deleted
    DualAuthDelete(DualAuthDelete),
    /// How often new generated root keys are rotated by themselves
    Rotation(Rotation),
    /// Whether root keys can be generated and imported
    CreateImportAccess(CreateImportAccess),
    /// From which addresses calls about the instance are answered
    AllowedIp(AllowedIp),
    /// From which networks calls about the instance are answered
    AllowedNetwork(AllowedNetwork),
    /// Whether calls are counted
    Metrics(Metrics),
}

impl SetCommand {
    /// The policy, and the etag that the policies must have.
    pub(super) fn policy(self) -> (Policy, String) {
        let (policy, Etag { etag }) = match self {
            Self::DualAuthDelete(DualAuthDelete { enabled, etag }) => {
                (Policy::DualAuthDelete(pb::DualAuthDeletePolicy { enabled }), etag)
            }
            Self::Rotation(Rotation { days, off, etag }) => {
                let rotation_period = days.map(RotationPeriod::duration);
                (Policy::Rotation(pb::RotationPolicy { enabled: !off, rotation_period }), etag)
            }
            Self::CreateImportAccess(access) => {
                let CreateImportAccess { create_root_key, import_root_key, .. } = access;
                let CreateImportAccess { enforce_token, off, etag, .. } = access;
                let policy = pb::KeyCreateImportAccessPolicy {
                    enabled: !off,
                    create_root_key,
                    import_root_key,
                    enforce_token,
                };
                (Policy::KeyCreateImportAccess(policy), etag)
            }
            Self::AllowedIp(AllowedIp { cidr, off, etag }) => {
                let policy = pb::AllowedIpPolicy { enabled: !off, allowed_ip: cidr };
                (Policy::AllowedIp(policy), etag)
            }
            Self::AllowedNetwork(AllowedNetwork { network, off, etag }) => {
                let allowed_network =
                    network.map_or(Network::Unspecified, NetworkName::network).into();
                let policy = pb::AllowedNetworkPolicy { enabled: !off, allowed_network };
                (Policy::AllowedNetwork(policy), etag)
            }
            Self::Metrics(Metrics { switch, etag }) => {
                (Policy::Metrics(pb::MetricsPolicy { enabled: switch == Switch::On }), etag)
            }
        };
        (policy, etag)
    }
}

#[derive(Debug, clap::Args)]
struct Etag {
    /// Refuse if the policies are not as they were when they had this etag
    #[arg(long, default_value_t)]
    etag: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rootkeyctl policy set dual-auth-delete --enabled true")]
pub(in crate::cli) struct DualAuthDelete {
    /// Whether they do
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    enabled: bool,
    #[command(flatten)]
    etag: Etag,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rootkeyctl policy set rotation --days 90\n  rootkeyctl policy set rotation --off",
    group = ArgGroup::new("rotation").required(true).args(["days", "off"]),
)]
pub(in crate::cli) struct Rotation {
    /// A multiple of 30, up to 360
    #[arg(long, value_name = "N", value_parser = rotation_period)]
    days: Option<RotationPeriod>,
    /// By hand only
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    etag: Etag,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = CREATE_IMPORT_ACCESS_EXAMPLES,
    group = ArgGroup::new("access")
        .required(true)
        .multiple(true)
        .args(["create_root_key", "import_root_key", "enforce_token", "off"]),
)]
pub(in crate::cli) struct CreateImportAccess {
    /// Whether root keys can be generated. Without it: they can
    #[arg(long, value_name = "BOOL", conflicts_with = "off")]
    create_root_key: Option<bool>,
    /// Whether root keys can be imported. Without it: they can
    #[arg(long, value_name = "BOOL", conflicts_with = "off")]
    import_root_key: Option<bool>,
    /// Whether material must be sealed to an import token; this daemon takes no other
    #[arg(long, value_name = "BOOL", conflicts_with = "off")]
    enforce_token: Option<bool>,
    /// Everything is allowed
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    etag: Etag,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = ALLOWED_IP_EXAMPLES,
    group = ArgGroup::new("addresses").required(true).args(["cidr", "off"]),
)]
pub(in crate::cli) struct AllowedIp {
    /// An IPv4 network, such as 192.0.2.0/24; repeat for up to 1000
    #[arg(long)]
    cidr: Vec<String>,
    /// From every address
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    etag: Etag,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rootkeyctl policy set allowed-network private-only\n  rootkeyctl policy set allowed-network --off",
    group = ArgGroup::new("networks").required(true).args(["network", "off"]),
)]
pub(in crate::cli) struct AllowedNetwork {
    /// Where a caller may be
    #[arg(value_enum)]
    network: Option<NetworkName>,
    /// From every network
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    etag: Etag,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rootkeyctl policy set metrics on")]
pub(in crate::cli) struct Metrics {
    /// Whether they are
    #[arg(value_enum)]
    switch: Switch,
    #[command(flatten)]
    etag: Etag,
}

/// Where a caller may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(in crate::cli) enum NetworkName {
    /// Anywhere
    PublicAndPrivate,
    /// In a network that the daemon's configuration calls private
    PrivateOnly,
}

impl NetworkName {
    fn network(self) -> Network {
        match self {
            Self::PublicAndPrivate => Network::PublicAndPrivate,
            Self::PrivateOnly => Network::PrivateOnly,
        }
    }
}

/// Of a policy that says nothing else.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(in crate::cli) enum Switch {
    /// It holds
    On,
    /// It does not
    Off,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  rootkeyctl policy set dual-auth-delete --enabled true
  rootkeyctl policy set rotation --days 90
  rootkeyctl policy set allowed-ip --off --etag 7";

const CREATE_IMPORT_ACCESS_EXAMPLES: &str = "\
Examples:
  rootkeyctl policy set create-import-access --create-root-key false
  rootkeyctl policy set create-import-access --import-root-key true --enforce-token true
  rootkeyctl policy set create-import-access --off";

const ALLOWED_IP_EXAMPLES: &str = "\
Examples:
  rootkeyctl policy set allowed-ip --cidr 192.0.2.0/24 --cidr 198.51.100.7/32
  rootkeyctl policy set allowed-ip --off";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: SetCommand,
    }

    fn typed(line: &str) -> Option<(Policy, String)> {
        let line = Line::try_parse_from(["set"].into_iter().chain(line.split(' '))).ok()?;
        Some(line.command.policy())
    }

    #[test]
    fn each_policy_is_sent_as_it_is_typed() {
        let days = |days: i64| prost_types::Duration { seconds: days * 86_400, nanos: 0 };
        let cases = [
            (
                "dual-auth-delete --enabled false",
                Policy::DualAuthDelete(pb::DualAuthDeletePolicy { enabled: false }),
            ),
            (
                "rotation --days 90",
                Policy::Rotation(pb::RotationPolicy {
                    enabled: true,
                    rotation_period: Some(days(90)),
                }),
            ),
            ("rotation --off", Policy::Rotation(pb::RotationPolicy::default())),
            (
                "create-import-access --create-root-key false --enforce-token true",
                Policy::KeyCreateImportAccess(pb::KeyCreateImportAccessPolicy {
                    enabled: true,
                    create_root_key: Some(false),
                    import_root_key: None,
                    enforce_token: Some(true),
                }),
            ),
            (
                "allowed-ip --cidr 192.0.2.0/24 --cidr 198.51.100.7/32",
                Policy::AllowedIp(pb::AllowedIpPolicy {
                    enabled: true,
                    allowed_ip: vec!["192.0.2.0/24".to_owned(), "198.51.100.7/32".to_owned()],
                }),
            ),
            (
                "allowed-network private-only",
                Policy::AllowedNetwork(pb::AllowedNetworkPolicy {
                    enabled: true,
                    allowed_network: Network::PrivateOnly.into(),
                }),
            ),
            ("allowed-network --off", Policy::AllowedNetwork(pb::AllowedNetworkPolicy::default())),
            ("metrics on", Policy::Metrics(pb::MetricsPolicy { enabled: true })),
        ];
        for (line, policy) in cases {
            assert_eq!(typed(line), Some((policy, String::new())), "{line}");
        }
        assert_eq!(typed("metrics off --etag 7").unwrap().1, "7");
    }

    #[test]
    fn what_holds_and_off_exclude_each_other_and_one_is_needed() {
        for line in [
            "dual-auth-delete",
            "rotation",
            "rotation --days 90 --off",
            "rotation --days 45",
            "create-import-access",
            "create-import-access --off --import-root-key true",
            "allowed-ip",
            "allowed-ip --cidr 192.0.2.0/24 --off",
            "allowed-network",
            "allowed-network private-only --off",
            "allowed-network public-only",
            "metrics",
        ] {
            assert_eq!(typed(line), None, "{line}");
        }
    }
}
