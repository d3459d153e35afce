//! The bytes of an encrypted file: a header, then chunks, as `docs/file-format.md`
//! says. No file, no daemon: a reader, a writer and a DEK.
//!
//! STREAM (Hoang, Reyhanitabar, Rogaway, Vizár; eprint 2015/189) numbers the
//! chunks and marks the last one, so none can be moved, dropped or added. Each
//! chunk authenticates the SHA-256 of the whole header.

use std::{
    io::{self, Read, Write},
    mem,
};

use aead_stream::{DecryptorBE32, EncryptorBE32};
use aes_gcm::{Aes256Gcm, Key};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use super::streams::fill;
use crate::secret::Secret;

/// What stands before the chunks. Public: all of it can be read by anyone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Header {
    /// Full name of the root key; 1 to 1024 bytes.
    pub(super) key: String,
    /// The file's DEK; 1 to 16,384 bytes.
    pub(super) wrapped_dek: Vec<u8>,
    /// Bytes of plaintext in every chunk but the last; 4 KiB to 4 MiB.
    pub(super) chunk_size: u32,
    /// The first bytes of every chunk's nonce.
    pub(super) nonce_prefix: [u8; 7],
}

impl Header {
    /// As it is written.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let Self { key, wrapped_dek, chunk_size, nonce_prefix } = self;
        let mut bytes = [MAGIC.as_slice(), &[VERSION]].concat();
        for field in [key.as_bytes(), wrapped_dek] {
            let length = u16::try_from(field.len()).expect("limits of both are below 65,536");
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(field);
        }
        bytes.extend_from_slice(&chunk_size.to_be_bytes());
        bytes.extend_from_slice(nonce_prefix);
        bytes
    }

    /// Whether every field is within its limits.
    pub(super) fn is_valid(&self) -> bool {
        (1..=MAX_KEY_NAME).contains(&self.key.len())
            && (1..=MAX_WRAPPED_DEK).contains(&self.wrapped_dek.len())
            && (MIN_CHUNK..=MAX_CHUNK).contains(&self.chunk_size)
    }

    /// Reads a header and not a byte more.
    pub(super) fn read(from: &mut impl Read) -> Result<Self, FileError> {
        if read_array(from)? != MAGIC || read_array(from)? != [VERSION] {
            return Err(FileError::Unverified);
        }
        let key = read_field(from, MAX_KEY_NAME)?;
        let wrapped_dek = read_field(from, MAX_WRAPPED_DEK)?;
        let chunk_size = u32::from_be_bytes(read_array(from)?);
        let nonce_prefix = read_array(from)?;
        let Ok(key) = String::from_utf8(key) else { return Err(FileError::Unverified) };
        let header = Self { key, wrapped_dek, chunk_size, nonce_prefix };
        if header.is_valid() { Ok(header) } else { Err(FileError::Unverified) }
    }

    fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.to_bytes()).into()
    }

    fn chunk_bytes(&self) -> usize {
        usize::try_from(self.chunk_size).expect("4 MiB is within usize")
    }
}

/// Writes the header and everything that `from` holds, encrypted under `dek`.
/// `progress` hears how many bytes of plaintext each chunk had.
pub(super) fn seal(
    header: &Header,
    dek: &Secret,
    from: &mut impl Read,
    to: &mut impl Write,
    progress: &mut dyn FnMut(usize),
) -> Result<(), FileError> {
    let key = cipher_key(dek).ok_or(FileError::DekSize)?;
    let mut stream = EncryptorBE32::<Aes256Gcm>::new(key, &header.nonce_prefix.into());
    let aad = header.digest();
    to.write_all(&header.to_bytes()).map_err(FileError::Write)?;
    let mut chunk = Chunk::new(header.chunk_bytes());
    let mut next = Chunk::new(header.chunk_bytes());
    chunk.read(from)?;
    loop {
        next.read(from)?;
        progress(chunk.bytes.len());
        if next.bytes.is_empty() {
            stream.encrypt_last_in_place(&aad, &mut *chunk.bytes).or(Err(FileError::TooLong))?;
            return to.write_all(&chunk.bytes).map_err(FileError::Write);
        }
        stream.encrypt_next_in_place(&aad, &mut *chunk.bytes).or(Err(FileError::TooLong))?;
        to.write_all(&chunk.bytes).map_err(FileError::Write)?;
        mem::swap(&mut chunk, &mut next);
    }
}

