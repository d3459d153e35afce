//! `impact`: what disabling or deleting a root key, or taking a service's
//! authorization away, would do. `key delete` shows it before it asks.

use clap::ValueEnum;
use comfy_table::Table;
use serde::Serialize;

use super::{
    failure::Failure,
    output::{Output, fields, human_time, last_segment, note, or_nothing, rfc3339},
    paging::Paging,
    registration::KindName,
    resource::StatusView,
};
use crate::{
    api::pb::{self, preview_key_impact_request::Change},
    client::Client,
};

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Impact {
    /// A UUID, an alias or a full name
    key: String,
    /// What is thought of
    #[arg(long, value_enum, default_value_t = ChangeName::Delete)]
    change: ChangeName,
    #[command(flatten)]
    paging: Paging,
}

impl Impact {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let Self { key, change, paging } = self;
        let name = client.key_name(&key);
        let mut whole: Option<pb::KeyImpact> = None;
        let page = async |page_token| {
            let mut impact = page_of(client, &name, change, page_token).await?;
            let resources = std::mem::take(&mut impact.resources);
            let next = std::mem::take(&mut impact.next_page_token);
            match &mut whole {
                None => whole = Some(impact),
                Some(whole) => whole.stopped_instances.extend(impact.stopped_instances),
            }
            Ok((resources, next))
        };
        let (resources, more) = paging.collect(page).await?;
        let mut view = ImpactView::new(whole.unwrap_or_default(), change);
        view.stopped_instances.sort();
        view.stopped_instances.dedup();
        view.resources = resources.into_iter().map(StatusView::from).collect();
        output.show(&view, ImpactView::table)?;
        if more {
            note("there are more resources: give --all");
        }
        Ok(())
    }
}

/// What the deletion of a key would do, as far as one page shows it.
pub(super) async fn of_deletion(client: &Client, name: &str) -> Result<pb::KeyImpact, Failure> {
    page_of(client, name, ChangeName::Delete, String::new()).await
}

/// The impact in sentences, for a question.
pub(super) fn sentences(impact: &pb::KeyImpact) -> Vec<String> {
    let view = ImpactView::new(impact.clone(), ChangeName::Delete);
    let mut sentences = Vec::new();
    if view.kinds.is_empty() {
        sentences.push("No resource is registered against it.".to_owned());
    } else {
        sentences.push(format!("It protects {}.", view.kinds_words(", ")));
    }
    if view.preventing > 0 {
        sentences.push(format!("{} of them prevent its deletion.", view.preventing));
    }
    if !view.stopped_instances.is_empty() {
        let more = if impact.next_page_token.is_empty() { "" } else { ", and maybe more" };
        let servers = view.stopped_instances.join(", ");
        sentences.push(format!("Virtual servers that would be stopped: {servers}{more}."));
    }
    if !view.refusal.is_empty() {
        sentences.push(format!("The deletion would be refused now: {}.", view.refusal));
    }
    sentences
}

async fn page_of(
    client: &Client,
    name: &str,
    change: ChangeName,
    page_token: String,
) -> Result<pb::KeyImpact, Failure> {
    let (name, change) = (name.to_owned(), change.number());
    let request = pb::PreviewKeyImpactRequest { name, change, page_size: PAGE, page_token };
    Ok(client.resources().preview_key_impact(request).await?.into_inner())
}

/// What a change would do, as it is shown.
#[derive(Debug, Serialize)]
struct ImpactView {
    key: String,
    change: ChangeName,
    kinds: Vec<KindView>,
    preventing: u64,
    refusal: String,
    versions: Vec<VersionView>,
    last_unwrap_time: Option<String>,
    stopped_instances: Vec<String>,
    resources: Vec<StatusView>,
    impact_token: String,
}

#[derive(Debug, Serialize)]
struct KindView {
    /// `None` for a kind that this client does not know.
    kind: Option<KindName>,
    total: u64,
    attached: u64,
    status: String,
}

#[derive(Debug, Serialize)]
struct VersionView {
    key_version: String,
    total: u64,
}

