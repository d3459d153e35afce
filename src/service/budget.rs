//! How much a key version has wrapped: counted in memory, granted by the store in
//! steps, so that no crash gives a wrap back and no wrap waits for its own commit.
//!
//! The limits are `domain/rotation.rs`.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use super::registry::Slot;
use super::{Service, daemon_event};
use crate::domain::rotation::{WRAP_BUDGET_SPENT, WRAP_BUDGET_WARNED, WRAP_STEP};
use crate::domain::{Key, VersionId};
use crate::error::{Error, Reason};
use crate::store::Change;

/// What one version has wrapped, and may before the store is asked again.
pub(super) struct Budget {
    pub(super) version: VersionId,
    used: AtomicU64,
    granted: AtomicU64,
    /// Held over a grant's commit, so that one grant serves all who wait.
    granting: Mutex<()>,
}

impl Budget {
    /// Of a version that was granted so many wraps. All count as done: nobody knows
    /// how many were when the daemon ended.
    pub(super) const fn new(version: VersionId, granted: u64) -> Self {
        let (used, granted) = (AtomicU64::new(granted), AtomicU64::new(granted));
        Self { version, used, granted, granting: Mutex::const_new(()) }
    }

    /// Takes one wrap; its number.
    ///
    /// # Errors
    /// WRAP_BUDGET_SPENT.
    fn take(&self) -> Result<u64, Error> {
        let used = self.used.fetch_add(1, Ordering::Relaxed);
        if used < WRAP_BUDGET_SPENT {
            return Ok(used);
        }
        self.used.fetch_sub(1, Ordering::Relaxed);
        Err(Error::new(
            Reason::WrapBudgetSpent,
            "the key's newest version has wrapped 90 % of 2^32 DEKs; rotate the key",
        ))
    }

    fn is_granted(&self, number: u64) -> bool {
        number < self.granted.load(Ordering::Acquire)
    }
}

impl Service {
    /// Counts one wrap of the key in `slot`, durably.
    ///
    /// # Errors
    /// WRAP_BUDGET_SPENT, or of the store.
    pub(super) async fn take_wrap(&self, slot: &Slot, key: &Key) -> Result<(), Error> {
        // A rotation in this moment can have brought another version; the count of
        // either is nowhere near a limit because of one wrap.
        let budget = slot.budget();
        let number = budget.take().map_err(|error| error.about(key.name()))?;
        if budget.is_granted(number) {
            return Ok(());
        }
        let _granting = budget.granting.lock().await;
        if budget.is_granted(number) {
            return Ok(());
        }
        let before = budget.granted.load(Ordering::Acquire);
        let granted = (number / WRAP_STEP + 1) * WRAP_STEP;
        let mut change =
            Change { wrap_grant: Some((budget.version, granted)), ..Change::default() };
        if before < WRAP_BUDGET_WARNED && granted >= WRAP_BUDGET_WARNED {
            tracing::warn!(key = %key.id, "half of the wraps of its newest version are spent");
            let mut event = daemon_event("rootkeyd.wrap-budget.warn", self.now(), &key.name());
            event.key_version = key.version_name(budget.version);
            event.details.push(("wraps".into(), granted.to_string()));
            change.events.push(event);
        }
        let events = change.events.clone();
        self.store.commit(change).await?;
        budget.granted.store(granted, Ordering::Release);
        self.publish(events).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_restart_all_that_was_granted_counts_as_done() {
        let budget = Budget::new(VersionId::from_bytes([1; 16]), WRAP_STEP);
        let number = budget.take().unwrap();
        assert_eq!(number, WRAP_STEP);
        assert!(!budget.is_granted(number));
    }

    #[test]
    fn a_spent_budget_refuses_and_stays_spent() {
        let budget = Budget::new(VersionId::from_bytes([1; 16]), WRAP_BUDGET_SPENT - 1);
        assert!(budget.take().is_ok());
        for _ in 0..3 {
            assert_eq!(budget.take().unwrap_err().reason, Reason::WrapBudgetSpent);
        }
        assert_eq!(budget.used.load(Ordering::Relaxed), WRAP_BUDGET_SPENT);
    }
}
