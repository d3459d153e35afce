//! A worker's part in importing: makes import pairs, and unwraps key material
//! into root keys.
//!
//! The token unwraps straight into a key that is like one of its own making. Only
//! where `hsm.software_unwrap` is set and the token lacks the algorithm, the key
//! passes through our memory. Whatever is wrong with the material, the answer is
//! the same.

use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::Session;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use super::job::Import;
use super::mechanism::{self, RAW_RSA};
use super::object::{self, Kind, Origin};
use super::root_key::patiently;
use super::rv::{Verdict, verdict};
use super::unwrapping::{self, Way, Ways};
use super::worker::{Failure, Lost, Worker, lost, prove};
use super::{HsmError, Sealed, oaep, pair};
use crate::domain::ObjectId;
use crate::secret::Secret;

impl Worker {
    /// The DER SubjectPublicKeyInfo of a new import pair.
    pub(super) fn generate_import_pair(&mut self, object: ObjectId) -> Result<Vec<u8>, Failure> {
        // Not tried yet: better too much than a pair that is of no use.
        let decrypts = self.token.ways.get().map_or(self.token.decrypts, Ways::need);
        let made = pair::generate(&self.session, object, decrypts);
        made.map_err(|error| self.failed(&error))?;
        failpoint!("hsm.pair_generated");
        let asked = pair::private_template(object, decrypts);
        let (fresh, private) = self.read_back(Kind::ImportPair, object, &asked)?;
        let public = patiently(|| pair::public_key(&fresh, object, private));
        let Some(public) = public.map_err(|error| self.failed(&error))? else {
            tracing::error!(%object, "the public part of the new import pair is not its own");
            return Err(Failure::Answer(HsmError::Refused(RvError::TemplateInconsistent)));
        };
        self.synchronize()?;
        self.token.note(Kind::ImportPair, object, private);
        Ok(public)
    }

    /// The check value of the imported root key.
    pub(super) fn import(&mut self, import: &Import) -> Result<Sealed, Failure> {
        let Import { object, material, nonce, .. } = import;
        let ways = self.token.ways.get().ok_or(Failure::Answer(HsmError::Unavailable))?;
        match ways.of(material.algorithm) {
            Some(Way::Token) => self.unwrap_in_token(import)?,
            Some(Way::Software) => self.unwrap_in_software(import)?,
            None => return Err(Failure::Answer(HsmError::Refused(RvError::MechanismParamInvalid))),
        }
        failpoint!("hsm.unwrapped");
        let asked = object::template(*object, Origin::Imported);
        let (fresh, handle) = self.read_back(Kind::RootKey, *object, &asked)?;
        self.check_length(&fresh, handle)?;
        self.synchronize()?;
        self.token.note(Kind::RootKey, *object, handle);
        let sealed = Sealed { iv: material.nonce_iv, bytes: material.encrypted_nonce.clone() };
        let opened =
            self.open(&(*object).into(), NO_AAD, &sealed).map_err(|failure| match failure {
                Failure::Answer(HsmError::Unverified) => Failure::Answer(HsmError::NonceUnverified),
                Failure::Answer(_) | Failure::Lost(_) => failure,
            })?;
        if !bool::from(opened.expose().ct_eq(nonce)) {
            return Err(Failure::Answer(HsmError::Nonce));
        }
        self.check_value(*object)
    }

    /// Tries how the token unwraps, and notes it.
    pub(super) fn try_unwrapping(&mut self) -> Result<(), Lost> {
        if self.token.ways.get().is_some() {
            return Ok(());
        }
        let ways = match unwrapping::probe(&self.token) {
            Ok(ways) => ways,
            Err(error) => match self.failed(&error) {
                Failure::Answer(HsmError::Refused(_)) => Ways::none(),
                // Of the moment; it is tried again.
                Failure::Answer(_) => return Ok(()),
                Failure::Lost(lost) => return Err(lost),
            },
        };
        tracing::info!(?ways, "tried what key material the token unwraps");
        // Err: another worker has tried it meanwhile.
        drop(self.token.ways.set(ways));
        Ok(())
    }

