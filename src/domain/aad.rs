//! The caller's additional authenticated data (AAD), and the bytes that are
//! authenticated with a wrapped DEK: its header and every item, each with its
//! length, so that `["ab", "c"]` is not `["a", "bc"]`.
//!
//! Bytes: `docs/ciphertext-format.md`.

use super::Malformed;

/// Up to 255 items of up to 255 bytes each, in the caller's order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Aad(Vec<Vec<u8>>);

impl Aad {
    /// Takes the items of a request.
    ///
    /// # Errors
    /// [`Malformed`], of the field `aad`, past 255 items or 255 bytes in one.
    pub fn new(items: Vec<Vec<u8>>) -> Result<Self, Malformed> {
        if items.len() > 255 {
            return Err(Malformed::new("aad", "must be at most 255 items"));
        }
        if items.iter().any(|item| item.len() > 255) {
            return Err(Malformed::new("aad", "must be items of at most 255 bytes"));
        }
        Ok(Self(items))
    }

    /// What the HSM authenticates: `header`, one byte with the number of items,
    /// then for each item one byte with its length and its bytes.
    pub fn authenticated_with(&self, header: &[u8]) -> Vec<u8> {
        let length: usize = self.0.iter().map(|item| item.len() + 1).sum();
        let mut bytes = Vec::with_capacity(header.len() + 1 + length);
        bytes.extend_from_slice(header);
        bytes.push(u8::try_from(self.0.len()).expect("checked in new"));
        for item in &self.0 {
            bytes.push(u8::try_from(item.len()).expect("checked in new"));
            bytes.extend_from_slice(item);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aad(items: &[&str]) -> Aad {
        Aad::new(items.iter().map(|item| item.as_bytes().to_vec()).collect()).unwrap()
    }

    #[test]
    fn items_cut_otherwise_are_other_bytes() {
        let forms: [&[&str]; 7] =
            [&[], &[""], &["abc"], &["ab", "c"], &["a", "bc"], &["c", "ab"], &["abc", ""]];
        for (i, one) in forms.iter().enumerate() {
            for other in &forms[i + 1..] {
                assert_ne!(
                    aad(one).authenticated_with(b"h"),
                    aad(other).authenticated_with(b"h"),
                    "{one:?} {other:?}"
                );
            }
        }
    }

    #[test]
    fn the_bytes_are_header_count_and_each_item_with_its_length() {
        assert_eq!(aad(&["ab", "c"]).authenticated_with(b"H"), b"H\x02\x02ab\x01c");
    }

    #[test]
    fn the_limits_are_255_items_of_255_bytes() {
        assert!(Aad::new(vec![vec![0; 255]; 255]).is_ok());
        assert!(Aad::new(vec![vec![]; 256]).is_err());
        assert!(Aad::new(vec![vec![0; 256]]).is_err());
    }
}
