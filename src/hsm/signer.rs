//! The signer of the audit log's checkpoints in the token: an EC pair on P-256 that
//! signs hashes and does nothing else. Template, make, sign, read the public part.
//!
//! What is signed is decided by `audit/`. Both parts are objects of the token with
//! one CKA_ID; no attribute of either is ever changed.

use cryptoki::error::{Error, Result, RvError};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::HsmError;
use super::mechanism::{MAKE_SIGNER, SIGN, SIGN_TYPE};
use super::object::{self, Kind, TOKEN, TRIES};
use super::root_key::patiently;
use super::worker::{Failure, Worker};
use crate::domain::ObjectId;

impl Worker {
    /// The DER SubjectPublicKeyInfo of a new signer, or of the one that is there.
    pub(super) fn make_signer(
        &mut self,
        object: ObjectId,
    ) -> std::result::Result<Vec<u8>, Failure> {
        let found = object::find_all(&self.session, object);
        // A job that was given up may have made it after all.
        if found.map_err(|error| self.failed(&error))?.is_empty() {
            self.in_good_order()?;
            let made = generate(&self.session, object);
            made.map_err(|error| self.failed(&error))?;
            failpoint!("hsm.signer_generated");
        }
        let asked = private_template(object);
        let (fresh, private) = self.read_back(Kind::Signer, object, &asked)?;
        let public = patiently(|| public_key(&fresh, object));
        let public = public.map_err(|error| self.failed(&error))?;
        self.synchronize()?;
        self.token.note(Kind::Signer, object, private);
        public.ok_or_else(|| self.absent(Kind::Signer, object))
    }

    /// The DER SubjectPublicKeyInfo of the signer.
    pub(super) fn signer_key(&mut self, object: ObjectId) -> std::result::Result<Vec<u8>, Failure> {
        self.key(Kind::Signer, object)?;
        let public = patiently(|| public_key(&self.session, object));
        let public = public.map_err(|error| self.failed(&error))?;
        public.ok_or_else(|| self.absent(Kind::Signer, object))
    }

    /// A signature in DER of a SHA-256.
    pub(super) fn sign(
        &mut self,
        object: ObjectId,
        hash: [u8; 32],
    ) -> std::result::Result<Vec<u8>, Failure> {
        self.with(Kind::Signer, object, HsmError::Unavailable, |_functions, session, key| {
            let signed = session.sign(&SIGN, key, &hash).map_err(|error| {
                if let Error::Pkcs11(rv, _) = error { rv } else { RvError::FunctionFailed }
            })?;
            in_der(&signed).ok_or(RvError::FunctionFailed)
        })
    }
}

fn generate(session: &Session, object: ObjectId) -> Result<()> {
    let public = public_template(object);
    let mut private = private_template(object);
    object::shortening(&mut private, TRIES, |private| {
        session.generate_key_pair(&MAKE_SIGNER, &public, private).map(|_handles| ())
    })
}

/// What the private part is asked to be.
fn private_template(object: ObjectId) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        TOKEN,
        Attribute::KeyType(KeyType::EC),
        object::id(object),
        Attribute::Label(Kind::Signer.label(object)),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::SignRecover(false),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::AllowedMechanisms(vec![SIGN_TYPE]),
    ]
}

/// The public part is there to be read; who verifies does so outside.
fn public_template(object: ObjectId) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        TOKEN,
        Attribute::KeyType(KeyType::EC),
        object::id(object),
        Attribute::Label(Kind::Signer.label(object)),
        Attribute::EcParams(P256.to_vec()),
        Attribute::Private(true),
        Attribute::Encrypt(false),
        Attribute::Verify(false),
        Attribute::VerifyRecover(false),
        Attribute::Wrap(false),
    ]
}

/// The public part with that CKA_ID, if there is just one. That it belongs to the
/// private part is seen when a signature verifies.
fn public_key(session: &Session, object: ObjectId) -> Result<Option<Vec<u8>>> {
    let class = Attribute::Class(ObjectClass::PUBLIC_KEY);
    let found = session.find_objects(&[class, TOKEN, object::id(object)])?;
    let [public] = found[..] else { return Ok(None) };
    Ok(point(session, public)?.map(|point| [&SPKI[..], &point].concat()))
}

/// The point, uncompressed: 0x04, X, Y.
fn point(session: &Session, public: ObjectHandle) -> Result<Option<[u8; POINT_BYTES]>> {
    let read = session.get_attributes(public, &[AttributeType::EcPoint])?;
    let [Attribute::EcPoint(bytes)] = &read[..] else { return Ok(None) };
    // A DER OCTET STRING by the standard; some modules leave its head out.
    let point = bytes.strip_prefix(&[0x04, 65]).unwrap_or(bytes);
    Ok(point.try_into().ok().filter(|point: &[u8; POINT_BYTES]| point[0] == 0x04))
}

