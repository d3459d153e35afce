//! How a DEK or a wrapped DEK is written: its bytes, hexadecimal or base64.
//!
//! Reading is strict: one newline may follow, and nothing else may be there that
//! the encoding does not say, since a DEK read wrongly is data lost.

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::ValueEnum;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// How bytes are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(super) enum Encoding {
    /// The bytes themselves
    Raw,
    /// Hexadecimal, upper or lower case
    Hex,
    /// Base64 of RFC 4648 section 4, padded
    Base64,
}

impl Encoding {
    /// The bytes that `text` stands for.
    pub(super) fn decode(self, text: Secret) -> Result<Secret, NotEncoded> {
        let written = text.expose();
        let line = written.strip_suffix(b"\n").unwrap_or(written);
        match self {
            Self::Raw => Ok(text),
            Self::Hex => {
                let mut bytes = Secret::zeroed(line.len() / 2);
                hex::decode_to_slice(line, bytes.expose_mut()).map_err(NotEncoded::Hex)?;
                Ok(bytes)
            }
            Self::Base64 => {
                let mut bytes = Secret::zeroed(line.len().div_ceil(4) * 3);
                let length =
                    STANDARD.decode_slice(line, bytes.expose_mut()).map_err(NotEncoded::Base64)?;
                bytes.truncate(length);
                Ok(bytes)
            }
        }
    }

    /// What stands for `bytes`; text ends with a newline.
    pub(super) fn encode(self, bytes: &[u8]) -> Zeroizing<Vec<u8>> {
        let length = match self {
            Self::Raw => return Zeroizing::new(bytes.to_vec()),
            Self::Hex => bytes.len() * 2,
            Self::Base64 => bytes.len().div_ceil(3) * 4,
        };
        let mut text = Zeroizing::new(vec![b'\n'; length + 1]);
        match self {
            Self::Raw => {}
            Self::Hex => hex::encode_to_slice(bytes, &mut text[..length])
                .expect("two digits were reserved for each byte"),
            Self::Base64 => {
                STANDARD
                    .encode_slice(bytes, &mut text[..length])
                    .expect("four digits were reserved for each three bytes");
            }
        }
        text
    }
}

/// `bytes` in base64, wiped when dropped.
pub(super) fn base64_text(bytes: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(bytes.len().div_ceil(3) * 4));
    STANDARD.encode_string(bytes, &mut text);
    text
}

/// The bytes that strict base64 stands for.
pub(super) fn base64_bytes(text: &str) -> Result<Vec<u8>, NotEncoded> {
    STANDARD.decode(text).map_err(|error| NotEncoded::Base64(error.into()))
}

/// Text is not in the encoding that was named. Says where, never what is there.
#[derive(Debug, Error)]
pub enum NotEncoded {
    /// Not hexadecimal.
    #[error("not hexadecimal{}", hex_position(.0))]
    Hex(#[source] hex::FromHexError),
    /// Not base64.
    #[error("not base64{}", base64_position(.0))]
    Base64(#[source] base64::DecodeSliceError),
}

fn hex_position(error: &hex::FromHexError) -> String {
    match error {
        hex::FromHexError::InvalidHexCharacter { index, .. } => format!(": byte {index}"),
        hex::FromHexError::OddLength | hex::FromHexError::InvalidStringLength => {
            ": the number of digits is odd".to_owned()
        }
    }
}

fn base64_position(error: &base64::DecodeSliceError) -> String {
    use base64::{DecodeError, DecodeSliceError};
    match error {
        DecodeSliceError::DecodeError(
            DecodeError::InvalidByte(index, _)
            | DecodeError::InvalidLastSymbol { offset: index, .. },
        ) => format!(": byte {index}"),
        DecodeSliceError::DecodeError(DecodeError::InvalidLength(_)) => {
            ": the number of digits is wrong".to_owned()
        }
        DecodeSliceError::DecodeError(DecodeError::InvalidPadding) => {
            ": the padding is wrong".to_owned()
        }
        DecodeSliceError::OutputSliceTooSmall => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(encoding: Encoding, text: &[u8]) -> Option<Vec<u8>> {
        encoding.decode(Secret::new(text.to_vec())).ok().map(|it| it.expose().to_vec())
    }

    #[test]
    fn what_was_encoded_decodes_to_the_same() {
        for length in 0..40u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37)).collect();
            for encoding in [Encoding::Raw, Encoding::Hex, Encoding::Base64] {
                let text = encoding.encode(&bytes);
                assert_eq!(decoded(encoding, &text), Some(bytes.clone()), "{encoding:?}");
            }
        }
    }

    #[test]
    fn text_ends_with_one_newline() {
        assert_eq!(*Encoding::Hex.encode(b"\xab\x01"), b"ab01\n");
        assert_eq!(*Encoding::Base64.encode(b"abcd"), b"YWJjZA==\n");
    }

    #[test]
    fn one_newline_may_follow_text_and_nothing_else() {
        assert_eq!(decoded(Encoding::Hex, b"AB01\n"), Some(vec![0xab, 1]));
        assert_eq!(decoded(Encoding::Base64, b"YWI=\n"), Some(b"ab".to_vec()));
        for text in ["ab01\n\n", "ab01\r\n", " ab01", "ab01 ", "ab 01", "0xab01", "ab0", "ag"] {
            assert_eq!(decoded(Encoding::Hex, text.as_bytes()), None, "{text:?}");
        }
        for text in ["YWI=\n\n", "YWI=\r\n", " YWI=", "YWI", "YWJ=", "YW I=", "YW_=", "YWI=="] {
            assert_eq!(decoded(Encoding::Base64, text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn raw_bytes_keep_their_newline() {
        assert_eq!(decoded(Encoding::Raw, b"dek\n"), Some(b"dek\n".to_vec()));
    }

    #[test]
    fn an_error_never_says_what_was_read() {
        let error = Encoding::Hex.decode(Secret::new(b"abz1".to_vec())).unwrap_err();
        assert_eq!(error.to_string(), "not hexadecimal: byte 2");
    }
}
