//! Import pairs in the token: the template, make, read the public part.
//!
//! A caller seals key material to the public part; the private part never leaves
//! the token and does nothing but unwrap, once in a while, and for a day at most.
//! Both parts are objects of the token with one CKA_ID, so that a pair outlives
//! a restart and is destroyed as one.

use cryptoki::error::Result;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::mechanism::{MAKE_IMPORT_PAIR, RAW_RSA_TYPE, UNWRAP};
use super::object::{self, Kind, TOKEN};
use crate::domain::{ObjectId, SealedMaterial};

/// Makes an import pair: RSA-4096. Takes seconds.
pub(super) fn generate(session: &Session, object: ObjectId, decrypts: Decrypts) -> Result<()> {
    let public = public_template(object);
    let mut private = private_template(object, decrypts);
    object::shortening(&mut private, TRIES, |private| {
        session.generate_key_pair(&MAKE_IMPORT_PAIR, &public, private).map(|_handles| ())
    })
}

/// Whether the private part may decrypt besides unwrapping.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Decrypts {
    /// It unwraps alone.
    No,
    /// It does raw RSA too, for the half of an unwrap that is done in `oaep.rs`.
    Raw,
}

/// What the private part is asked to be.
pub(super) fn private_template(object: ObjectId, decrypts: Decrypts) -> Vec<Attribute> {
    let (decrypt, mechanisms) = match decrypts {
        Decrypts::No => (false, vec![UNWRAP]),
        Decrypts::Raw => (true, vec![UNWRAP, RAW_RSA_TYPE]),
    };
    vec![
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        TOKEN,
        Attribute::KeyType(KeyType::RSA),
        object::id(object),
        Attribute::Label(Kind::ImportPair.label(object)),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Unwrap(true),
        Attribute::Decrypt(decrypt),
        Attribute::Sign(false),
        Attribute::SignRecover(false),
        Attribute::Derive(false),
        Attribute::AllowedMechanisms(mechanisms),
    ]
}

/// The public part is there to be read; who seals to it does so outside.
fn public_template(object: ObjectId) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        TOKEN,
        Attribute::KeyType(KeyType::RSA),
        object::id(object),
        Attribute::Label(Kind::ImportPair.label(object)),
        Attribute::ModulusBits(BITS.into()),
        Attribute::PublicExponent(EXPONENT.to_vec()),
        Attribute::Private(true),
        Attribute::Encrypt(false),
        Attribute::Verify(false),
        Attribute::VerifyRecover(false),
        Attribute::Wrap(false),
    ]
}

/// The DER SubjectPublicKeyInfo of the pair whose private part is `private`;
/// `None` if the public part is not its, or not what was asked for.
pub(super) fn public_key(
    session: &Session,
    object: ObjectId,
    private: ObjectHandle,
) -> Result<Option<Vec<u8>>> {
    let class = Attribute::Class(ObjectClass::PUBLIC_KEY);
    let found = session.find_objects(&[class, TOKEN, object::id(object)])?;
    let [public] = found[..] else { return Ok(None) };
    let (modulus, exponent) = numbers(session, public)?;
    // A sender must not seal to a key that someone put beside ours.
    let (own_modulus, _) = numbers(session, private)?;
    let as_asked = modulus.len() == SealedMaterial::ENCRYPTED_KEY_BYTES && exponent == EXPONENT;
    let ours = modulus == own_modulus && as_asked;
    Ok(ours.then(|| subject_public_key_info(&modulus, &exponent)))
}

/// Modulus and public exponent, big-endian without leading zeros.
fn numbers(session: &Session, key: ObjectHandle) -> Result<(Vec<u8>, Vec<u8>)> {
    let (mut modulus, mut exponent) = (Vec::new(), Vec::new());
    let types = [AttributeType::Modulus, AttributeType::PublicExponent];
    for attribute in session.get_attributes(key, &types)? {
        if let Attribute::Modulus(bytes) = attribute {
            modulus = without_zeros(&bytes);
        } else if let Attribute::PublicExponent(bytes) = attribute {
            exponent = without_zeros(&bytes);
        }
    }
    Ok((modulus, exponent))
}

fn without_zeros(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().skip_while(|byte| *byte == 0).collect()
}

/// RFC 3279, section 2.3.1, in the SubjectPublicKeyInfo of RFC 5280.
fn subject_public_key_info(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let key = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_bigint_bytes(modulus, true);
            writer.next().write_bigint_bytes(exponent, true);
        });
    });
    yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_sequence(|writer| {
                let rsa = yasna::models::ObjectIdentifier::from_slice(&RSA_ENCRYPTION);
                writer.next().write_oid(&rsa);
                writer.next().write_null();
            });
            writer.next().write_bitvec_bytes(&key, key.len() * 8);
        });
    })
}

/// The size of every import pair; so is that of a caller's `encrypted_key`.
const BITS: u64 = 4096;
/// 65537.
const EXPONENT: [u8; 3] = [1, 0, 1];
/// A pair takes seconds, and a module that lacks an attribute says so at once.
const TRIES: usize = 3;
/// The algorithm's object identifier.
const RSA_ENCRYPTION: [u64; 7] = [1, 2, 840, 113_549, 1, 1, 1];

#[cfg(test)]
mod tests {
    use super::*;

    /// What OpenSSL wrote of an RSA-512 key; too small for anything but a test.
    #[test]
    fn a_public_key_is_written_as_openssl_writes_it() {
        let by_openssl = hex::decode(BY_OPENSSL).unwrap();
        let modulus = &by_openssl[by_openssl.len() - 5 - 64..][..64];
        assert_eq!(subject_public_key_info(modulus, &EXPONENT), by_openssl);
    }

    const BY_OPENSSL: &str = "\
        305c300d06092a864886f70d0101010500034b003048024100d0b6925738357350c839c31d7d45\
        5445e243a60147ff12527176e71a59a175efac986af0676670eb763d37548796931a57de4e6e2a\
        3773009fba22ff49e335b10203010001";
}
