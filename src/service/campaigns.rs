//! Rewrap campaigns: registrations that are under an older key version are handed to
//! their services as events, so many a minute; a service rewraps and updates its
//! registration. How far it has come is counted from the registrations themselves.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Answer, Call, Service, within};
use crate::domain::campaign::{Campaign, CampaignState};
use crate::domain::key_event::{ACKNOWLEDGE_WITHIN, NewKeyEvent, Rewrap};
use crate::domain::{Key, KeyAction, KeyId, KeyName, Moment, Outcome, VersionId};
use crate::error::{Error, Reason};
use crate::store::{CampaignWrite, Change, RegistrationQuery};

/// Every campaign, and when a running one may hand out the next resources.
pub(super) struct Campaigns(Mutex<HashMap<KeyId, Kept>>);

struct Kept {
    campaign: Campaign,
    /// Resources that may be handed out now; grows with time, up to a minute's worth.
    allowed: f64,
    counted: Instant,
    /// When this pass over the registrations came to its end.
    passed: Option<Moment>,
}

/// A campaign, and how far it has come.
#[derive(Clone, Debug)]
pub struct CampaignReport {
    /// The key.
    pub key: Arc<Key>,
    /// The campaign.
    pub campaign: Campaign,
    /// Resources that are registered.
    pub total: u64,
    /// Those that are under the target version or a newer one.
    pub rewrapped: u64,
}

impl Campaigns {
    pub(super) fn new(campaigns: Vec<Campaign>) -> Self {
        let kept = campaigns.into_iter().map(|campaign| (campaign.key, Kept::of(campaign)));
        Self(Mutex::new(kept.collect()))
    }

    fn of(&self, key: KeyId) -> Option<Campaign> {
        self.0.lock().get(&key).map(|kept| kept.campaign.clone())
    }

    fn put(&self, campaign: Campaign) {
        self.0.lock().insert(campaign.key, Kept::of(campaign));
    }

    /// The campaigns that go on, with how many resources each may hand out now.
    fn running(&self, now: Moment) -> Vec<(Campaign, usize)> {
        let mut kept = self.0.lock();
        let running = kept.values_mut().filter(|it| it.campaign.state == CampaignState::Running);
        running.map(|kept| (kept.campaign.clone(), kept.allowance(now))).collect()
    }

    fn spent(&self, campaign: Campaign, many: usize, passed: Option<Moment>) {
        if let Some(kept) = self.0.lock().get_mut(&campaign.key) {
            // Paused or replaced meanwhile: that stands.
            if kept.campaign.state == CampaignState::Running
                && kept.campaign.created == campaign.created
            {
                kept.allowed -= f64::from(u32::try_from(many).unwrap_or(u32::MAX));
                (kept.campaign, kept.passed) = (campaign, passed);
            }
        }
    }
}

impl Kept {
    fn of(campaign: Campaign) -> Self {
        Self { campaign, allowed: 0.0, counted: Instant::now(), passed: None }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and a minute's worth, which is at most 60000"
    )]
    fn allowance(&mut self, now: Moment) -> usize {
        let rate = f64::from(self.campaign.rate);
        let grown = self.counted.elapsed().as_secs_f64() * rate / 60.0;
        self.counted = Instant::now();
        self.allowed = (self.allowed + grown).min(rate);
        // A service has 4 hours; what it has not done then it is asked again.
        let rests = self.passed.is_some_and(|at| at.elapsed(now) < ACKNOWLEDGE_WITHIN);
        if rests { 0 } else { self.allowed.max(0.0) as usize }
    }
}

impl Service {
    /// Begins a campaign to the key's newest version, in the place of one that is done
    /// or goes to an older version.
    ///
    /// # Errors
    /// CAMPAIGN_EXISTS, of state and store.
    pub async fn create_campaign(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        rate: u32,
    ) -> Result<Answer<CampaignReport>, Error> {
        let by = call.principal.as_str().into();
        self.change_campaign(call, name, move |service, key, old| {
            key.permit(KeyAction::Rewrap, service.now(), service.settings.profile)?;
            let target = key.primary().id;
            if old.is_some_and(|old| old.target == target && old.state != CampaignState::Done) {
                let message = "the key has a campaign to this version already";
                return Err(Error::new(Reason::CampaignExists, message));
            }
            Ok(Campaign {
                key: key.id,
                target,
                rate,
                state: CampaignState::Running,
                place: String::new(),
                requested: 0,
                created: service.now().time,
                created_by: by,
            })
        })
        .await
    }

    /// Holds a campaign.
    ///
    /// # Errors
    /// CAMPAIGN_NOT_FOUND, or of the store.
    pub async fn pause_campaign(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
    ) -> Result<Answer<CampaignReport>, Error> {
        self.set_campaign_state(call, name, CampaignState::Paused).await
    }

    /// Goes on with a campaign.
    ///
    /// # Errors
    /// CAMPAIGN_NOT_FOUND, or of the store.
    pub async fn resume_campaign(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
    ) -> Result<Answer<CampaignReport>, Error> {
        self.set_campaign_state(call, name, CampaignState::Running).await
    }

    /// How far a campaign has come.
    ///
    /// # Errors
    /// CAMPAIGN_NOT_FOUND, or of the store.
    pub async fn campaign(
        &self,
        _call: &Call,
        name: &KeyName,
    ) -> Result<Answer<CampaignReport>, Error> {
        let key = self.registry.find(name)?.key();
        let campaign = self.campaigns.of(key.id).ok_or_else(|| no_campaign(&key))?;
        let name = campaign_name(&key);
        Ok(Answer::about(self.campaign_report(key, campaign).await?, name))
    }

