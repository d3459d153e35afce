//! What the daemon does by itself: records expirations, rotates by policy, purges 90
//! days after deletion, ends import tokens, notes the clocks and tells when they jump.
//!
//! What is due is found in the registry's agenda, so a quiet tick costs the same for
//! ten keys and for a million. After down time everything that was missed is due once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::keys::Effect;
use super::purge::Purger;
use super::registry::Slot;
use super::{Service, daemon_event, state_detail, within};
use crate::clock::ClockJump;
use crate::domain::{Key, KeyState};
use crate::error::Error;
use crate::store::Change;

impl Service {
    /// Until the daemon ends.
    pub async fn keep_schedule(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        let mut noted = Instant::now();
        self.note_clock().await;
        loop {
            tick.tick().await;
            self.do_what_is_due().await;
            if noted.elapsed() >= NOTE_CLOCK_EVERY {
                noted = Instant::now();
                self.note_clock().await;
            }
        }
    }

    /// Writes down how long the daemon has run and when DEKs were last unwrapped, and
    /// forgets what is old enough.
    pub async fn note_clock(&self) {
        let clock = Some(self.clock.reading());
        let forget_events = super::events::forgotten_before(self.now());
        let used = std::mem::take(&mut *self.unwrapped.lock());
        let time = |slot: &Arc<Slot>| Some((slot.key().id, slot.writes_unwrap()?));
        let unwrapped = used.iter().filter_map(time).collect();
        let audit_position = self.audit_position();
        let change =
            Change { clock, forget_events, unwrapped, audit_position, ..Change::default() };
        if let Err(error) = self.store.commit(change).await {
            tracing::warn!(%error, "the run time cannot be noted");
            self.unwrapped.lock().extend(used);
        }
    }

    async fn do_what_is_due(self: &Arc<Self>) {
        let now = self.now();
        for jump in self.clock.jumps() {
            self.tell_jump(jump).await;
        }
        for slot in self.registry.due(now, MOST_AT_ONCE) {
            let key = slot.key().name();
            if let Err(error) = self.attend(&slot).await {
                tracing::warn!(key, %error, "what is due cannot be done; it is tried again");
            }
        }
        if let Err(error) = self.look_after_events(now).await {
            tracing::warn!(%error, "overdue acknowledgements cannot be looked for");
        }
        self.go_on_with_campaigns(now).await;
        self.end_import_tokens().await;
    }

    /// Does what is due for one key. In a task that the daemon's end waits for.
    async fn attend(self: &Arc<Self>, slot: &Arc<Slot>) -> Result<(), Error> {
        let (service, slot) = (Arc::clone(self), Arc::clone(slot));
        let task = self.changes.spawn(async move {
            let (key, now) = (slot.key(), service.now());
            let purge =
                key.history.purging.is_some() || key.purge_due().is_some_and(|due| due <= now.run);
            if purge {
                // Without the HSM it can only fail; it stays due.
                if !service.hsm.is_up() {
                    return Ok(());
                }
                let deadline = Instant::now() + service.settings.object_deadline;
                let _changing = within(deadline, slot.changing.lock()).await?;
                return service.purge(&slot, Purger::Time).await.map(drop);
            }
            // What a wrong date does cannot be taken back: it is waited for a while.
            if service.clock.is_ahead() {
                return Ok(());
            }
            if key.state(now) == KeyState::Deactivated {
                return service.note_expiry(&slot).await;
            }
            if service.hsm.is_up() {
                return service.rotate_by_policy(&slot).await;
            }
            Ok(())
        });
        task.await.unwrap_or_else(|error| Err(super::interrupted().caused_by(error)))
    }

    /// Records that a key has expired, once.
    async fn note_expiry(&self, slot: &Slot) -> Result<(), Error> {
        let deadline = Instant::now() + self.settings.object_deadline;
        let _changing = within(deadline, slot.changing.lock()).await?;
        let (key, now) = (slot.key(), self.now());
        if key.history.expiry_noted || key.state(now) != KeyState::Deactivated {
            return Ok(());
        }
        let mut new = Key { generation: key.generation + 1, ..(*key).clone() };
        new.history.expiry_noted = true;
        let mut event = daemon_event("kms.secrets.expire", now, &key.name());
        let expires = key.history.expires.map_or(0, crate::domain::Timestamp::as_micros);
        event.details = vec![
            ("expiration_date_micros".into(), expires.to_string()),
            ("initial_key_state".into(), KeyState::Active.name().into()),
            state_detail(KeyState::Deactivated),
        ];
        let change = Change { events: vec![event.clone()], ..Change::default() };
        self.put(slot, &Arc::new(new), Effect::Tighten, change).await?;
        self.publish(vec![event]).await;
        Ok(())
    }

    async fn tell_jump(&self, jump: ClockJump) {
        let ClockJump { said, expected } = jump;
        let (said, expected) = (said.as_micros(), expected.as_micros());
        tracing::error!(said, expected, "the machine's clock jumped; windows go by the run time");
        let mut event = daemon_event("rootkeyd.clock.jump", self.now(), "");
        event.details = vec![
            ("said_micros".into(), said.to_string()),
            ("expected_micros".into(), expected.to_string()),
        ];
        let deadline = Instant::now() + self.settings.object_deadline;
        if let Err(error) = self.append(vec![event], deadline).await {
            tracing::error!(%error, "a jump of the clock could not be recorded");
        }
    }
}

/// How soon after its time something is done.
const TICK: Duration = Duration::from_secs(1);
/// A crash and a reboot at once lose so much of the run time.
const NOTE_CLOCK_EVERY: Duration = Duration::from_secs(60);
/// Keys attended to in one tick; the others follow in the next.
const MOST_AT_ONCE: usize = 100;
