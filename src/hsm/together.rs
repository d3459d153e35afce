//! Calls about one DEK each that come at the same time go to a fast HSM as one job: a worker
//! is woken once for all of them, and so is who waits for it.

use std::time::Instant;

use super::job::Work;
use super::{Crypt, Crypted, Hsm, HsmError, wait};

/// What one caller wants, and until when it waits.
pub(super) type Part = (Crypt, Instant);

/// The answer to the item; or why there is none.
pub(super) type Answer = Result<Result<Crypted, HsmError>, HsmError>;

impl Hsm {
    pub(super) async fn crypt_one(&self, item: Crypt, deadline: Instant) -> Answer {
        let together = self.0.view.together();
        let go = |parts| self.crypt_together(parts);
        let answer = self.0.gather.join((item, deadline), together, go);
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(answer) => answer.unwrap_or(Err(HsmError::Unavailable)),
            Err(_elapsed) => Err(HsmError::Deadline),
        }
    }

    /// Sends them, or one alone, as one job, which may be done as long as anyone waits.
    fn crypt_together(&self, parts: Vec<Part>) -> impl Future<Output = Vec<Answer>> + use<> {
        let many = parts.len();
        let deadline = parts.iter().map(|(_, deadline)| *deadline).max();
        let deadline = deadline.unwrap_or_else(Instant::now);
        let items = parts.into_iter().map(|(item, _)| item).collect();
        let sent = self.send(deadline, |reply| Work::Crypt(items, reply));
        async move {
            let done = match sent {
                Ok(answer) => wait(deadline, answer).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(done) => done.into_iter().map(Ok).collect(),
                Err(error) => (0..many).map(|_each| Err(error)).collect(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::super::Settings;
    use super::super::tests::{new_key, one, open, run_with_token, seal, token};
    use super::*;

    /// With a queue that holds two jobs.
    fn with_fast_token(name: &str, test: impl AsyncFnOnce(Hsm)) {
        let path = format!("hsm::together::tests::{name}");
        let narrow = |settings: &mut Settings| settings.queue = 2;
        run_with_token(&path, narrow, async |hsm| {
            test(hsm).await;
        });
    }

    /// Whatever it took before.
    fn be_fast(hsm: &Hsm) {
        for _ in 0..200 {
            token(hsm).pace.note(Duration::from_nanos(1), 1);
        }
    }

    #[test]
    fn calls_that_come_together_are_one_job_and_each_has_its_own_answer() {
        let name = "calls_that_come_together_are_one_job_and_each_has_its_own_answer";
        with_fast_token(name, async |hsm| {
            let (key, other) = (new_key(&hsm).await, new_key(&hsm).await);
            let mut sealed = Vec::new();
            for number in 0..20_u8 {
                let done = one(&hsm, seal(key, &[number])).await.unwrap();
                sealed.push(done.sealed.unwrap().unwrap());
            }
            for _ in 0..10 {
                be_fast(&hsm);
                let calls = sealed.iter().enumerate().map(|(number, sealed)| {
                    one(&hsm, open(if number == 7 { other } else { key }, sealed))
                });
                // Twenty jobs would not fit into the queue.
                for (number, opened) in join_all(calls).await.into_iter().enumerate() {
                    match opened {
                        Err(error) => assert_eq!((error, number), (HsmError::Unverified, 7)),
                        Ok(opened) => assert_eq!(usize::from(opened.dek.expose()[0]), number),
                    }
                }
            }
        });
    }

    #[test]
    fn who_waits_no_longer_takes_nobody_along() {
        let name = "who_waits_no_longer_takes_nobody_along";
        with_fast_token(name, async |hsm| {
            let key = new_key(&hsm).await;
            let sealed = one(&hsm, seal(key, b"dek")).await.unwrap().sealed.unwrap().unwrap();
            be_fast(&hsm);
            // By more than the clock of tokio's timers, which counts milliseconds, may be wrong.
            let over = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
            let late = hsm.crypt(vec![open(key, &sealed)], over);
            let (late, opened) = tokio::join!(late, one(&hsm, open(key, &sealed)));
            assert_eq!(late.unwrap_err(), HsmError::Deadline);
            assert_eq!(opened.unwrap().dek.expose(), b"dek");

            be_fast(&hsm);
            let mut gone = Box::pin(one(&hsm, open(key, &sealed)));
            let mut stays = Box::pin(one(&hsm, open(key, &sealed)));
            assert!(gone.as_mut().now_or_never().is_none());
            assert!(stays.as_mut().now_or_never().is_none());
            drop(gone);
            assert_eq!(stays.await.unwrap().dek.expose(), b"dek");
        });
    }

    #[test]
    fn what_refuses_the_job_refuses_each() {
        with_fast_token("what_refuses_the_job_refuses_each", async |hsm| {
            let key = new_key(&hsm).await;
            let sealed = one(&hsm, seal(key, b"dek")).await.unwrap().sealed.unwrap().unwrap();
            be_fast(&hsm);
            hsm.stop();
            let calls = join_all((0..3).map(|_| one(&hsm, open(key, &sealed)))).await;
            let refused =
                |it: &Result<_, HsmError>| it.as_ref().err() == Some(&HsmError::Unavailable);
            assert!(calls.iter().all(refused), "{calls:?}");
        });
    }
}
