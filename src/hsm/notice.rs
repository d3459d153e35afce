//! What one worker process is to be told of session keys that were retired: collected
//! until its courier is free to tell it.

use std::collections::BTreeSet;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use super::job::Retired;
use crate::domain::ObjectId;

/// What one worker process is to be told.
pub(super) struct Notice {
    retired: Mutex<Collected>,
    /// Has room for one: that there is something to tell.
    ring: Sender<()>,
    given: Receiver<()>,
}

#[derive(Debug, Eq, PartialEq)]
enum Collected {
    /// These, and no more than [`MOST`].
    These(BTreeSet<ObjectId>),
    /// So many that all of them are retired.
    All,
}

impl Notice {
    pub(super) fn new() -> Self {
        let (ring, given) = crossbeam_channel::bounded(1);
        Self { retired: Mutex::new(Collected::none()), ring, given }
    }

    /// These root keys are not used any more.
    pub(super) fn give(&self, objects: &[ObjectId]) {
        let mut retired = self.retired.lock();
        if let Collected::These(these) = &mut *retired {
            these.extend(objects);
            if these.len() > MOST {
                *retired = Collected::All;
            }
        }
        // Err: it rings already.
        let _ = self.ring.try_send(());
    }

    /// Gets something when there is something to take.
    pub(super) const fn given(&self) -> &Receiver<()> {
        &self.given
    }

    /// What was given since the last time.
    pub(super) fn take(&self) -> Retired {
        match std::mem::replace(&mut *self.retired.lock(), Collected::none()) {
            Collected::These(these) => Retired::These(these.into_iter().collect()),
            Collected::All => Retired::All,
        }
    }
}

impl Collected {
    const fn none() -> Self {
        Self::These(BTreeSet::new())
    }
}

/// Of more than that it is not told one by one.
const MOST: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn object(number: usize) -> ObjectId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        ObjectId::from_bytes(bytes)
    }

    #[test]
    fn what_is_given_is_taken_once_and_all_together() {
        let notice = Notice::new();
        notice.give(&[object(2), object(1)]);
        notice.give(&[object(2)]);
        assert!(notice.given().try_recv().is_ok());
        assert!(notice.given().try_recv().is_err());
        assert_eq!(notice.take(), Retired::These(vec![object(1), object(2)]));
        assert_eq!(notice.take(), Retired::none());
    }

    #[test]
    fn a_process_that_is_busy_for_long_is_told_to_retire_all() {
        let notice = Notice::new();
        for number in 0..=MOST {
            notice.give(&[object(number)]);
        }
        assert_eq!(notice.take(), Retired::All);
        assert_eq!(notice.take(), Retired::none());
    }
}