/// Writes the plaintext of the chunks that `from` holds after its header. Only
/// when it returns `Ok` is what was written the file that was sealed, whole.
pub(super) fn open(
    header: &Header,
    dek: &Secret,
    from: &mut impl Read,
    to: &mut impl Write,
    progress: &mut dyn FnMut(usize),
) -> Result<(), FileError> {
    let key = cipher_key(dek).ok_or(FileError::Unverified)?;
    let mut stream = DecryptorBE32::<Aes256Gcm>::new(key, &header.nonce_prefix.into());
    let aad = header.digest();
    let mut chunk = Chunk::new(header.chunk_bytes() + TAG);
    let mut next = Chunk::new(header.chunk_bytes() + TAG);
    let mut is_first = true;
    chunk.read(from)?;
    loop {
        next.read(from)?;
        progress(chunk.bytes.len());
        if next.bytes.is_empty() {
            stream.decrypt_last_in_place(&aad, &mut *chunk.bytes).or(Err(FileError::Unverified))?;
            if chunk.bytes.is_empty() && !is_first {
                return Err(FileError::Unverified);
            }
            return to.write_all(&chunk.bytes).map_err(FileError::Write);
        }
        stream.decrypt_next_in_place(&aad, &mut *chunk.bytes).or(Err(FileError::Unverified))?;
        to.write_all(&chunk.bytes).map_err(FileError::Write)?;
        mem::swap(&mut chunk, &mut next);
        is_first = false;
    }
}

