//! Key material for imported keys, sealed to an import token as its owner would
//! seal it, by another implementation of OAEP and GCM than the daemon's.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use rootkeyd::api::pb;
use rootkeyd::api::pb::import_service_client::ImportServiceClient;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;

use crate::common::{Client, refusal};

/// An import token of instance `default`, and its public key.
pub struct Imports {
    token: pb::ImportToken,
    public: OaepPublicEncryptingKey,
}

impl Imports {
    /// Makes a token that lasts for a day.
    pub async fn new(client: &Client) -> Self {
        let mut imports = ImportServiceClient::new(client.channel.clone());
        let mut create = tonic::Request::new(pb::CreateImportTokenRequest {
            parent: "instances/default".into(),
            lifetime: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }),
            max_allowed_retrievals: 1,
        });
        // SoftHSM looks for a pair of RSA-4096 for seconds, if others need the CPU too.
        create.set_timeout(Duration::from_secs(60));
        let name = imports.create_import_token(create).await.unwrap().into_inner().name;
        let get = pb::GetImportTokenRequest { name };
        let token = imports.get_import_token(get).await.unwrap().into_inner();
        let der = SubjectPublicKeyInfoDer::from_pem_slice(token.public_key.as_bytes()).unwrap();
        let public = PublicEncryptingKey::from_der(&der).unwrap();
        Self { token, public: OaepPublicEncryptingKey::new(public).unwrap() }
    }

    /// A new key of 32 bytes, sealed. SoftHSM unwraps by OAEP with SHA-1 alone.
    pub fn sealed(&self) -> pb::SealedKeyMaterial {
        let (mut key, mut iv) = ([0; 32], [0; 12]);
        rand::fill(&mut key).unwrap();
        rand::fill(&mut iv).unwrap();
        let mut encrypted_key = vec![0; self.public.ciphertext_size()];
        self.public.encrypt(&OAEP_SHA1_MGF1SHA1, &key, &mut encrypted_key, None).unwrap();
        let mut encrypted_nonce = self.token.nonce.clone();
        let gcm = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
        let nonce = Nonce::assume_unique_for_key(iv);
        gcm.seal_in_place_append_tag(nonce, Aad::empty(), &mut encrypted_nonce).unwrap();
        let algorithm = "RSAES_OAEP_SHA_1".into();
        pb::SealedKeyMaterial { encrypted_key, algorithm, encrypted_nonce, nonce_iv: iv.into() }
    }

    /// Imports a new key of instance `default`.
    pub async fn import(&self, client: &Client, key: pb::Key) -> pb::Key {
        let request = pb::ImportKeyRequest {
            parent: "instances/default".into(),
            key: Some(key),
            material: Some(self.sealed()),
            request_id: String::new(),
        };
        let imported = client.keys.clone().import_key(request).await.map_err(refusal);
        imported.unwrap().into_inner()
    }
}
