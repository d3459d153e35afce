//! Policies of an instance, and what they decide. A policy is replaced whole: what a
//! request leaves out is at its default.
//!
//! Figures and effects: `facts/key-protect.md` section 8. Those about keys hold for
//! keys that are made later.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use super::{Malformed, RotationPeriod, Timestamp};

/// What holds in an instance.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Policies {
    /// New keys need two principals to be deleted.
    pub dual_auth_delete: bool,
    /// After how long new generated keys are rotated by themselves.
    pub rotation: Option<RotationPeriod>,
    /// What keys can be made; `None`: all.
    pub create_import: Option<CreateImportAccess>,
    /// The only addresses from which calls are answered; `None`: any.
    pub allowed_ip: Option<Vec<Ipv4Net>>,
    /// The only networks from which calls are answered; `None`: any.
    pub allowed_network: Option<AllowedNetwork>,
    /// Whether calls are counted.
    pub metrics: bool,
    /// When one was last changed, and by which principal.
    pub updated: Option<(Timestamp, String)>,
    /// Counts the changes: what an etag stands for.
    pub generation: u64,
}

/// What keys can be made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CreateImportAccess {
    /// Root keys can be generated.
    pub create_root_key: bool,
    /// Root keys can be imported.
    pub import_root_key: bool,
    /// Material must be sealed to an import token, as it must here anyway.
    pub enforce_token: bool,
}

/// Where callers may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AllowedNetwork {
    /// Anywhere.
    PublicAndPrivate,
    /// In a network that the configuration calls private.
    PrivateOnly,
}

/// A new value of one policy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PolicyChange {
    /// Of [`Policies::dual_auth_delete`].
    DualAuthDelete(bool),
    /// Of [`Policies::rotation`].
    Rotation(Option<RotationPeriod>),
    /// Of [`Policies::create_import`].
    CreateImport(Option<CreateImportAccess>),
    /// Of [`Policies::allowed_ip`].
    AllowedIp(Option<Vec<Ipv4Net>>),
    /// Of [`Policies::allowed_network`].
    AllowedNetwork(Option<AllowedNetwork>),
    /// Of [`Policies::metrics`].
    Metrics(bool),
}

/// How a key comes to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Making {
    /// Its material is generated in the HSM.
    Create,
    /// Its material is imported.
    Import,
}

impl PolicyChange {
    /// For the audit log.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::DualAuthDelete(_) => "dualAuthDelete",
            Self::Rotation(_) => "rotation",
            Self::CreateImport(_) => "keyCreateImportAccess",
            Self::AllowedIp(_) => "allowedIP",
            Self::AllowedNetwork(_) => "allowedNetwork",
            Self::Metrics(_) => "metrics",
        }
    }
}

impl Policies {
    /// After `change`, by `principal`.
    #[must_use]
    pub fn changed(&self, change: PolicyChange, now: Timestamp, principal: &str) -> Self {
        let mut new = self.clone();
        match change {
            PolicyChange::DualAuthDelete(value) => new.dual_auth_delete = value,
            PolicyChange::Rotation(value) => new.rotation = value,
            PolicyChange::CreateImport(value) => new.create_import = value,
            PolicyChange::AllowedIp(value) => new.allowed_ip = value,
            PolicyChange::AllowedNetwork(value) => new.allowed_network = value,
            PolicyChange::Metrics(value) => new.metrics = value,
        }
        new.updated = Some((now, principal.to_owned()));
        new.generation += 1;
        new
    }

    /// What holds now of that which `change` would set.
    #[must_use]
    pub fn now_of(&self, change: &PolicyChange) -> PolicyChange {
        match change {
            PolicyChange::DualAuthDelete(_) => PolicyChange::DualAuthDelete(self.dual_auth_delete),
            PolicyChange::Rotation(_) => PolicyChange::Rotation(self.rotation),
            PolicyChange::CreateImport(_) => PolicyChange::CreateImport(self.create_import),
            PolicyChange::AllowedIp(_) => PolicyChange::AllowedIp(self.allowed_ip.clone()),
            PolicyChange::AllowedNetwork(_) => PolicyChange::AllowedNetwork(self.allowed_network),
            PolicyChange::Metrics(_) => PolicyChange::Metrics(self.metrics),
        }
    }

