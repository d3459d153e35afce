//! Rewrap campaigns: after a rotation the services rewrap what older versions wrap,
//! little by little, until every resource is under the version that wrapped when the
//! campaign began, or a newer one.

use super::{KeyId, Malformed, Timestamp, VersionId};

/// The campaign of a key; it has at most one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Campaign {
    /// The key.
    pub key: KeyId,
    /// The version that resources are brought to.
    pub target: VersionId,
    /// Resources handed to their services in a minute, at most: 1 to 60000.
    pub rate: u32,
    /// Whether it goes on.
    pub state: CampaignState,
    /// The last resource that was handed to its service in this pass; empty before
    /// the first.
    pub place: String,
    /// Resources that were handed to their services.
    pub requested: u64,
    /// When it was begun.
    pub created: Timestamp,
    /// Principal that began it.
    pub created_by: Box<str>,
}

/// Whether a campaign goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CampaignState {
    /// It does.
    Running,
    /// It is held.
    Paused,
    /// It has come to its end.
    Done,
}

impl CampaignState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Running, Self::Paused, Self::Done];

    /// For the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
        }
    }

    /// The state of that name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// A campaign's rate, from what was asked: 1 to 60000 a minute; 600 if 0 was.
///
/// # Errors
/// [`Malformed`], of the field `rate_per_minute`.
pub fn rate(asked: u32) -> Result<u32, Malformed> {
    match asked {
        0 => Ok(600),
        1..=60_000 => Ok(asked),
        _ => Err(Malformed::new("rate_per_minute", "must be 1 to 60000, or 0 for 600")),
    }
}
