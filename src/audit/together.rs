//! Appends of one short event that come at the same time go to the thread that writes as
//! one append: it is woken once for all of them, with all that belongs in its next commit.

use super::{Audit, AuditError, ended, log, wait};
use crate::domain::{Event, Outcome};

impl Audit {
    /// As [`Audit::append`], of one event that [`is_short`].
    pub(super) async fn append_short(&self, event: Event) -> Result<u64, AuditError> {
        let appended = self.0.gather.join(event, MOST, |events| self.append_together(events));
        appended.await.unwrap_or_else(|| Err(ended()))
    }

    /// Sends them as one append; the number of each.
    fn append_together(
        &self,
        events: Vec<Event>,
    ) -> impl Future<Output = Vec<Result<u64, AuditError>>> + use<> {
        let many = events.len();
        let sent = self.send(events);
        async move {
            let appended = match sent {
                Ok(answer) => wait(answer).await,
                Err(error) => Err(error),
            };
            match appended {
                Ok(first) => (first..).take(many).map(Ok).collect(),
                Err(error) => (0..many).map(|_each| Err(again(&error))).collect(),
            }
        }
    }
}

/// Whether so many like it are one append without being too long for one.
pub(super) fn is_short(event: &Event) -> bool {
    let Event { id: _, time: _, action, outcome, details, .. } = event;
    let texts = [
        &event.principal,
        &event.source_address,
        &event.instance,
        &event.subject,
        &event.key_version,
        &event.resource,
        &event.request_id,
    ];
    let refused = if let Outcome::Refused(reason) = outcome { reason.len() } else { 0 };
    let bytes = texts.iter().map(|text| text.len()).sum::<usize>()
        + details.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    bytes + action.len() + refused <= SHORT_BYTES && details.len() <= SHORT_DETAILS
}

/// An `io::Error` cannot be cloned, and each of those who wait gets one.
fn again(error: &AuditError) -> AuditError {
    match error {
        AuditError::Overloaded => AuditError::Overloaded,
        AuditError::Unavailable { what, source } => {
            AuditError::Unavailable { what, source: log::again(source) }
        }
        AuditError::Corrupt { place, what } => AuditError::Corrupt { place: place.clone(), what },
    }
}

/// How many are one append at most.
const MOST: usize = 64;
/// Texts of a short event. Written, a text is at most three times as long (NULs), so that
/// [`MOST`] of them take less than a MiB.
const SHORT_BYTES: usize = 4096;
const SHORT_DETAILS: usize = 64;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::super::tests::{event, open, stalled};
    use super::*;

    #[tokio::test]
    async fn appends_that_come_together_are_one_and_each_has_its_own_number() {
        let directory = tempfile::tempdir().unwrap();
        let audit = open(&directory).unwrap();
        for round in 0..20 {
            let numbers = join_all((0..100).map(|number| audit.append(vec![event(number)]))).await;
            let numbers: Vec<_> = numbers.into_iter().map(Result::unwrap).collect();
            assert_eq!(numbers, (1..=100).map(|n| 100 * round + n).collect::<Vec<u64>>());
        }
        audit.verify().unwrap();

        let (audit, intake) = stalled(4);
        let mut waiting: Vec<_> =
            (0..100).map(|n| Box::pin(audit.append(vec![event(n)]))).collect();
        for _ in 0..3 {
            assert!(waiting.iter_mut().all(|it| it.as_mut().now_or_never().is_none()));
            tokio::task::yield_now().await;
        }
        let entries: Vec<_> = intake.receiver.try_iter().map(|entry| entry.events.len()).collect();
        assert_eq!(entries, [64, 36]);
    }

    #[tokio::test]
    async fn an_append_is_written_even_if_who_came_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let audit = open(&directory).unwrap();
        let mut gone = Box::pin(audit.append(vec![event(1)]));
        let mut stays = Box::pin(audit.append(vec![event(2)]));
        assert!(gone.as_mut().now_or_never().is_none());
        assert!(stays.as_mut().now_or_never().is_none());
        drop(gone);
        assert_eq!((stays.await.unwrap(), audit.length()), (2, 2));
        // Without a runtime too.
        let mut alone = Box::pin(audit.append(vec![event(3)]));
        assert!(alone.as_mut().now_or_never().is_none());
        std::thread::scope(|scope| scope.spawn(|| drop(alone)).join().unwrap());
        audit.close();
        assert_eq!(audit.length(), 3);
    }

    #[tokio::test]
    async fn one_that_is_too_long_is_refused_alone() {
        let directory = tempfile::tempdir().unwrap();
        let audit = open(&directory).unwrap();
        let text = "\0".repeat(SHORT_BYTES - event(1).subject.len() - 200);
        let short = Event { subject: text, ..event(1) };
        let long = Event { subject: "x".repeat(70_000), ..event(1) };
        assert!(is_short(&short) && !is_short(&long));
        let appends = (0..100).map(|number| {
            audit.append(vec![if number == 50 { long.clone() } else { short.clone() }])
        });
        for (number, appended) in join_all(appends).await.into_iter().enumerate() {
            assert_eq!(appended.is_ok(), number != 50, "{number}: {appended:?}");
        }
        assert_eq!(audit.length(), 99);
    }

    #[tokio::test]
    async fn what_refuses_them_refuses_each() {
        let (audit, intake) = stalled(1);
        let all = |audit: &Audit| {
            let audit = audit.clone();
            async move { join_all((0..70).map(|n| audit.append(vec![event(n)]))).await }
        };
        let waiting = tokio::spawn(all(&audit));
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        // The first 64 are in the queue, which is full with them.
        drop(intake);
        let answers = waiting.await.unwrap();
        let overloaded = |it: &Result<_, _>| matches!(it, Err(AuditError::Overloaded));
        let gone = |it: &Result<_, _>| matches!(it, Err(AuditError::Unavailable { .. }));
        assert!(
            answers[..64].iter().all(gone) && answers[64..].iter().all(overloaded),
            "{answers:?}"
        );
        assert!(all(&audit).await.iter().all(gone));
    }
}
