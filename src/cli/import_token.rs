//! `import-token …`, and the token that `key import` seals to.
//!
//! Retrievals are counted, so a file for the public key is opened before the token
//! is retrieved.

use std::path::PathBuf;

use clap::Subcommand;
use comfy_table::Table;
use serde::Serialize;

use super::{
    encoding::base64_text,
    failure::Failure,
    output::{Output, fields, human_time, or_nothing, rfc3339},
    streams::Sink,
};
use crate::{
    api::pb,
    client::{Client, Refusal},
};

#[derive(Debug, Subcommand)]
pub(super) enum ImportTokenCommand {
    /// Make an import token in the HSM, in place of the one that is there
    Create(Create),
    /// Retrieve the import token, with its public key and nonce
    Get(Get),
}

impl ImportTokenCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        match self {
            Self::Create(Create { lifetime, retrievals }) => {
                let token = create(client, lifetime, retrievals).await?;
                output.show(&TokenView::from(token), TokenView::table)
            }
            Self::Get(get) => get.run(client, output).await,
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(super) struct Create {
    /// For how long material that is sealed to it is taken. Without it: 600
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(i64).range(LIFETIMES),
    )]
    lifetime: Option<i64>,
    /// How often it can be retrieved
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(i32).range(1..=500),
    )]
    retrievals: i32,
}

#[derive(Debug, clap::Args)]
#[command(after_help = GET_EXAMPLES)]
pub(super) struct Get {
    /// Where to write the public key, in PEM; - is standard output
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
}

impl Get {
    async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let sink = match &self.public_key {
            Some(path) => Some(Sink::open(Some(path), "--public-key")?),
            None => None,
        };
        let view = TokenView::from(retrieve(client).await?);
        let Some(mut sink) = sink else { return output.show(&view, TokenView::table) };
        let on_stdout = sink.is_stdout();
        sink.write(view.public_key.as_bytes())?;
        sink.finish()?;
        let sentence = format!(
            "nonce {} (base64); taken until {}; sealed with {}",
            view.nonce,
            human_time(view.expire_time.as_ref()),
            view.algorithms.join(" or ")
        );
        output.report(&view, on_stdout, &sentence)
    }
}

/// The token of the instance; a new one if there is none that can be used.
pub(super) async fn usable_token(
    client: &Client,
    lifetime: Option<i64>,
) -> Result<pb::ImportToken, Failure> {
    match retrieve(client).await {
        Err(Failure::Refused(refusal)) if is_no_token(&refusal) => {
            create(client, lifetime, 1).await?;
            retrieve(client).await
        }
        result => result,
    }
}

/// There is none, it is expired, or it is used up.
fn is_no_token(refusal: &Refusal) -> bool {
    refusal.reason.starts_with("IMPORT_TOKEN_")
}

async fn create(
    client: &Client,
    lifetime: Option<i64>,
    max_allowed_retrievals: i32,
) -> Result<pb::ImportToken, Failure> {
    let request = pb::CreateImportTokenRequest {
        parent: client.parent(),
        lifetime: lifetime.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        max_allowed_retrievals,
    };
    Ok(client.import().create_import_token(request).await?.into_inner())
}

async fn retrieve(client: &Client) -> Result<pb::ImportToken, Failure> {
    let request = pb::GetImportTokenRequest { name: client.import_token_name() };
    Ok(client.import().get_import_token(request).await?.into_inner())
}

/// An import token, as it is shown. Of one that was just made there is neither
/// public key nor nonce.
#[derive(Debug, Serialize)]
struct TokenView {
    name: String,
    create_time: Option<String>,
    expire_time: Option<String>,
    max_allowed_retrievals: i32,
    remaining_retrievals: i32,
    public_key: String,
    nonce: String,
    algorithms: Vec<String>,
}

impl From<pb::ImportToken> for TokenView {
    fn from(token: pb::ImportToken) -> Self {
        let pb::ImportToken {
            name,
            create_time,
            expire_time,
            max_allowed_retrievals,
            remaining_retrievals,
            public_key,
            nonce,
            algorithms,
        } = token;
        Self {
            name,
            create_time: create_time.as_ref().and_then(rfc3339),
            expire_time: expire_time.as_ref().and_then(rfc3339),
            max_allowed_retrievals,
            remaining_retrievals,
            public_key,
            nonce: base64_text(&nonce).to_string(),
            algorithms,
        }
    }
}

impl TokenView {
    fn table(&self) -> Table {
        let Self { max_allowed_retrievals: most, remaining_retrievals: left, .. } = self;
        let always = [
            ("name", self.name.clone()),
            ("created", human_time(self.create_time.as_ref())),
            ("taken until", human_time(self.expire_time.as_ref())),
            ("retrievals left", format!("{left} of {most}")),
            ("algorithms", or_nothing(&self.algorithms.join(", "))),
        ];
        let retrieved = [("nonce (base64)", &self.nonce), ("public key", &self.public_key)];
        let retrieved = retrieved.into_iter().filter(|(_, text)| !text.is_empty());
        fields(always.into_iter().chain(retrieved.map(|(name, text)| (name, text.clone()))))
    }
}

/// Of an import token, in seconds.
pub(super) const LIFETIMES: std::ops::RangeInclusive<i64> = 300..=86_400;

pub(super) const EXAMPLES: &str = "\
Examples:
  rootkeyctl import-token create --lifetime 3600 --retrievals 10
  rootkeyctl import-token get --public-key token.pem";

const CREATE_EXAMPLES: &str = "\
Examples:
  rootkeyctl import-token create
  rootkeyctl import-token create --lifetime 3600 --retrievals 10";

const GET_EXAMPLES: &str = "\
Examples:
  rootkeyctl import-token get --public-key token.pem
  rootkeyctl --output json import-token get";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_token_that_was_just_made_shows_no_public_key() {
        let token = pb::ImportToken { remaining_retrievals: 3, ..pb::ImportToken::default() };
        let table = TokenView::from(token).table().to_string();
        assert!(table.contains("retrievals left") && !table.contains("public key"), "{table}");
    }

    #[test]
    fn only_the_want_of_a_token_makes_a_new_one() {
        let refused = |reason: &str| {
            is_no_token(&Refusal {
                reason: reason.to_owned(),
                message: String::new(),
                status_reason: None,
                metadata: BTreeMap::new(),
                retry_after: None,
            })
        };
        assert!(refused("IMPORT_TOKEN_NOT_FOUND") && refused("IMPORT_TOKEN_EXPIRED"));
        assert!(!refused("PERMISSION_DENIED") && !refused("HSM_UNAVAILABLE"));
    }
}
