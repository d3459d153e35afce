//! How the benchmarks reach a `rootkeyd dev`.

use std::fs;
use std::path::Path;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// The daemon of `directory` at `address`, with its certificate for `name`.
pub fn endpoint((directory, name): (&Path, &str), address: &str) -> Endpoint {
    let read = |file: &str| fs::read(directory.join("tls").join(file)).unwrap();
    let identity = Identity::from_pem(read(&format!("{name}.pem")), read(&format!("{name}.key")));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("ca.pem")))
        .identity(identity);
    Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap()
}
