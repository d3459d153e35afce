//! TLS of the listener: version 1.3 alone, a client certificate required that is
//! of a CA of ours, not revoked, and names one principal; key exchange
//! X25519MLKEM768 preferred. One provider, aws-lc-rs (docs/adr/0002, 0014).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    ServerConfig, SignatureScheme, version,
};
use thiserror::Error;

use super::Tokens;
use crate::auth::bearer::KeysRefused;
use crate::auth::mtls::{Mapping, holder_of};

/// PEM files of the listener, and what names in certificates stand for.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The daemon's certificate, with its chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Certificates of the CAs that client certificates must come from.
    pub client_ca: PathBuf,
    /// Which of their certificates are revoked. If there is a file, each CA in a
    /// client's chain must have a list that is not out of date.
    pub crl: Vec<PathBuf>,
    /// Names other than SPIFFE IDs, and whose they are.
    pub principals: Vec<Mapping>,
    /// Tokens of people, if there are any.
    pub tokens: Option<Tokens>,
}

/// The TLS files cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no PEM of what it should hold.
    #[error("{} cannot be used: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unread {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The keys of tokens cannot be used.
    #[error("{} cannot be used: {source}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeysRefused,
    },
    /// Certificate and key do not belong together, or one is not supported.
    #[error("certificate and key cannot be used: {0}")]
    Config(#[from] rustls::Error),
    /// No certificate in the CA file can be used, or a revocation list cannot.
    #[error("the client CA cannot be used: {0}")]
    Verifier(#[from] VerifierBuilderError),
}

/// The configuration of the listener, and who decides on client certificates.
pub(super) fn server_config(
    identity: &Identity,
    clock: Arc<dyn TimeProvider>,
) -> Result<(Arc<ServerConfig>, Arc<Verifier>), TlsError> {
    let Identity { certificate, key, client_ca, crl, principals, tokens: _ } = identity;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for root in certificates(client_ca)? {
        roots.add(root)?;
    }
    let mut chain =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    for list in crl {
        chain = chain.with_crls(revocations(list)?).enforce_revocation_expiration();
    }
    let verifier = Arc::new(Verifier { chain: chain.build()?, principals: principals.clone() });
    let key = PrivateKeyDer::from_pem_file(key).map_err(|source| file(key, source))?;
    let mut config = ServerConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(Arc::clone(&verifier) as _)
        .with_single_cert(certificates(certificate)?, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A session that goes on would go on without a look at the certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((Arc::new(config), verifier))
}

/// Takes a certificate whose chain is good and that names one principal.
#[derive(Debug)]
pub(super) struct Verifier {
    chain: Arc<dyn ClientCertVerifier>,
    pub(super) principals: Vec<Mapping>,
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let named = holder_of(end_entity, &self.principals);
        named
            .map(|_holder| verified)
            .map_err(|nameless| CertificateError::Other(OtherError(Arc::new(nameless))).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Why a handshake failed, for the log: our own reasons in their own words.
pub(super) fn reason_of(failed: &io::Error) -> String {
    let tls = failed.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(ours))) => {
            ours.0.to_string()
        }
        Some(theirs) => theirs.to_string(),
        None => failed.to_string(),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    parsed.map_err(|source| file(path, source))
}

fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let parsed = CertificateRevocationListDer::pem_file_iter(path).and_then(Iterator::collect);
    let lists: Vec<_> = parsed.map_err(|source| file(path, source))?;
    // Without a list rustls would look at no revocation at all.
    if lists.is_empty() {
        return Err(file(path, pem::Error::NoItemsFound));
    }
    Ok(lists)
}

fn file(path: &Path, source: pem::Error) -> TlsError {
    TlsError::File { path: path.into(), source }
}
