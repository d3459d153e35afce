//! How often keys are rotated by themselves, as it is typed: in days.

/// A multiple of 30 days, up to 360.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct RotationPeriod {
    days: u16,
}

impl RotationPeriod {
    pub(super) fn duration(self) -> prost_types::Duration {
        prost_types::Duration { seconds: i64::from(self.days) * SECONDS_IN_DAY, nanos: 0 }
    }
}

/// Parses what is typed.
pub(super) fn rotation_period(text: &str) -> Result<RotationPeriod, &'static str> {
    match text.parse() {
        Ok(days) if (30..=360).contains(&days) && days % 30 == 0 => Ok(RotationPeriod { days }),
        Ok(_) | Err(_) => Err("must be a multiple of 30, from 30 to 360"),
    }
}

/// In words, for people.
pub(super) fn period_words(seconds: i64) -> String {
    format!("every {} days", seconds / SECONDS_IN_DAY)
}

const SECONDS_IN_DAY: i64 = 86_400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_a_multiple_of_thirty_days_and_at_most_three_hundred_and_sixty() {
        for text in ["30", "90", "360"] {
            assert!(rotation_period(text).is_ok(), "{text}");
        }
        for text in ["0", "29", "31", "390", "-30", "", "thirty", "30.0"] {
            assert!(rotation_period(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_period_is_sent_in_seconds_and_said_in_days() {
        let seconds = rotation_period("30").unwrap().duration().seconds;
        assert_eq!((seconds, period_words(seconds).as_str()), (2_592_000, "every 30 days"));
    }
}
