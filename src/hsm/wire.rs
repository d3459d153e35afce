//! What the daemon and a worker process say to each other: frames of CBOR on a
//! socket pair, a question and its answer, one at a time.
//!
//! Both ends are of one build, so there are no versions. What does not decode to its
//! last byte is an error, and the other end is given up. Frames hold DEKs: their
//! buffers are `Secret`s.

use std::convert::Infallible;
use std::io::{self, Read, Write};

use minicbor::{Decode, Encode};

use super::job::Retired;
use super::wrapping::NewlyWrapped;
use super::{Crypt, Crypted, HsmError, Sealed, SessionCopies};
use crate::domain::ObjectId;
use crate::secret::Secret;

/// The first question: which token, and what for.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub(super) struct Begin {
    #[n(0)]
    pub(super) module: String,
    #[n(1)]
    pub(super) token_label: String,
    #[n(2)]
    pub(super) pin_file: String,
    #[n(3)]
    pub(super) sync_directory: Option<String>,
    #[n(4)]
    pub(super) software_unwrap: bool,
    /// The writer's; readers have none. It is locked for as long as the writer lives.
    #[n(5)]
    pub(super) writer_lock: Option<String>,
    /// Whether the module may speak to the network.
    #[n(6)]
    pub(super) network: bool,
    /// The writer uses no root key so often that it would make copies.
    #[n(7)]
    pub(super) session_copies: SessionCopies,
    #[n(8)]
    pub(super) session_objects: usize,
    #[n(9)]
    pub(super) session_copy_millis: u64,
}

/// The answer to it: what the token shows, or why it cannot be used.
pub(super) type Begun = Result<Shown, Trouble>;

/// Why a worker process has no token.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub(super) struct Trouble {
    /// A sentence that says what to do.
    #[n(0)]
    pub(super) problem: String,
    /// The token refused the PIN, which must not be tried again.
    #[n(1)]
    pub(super) pin_refused: bool,
}

/// What module and token say of themselves, and the objects there are.
#[derive(Debug, Decode, Encode)]
pub(super) struct Shown {
    #[n(0)]
    pub(super) library: String,
    #[n(1)]
    pub(super) slot: u64,
    #[n(2)]
    pub(super) serial: String,
    /// Names, and whether the daemon uses them.
    #[n(3)]
    pub(super) mechanisms: Vec<(String, Option<String>)>,
    #[cbor(n(4), with = "ids")]
    pub(super) root_keys: Vec<ObjectId>,
    #[cbor(n(5), with = "ids")]
    pub(super) import_pairs: Vec<ObjectId>,
    #[cbor(n(6), with = "ids")]
    pub(super) signers: Vec<ObjectId>,
    /// CKA_IDs that two objects have.
    #[cbor(n(7), with = "ids")]
    pub(super) doubled: Vec<ObjectId>,
    /// Root keys that are not as they were asked for.
    #[cbor(n(8), with = "ids")]
    pub(super) unlike: Vec<ObjectId>,
    /// Whether root keys are used by copies, in words.
    #[n(9)]
    pub(super) copying: String,
    #[cbor(n(10), with = "ids")]
    pub(super) master_keys: Vec<ObjectId>,
}