    async fn set_campaign_state(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        state: CampaignState,
    ) -> Result<Answer<CampaignReport>, Error> {
        self.change_campaign(call, name, move |_service, key, old| {
            let old = old.ok_or_else(|| no_campaign(key))?;
            let done = old.state == CampaignState::Done;
            Ok(if done { old } else { Campaign { state, ..old } })
        })
        .await
    }

    async fn change_campaign(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        decide: impl FnOnce(&Self, &Key, Option<Campaign>) -> Result<Campaign, Error> + Send + 'static,
    ) -> Result<Answer<CampaignReport>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let slot = service.registry.find(&name)?;
            let _changing = within(call.caller.deadline, slot.changing.lock()).await?;
            let key = slot.key();
            let decided = decide(&service, &key, service.campaigns.of(key.id));
            let campaign = decided.map_err(|error| error.about(campaign_name(&key)))?;
            let about = (campaign_name(&key), Outcome::Success);
            let mut event = service.event(&call.caller, call.method.action, (&about.0, about.1));
            event.key_version = key.version_name(campaign.target);
            event.details.push(("rate_per_minute".into(), campaign.rate.to_string()));
            let change = Change {
                campaign: Some(CampaignWrite(campaign.clone())),
                events: vec![event.clone()],
                ..Change::default()
            };
            service.store.commit(change).await?;
            service.campaigns.put(campaign.clone());
            service.publish(vec![event]).await;
            Ok(Answer::recorded(service.campaign_report(key, campaign).await?))
        })
        .await
    }

    /// Hands resources to their services, as many as the campaigns allow now.
    pub(super) async fn go_on_with_campaigns(&self, now: Moment) {
        for (campaign, allowed) in self.campaigns.running(now) {
            if let Err(error) = self.go_on_with(campaign, allowed, now).await {
                tracing::warn!(%error, "a rewrap campaign cannot go on; it is tried again");
            }
        }
    }

    async fn go_on_with(
        &self,
        campaign: Campaign,
        allowed: usize,
        now: Moment,
    ) -> Result<(), Error> {
        let Some(slot) = self.registry.by_id(campaign.key) else { return Ok(()) };
        let deadline = Instant::now() + STEP_PATIENCE;
        let _changing = within(deadline, slot.changing.lock()).await?;
        // Paused, or another one, while the lock was waited for.
        if self.campaigns.of(campaign.key).as_ref() != Some(&campaign) {
            return Ok(());
        }
        let key = slot.key();
        let CampaignReport { total, rewrapped, .. } =
            self.campaign_report(Arc::clone(&key), campaign.clone()).await?;
        if total == rewrapped {
            let done = Campaign { state: CampaignState::Done, ..campaign };
            return self.step_campaign(done, Vec::new(), None).await;
        }
        if allowed == 0 || key.permit(KeyAction::Rewrap, now, self.settings.profile).is_err() {
            return Ok(());
        }
        let after = (!campaign.place.is_empty()).then(|| (campaign.place.clone(), key.id));
        let query = RegistrationQuery {
            instance: key.instance.clone(),
            key: Some(key.id),
            resources: None,
            preventing: false,
            after,
            limit: allowed.min(STEP),
        };
        let limit = query.limit;
        let found = self.store.list_registrations(query).await?;
        let passed = (found.len() < limit).then_some(now);
        let place = match (&passed, found.last()) {
            (None, Some(last)) => last.resource.as_str().to_owned(),
            (Some(_), _) | (None, None) => String::new(),
        };
        let old = found.into_iter().filter(|it| is_older(&key, it.version, campaign.target));
        let rewraps = old.map(|it| Rewrap {
            registration: it.id,
            resource: it.resource,
            service: it.service,
        });
        let events: Vec<_> = rewraps.map(|it| NewKeyEvent::rewrap(&key, it, now)).collect();
        let requested = campaign.requested + u64::try_from(events.len()).unwrap_or(0);
        self.step_campaign(Campaign { place, requested, ..campaign }, events, passed).await
    }

    /// One commit, so that a crash neither repeats nor leaves out a resource.
    async fn step_campaign(
        &self,
        campaign: Campaign,
        key_events: Vec<NewKeyEvent>,
        passed: Option<Moment>,
    ) -> Result<(), Error> {
        let many = key_events.len();
        let write = Some(CampaignWrite(campaign.clone()));
        self.store.commit(Change { campaign: write, key_events, ..Change::default() }).await?;
        self.campaigns.spent(campaign, many, passed);
        if many > 0 {
            self.wake_watchers();
        }
        Ok(())
    }

    async fn campaign_report(
        &self,
        key: Arc<Key>,
        campaign: Campaign,
    ) -> Result<CampaignReport, Error> {
        let counts = self.store.count_registrations(key.id).await?;
        let total = counts.iter().map(|count| count.n).sum();
        let new = counts.iter().filter(|it| !is_older(&key, it.version, campaign.target));
        let rewrapped = new.map(|count| count.n).sum();
        Ok(CampaignReport { key, campaign, total, rewrapped })
    }
}

fn is_older(key: &Key, version: VersionId, target: VersionId) -> bool {
    let place = |id| key.versions.iter().position(|version| version.id == id);
    place(version) < place(target)
}

fn campaign_name(key: &Key) -> String {
    format!("{}/rewrapCampaign", key.name())
}

fn no_campaign(key: &Key) -> Error {
    Error::new(Reason::CampaignNotFound, "the key has no rewrap campaign").about(campaign_name(key))
}

/// Registrations looked at in one step.
const STEP: usize = 500;
/// How long a step waits for other changes of the key.
const STEP_PATIENCE: Duration = Duration::from_secs(5);