    fn unwrap_in_token(&mut self, import: &Import) -> Result<(), Failure> {
        let Import { object, pair, material, .. } = import;
        let mechanism = mechanism::unwrap(material.algorithm);
        let template = object::template(*object, Origin::Imported);
        self.with(Kind::ImportPair, *pair, HsmError::Material, |_functions, session, key| {
            let unwrapped = object::shortening(&mut template.clone(), TRIES, |template| {
                session.unwrap_key(&mechanism, key, &material.encrypted_key, template)
            });
            unwrapped.map(|_handle| ()).map_err(|error| {
                // Of a module that looks at the length of what it unwrapped.
                let size = rv(&error) == RvError::KeySizeRange;
                if size { RvError::WrappedKeyInvalid } else { rv(&error) }
            })
        })
    }

    fn unwrap_in_software(&mut self, import: &Import) -> Result<(), Failure> {
        let Import { object, pair, material, .. } = import;
        let unwrap = |session: &Session, key: ObjectHandle| {
            may_decrypt(session, key)?;
            session.decrypt(&RAW_RSA, key, &material.encrypted_key).map_err(|error| rv(&error))
        };
        let encoded =
            self.with(Kind::ImportPair, *pair, HsmError::Material, |_, session, key| {
                unwrap(session, key).map(Secret::new)
            })?;
        let key = oaep::decode(encoded).filter(|key| AES_BYTES.contains(&key.len()));
        let key = key.ok_or(Failure::Answer(HsmError::Material))?;
        let mut template = object::template(*object, Origin::Imported);
        template.push(Attribute::Value(key.expose().to_vec()));
        let made = object::shortening(&mut template, object::TRIES, |template| {
            self.session.create_object(template)
        });
        for attribute in &mut template {
            if let Attribute::Value(value) = attribute {
                value.zeroize();
            }
        }
        made.map(|_handle| ()).map_err(|error| self.failed(&error))
    }

    /// Whether the imported key is an AES key. Before its first use, since a key
    /// that is none must not be taken for a token in trouble.
    fn check_length(&mut self, session: &Session, key: ObjectHandle) -> Result<(), Failure> {
        let read = session.get_attributes(key, &[AttributeType::ValueLen]);
        let read = read.map_err(|error| self.failed(&error))?;
        let length = match read[..] {
            [Attribute::ValueLen(length)] => usize::try_from(*length).unwrap_or(usize::MAX),
            _ => 0,
        };
        if AES_BYTES.contains(&length) {
            return Ok(());
        }
        if length != 0 {
            return Err(Failure::Answer(HsmError::Material));
        }
        // SoftHSM reads 0 of whatever it unwrapped: then AES itself tells.
        let tried = patiently(|| {
            let proven = prove(&self.token.functions, &self.token.session()?, key);
            Ok(Some(proven).filter(|proven| !proven.is_err_and(is_passing)))
        });
        match tried.map_err(|error| self.failed(&error))? {
            Some(Ok(())) => Ok(()),
            Some(Err(_refused)) => {
                self.prove_canary().map_err(|rv| lost(&rv))?;
                Err(Failure::Answer(HsmError::Material))
            }
            None => Err(Failure::Answer(HsmError::Unavailable)),
        }
    }
}

/// Whether the error is of an object that another thread reads anew, or of the
/// session, and so tells nothing about the key.
fn is_passing(rv: RvError) -> bool {
    match verdict(rv) {
        Verdict::Session | Verdict::Login | Verdict::Object => true,
        Verdict::Unverified | Verdict::Ambiguous | Verdict::Module | Verdict::Refused => false,
    }
}

/// A pair that was made before `hsm.software_unwrap` was set may not decrypt, of
/// which SoftHSM says what it also says of an object that it reads anew.
fn may_decrypt(session: &Session, key: ObjectHandle) -> Result<(), RvError> {
    let read = session.get_attributes(key, &[AttributeType::Decrypt]);
    match read.map_err(|error| rv(&error))?[..] {
        [Attribute::Decrypt(false)] => Err(RvError::MechanismInvalid),
        _ => Ok(()),
    }
}

/// The CK_RV of an error; cryptoki's own are none, and mean that the call failed.
fn rv(error: &Error) -> RvError {
    if let Error::Pkcs11(rv, _) = error { *rv } else { RvError::FunctionFailed }
}