/// A job.
#[derive(Debug, Decode, Encode)]
pub(super) enum Ask {
    /// With the root keys that are not to be used.
    #[n(0)]
    Crypt(#[n(0)] Vec<Crypt>, #[cbor(n(1), with = "ids")] Vec<ObjectId>),
    #[n(1)]
    Generate(#[cbor(n(0), with = "id")] ObjectId),
    #[n(2)]
    GenerateImportPair(#[cbor(n(0), with = "id")] ObjectId),
    #[n(3)]
    Import {
        #[cbor(n(0), with = "id")]
        object: ObjectId,
        #[cbor(n(1), with = "id")]
        pair: ObjectId,
        #[cbor(n(2), with = "minicbor::bytes")]
        encrypted_key: Vec<u8>,
        /// Its name.
        #[n(3)]
        algorithm: String,
        #[cbor(n(4), with = "minicbor::bytes")]
        encrypted_nonce: Vec<u8>,
        #[cbor(n(5), with = "minicbor::bytes")]
        nonce_iv: [u8; 12],
        #[cbor(n(6), with = "minicbor::bytes")]
        nonce: [u8; 12],
    },
    #[n(4)]
    MakeSigner(#[cbor(n(0), with = "id")] ObjectId),
    #[n(5)]
    SignerKey(#[cbor(n(0), with = "id")] ObjectId),
    #[n(6)]
    Sign(#[cbor(n(0), with = "id")] ObjectId, #[cbor(n(1), with = "minicbor::bytes")] [u8; 32]),
    #[n(7)]
    Destroy(#[cbor(n(0), with = "id")] ObjectId),
    #[n(8)]
    RoundTrip,
    #[n(9)]
    Probe,
    #[n(10)]
    TryUnwrapping,
    #[n(11)]
    Tidy(#[n(0)] Retired),
    #[n(12)]
    MakeMaster(#[cbor(n(0), with = "id")] ObjectId),
    /// The master key, if there is one.
    #[n(13)]
    TryWrapping(#[cbor(n(0), with = "ids")] Vec<ObjectId>),
    #[n(14)]
    GenerateWrapped {
        #[cbor(n(0), with = "id")]
        object: ObjectId,
        #[cbor(n(1), with = "id")]
        master: ObjectId,
    },
}

/// The answer to a job, and whether the token was lost over it.
#[derive(Debug, Decode, Encode)]
pub(super) struct Answer {
    #[n(0)]
    pub(super) said: Said,
    /// Why the token cannot be used any more: the process ends.
    #[n(1)]
    pub(super) lost: Option<String>,
}

/// What became of a job.
#[derive(Debug, Decode, Encode)]
pub(super) enum Said {
    #[n(0)]
    Crypted(#[n(0)] Result<Vec<Result<Crypted, HsmError>>, HsmError>),
    /// Of a root key that was made.
    #[n(1)]
    Sealed(#[n(0)] Result<Sealed, HsmError>),
    /// A public key or a signature.
    #[n(2)]
    Bytes(#[n(0)] Result<Vec<u8>, HsmError>),
    /// Of what has no other answer.
    #[n(3)]
    Done(#[n(0)] Result<(), HsmError>),
    /// In nanoseconds.
    #[n(4)]
    Took(#[n(0)] Result<u64, HsmError>),
    #[n(5)]
    Works(#[n(0)] bool),
    /// Names of the algorithms by which key material can be imported, if that is known.
    #[n(6)]
    Unwraps(#[n(0)] Option<Vec<String>>),
    #[n(7)]
    Tidied,
    #[n(8)]
    Wrapped(#[n(0)] Result<NewlyWrapped, HsmError>),
}

/// Writes one frame: its length in 4 bytes, big-endian, and the CBOR.
///
/// # Errors
/// If the other end is gone, or the frame is longer than [`FRAME_BYTES`].
pub(super) fn write(to: &mut impl Write, frame: &impl Encode<()>) -> io::Result<()> {
    // Counted first, so that the buffer never moves: a move leaves a copy behind.
    let mut count = Count(0);
    minicbor::encode(frame, &mut count).map_err(|_uncountable| bad("a frame does not encode"))?;
    if count.0 > FRAME_BYTES {
        return Err(bad("a frame is too long"));
    }
    let mut bytes = Secret::zeroed(4 + count.0);
    let length = u32::try_from(count.0).map_err(|_long| bad("a frame is too long"))?;
    let (head, body) = bytes.expose_mut().split_at_mut(4);
    head.copy_from_slice(&length.to_be_bytes());
    let mut cursor = minicbor::encode::write::Cursor::new(body);
    minicbor::encode(frame, &mut cursor).map_err(|_space| bad("a frame does not encode"))?;
    to.write_all(bytes.expose())
}

/// Reads one frame.
///
/// # Errors
/// `UnexpectedEof` if the other end is gone; `InvalidData` if it is none of ours.
pub(super) fn read<T: for<'b> Decode<'b, ()>>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > FRAME_BYTES {
        return Err(bad("a frame is too long"));
    }
    let mut bytes = Secret::zeroed(length);
    from.read_exact(bytes.expose_mut())?;
    let mut decoder = minicbor::Decoder::new(bytes.expose());
    let frame = decoder.decode().map_err(|_malformed| bad("a frame does not decode"))?;
    if decoder.position() == length { Ok(frame) } else { Err(bad("a frame has a rest")) }
}

/// Counts and keeps nothing.
struct Count(usize);

impl minicbor::encode::Write for Count {
    type Error = Infallible;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.0 += bytes.len();
        Ok(())
    }
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A CKA_ID.
pub(super) mod id {
    use minicbor::bytes::ByteArray;
    use minicbor::encode::Write;
    use minicbor::{Decoder, Encoder};

    use crate::domain::ObjectId;

    pub(in crate::hsm) fn encode<C, W: Write>(
        id: &ObjectId,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.bytes(id.as_bytes()).map(drop)
    }

    pub(in crate::hsm) fn decode<C>(
        decoder: &mut Decoder<'_>,
        _: &mut C,
    ) -> Result<ObjectId, minicbor::decode::Error> {
        let bytes: ByteArray<16> = decoder.decode()?;
        Ok(ObjectId::from_bytes(*bytes))
    }
}

/// CKA_IDs, one after the other.
pub(super) mod ids {
    use minicbor::encode::Write;
    use minicbor::{Decoder, Encoder};

    use crate::domain::ObjectId;

    pub(in crate::hsm) fn encode<C, W: Write>(
        ids: &[ObjectId],
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| *id.as_bytes()).collect();
        encoder.bytes(&bytes).map(drop)
    }

    pub(in crate::hsm) fn decode<C>(
        decoder: &mut Decoder<'_>,
        _: &mut C,
    ) -> Result<Vec<ObjectId>, minicbor::decode::Error> {
        let (ids, rest) = decoder.bytes()?.as_chunks();
        if rest.is_empty() {
            Ok(ids.iter().copied().map(ObjectId::from_bytes).collect())
        } else {
            Err(minicbor::decode::Error::message("a part of an id"))
        }
    }
}

/// What a root key is unwrapped from.
pub(super) mod wrapped {
    use std::sync::Arc;

    use minicbor::encode::Write;
    use minicbor::{Decoder, Encoder};

    use super::super::Wrapped;
    use crate::domain::WrappedKey;

    pub(in crate::hsm) fn encode<C, W: Write>(
        Wrapped { key, check_value }: &Wrapped,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.array(3)?.bytes(key.master.as_bytes())?.bytes(key.blob())?.bytes(check_value)?;
        Ok(())
    }

    pub(in crate::hsm) fn decode<C>(
        decoder: &mut Decoder<'_>,
        context: &mut C,
    ) -> Result<Wrapped, minicbor::decode::Error> {
        if decoder.array()? != Some(3) {
            return Err(minicbor::decode::Error::message("no wrapped key"));
        }
        let master = super::id::decode(decoder, context)?;
        let key = WrappedKey::new(master, decoder.bytes()?.to_vec());
        let key = key.map_err(|malformed| minicbor::decode::Error::message(malformed.problem))?;
        Ok(Wrapped { key: Arc::new(key), check_value: decoder.bytes()?.into() })
    }
}

/// A root key and AAD, or none.
pub(super) mod reseal {
    use minicbor::encode::Write;
    use minicbor::{Decoder, Encoder};

    use super::super::RootKey;

    pub(in crate::hsm) fn encode<C, W: Write>(
        reseal: &Option<(RootKey, Vec<u8>)>,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        match reseal {
            None => encoder.null()?,
            Some((key, aad)) => encoder.array(2)?.encode_with(key, context)?.bytes(aad)?,
        };
        Ok(())
    }

    pub(in crate::hsm) fn decode<C>(
        decoder: &mut Decoder<'_>,
        context: &mut C,
    ) -> Result<Option<(RootKey, Vec<u8>)>, minicbor::decode::Error> {
        if decoder.datatype()? == minicbor::data::Type::Null {
            decoder.null()?;
            return Ok(None);
        }
        if decoder.array()? != Some(2) {
            return Err(minicbor::decode::Error::message("no key and AAD"));
        }
        let key = decoder.decode_with(context)?;
        Ok(Some((key, decoder.bytes()?.to_vec())))
    }
}

/// A DEK.
pub(super) mod secret {
    use minicbor::encode::Write;
    use minicbor::{Decoder, Encoder};

    use crate::secret::Secret;

    pub(in crate::hsm) fn encode<C, W: Write>(
        secret: &Secret,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.bytes(secret.expose()).map(drop)
    }

    pub(in crate::hsm) fn decode<C>(
        decoder: &mut Decoder<'_>,
        _: &mut C,
    ) -> Result<Secret, minicbor::decode::Error> {
        Ok(Secret::new(decoder.bytes()?.to_vec()))
    }
}

/// A CK_RV that is an error.
pub(super) mod refusal {
    use cryptoki::error::{Rv, RvError};
    use minicbor::encode::Write;
    use minicbor::{Decoder, Encoder};

    pub(in crate::hsm) fn encode<C, W: Write>(
        error: &RvError,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.u64(number(*error)).map(drop)
    }

    pub(in crate::hsm) fn decode<C>(
        decoder: &mut Decoder<'_>,
        _: &mut C,
    ) -> Result<RvError, minicbor::decode::Error> {
        match Rv::from(decoder.u64()?) {
            Rv::Error(error) => Ok(error),
            Rv::Ok => Err(minicbor::decode::Error::message("CKR_OK is no error")),
        }
    }

    /// cryptoki turns numbers into errors and not back. Errors are rare.
    fn number(error: RvError) -> u64 {
        if let RvError::UnknownErrorCode(number) = error {
            return number;
        }
        let known = (0..=LAST).chain([VENDOR]).find(|n| Rv::from(*n) == Rv::Error(error));
        known.unwrap_or(GENERAL_ERROR)
    }

    /// Beyond the last CKR of PKCS#11 3.1.
    const LAST: u64 = 0x400;
    const VENDOR: u64 = 0x8000_0000;
    const GENERAL_ERROR: u64 = 5;
}

/// The longest frame, in bytes: a job of DEKs of the greatest length, many times over.
const FRAME_BYTES: usize = 64 << 20;
