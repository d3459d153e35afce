//! Import tokens: what key material is sealed to, for how long and how often.
//!
//! Figures: `facts/key-protect.md` section 7. A token ends by whichever clock says
//! so first: to take material too late would be the fault, not too early.

use std::time::Duration;

use thiserror::Error;

use super::{InstanceId, Malformed, Moment, ObjectId, Timestamp};

/// Bytes of a token's nonce.
pub const NONCE_BYTES: usize = 12;

/// An RSA pair in the HSM to which key material is sealed; an instance has one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImportToken {
    /// Its tenant.
    pub instance: InstanceId,
    /// CKA_ID of the pair in the HSM.
    pub object: ObjectId,
    /// DER of the public key (SubjectPublicKeyInfo, RSA-4096).
    pub public_key: Box<[u8]>,
    /// What the importer encrypts with the key that is imported.
    pub nonce: [u8; NONCE_BYTES],
    /// When it was made.
    pub created: Moment,
    /// For how long it is good.
    pub lifetime: Duration,
    /// How often it could be retrieved at first.
    pub retrievals: u16,
    /// How often it still can.
    pub remaining: u16,
}

/// The token is not good any more.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum TokenEnded {
    /// Its time is over.
    #[error("the import token has expired")]
    Expired,
    /// It was retrieved as often as it may be.
    #[error("the import token was retrieved as often as it may be")]
    UsedUp,
}

impl ImportToken {
    /// Until when it is good, by the machine's clock.
    pub fn expires(&self) -> Timestamp {
        self.created.time + self.lifetime
    }

    /// Whether material that is sealed to it is taken at `now`.
    ///
    /// # Errors
    /// [`TokenEnded::Expired`].
    pub fn check(&self, now: Moment) -> Result<(), TokenEnded> {
        let good = self.created.elapsed(now) < self.lifetime && now.time < self.expires();
        if good { Ok(()) } else { Err(TokenEnded::Expired) }
    }

    /// As it is after it was retrieved at `now`.
    ///
    /// # Errors
    /// [`TokenEnded`].
    pub fn retrieved(&self, now: Moment) -> Result<Self, TokenEnded> {
        self.check(now)?;
        let remaining = self.remaining.checked_sub(1).ok_or(TokenEnded::UsedUp)?;
        Ok(Self { remaining, ..self.clone() })
    }
}

/// A token's lifetime, from what was asked: 300 to 86400 whole seconds; 600 if
/// nothing was.
///
/// # Errors
/// [`Malformed`], of the field `lifetime`.
pub fn lifetime(asked: Option<Duration>) -> Result<Duration, Malformed> {
    let lifetime = asked.unwrap_or(Duration::from_secs(600));
    if (300..=86_400).contains(&lifetime.as_secs()) && lifetime.subsec_nanos() == 0 {
        return Ok(lifetime);
    }
    Err(Malformed::new("lifetime", "must be 300 to 86400 seconds"))
}

/// How often a token can be retrieved, from what was asked: 1 to 500; 1 if 0 was.
///
/// # Errors
/// [`Malformed`], of the field `max_allowed_retrievals`.
pub fn retrievals(asked: i32) -> Result<u16, Malformed> {
    let asked = if asked == 0 { 1 } else { asked };
    let fits = u16::try_from(asked).ok().filter(|asked| (1..=500).contains(asked));
    fits.ok_or(Malformed::new("max_allowed_retrievals", "must be 1 to 500, or 0 for 1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::tests::at;

    fn token() -> ImportToken {
        ImportToken {
            instance: "default".parse().unwrap(),
            object: ObjectId::from_bytes([1; 16]),
            public_key: Box::default(),
            nonce: [0; NONCE_BYTES],
            created: at(1_000),
            lifetime: Duration::from_secs(600),
            retrievals: 2,
            remaining: 2,
        }
    }

    #[test]
    fn a_token_ends_by_whichever_clock_says_so_first() {
        let token = token();
        assert_eq!(token.check(at(1_599)), Ok(()));
        assert_eq!(token.check(at(1_600)), Err(TokenEnded::Expired));
        let jumped = Moment { time: at(9_999).time, ..at(1_001) };
        assert_eq!(token.check(jumped), Err(TokenEnded::Expired));
        let back = Moment { time: at(0).time, ..at(1_600) };
        assert_eq!(token.check(back), Err(TokenEnded::Expired));
    }

    #[test]
    fn a_token_is_retrieved_as_often_as_it_may_be() {
        let last = token().retrieved(at(1_001)).unwrap().retrieved(at(1_002)).unwrap();
        assert_eq!(last.remaining, 0);
        assert_eq!(last.retrieved(at(1_003)), Err(TokenEnded::UsedUp));
        assert_eq!(last.check(at(1_003)), Ok(()));
    }

    #[test]
    fn lifetime_and_retrievals_have_their_limits_and_defaults() {
        let seconds = Duration::from_secs;
        assert_eq!(lifetime(None), Ok(seconds(600)));
        assert_eq!(lifetime(Some(seconds(86_400))), Ok(seconds(86_400)));
        for bad in [seconds(0), seconds(299), seconds(86_401), Duration::from_millis(300_500)] {
            assert!(lifetime(Some(bad)).is_err());
        }
        assert_eq!((retrievals(0), retrievals(500)), (Ok(1), Ok(500)));
        assert!(retrievals(501).is_err() && retrievals(-1).is_err());
    }
}
