//! TLS of the listener: version 1.3 alone, a client certificate required, key
//! exchange X25519MLKEM768 preferred. One provider, aws-lc-rs (docs/adr/0002).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, version};
use thiserror::Error;

/// PEM files of the listener.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The daemon's certificate, with its chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Certificates of the CAs that client certificates must come from.
    pub client_ca: PathBuf,
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
    /// Certificate and key do not belong together, or one is not supported.
    #[error("certificate and key cannot be used: {0}")]
    Config(#[from] rustls::Error),
    /// No certificate in the CA file can be used.
    #[error("the client CA cannot be used: {0}")]
    Verifier(#[from] VerifierBuilderError),
}

/// The configuration of the listener.
pub(super) fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let Identity { certificate, key, client_ca } = identity;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for root in certificates(client_ca)? {
        roots.add(root)?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let key = PrivateKeyDer::from_pem_file(key).map_err(|source| file(key, source))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier.build()?)
        .with_single_cert(certificates(certificate)?, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let parsed = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    parsed.map_err(|source| file(path, source))
}

fn file(path: &Path, source: pem::Error) -> TlsError {
    TlsError::File { path: path.into(), source }
}
