//! Client certificate → principal: the one SPIFFE ID in its subject alternative
//! names, or what the configuration maps another such name to; the common name
//! counts for nothing. Whether the certificate is to be trusted is decided by TLS,
//! beside this. Rule: SPIFFE X.509-SVID standard, section 2: exactly one URI SAN.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::domain::{PrincipalId, Timestamp};

/// What a certificate says of its holder.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// Who it is.
    pub principal: PrincipalId,
    /// Until when the certificate is valid.
    pub not_after: Timestamp,
}

/// Why a certificate names no principal.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Nameless {
    /// It cannot be read.
    #[error("the client certificate cannot be parsed")]
    Unreadable,
    /// It has no name that could count.
    #[error(
        "the client certificate names no principal: it has no SPIFFE ID, and none of its names is mapped"
    )]
    None,
    /// A SPIFFE ID must be the only URI.
    #[error("the client certificate names more than one principal: it has several URI names")]
    SeveralUris,
    /// Its mapped names are different principals.
    #[error(
        "the client certificate names more than one principal: its names are mapped to several"
    )]
    SeveralMapped,
    /// The one URI is no SPIFFE ID as we take it.
    #[error("the client certificate names no principal: its SPIFFE ID is malformed")]
    Malformed,
}

/// A subject alternative name that stands for a principal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mapping {
    /// The name in the certificate.
    pub san: San,
    /// Who it is.
    pub principal: PrincipalId,
}

/// A subject alternative name: `dns:`, `email:` or `uri:` and the name itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum San {
    /// DNS name, in small letters.
    Dns(String),
    /// E-mail address, as it is written.
    Email(String),
    /// URI that is no SPIFFE ID.
    Uri(String),
}

/// Who holds this DER certificate.
///
/// # Errors
/// [`Nameless`], if it names nobody, or two.
pub fn holder_of(certificate: &[u8], mappings: &[Mapping]) -> Result<Holder, Nameless> {
    let (rest, certificate) =
        parse_x509_certificate(certificate).map_err(|_broken| Nameless::Unreadable)?;
    if !rest.is_empty() {
        return Err(Nameless::Unreadable);
    }
    let names = certificate.subject_alternative_name();
    let names = names.map_err(|_broken| Nameless::Unreadable)?.ok_or(Nameless::None)?;
    let principal = principal_in(&names.value.general_names, mappings)?;
    let not_after = Timestamp::from_seconds(certificate.validity().not_after.timestamp());
    Ok(Holder { principal, not_after })
}

fn principal_in(names: &[GeneralName<'_>], mappings: &[Mapping]) -> Result<PrincipalId, Nameless> {
    let uris = names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None });
    let uris: Vec<_> = uris.collect();
    if uris.iter().any(|uri| uri.starts_with(SPIFFE)) {
        let [uri] = uris[..] else { return Err(Nameless::SeveralUris) };
        return uri.parse().map_err(|_malformed| Nameless::Malformed);
    }
    let mapped = mappings.iter().filter(|it| names.iter().any(|name| it.san.is(name)));
    let mut principals = mapped.map(|it| &it.principal);
    let principal = principals.next().ok_or(Nameless::None)?;
    if principals.any(|other| other != principal) {
        return Err(Nameless::SeveralMapped);
    }
    Ok(principal.clone())
}

impl San {
    fn is(&self, name: &GeneralName<'_>) -> bool {
        match self {
            Self::Dns(dns) => {
                matches!(name, GeneralName::DNSName(it) if it.eq_ignore_ascii_case(dns))
            }
            Self::Email(email) => matches!(name, GeneralName::RFC822Name(it) if it == email),
            Self::Uri(uri) => matches!(name, GeneralName::URI(it) if it == uri),
        }
    }
}