impl ImpactView {
    /// Without the resources.
    fn new(impact: pb::KeyImpact, change: ChangeName) -> Self {
        let pb::KeyImpact {
            key,
            kinds,
            preventing,
            refusal,
            versions,
            last_unwrap_time,
            resources: _,
            stopped_instances,
            next_page_token: _,
            impact_token,
        } = impact;
        let kind = |count: pb::key_impact::KindCount| {
            let pb::key_impact::KindCount { kind, total, attached, status } = count;
            KindView { kind: KindName::of(kind), total, attached, status }
        };
        let version = |count: pb::key_impact::VersionCount| {
            let pb::key_impact::VersionCount { key_version, total } = count;
            VersionView { key_version, total }
        };
        Self {
            key,
            change,
            kinds: kinds.into_iter().map(kind).collect(),
            preventing,
            refusal,
            versions: versions.into_iter().map(version).collect(),
            last_unwrap_time: last_unwrap_time.as_ref().and_then(rfc3339),
            stopped_instances,
            resources: Vec::new(),
            impact_token,
        }
    }

    fn table(&self) -> Table {
        let versions = self.versions.iter();
        let versions =
            versions.map(|it| format!("{} ({})", last_segment(&it.key_version), it.total));
        let resources = StatusView::list(&self.resources).to_string();
        let resources = if self.resources.is_empty() { String::new() } else { resources };
        fields([
            ("key", self.key.clone()),
            ("change", self.change.words().to_owned()),
            ("refused now with", or_nothing(&self.refusal)),
            ("protects", or_nothing(&self.kinds_words("\n"))),
            ("prevent its deletion", self.preventing.to_string()),
            ("versions in use", or_nothing(&versions.collect::<Vec<_>>().join("\n"))),
            ("last unwrap", human_time(self.last_unwrap_time.as_ref())),
            ("would be stopped", or_nothing(&self.stopped_instances.join("\n"))),
            ("resources then", or_nothing(&resources)),
        ])
    }

    fn kinds_words(&self, between: &str) -> String {
        let words = |it: &KindView| {
            let KindView { kind, total, attached, status } = it;
            let kind = kind.map_or("unknown kind", KindName::words);
            let plural = if *total == 1 { "" } else { "s" };
            format!("{total} {kind}{plural} ({attached} attached; would be {status})")
        };
        self.kinds.iter().map(words).collect::<Vec<_>>().join(between)
    }
}

/// A change that is thought of.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum ChangeName {
    /// `key disable`
    Disable,
    /// `key delete --force`
    Delete,
    /// The services lose their bindings
    RemoveAuthorization,
}

impl ChangeName {
    fn number(self) -> i32 {
        let change = match self {
            Self::Disable => Change::Disable,
            Self::Delete => Change::Delete,
            Self::RemoveAuthorization => Change::RemoveAuthorization,
        };
        change.into()
    }

    fn words(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Delete => "delete with force",
            Self::RemoveAuthorization => "remove the services' authorization",
        }
    }
}

/// Resources in a page.
const PAGE: i32 = 1_000;

const EXAMPLES: &str = "\
Examples:
  rootkeyctl impact block
  rootkeyctl impact block --change disable
  rootkeyctl --output json impact block --change remove-authorization --all";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_is_told_in_sentences() {
        let kind = pb::key_impact::KindCount {
            kind: pb::registration::Kind::DataVolume.into(),
            total: 3,
            attached: 2,
            status: "unusable".to_owned(),
        };
        let impact = pb::KeyImpact {
            kinds: vec![kind],
            preventing: 1,
            stopped_instances: vec!["crn:one".to_owned()],
            refusal: "DELETION_PREVENTED".to_owned(),
            ..Default::default()
        };
        let told = sentences(&impact).join(" ");
        for word in ["3 data volumes (2 attached; would be unusable)", "crn:one", "_PREVENTED"] {
            assert!(told.contains(word), "{told}");
        }
        assert!(sentences(&pb::KeyImpact::default())[0].starts_with("No resource"));
        let table = ImpactView::new(impact, ChangeName::Delete).table().to_string();
        assert!(table.contains("crn:one"), "{table}");
    }
}
