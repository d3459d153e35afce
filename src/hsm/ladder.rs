//! What a worker tries after an error, rung by rung: another session, another login,
//! another search, and only then the token anew. Each rung once a job, so a job ends.
//!
//! That a ciphertext does not verify is final for a caller, who may take its DEK for
//! lost. So it is said only after the token refused it three times, with a round trip
//! that it did well after the first time and after the last, and made no other mistake
//! in that job. An error that comes once, or every other time, or from some moment on,
//! cannot look like that.

use super::rv::Verdict;

/// The next thing to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// The same once more, in the new session.
    Again,
    /// Log in, then the same once more.
    LogIn,
    /// Look for the object, then the same once more.
    Find,
    /// Make sure that the key works, then the same once more.
    ProveAndAgain,
    /// Make sure that the key works; then the input does not verify.
    ProveAndBelieve,
    /// Nothing is left to try with this job: if the token works otherwise it was the
    /// job's own trouble, else the token is lost.
    Blame,
    /// The token is lost.
    Lose,
}

/// How far a job has come.
#[derive(Debug, Default)]
pub(super) struct Ladder {
    sessions: usize,
    logins: usize,
    searches: usize,
    doubts: usize,
}

impl Ladder {
    /// After an error with that verdict.
    pub(super) fn next(&mut self, verdict: Verdict) -> Step {
        let first = |rung: &mut usize, step| {
            *rung += 1;
            if *rung == 1 { step } else { Step::Blame }
        };
        match verdict {
            // Of a job that was done before, a refusal is as odd as a broken session.
            Verdict::Session | Verdict::Refused => first(&mut self.sessions, Step::Again),
            Verdict::Login => first(&mut self.logins, Step::LogIn),
            Verdict::Object => first(&mut self.searches, Step::Find),
            Verdict::Unverified | Verdict::Ambiguous => {
                self.doubts += 1;
                match self.doubts {
                    1 => Step::ProveAndAgain,
                    2 => Step::Again,
                    _ if self.sessions + self.logins + self.searches == 0 => Step::ProveAndBelieve,
                    _ => Step::Blame,
                }
            }
            Verdict::Module => Step::Lose,
        }
    }

    /// Whether anything went wrong in this job.
    pub(super) const fn is_begun(&self) -> bool {
        self.sessions + self.logins + self.searches + self.doubts > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn climb(verdicts: &[Verdict]) -> Vec<Step> {
        let mut ladder = Ladder::default();
        verdicts.iter().map(|verdict| ladder.next(*verdict)).collect()
    }

    #[test]
    fn every_rung_is_taken_once_and_a_job_ends() {
        let rungs = [
            (Verdict::Session, Step::Again),
            (Verdict::Refused, Step::Again),
            (Verdict::Login, Step::LogIn),
            (Verdict::Object, Step::Find),
        ];
        for (verdict, step) in rungs {
            assert_eq!(climb(&[verdict, verdict]), [step, Step::Blame], "{verdict:?}");
        }
        let all = [Verdict::Session, Verdict::Login, Verdict::Object, Verdict::Login];
        assert_eq!(climb(&all), [Step::Again, Step::LogIn, Step::Find, Step::Blame]);
        assert_eq!(climb(&[Verdict::Module]), [Step::Lose]);
    }

    #[test]
    fn a_ciphertext_is_refused_after_three_refusals_between_two_proofs_and_no_other_error() {
        let no = Verdict::Ambiguous;
        let three = [Step::ProveAndAgain, Step::Again, Step::ProveAndBelieve];
        assert_eq!(climb(&[no; 3]), three);
        assert_eq!(climb(&[Verdict::Unverified; 3]), three);
        for other in [Verdict::Session, Verdict::Refused, Verdict::Login, Verdict::Object] {
            for place in 0..3 {
                let mut verdicts = vec![no; 3];
                verdicts.insert(place, other);
                let steps = climb(&verdicts);
                assert!(!steps.contains(&Step::ProveAndBelieve), "{other:?}: {steps:?}");
                assert_eq!(steps.last(), Some(&Step::Blame));
            }
        }
    }
}