/// Why a file could not be sealed or opened.
#[derive(Debug, Error)]
pub(super) enum FileError {
    /// The source failed.
    #[error("cannot read: {0}")]
    Read(#[source] io::Error),
    /// The destination failed.
    #[error("cannot write: {0}")]
    Write(#[source] io::Error),
    /// Not as it was sealed. One answer for every cause.
    #[error("not as it was sealed")]
    Unverified,
    /// More than 2^32 chunks.
    #[error("more chunks than can be numbered")]
    TooLong,
    /// The daemon made a DEK of another size than was asked.
    #[error("the DEK does not have 32 bytes")]
    DekSize,
}

/// A buffer of one chunk that never grows, so no copy of plaintext stays behind.
struct Chunk {
    bytes: Zeroizing<Vec<u8>>,
    size: usize,
}

impl Chunk {
    fn new(size: usize) -> Self {
        Self { bytes: Zeroizing::new(Vec::with_capacity(size + TAG)), size }
    }

    /// Empty if there is nothing left; shorter than `size` only at the end.
    fn read(&mut self, from: &mut impl Read) -> Result<(), FileError> {
        self.bytes.resize(self.size, 0);
        let length = fill(from, &mut self.bytes).map_err(FileError::Read)?;
        self.bytes.truncate(length);
        Ok(())
    }
}

fn cipher_key(dek: &Secret) -> Option<&Key<Aes256Gcm>> {
    dek.expose().try_into().ok()
}

fn read_field(from: &mut impl Read, limit: usize) -> Result<Vec<u8>, FileError> {
    let length = usize::from(u16::from_be_bytes(read_array(from)?));
    if length > limit {
        return Err(FileError::Unverified);
    }
    let mut field = vec![0; length];
    read_exactly(from, &mut field)?;
    Ok(field)
}

fn read_array<const N: usize>(from: &mut impl Read) -> Result<[u8; N], FileError> {
    let mut array = [0; N];
    read_exactly(from, &mut array)?;
    Ok(array)
}

fn read_exactly(from: &mut impl Read, buffer: &mut [u8]) -> Result<(), FileError> {
    let length = fill(from, buffer).map_err(FileError::Read)?;
    if length == buffer.len() { Ok(()) } else { Err(FileError::Unverified) }
}

/// The chunk size of every file that is made now.
pub(super) const CHUNK_SIZE: u32 = 1 << 20;
const MAGIC: [u8; 6] = *b"RKFILE";
const VERSION: u8 = 1;
const MAX_KEY_NAME: usize = 1024;
const MAX_WRAPPED_DEK: usize = 16 << 10;
const MIN_CHUNK: u32 = 4 << 10;
/// Two buffers of this size are all the memory that a hostile header can ask for.
const MAX_CHUNK: u32 = 4 << 20;
/// Bytes that AES-GCM adds to a chunk.
const TAG: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 4096;
    const SEALED_CHUNK: usize = CHUNK + TAG;

    fn dek() -> Secret {
        Secret::new((0..32).collect())
    }

    fn header() -> Header {
        Header {
            key: "instances/default/keys/0b8f1e6c-2f5a-4c0e-9d43-6a3b1f0e7c11".to_owned(),
            wrapped_dek: vec![0xd9; 93],
            chunk_size: MIN_CHUNK,
            nonce_prefix: [1, 2, 3, 4, 5, 6, 7],
        }
    }

    fn plaintext(length: usize) -> Vec<u8> {
        (0..=250).cycle().take(length).collect()
    }

    fn sealed(length: usize) -> Vec<u8> {
        let mut file = Vec::new();
        seal(&header(), &dek(), &mut &*plaintext(length), &mut file, &mut |_| ()).unwrap();
        file
    }

    fn opened(mut file: &[u8]) -> Result<Vec<u8>, FileError> {
        let header = Header::read(&mut file)?;
        let mut plaintext = Vec::new();
        open(&header, &dek(), &mut file, &mut plaintext, &mut |_| ())?;
        Ok(plaintext)
    }

    fn is_refused(file: &[u8]) -> bool {
        matches!(opened(file), Err(FileError::Unverified))
    }

    #[test]
    fn a_file_of_any_length_opens_to_what_was_sealed() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 17] {
            assert_eq!(opened(&sealed(length)).unwrap(), plaintext(length), "{length}");
        }
    }

    #[test]
    fn a_file_has_the_size_that_the_format_says() {
        let header = header().to_bytes().len();
        for (length, chunks) in [(0, 1), (1, 1), (CHUNK, 1), (CHUNK + 1, 2), (3 * CHUNK, 3)] {
            assert_eq!(sealed(length).len(), header + length + chunks * TAG, "{length}");
        }
    }

    #[test]
    fn the_bytes_of_version_1_never_change() {
        let file = sealed(3);
        assert_eq!(&file[..9], b"RKFILE\x01\x00\x3b");
        let digest = hex::encode(Sha256::digest(&file));
        assert_eq!(digest, "029c2f1170060085ff078931a5b8c6dc630974452b1a68098a6e5f59e75c3bc8");
    }

    #[test]
    fn a_file_that_ends_anywhere_before_its_end_is_refused() {
        let file = sealed(2 * CHUNK + 5);
        let body = header().to_bytes().len();
        let boundaries = [0, 1, 2].map(|chunk| body + chunk * SEALED_CHUNK);
        let around = boundaries.iter().flat_map(|at| at.saturating_sub(20)..(at + 20));
        for length in (0..body).chain(around).filter(|length| *length < file.len()) {
            assert!(is_refused(&file[..length]), "{length}");
        }
    }

    #[test]
    fn chunks_in_another_order_are_refused() {
        let body = header().to_bytes().len();
        let mut file = sealed(3 * CHUNK);
        let (first, rest) = file[body..].split_at_mut(SEALED_CHUNK);
        first.swap_with_slice(&mut rest[..SEALED_CHUNK]);
        assert!(is_refused(&file));
    }

    #[test]
    fn a_chunk_that_is_missing_or_there_twice_is_refused() {
        let body = header().to_bytes().len();
        let file = sealed(3 * CHUNK);
        let (before, after) = (&file[..body + SEALED_CHUNK], &file[body + SEALED_CHUNK..]);
        assert!(is_refused(&[before, &after[SEALED_CHUNK..]].concat()));
        assert!(is_refused(&[before, &file[body..body + SEALED_CHUNK], after].concat()));
        assert!(is_refused(&file[..file.len() - SEALED_CHUNK]));
    }

    #[test]
    fn a_flipped_bit_in_any_byte_is_refused() {
        let file = sealed(100);
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 1 << (at % 8);
            assert!(is_refused(&changed), "{at}");
        }
    }

    #[test]
    fn trailing_bytes_are_refused() {
        for length in [0, 1, CHUNK, CHUNK + 1] {
            for extra in [1, TAG, SEALED_CHUNK] {
                assert!(is_refused(&[sealed(length), vec![0; extra]].concat()), "{length} {extra}");
            }
        }
    }

    #[test]
    fn an_empty_last_chunk_after_a_full_one_is_refused() {
        let mut file = header().to_bytes();
        let aad = header().digest();
        let key = dek();
        let mut stream = EncryptorBE32::<Aes256Gcm>::new(
            cipher_key(&key).unwrap(),
            &header().nonce_prefix.into(),
        );
        let mut chunk = plaintext(CHUNK);
        stream.encrypt_next_in_place(&aad, &mut chunk).unwrap();
        file.extend(chunk);
        let mut last = Vec::new();
        stream.encrypt_last_in_place(&aad, &mut last).unwrap();
        file.extend(last);
        assert!(is_refused(&file));
    }

    #[test]
    fn another_dek_is_refused() {
        let file = sealed(10);
        let mut rest = &*file;
        let header = Header::read(&mut rest).unwrap();
        for dek in [vec![0; 32], vec![0; 16], Vec::new()] {
            let result = open(&header, &Secret::new(dek), &mut rest, &mut Vec::new(), &mut |_| ());
            assert!(matches!(result, Err(FileError::Unverified)));
        }
    }

    #[test]
    fn a_header_that_asks_for_much_memory_is_refused() {
        for chunk_size in [0, MIN_CHUNK - 1, MAX_CHUNK + 1, u32::MAX] {
            let bytes = Header { chunk_size, ..header() }.to_bytes();
            assert!(matches!(Header::read(&mut &*bytes), Err(FileError::Unverified)));
        }
    }

    #[test]
    fn a_reader_that_gives_little_at_a_time_makes_the_same_file() {
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let length = buffer.len().min(7);
                self.0.read(&mut buffer[..length])
            }
        }
        let plaintext = plaintext(2 * CHUNK);
        let mut file = Vec::new();
        seal(&header(), &dek(), &mut Slow(&plaintext), &mut file, &mut |_| ()).unwrap();
        assert_eq!(file, sealed(2 * CHUNK));
    }
}
