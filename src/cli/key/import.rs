//! `key import` and `key rotate`: the two calls that can carry key material (BYOK).
//!
//! Material is read before a token is, so that none is used up for a file that
//! holds no key. How it is sealed: `sealing`. Where the token comes from:
//! `import_token`.

use std::path::{Path, PathBuf};

use super::attributes::{Attributes, Once};
use crate::{
    api::pb,
    cli::{
        encoding::Encoding,
        failure::Failure,
        import_token::{LIFETIMES, usable_token},
        output::note,
        sealing::{Algorithm, Material},
        streams::Source,
    },
    client::Client,
};

#[derive(Debug, clap::Args)]
#[command(after_help = IMPORT_EXAMPLES)]
pub(in crate::cli) struct Import {
    #[command(flatten)]
    attributes: Attributes,
    /// The AES key, of 16, 24 or 32 bytes; - is standard input
    #[arg(long, value_name = "KEYFILE")]
    file: PathBuf,
    #[command(flatten)]
    sealing: Sealing,
    #[command(flatten)]
    once: Once,
}

impl Import {
    pub(super) async fn request(self, client: &Client) -> Result<pb::ImportKeyRequest, Failure> {
        let Self { attributes, file, sealing, once } = self;
        Ok(pb::ImportKeyRequest {
            parent: client.parent(),
            key: Some(attributes.key()),
            material: Some(sealing.seal(&file, client).await?),
            request_id: once.id(),
        })
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = ROTATE_EXAMPLES)]
pub(in crate::cli) struct Rotate {
    /// A UUID, an alias or a full name
    key: String,
    /// Of an imported key: the AES key of the new version; - is standard input
    #[arg(long, value_name = "KEYFILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    sealing: Sealing,
    /// Refuse if the root key is not as it was when it had this etag
    #[arg(long, default_value_t)]
    etag: String,
    #[command(flatten)]
    once: Once,
}

impl Rotate {
    pub(super) async fn request(self, client: &Client) -> Result<pb::RotateKeyRequest, Failure> {
        let Self { key, file, sealing, etag, once } = self;
        let material = match file {
            Some(file) => Some(sealing.seal(&file, client).await?),
            None => None,
        };
        Ok(pb::RotateKeyRequest {
            name: client.key_name(&key),
            material,
            etag,
            request_id: once.id(),
        })
    }
}

/// How material is read and sealed.
#[derive(Debug, clap::Args)]
struct Sealing {
    /// How the key is written in its file. Without it: raw
    #[arg(long, value_enum, requires = "file")]
    format: Option<Encoding>,
    /// Seal with this. Without it: with the best that the HSM can do
    #[arg(long, value_enum, ignore_case = true, requires = "file")]
    algorithm: Option<Algorithm>,
    /// If an import token has to be made: for how long
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(i64).range(LIFETIMES),
        requires = "file",
    )]
    token_lifetime: Option<i64>,
}

impl Sealing {
    async fn seal(self, file: &Path, client: &Client) -> Result<pb::SealedKeyMaterial, Failure> {
        let material = read_material(file, self.format.unwrap_or(Encoding::Raw))?;
        let token = usable_token(client, self.token_lifetime).await?;
        let algorithm = Algorithm::choose(&token.algorithms, self.algorithm)?;
        let sha256 = Algorithm::choose(&token.algorithms, Some(Algorithm::OaepSha256));
        if algorithm == Algorithm::OaepSha1 && sha256.is_err() {
            note("the HSM cannot do RSA-OAEP with SHA-256; the key is sealed with SHA-1");
        }
        material.seal(&token, algorithm)
    }
}

fn read_material(file: &Path, format: Encoding) -> Result<Material, Failure> {
    let text = Source::open(Some(file))?.read_all("the file of the key", MAX_INPUT)?;
    let shown = if file == Path::new("-") { Path::new("standard input") } else { file };
    let material = Material::new(format.decode(text)?, shown)?;
    if format == Encoding::Raw && material.looks_like_text() {
        note("the key reads as text; if that stands for the key, give its --format");
    }
    Ok(material)
}

/// In bytes: much more than any key takes in any encoding.
const MAX_INPUT: usize = 64 << 10;

const IMPORT_EXAMPLES: &str = "\
Examples:
  rootkeyctl key import --name Archive --file archive.key
  openssl rand -hex 32 | rootkeyctl key import --name Archive --file - --format hex
  rootkeyctl key import --name Archive --ring payments --file a.b64 --format base64";

const ROTATE_EXAMPLES: &str = "\
Examples:
  rootkeyctl key rotate block
  rootkeyctl key rotate block --etag 7
  rootkeyctl key rotate archive --file archive-2.key";

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct RotateLine {
        #[command(flatten)]
        _rotate: Rotate,
    }

    #[derive(Debug, Parser)]
    struct ImportLine {
        #[command(flatten)]
        import: Import,
    }

    #[test]
    fn how_material_is_sealed_is_said_only_with_material() {
        let fine =
            |args: &[&str]| RotateLine::try_parse_from(["rotate", "k"].iter().chain(args)).is_ok();
        assert!(fine(&[]));
        assert!(fine(&["--file=k", "--format=hex", "--algorithm=rsaes_oaep_sha_1"]));
        assert!(!fine(&["--format=hex"]));
        assert!(!fine(&["--algorithm=RSAES_OAEP_SHA_256"]));
        assert!(!fine(&["--token-lifetime=600"]));
    }

    #[test]
    fn an_import_needs_a_file_and_a_lifetime_within_the_limits() {
        let parse = |args: &[&str]| {
            ImportLine::try_parse_from(["import", "--name=Archive"].iter().chain(args))
        };
        assert!(parse(&[]).is_err());
        assert!(parse(&["--file=k", "--token-lifetime=299"]).is_err());
        let line = parse(&["--file=-", "--token-lifetime=300", "--ring=payments"]).unwrap();
        assert_eq!(line.import.sealing.token_lifetime, Some(300));
        assert_eq!(line.import.attributes.key().key_ring, "payments");
    }

    #[test]
    fn a_file_that_holds_no_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive.key");
        fs::write(&path, "00".repeat(16) + "\n").unwrap();
        assert!(read_material(&path, Encoding::Hex).is_ok());
        let failure = read_material(&path, Encoding::Raw).unwrap_err();
        assert!(failure.line().contains("archive.key: 33 bytes are no AES key"), "{failure}");
    }
}
