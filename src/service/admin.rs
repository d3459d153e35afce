//! What runs, and whether its HSM does.

use std::time::{Duration, Instant};

use super::{Answer, Call, Disagreement, Service};
use crate::domain::{Profile, Timestamp};
use crate::hsm::{Health, TokenInfo};

/// Which daemon answers.
#[derive(Clone, Debug)]
pub struct ServerReport {
    /// Another one at each start.
    pub boot_id: String,
    /// When it started.
    pub started: Timestamp,
    /// Whose rules hold.
    pub profile: Profile,
    /// Root keys of every instance and state.
    pub keys: usize,
    /// Records in the audit log.
    pub audit_events: u64,
}

/// What the HSM is and can do.
#[derive(Clone, Debug)]
pub struct HsmReport {
    /// Why it cannot be used; `None` if it can.
    pub problem: Option<String>,
    /// Path of the module.
    pub module: String,
    /// Label of the token.
    pub token_label: String,
    /// HSM workers.
    pub workers: usize,
    /// What module and token say; `None` while the token is away.
    pub token: Option<TokenInfo>,
    /// Root key objects in the token.
    pub objects: usize,
    /// Where HSM and store do not agree; nothing while the token is away.
    pub disagreement: Disagreement,
    /// Object files of the token that are empty.
    pub torn: TornFiles,
    /// Why no root key can be made, although the HSM can be used; `None` if they can.
    pub wrapping_problem: Option<String>,
    /// How long a round trip took just now; `None` if it did not work.
    pub round_trip: Option<Duration>,
}

/// Object files of the token that a crash left without a byte.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TornFiles {
    /// Those that are there.
    Found(Vec<String>),
    /// `hsm.sync_directory` is not set: the token is not in files that we know of.
    NotInFiles,
    /// The directory cannot be read.
    Unreadable,
}

impl Service {
    /// Says which daemon answers.
    pub fn server_report(&self, _call: &Call) -> Answer<ServerReport> {
        let report = ServerReport {
            boot_id: self.boot_id.to_string(),
            started: self.started.time,
            profile: self.settings.profile,
            keys: self.registry.len(),
            audit_events: self.audit.length(),
        };
        Answer::about(report, "")
    }

    /// Says what the HSM is and can do, after trying it.
    pub async fn hsm_report(&self, call: &Call) -> Answer<HsmReport> {
        let settings = self.hsm.settings();
        // Not until the caller's deadline: a hanging HSM is something to report.
        let deadline = call.caller.deadline.min(Instant::now() + ROUND_TRIP_DEADLINE);
        let round_trip = self.hsm.round_trip(deadline).await;
        let problem = match (self.hsm.health(), &round_trip) {
            (Health::Ready { .. }, Ok(_)) => None,
            (Health::Ready { .. }, Err(error)) => Some(error.to_string()),
            (Health::Starting, _) => Some("the HSM is starting".into()),
            (Health::Down { problem }, _) => Some(problem),
        };
        // Keys cannot be used, whatever the HSM is like.
        let problem = self.recovery_sentence().or(problem);
        let disagreement = self.disagreement().unwrap_or_default();
        let report = HsmReport {
            problem,
            module: settings.module.display().to_string(),
            token_label: settings.token_label.clone(),
            workers: settings.workers,
            token: self.hsm.info(),
            objects: self.hsm.objects().map_or(0, |objects| objects.len()),
            disagreement,
            torn: match self.torn_files().await {
                None => TornFiles::NotInFiles,
                Some(Ok(torn)) => TornFiles::Found(torn),
                Some(Err(_)) => TornFiles::Unreadable,
            },
            wrapping_problem: self.masters.trouble(),
            round_trip: round_trip.ok(),
        };
        Answer::about(report, "")
    }
}

const ROUND_TRIP_DEADLINE: Duration = Duration::from_secs(2);