/// How the nonce is sealed.
const NO_AAD: &[u8] = &[];
/// Lengths of AES keys, in bytes.
const AES_BYTES: [usize; 3] = [16, 24, 32];
/// How often to try the whole template: SoftHSM says GENERAL_ERROR of bad material
/// too, and that need not be heard often.
const TRIES: usize = 3;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aes_gcm::aead::{Aead, Payload};
    use aes_gcm::aes::Aes192;
    use aes_gcm::aes::cipher::consts::U12;
    use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm, KeyInit};
    use aws_lc_rs::rsa::{
        OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey,
    };
    use cryptoki::mechanism::Mechanism;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{ImportAlgorithm, SealedMaterial};
    use crate::hsm::tests::{one, open, run_with_token, seal, soon};
    use crate::hsm::{Crypted, Hsm, Settings};

    const NONCE: [u8; 12] = *b"twelve bytes";
    const IV: [u8; 12] = [7; 12];
    /// With bad luck the search for primes is long.
    const PAIR_PATIENCE: Duration = Duration::from_secs(60);

    fn with_token(name: &str, test: impl AsyncFnOnce(Hsm)) {
        with_settings(name, |_as_they_are| (), test);
    }

    fn with_settings(name: &str, change: fn(&mut Settings), test: impl AsyncFnOnce(Hsm)) {
        run_with_token(&format!("hsm::import::tests::{name}"), change, async |hsm| {
            while hsm.import_algorithms().is_empty() {
                hsm.round_trip(soon()).await.unwrap();
            }
            test(hsm).await;
        });
    }

    fn new_id() -> ObjectId {
        ObjectId::from(Uuid::new_v4())
    }

    /// A new import pair, and its public part.
    async fn new_pair(hsm: &Hsm) -> (ObjectId, Vec<u8>) {
        let pair = new_id();
        (pair, hsm.generate_import_pair(pair, soon() + PAIR_PATIENCE).await.unwrap())
    }

    /// AES-GCM in software, with a key of any of its lengths.
    fn gcm(key: &[u8], iv: [u8; 12], aad: &[u8], text: &[u8], seals: bool) -> Option<Vec<u8>> {
        fn of<C: Aead<NonceSize = U12> + KeyInit>(
            key: &[u8],
            iv: [u8; 12],
            payload: Payload<'_, '_>,
            seals: bool,
        ) -> Option<Vec<u8>> {
            let cipher = C::new_from_slice(key).unwrap();
            let iv = iv.into();
            if seals {
                cipher.encrypt(&iv, payload).ok()
            } else {
                cipher.decrypt(&iv, payload).ok()
            }
        }
        let payload = Payload { msg: text, aad };
        match key.len() {
            16 => of::<Aes128Gcm>(key, iv, payload, seals),
            24 => of::<AesGcm<Aes192, U12>>(key, iv, payload, seals),
            _ => of::<Aes256Gcm>(key, iv, payload, seals),
        }
    }

    /// What a caller sends who means `key`.
    fn material(public: &[u8], algorithm: ImportAlgorithm, key: &[u8]) -> SealedMaterial {
        let public = PublicEncryptingKey::from_der(public).unwrap();
        let public = OaepPublicEncryptingKey::new(public).unwrap();
        let oaep = match algorithm {
            ImportAlgorithm::OaepSha256 => &OAEP_SHA256_MGF1SHA256,
            ImportAlgorithm::OaepSha1 => &OAEP_SHA1_MGF1SHA1,
        };
        let mut encrypted = vec![0; public.ciphertext_size()];
        assert_eq!(public.encrypt(oaep, key, &mut encrypted, None).unwrap().len(), 512);
        // A key that is none seals nothing.
        let sealing = if AES_BYTES.contains(&key.len()) { key } else { &[0; 32] };
        let nonce = gcm(sealing, IV, NO_AAD, &NONCE, true).unwrap();
        SealedMaterial::new(encrypted, algorithm.name(), nonce, &IV).unwrap()
    }

    /// Imports and, if that was refused, destroys what may be left.
    async fn import(
        hsm: &Hsm,
        pair: ObjectId,
        material: SealedMaterial,
    ) -> Result<ObjectId, HsmError> {
        let object = new_id();
        let imported = hsm.import(object, pair, material, NONCE, soon()).await;
        if imported.is_err() {
            hsm.destroy(object, soon()).await.unwrap();
        }
        imported.map(|_check_value| object)
    }

    /// The token's key is these bytes, and no others.
    async fn assert_is_the_key(hsm: &Hsm, object: ObjectId, key: &[u8]) {
        let sealed = one(hsm, seal(object, b"dek")).await.unwrap().sealed.unwrap().unwrap();
        assert_eq!(gcm(key, sealed.iv, b"aad", &sealed.bytes, false).unwrap(), b"dek");
        let sealed = Sealed { iv: IV, bytes: gcm(key, IV, b"aad", b"dek", true).unwrap() };
        let Crypted { dek, .. } = one(hsm, open(object, &sealed)).await.unwrap();
        assert_eq!(dek.expose(), b"dek");
    }

    #[test]
    fn a_key_of_each_length_is_imported_and_is_the_key_that_was_sealed() {
        let name = "a_key_of_each_length_is_imported_and_is_the_key_that_was_sealed";
        with_token(name, async |hsm| {
            let (pair, public) = new_pair(&hsm).await;
            for length in AES_BYTES {
                let key: Vec<u8> = (1..).take(length).collect();
                let sealed = material(&public, ImportAlgorithm::OaepSha1, &key);
                let object = new_id();
                let check_value = hsm.import(object, pair, sealed, NONCE, soon()).await.unwrap();
                let Sealed { iv, bytes } = check_value;
                let check = Hsm::check(object, &[&iv[..], &bytes].concat()).unwrap();
                assert!(one(&hsm, check).await.is_ok());
                assert_is_the_key(&hsm, object, &key).await;
            }
            assert_eq!(hsm.objects().unwrap().len(), 3);
        });
    }

    #[test]
    fn an_imported_key_never_leaves_the_token_and_does_nothing_but_gcm() {
        let name = "an_imported_key_never_leaves_the_token_and_does_nothing_but_gcm";
        with_settings(
            name,
            |settings| settings.software_unwrap = true,
            async |hsm| {
                let (pair, public) = new_pair(&hsm).await;
                for algorithm in ImportAlgorithm::ALL {
                    let sealed = material(&public, algorithm, &[3; 32]);
                    let object = import(&hsm, pair, sealed).await.unwrap();
                    let token = crate::hsm::tests::token(&hsm);
                    let session = token.session().unwrap();
                    let handle = token.handle(Kind::RootKey, object).unwrap();
                    let asked = object::template(object, Origin::Imported);
                    assert_eq!(object::differences(&session, handle, &asked).unwrap(), []);
                    for (kind, handle) in
                        [("key", handle), ("pair", token.handle(Kind::ImportPair, pair).unwrap())]
                    {
                        let types = [AttributeType::Sensitive, AttributeType::Extractable];
                        let read = session.get_attributes(handle, &types).unwrap();
                        let hidden = [Attribute::Sensitive(true), Attribute::Extractable(false)];
                        assert_eq!(read, hidden, "{kind}");
                        let types = [AttributeType::Value, AttributeType::PrivateExponent];
                        let read = session.get_attributes(handle, &types);
                        assert!(!read.is_ok_and(|read| !read.is_empty()), "{kind}");
                    }
                    let ecb = session.encrypt(&Mechanism::AesEcb, handle, &[0; 16]);
                    assert!(ecb.is_err(), "{ecb:?}");
                    let copy = session.copy_object(handle, &[Attribute::Extractable(true)]);
                    assert!(copy.is_err(), "{copy:?}");
                }
            },
        );
    }

    #[test]
    fn material_that_was_tampered_with_or_sealed_to_another_pair_is_refused() {
        let name = "material_that_was_tampered_with_or_sealed_to_another_pair_is_refused";
        with_token(name, async |hsm| {
            let (pair, public) = new_pair(&hsm).await;
            let (other, other_public) = new_pair(&hsm).await;
            let sealed = material(&public, ImportAlgorithm::OaepSha1, &[3; 32]);
            let refused = Err(HsmError::Material);
            for byte in [0, 1, 255, 511] {
                let mut tampered = sealed.clone();
                tampered.encrypted_key[byte] ^= 1;
                assert_eq!(import(&hsm, pair, tampered).await, refused, "byte {byte}");
            }
            let mut too_large = sealed.clone();
            too_large.encrypted_key.fill(0xff);
            assert_eq!(import(&hsm, pair, too_large).await, refused);
            assert_eq!(import(&hsm, other, sealed.clone()).await, refused);
            let to_other = material(&other_public, ImportAlgorithm::OaepSha1, &[3; 32]);
            assert_eq!(import(&hsm, pair, to_other).await, refused);
            assert_eq!(import(&hsm, new_id(), sealed.clone()).await, Err(HsmError::Missing));
            // The token is not taken for lost by any of it, and nothing is left.
            assert_eq!(hsm.objects().unwrap(), []);
            assert!(import(&hsm, pair, sealed).await.is_ok());
        });
    }

    #[test]
    fn material_of_a_length_that_aes_does_not_have_is_refused() {
        let name = "material_of_a_length_that_aes_does_not_have_is_refused";
        with_settings(
            name,
            |settings| settings.software_unwrap = true,
            async |hsm| {
                let (pair, public) = new_pair(&hsm).await;
                for algorithm in ImportAlgorithm::ALL {
                    for length in [0, 1, 15, 17, 31, 33, 64] {
                        let sealed = material(&public, algorithm, &vec![3; length]);
                        let refused = import(&hsm, pair, sealed).await;
                        assert_eq!(refused, Err(HsmError::Material), "{length} bytes, {algorithm}");
                    }
                }
                assert_eq!(hsm.objects().unwrap(), []);
                let sealed = material(&public, ImportAlgorithm::OaepSha1, &[3; 32]);
                assert!(import(&hsm, pair, sealed).await.is_ok());
            },
        );
    }

    #[test]
    fn a_nonce_that_the_key_did_not_seal_or_that_is_another_one_is_refused() {
        let name = "a_nonce_that_the_key_did_not_seal_or_that_is_another_one_is_refused";
        with_token(name, async |hsm| {
            let (pair, public) = new_pair(&hsm).await;
            let sealed = material(&public, ImportAlgorithm::OaepSha1, &[3; 16]);
            let with = |nonce: Option<Vec<u8>>, iv| {
                let encrypted_nonce = nonce.expect("GCM seals everything");
                SealedMaterial { encrypted_nonce, nonce_iv: iv, ..sealed.clone() }
            };
            let unverified = Err(HsmError::NonceUnverified);
            let other_key = with(gcm(&[4; 16], IV, NO_AAD, &NONCE, true), IV);
            assert_eq!(import(&hsm, pair, other_key).await, unverified);
            let other_iv = with(Some(sealed.encrypted_nonce.clone()), [8; 12]);
            assert_eq!(import(&hsm, pair, other_iv).await, unverified);
            let some_aad = with(gcm(&[3; 16], IV, b"aad", &NONCE, true), IV);
            assert_eq!(import(&hsm, pair, some_aad).await, unverified);
            let other_nonce = with(gcm(&[3; 16], IV, NO_AAD, b"another one!", true), IV);
            assert_eq!(import(&hsm, pair, other_nonce).await, Err(HsmError::Nonce));
            assert_eq!(hsm.objects().unwrap(), []);
        });
    }

    #[test]
    fn softhsm_unwraps_sha_1_alone_and_is_found_to() {
        with_token("softhsm_unwraps_sha_1_alone_and_is_found_to", async |hsm| {
            assert_eq!(hsm.import_algorithms(), [ImportAlgorithm::OaepSha1]);
            let (pair, public) = new_pair(&hsm).await;
            let sealed = material(&public, ImportAlgorithm::OaepSha256, &[3; 32]);
            let refused = Err(HsmError::Refused(RvError::MechanismParamInvalid));
            assert_eq!(import(&hsm, pair, sealed).await, refused);
            let uses = hsm.info().unwrap().mechanisms;
            let oaep = uses.iter().find(|(name, _)| name == "CKM_RSA_PKCS_OAEP").unwrap();
            assert_eq!(oaep.1.as_deref(), Some("unwrap imported root keys"));
            // Session objects of the trial are gone.
            let session = crate::hsm::tests::token(&hsm).session().unwrap();
            let left = session.find_objects(&[Attribute::Token(false)]).unwrap();
            assert_eq!(left, []);
            hsm.stop();
            assert_eq!(hsm.import_algorithms(), []);
            assert_eq!(hsm.import_pairs(), None);
        });
    }

    #[test]
    fn sha_256_is_unwrapped_in_software_if_that_is_wanted() {
        let name = "sha_256_is_unwrapped_in_software_if_that_is_wanted";
        with_settings(
            name,
            |settings| settings.software_unwrap = true,
            async |hsm| {
                assert_eq!(hsm.import_algorithms(), ImportAlgorithm::ALL);
                let (pair, public) = new_pair(&hsm).await;
                for length in AES_BYTES {
                    let key = vec![5; length];
                    let sealed = material(&public, ImportAlgorithm::OaepSha256, &key);
                    let object = import(&hsm, pair, sealed).await.unwrap();
                    assert_is_the_key(&hsm, object, &key).await;
                }
                let mut sealed = material(&public, ImportAlgorithm::OaepSha256, &[5; 32]);
                sealed.encrypted_key[511] ^= 1;
                assert_eq!(import(&hsm, pair, sealed.clone()).await, Err(HsmError::Material));
                sealed.encrypted_key.fill(0xff);
                assert_eq!(import(&hsm, pair, sealed).await, Err(HsmError::Material));
                // Sealed with the other hash than is said.
                let sealed = material(&public, ImportAlgorithm::OaepSha1, &[5; 32]);
                let sealed = SealedMaterial { algorithm: ImportAlgorithm::OaepSha256, ..sealed };
                assert_eq!(import(&hsm, pair, sealed).await, Err(HsmError::Material));
            },
        );
    }

    #[test]
    fn a_pair_that_may_not_decrypt_is_no_trouble_of_the_token() {
        let name = "a_pair_that_may_not_decrypt_is_no_trouble_of_the_token";
        with_settings(
            name,
            |settings| settings.software_unwrap = true,
            async |hsm| {
                // As it was made before the setting was changed.
                let token = crate::hsm::tests::token(&hsm);
                let session = token.session().unwrap();
                let pair_id = new_id();
                pair::generate(&session, pair_id, pair::Decrypts::No).unwrap();
                let private =
                    object::find_one(&session, Kind::ImportPair, pair_id).unwrap().unwrap();
                token.note(Kind::ImportPair, pair_id, private);
                let public = pair::public_key(&session, pair_id, private).unwrap().unwrap();
                let sealed = material(&public, ImportAlgorithm::OaepSha256, &[5; 32]);
                let refused = Err(HsmError::Refused(RvError::MechanismInvalid));
                assert_eq!(import(&hsm, pair_id, sealed).await, refused);
                assert!(hsm.is_up());
                let sealed = material(&public, ImportAlgorithm::OaepSha1, &[5; 32]);
                assert!(import(&hsm, pair_id, sealed).await.is_ok());
            },
        );
    }

    #[test]
    fn a_pair_is_listed_beside_the_root_keys_and_destroyed_with_its_public_part() {
        let name = "a_pair_is_listed_beside_the_root_keys_and_destroyed_with_its_public_part";
        with_token(name, async |hsm| {
            let (pair, public) = new_pair(&hsm).await;
            let sealed = material(&public, ImportAlgorithm::OaepSha1, &[3; 32]);
            let object = import(&hsm, pair, sealed).await.unwrap();
            assert_eq!(hsm.import_pairs().unwrap(), [pair]);
            assert_eq!(hsm.objects().unwrap(), [object]);
            let session = crate::hsm::tests::token(&hsm).session().unwrap();
            let indexed = object::index(&session, &[Kind::ImportPair]).unwrap().handles;
            assert!(indexed.contains_key(&(Kind::ImportPair, pair)) && indexed.len() == 1);
            assert_eq!(object::find_all(&session, pair).unwrap().len(), 2);
            for gone in [pair, object] {
                hsm.destroy(gone, soon()).await.unwrap();
                assert_eq!(object::find_all(&session, gone).unwrap(), []);
            }
            assert_eq!(hsm.import_pairs().unwrap(), []);
            assert_eq!(hsm.objects().unwrap(), []);
        });
    }
}