/// PKCS#11 gives r and s behind one another.
fn in_der(signed: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = signed.split_at_checked(32)?;
    let trimmed = |number: &[u8]| -> Vec<u8> {
        number.iter().copied().skip_while(|byte| *byte == 0).collect()
    };
    let (r, s) = (trimmed(r), trimmed(s));
    if signed.len() != 64 || r.is_empty() || s.is_empty() {
        return None;
    }
    Some(yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_bigint_bytes(&r, true);
            writer.next().write_bigint_bytes(&s, true);
        });
    }))
}

const POINT_BYTES: usize = 65;
/// The DER object identifier of prime256v1.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// What the SubjectPublicKeyInfo of a point on P-256 begins with (RFC 5480).
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    use cryptoki::mechanism::Mechanism;
    use sha2::{Digest, Sha256};
    use uuid::Uuid;

    use super::super::Crypt;
    use super::super::tests::run_with_token;
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn short_numbers_of_a_signature_are_written_as_der_wants_them() {
        let mut signed = [0; 64];
        (signed[31], signed[32]) = (0x80, 0x7f);
        let der = in_der(&signed).unwrap();
        assert_eq!(der[..7], [0x30, 0x26, 0x02, 0x02, 0x00, 0x80, 0x02]);
        assert_eq!(in_der(&[0; 64]), None);
        assert_eq!(in_der(&signed[..63]), None);
    }

    #[test]
    fn a_signer_signs_what_its_public_part_verifies_and_is_made_once() {
        let path =
            "hsm::signer::tests::a_signer_signs_what_its_public_part_verifies_and_is_made_once";
        run_with_token(
            path,
            |_as_they_are| (),
            async |hsm| {
                let object = ObjectId::from(Uuid::new_v4());
                assert_eq!(hsm.signer_key(object, soon()).await, Err(HsmError::Missing));
                let key = hsm.make_signer(object, soon()).await.unwrap();
                assert_eq!(hsm.make_signer(object, soon()).await.unwrap(), key);
                assert_eq!(hsm.signer_key(object, soon()).await.unwrap(), key);
                assert_eq!(hsm.signers().unwrap(), [object]);
                for number in 0..40_u8 {
                    let hash = Sha256::digest([number]).into();
                    let signature = hsm.sign(object, hash, soon()).await.unwrap();
                    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key);
                    key.verify(&[number], &signature).unwrap();
                }
            },
        );
    }

    #[test]
    fn a_signer_does_no_other_job_and_no_other_key_signs() {
        let path = "hsm::signer::tests::a_signer_does_no_other_job_and_no_other_key_signs";
        run_with_token(
            path,
            |_as_they_are| (),
            async |hsm| {
                let signer = ObjectId::from(Uuid::new_v4());
                let (root_key, pair) =
                    (ObjectId::from(Uuid::new_v4()), ObjectId::from(Uuid::new_v4()));
                hsm.make_signer(signer, soon()).await.unwrap();
                hsm.generate(root_key, soon()).await.unwrap();
                hsm.generate_import_pair(pair, soon()).await.unwrap();
                for other in [root_key, pair] {
                    assert_eq!(hsm.sign(other, [1; 32], soon()).await, Err(HsmError::Missing));
                    assert_eq!(hsm.signer_key(other, soon()).await, Err(HsmError::Missing));
                }
                let item = Crypt::Generate { key: signer.into(), aad: Vec::new(), length: 32 };
                let crypted = hsm.crypt(vec![item], soon()).await.unwrap();
                assert_eq!(crypted[0].as_ref().err(), Some(&HsmError::Missing));
                assert_eq!(hsm.objects().unwrap(), [root_key]);
                assert_eq!(hsm.import_pairs().unwrap(), [pair]);

                let token = crate::hsm::tests::token(&hsm);
                let session = token.session().unwrap();
                let key = token.handle(Kind::Signer, signer).unwrap();
                let others = [Mechanism::EcdsaSha256, Mechanism::Sha256RsaPkcs];
                for mechanism in others {
                    assert!(session.sign(&mechanism, key, b"text").is_err(), "{mechanism:?}");
                }
                assert!(session.decrypt(&Mechanism::RsaPkcs, key, &[0; 64]).is_err());
                let read = session.get_attributes(key, &[AttributeType::Value]).unwrap();
                assert!(read.is_empty(), "the private number can be read");
            },
        );
    }
}