impl FromStr for San {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some((_, "")) | None => Err("must be dns:NAME, email:ADDRESS or uri:URI"),
            Some(("dns", name)) => Ok(Self::Dns(name.to_ascii_lowercase())),
            Some(("email", address)) => Ok(Self::Email(address.to_owned())),
            Some(("uri", uri)) if uri.starts_with(SPIFFE) => {
                Err("must not be a SPIFFE ID, which is a principal without a mapping")
            }
            Some(("uri", uri)) => Ok(Self::Uri(uri.to_owned())),
            Some(_other) => Err("must be dns:NAME, email:ADDRESS or uri:URI"),
        }
    }
}

impl fmt::Display for San {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Email(address) => write!(f, "email:{address}"),
            Self::Uri(uri) => write!(f, "uri:{uri}"),
        }
    }
}

const SPIFFE: &str = "spiffe:";

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, date_time_ymd};

    use super::*;

    fn principal(common_name: &str, uris: &[&str]) -> Result<String, Nameless> {
        let mappings = [
            ("dns:host.example", "spiffe://td/host"),
            ("email:a@host.example", "spiffe://td/person"),
            ("uri:https://td/a", "spiffe://td/web"),
        ];
        let mappings = mappings.map(|(san, principal)| Mapping {
            san: san.parse().unwrap(),
            principal: principal.parse().unwrap(),
        });
        holder(common_name, uris, &mappings).map(|holder| holder.principal.to_string())
    }

    fn holder(name: &str, sans: &[&str], mappings: &[Mapping]) -> Result<Holder, Nameless> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = date_time_ymd(2030, 1, 1);
        for san in sans {
            let typed = match san.parse::<San>() {
                Ok(San::Dns(name)) => SanType::DnsName(name.try_into().unwrap()),
                Ok(San::Email(address)) => SanType::Rfc822Name(address.try_into().unwrap()),
                Ok(San::Uri(uri)) => SanType::URI(uri.try_into().unwrap()),
                Err(_spiffe) => SanType::URI((*san).try_into().unwrap()),
            };
            params.subject_alt_names.push(typed);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        holder_of(certificate.der(), mappings)
    }

    #[test]
    fn who_a_certificate_names_is_by_its_alternative_names_alone() {
        let table: [(&[&str], Result<&str, Nameless>); 12] = [
            (&["spiffe://td/a"], Ok("spiffe://td/a")),
            (&["spiffe://td/a", "dns:host.example"], Ok("spiffe://td/a")),
            (&[], Err(Nameless::None)),
            (&["dns:other.example"], Err(Nameless::None)),
            (&["uri:https://td/b"], Err(Nameless::None)),
            (&["spiffe://td/a", "spiffe://td/b"], Err(Nameless::SeveralUris)),
            (&["spiffe://td/a", "uri:https://td/a"], Err(Nameless::SeveralUris)),
            (&["spiffe://td/a b"], Err(Nameless::Malformed)),
            (&["dns:HOST.example"], Ok("spiffe://td/host")),
            (&["email:a@host.example"], Ok("spiffe://td/person")),
            (&["uri:https://td/a"], Ok("spiffe://td/web")),
            (&["dns:host.example", "email:a@host.example"], Err(Nameless::SeveralMapped)),
        ];
        for (names, expected) in table {
            let found = principal("spiffe://td/cn", names);
            assert_eq!(found, expected.map(str::to_owned), "{names:?}");
        }
    }

    #[test]
    fn the_end_of_its_validity_is_read() {
        let holder = holder("x", &["spiffe://td/a"], &[]).unwrap();
        assert_eq!(holder.not_after, Timestamp::from_seconds(1_893_456_000));
    }

    #[test]
    fn a_mapped_name_is_of_a_kind_that_can_be_matched() {
        for text in ["host.example", "ip:10.0.0.1", "dns:", "cn:a", "uri:spiffe://td/a"] {
            assert!(text.parse::<San>().is_err(), "{text}");
        }
        let san: San = "dns:Host.Example".parse().unwrap();
        assert_eq!(san.to_string(), "dns:host.example");
    }

    #[test]
    fn what_is_no_certificate_names_nobody() {
        assert_eq!(holder_of(b"not a certificate", &[]), Err(Nameless::Unreadable));
    }
}
