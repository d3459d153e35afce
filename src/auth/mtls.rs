//! A client certificate → the principal that it names.
//!
//! That is the one SPIFFE ID in its subject alternative names; the common name
//! counts for nothing. Whether the certificate is to be trusted is decided by
//! TLS, before this. Rule: SPIFFE X.509-SVID standard, section 2: exactly one
//! URI SAN.

use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::domain::PrincipalId;

/// The principal that a DER certificate names; `None` if it names none, or two.
pub fn principal_of(certificate: &[u8]) -> Option<PrincipalId> {
    let (rest, certificate) = parse_x509_certificate(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None });
    let (uri, second) = (uris.next()?, uris.next());
    if !rest.is_empty() || second.is_some() {
        return None;
    }
    uri.parse().ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn principal(common_name: &str, uris: &[&str]) -> Option<String> {
        let mut params = CertificateParams::new(vec!["host.example".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        principal_of(certificate.der()).map(|principal| principal.to_string())
    }

    #[test]
    fn the_principal_is_the_one_spiffe_id() {
        assert_eq!(principal("x", &["spiffe://td/a"]).as_deref(), Some("spiffe://td/a"));
    }

    #[test]
    fn no_uri_two_uris_and_other_uris_name_nobody() {
        assert_eq!(principal("spiffe://td/a", &[]), None);
        assert_eq!(principal("x", &["spiffe://td/a", "spiffe://td/b"]), None);
        assert_eq!(principal("x", &["spiffe://td/a", "https://td/a"]), None);
        assert_eq!(principal("x", &["https://td/a"]), None);
    }

    #[test]
    fn what_is_no_certificate_names_nobody() {
        assert_eq!(principal_of(b"not a certificate"), None);
    }
}