    /// Whether keys can be made so.
    pub fn allow_making(&self, making: Making) -> bool {
        self.create_import.is_none_or(|access| match making {
            Making::Create => access.create_root_key,
            Making::Import => access.import_root_key,
        })
    }

    /// Whether a caller at `address` is answered; `private` are the networks that
    /// the configuration calls so. A caller without an address is refused where
    /// addresses matter.
    pub fn allow_caller(&self, address: Option<IpAddr>, private: &[Ipv4Net]) -> bool {
        let private_only = self.allowed_network == Some(AllowedNetwork::PrivateOnly);
        if self.allowed_ip.is_none() && !private_only {
            return true;
        }
        let Some(address) = address.and_then(as_v4) else { return false };
        let within = |networks: &[Ipv4Net]| networks.iter().any(|net| net.contains(address));
        self.allowed_ip.as_deref().is_none_or(within) && (!private_only || within(private))
    }

    /// What `etag` in a request must be.
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.generation)
    }
}

/// A network of IPv4 addresses, such as `192.0.2.0/24`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ipv4Net {
    address: Ipv4Addr,
    bits: u8,
}

impl Ipv4Net {
    /// Whether `address` is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
        u32::from(address) & mask == u32::from(self.address) & mask
    }
}

impl FromStr for Ipv4Net {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let problem = Malformed::new("allowed_ip", "must be IPv4 networks, such as 192.0.2.0/24");
        let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
        let address = address.parse().map_err(|_other| problem)?;
        let digits = !bits.is_empty() && bits.bytes().all(|c| c.is_ascii_digit());
        let bits = bits.parse().ok().filter(|bits| digits && *bits <= 32).ok_or(problem)?;
        Ok(Self { address, bits })
    }
}

impl std::fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// An IPv4 address, also one that is written as IPv6.
fn as_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(address) => address.to_ipv4_mapped(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_network_holds_what_its_bits_say() {
        let holds = |net: &str, address: &str| {
            net.parse::<Ipv4Net>().unwrap().contains(address.parse().unwrap())
        };
        assert!(holds("192.0.2.0/24", "192.0.2.255"));
        assert!(!holds("192.0.2.0/24", "192.0.3.0"));
        assert!(holds("0.0.0.0/0", "203.0.113.9"));
        assert!(holds("10.1.2.3", "10.1.2.3") && !holds("10.1.2.3", "10.1.2.4"));
        for text in ["", "10.0.0.0/33", "10.0.0/8", "::/0", "10.0.0.0/", "10.0.0.0/+8"] {
            assert!(text.parse::<Ipv4Net>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_caller_is_answered_where_the_policies_say() {
        let private = nets(&["10.0.0.0/8"]);
        let allowed = |policies: &Policies, address: &str| {
            policies.allow_caller(Some(address.parse().unwrap()), &private)
        };
        let any = Policies::default();
        assert!(allowed(&any, "2001:db8::1") && any.allow_caller(None, &private));
        let ip = Policies { allowed_ip: Some(nets(&["192.0.2.0/24"])), ..Policies::default() };
        assert!(allowed(&ip, "192.0.2.7") && allowed(&ip, "::ffff:192.0.2.7"));
        assert!(!allowed(&ip, "10.0.0.1") && !allowed(&ip, "2001:db8::1"));
        assert!(!ip.allow_caller(None, &private));
        let inside =
            Policies { allowed_network: Some(AllowedNetwork::PrivateOnly), ..Policies::default() };
        assert!(allowed(&inside, "10.9.9.9") && !allowed(&inside, "192.0.2.7"));
    }

    #[test]
    fn a_policy_is_replaced_whole_and_counted() {
        let none = CreateImportAccess {
            create_root_key: false,
            import_root_key: true,
            enforce_token: false,
        };
        let now = Timestamp::from_seconds(5);
        let set = Policies::default().changed(PolicyChange::CreateImport(Some(none)), now, "p");
        assert!(!set.allow_making(Making::Create) && set.allow_making(Making::Import));
        let off = set.changed(PolicyChange::CreateImport(None), now, "p");
        assert!(off.allow_making(Making::Create));
        assert_eq!((off.etag(), off.updated), ("\"2\"".into(), Some((now, "p".into()))));
    }
}
