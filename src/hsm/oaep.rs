//! EME-OAEP decoding with SHA-256, MGF1 with SHA-256 and an empty label: the half
//! of an unwrap that is done here if the token can do raw RSA only.
//!
//! RFC 8017, section 7.1.2, step 3. Whether and where the encoding is wrong must
//! not show, in the answer or in time (Manger's attack), so every byte is looked
//! at with `subtle` and there is one way to fail. No maintained crate offers this
//! step alone: `rsa` keeps it private, `aws-lc-rs` has no raw RSA.

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// The message in an encoded block, which is what raw RSA gives; `None` if it
/// is no encoding. Works in place and wipes the block.
pub(super) fn decode(mut encoded: Secret) -> Option<Secret> {
    // The length is the modulus's, so it is no secret.
    if encoded.len() < 2 * HASH_BYTES + 2 {
        return None;
    }
    let (first, rest) = encoded.expose_mut().split_at_mut(1);
    let (seed, block) = rest.split_at_mut(HASH_BYTES);
    mask(seed, block);
    mask(block, seed);
    let (label, padded) = block.split_at(HASH_BYTES);
    let mut valid = first.ct_eq(&[0]) & label.ct_eq(&Sha256::digest(b""));
    // Zeros, a one, and the message.
    let mut in_padding = Choice::from(1);
    let mut begin = 0_u32;
    for (after, byte) in (1_u32..).zip(padded) {
        let is_one = byte.ct_eq(&1);
        begin.conditional_assign(&after, in_padding & is_one);
        valid &= !in_padding | is_one | byte.ct_eq(&0);
        in_padding &= !is_one;
    }
    valid &= !in_padding;
    if !bool::from(valid) {
        return None;
    }
    // From here on nothing is secret but the message itself.
    let message = padded.get(usize::try_from(begin).ok()?..)?;
    Some(Secret::new(message.to_vec()))
}

/// Adds MGF1 of `seed` to `target` (RFC 8017, appendix B.2.1).
fn mask(target: &mut [u8], seed: &[u8]) {
    for (counter, chunk) in (0_u32..).zip(target.chunks_mut(HASH_BYTES)) {
        let hash = Sha256::new().chain_update(seed).chain_update(counter.to_be_bytes());
        let hash = Zeroizing::new(<[u8; HASH_BYTES]>::from(hash.finalize()));
        for (byte, mask) in chunk.iter_mut().zip(hash.iter()) {
            *byte ^= mask;
        }
    }
}

/// Length of a SHA-256, in bytes.
const HASH_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by OpenSSL 3 with RSA-1024: `pkeyutl -encrypt` with OAEP, SHA-256 in
    /// both places, then `pkeyutl -decrypt` with `rsa_padding_mode:none`.
    const BY_OPENSSL: &str = "\
        000cd95d3b875dcadc6dbeccc5028ec93be27f9b1bae6156c6353245c8ae2b86\
        9af560d089540097023f304285732473d994d7087b9b52a2e93116c313e26caf\
        81df5417a82aadcb9bf93b9bc48ed4a842585d33465108f37ac6421efe7a90bc\
        497ef7dadbdbdaf19e354faa58ac263c9e48b3d1cf8e1053c84b133ca0e8f622";

    fn decoded(encoded: &[u8]) -> Option<Vec<u8>> {
        decode(Secret::new(encoded.to_vec())).map(|message| message.expose().to_vec())
    }

    /// Masks `first`, and `block` with a seed: what a sender does.
    fn encoded(first: u8, mut block: Vec<u8>) -> Vec<u8> {
        let mut seed = [0x5a; HASH_BYTES];
        mask(&mut block, &seed);
        mask(&mut seed, &block);
        [&[first], &seed[..], &block].concat()
    }

    fn block(padding: &[u8], message: &[u8]) -> Vec<u8> {
        [&Sha256::digest(b""), padding, message].concat()
    }

    #[test]
    fn what_openssl_encoded_is_decoded() {
        let encoded = hex::decode(BY_OPENSSL).unwrap();
        assert_eq!(decoded(&encoded).unwrap(), b"0123456789abcdef0123456789ABCDEF");
    }

    #[test]
    fn one_bit_changed_anywhere_is_refused() {
        let encoded = hex::decode(BY_OPENSSL).unwrap();
        for bit in 0..encoded.len() * 8 {
            let mut tampered = encoded.clone();
            tampered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decoded(&tampered), None, "bit {bit}");
        }
    }

    #[test]
    fn padding_of_any_length_is_fine_and_the_message_may_hold_zeros_and_ones() {
        assert_eq!(decoded(&encoded(0, block(&[1], b"key"))).unwrap(), b"key");
        assert_eq!(decoded(&encoded(0, block(&[0, 0, 1], &[1, 0, 1]))).unwrap(), [1, 0, 1]);
        assert_eq!(decoded(&encoded(0, block(&[0, 1], b""))).unwrap(), b"");
        assert_eq!(decoded(&encoded(0, block(&[0; 500], &[1, 7]))).unwrap(), [7]);
    }

    #[test]
    fn what_is_no_encoding_is_refused() {
        assert_eq!(decoded(&encoded(1, block(&[1], b"key"))), None, "first byte");
        assert_eq!(decoded(&encoded(0, block(&[0, 2, 1], b"key"))), None, "padding");
        assert_eq!(decoded(&encoded(0, block(&[0; 40], b""))), None, "no end of the padding");
        let other_label = [&Sha256::digest(b"label")[..], &[1], b"key"].concat();
        assert_eq!(decoded(&encoded(0, other_label)), None, "label");
        assert_eq!(decoded(&[0; 65]), None, "too short");
        assert_eq!(decoded(&[]), None, "empty");
        assert_eq!(decoded(&[0; 512]), None, "zeros");
    }
}
