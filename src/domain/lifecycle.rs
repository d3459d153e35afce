//! What state a root key is in, and what that state allows.
//!
//! A state is never stored. It follows from what happened to the key and from
//! the time, so a key expires at its date and not when a job gets round to it.
//! States: NIST SP 800-57 part 1 rev. 5, section 7. Table: `docs/key-states.md`,
//! from `facts/key-protect.md` 1.3.

use thiserror::Error;

use super::{Moment, Timestamp};

/// Where a key is in its life.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum KeyState {
    /// Wraps and unwraps.
    Active,
    /// Disabled; does nothing until enabled.
    Suspended,
    /// Expired; unwraps, never wraps.
    Deactivated,
    /// Deleted; can be restored for a while.
    Destroyed,
}

impl KeyState {
    /// Every state, in the order of the tables.
    pub const ALL: [Self; 4] = [Self::Active, Self::Suspended, Self::Deactivated, Self::Destroyed];

    /// For people, the audit log and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Deactivated => "deactivated",
            Self::Destroyed => "destroyed",
        }
    }
}

/// What can be asked of a key.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum KeyAction {
    /// Wrap a DEK, or generate one.
    Wrap,
    /// Unwrap a DEK.
    Unwrap,
    /// Unwrap a DEK and wrap it under the primary version.
    Rewrap,
    /// Make a new primary version.
    Rotate,
    /// To suspended.
    Disable,
    /// Back to active.
    Enable,
    /// Give the first of two authorizations for deletion.
    SetForDeletion,
    /// Take that authorization back.
    UnsetForDeletion,
    /// To destroyed.
    Delete,
    /// Back from destroyed.
    Restore,
    /// Destroy the material.
    Purge,
    /// Change name, aliases, tags, ring, policies.
    Update,
    /// Read the key or its versions.
    Read,
}

impl KeyAction {
    /// Every action, in the order of the tables.
    pub const ALL: [Self; 13] = [
        Self::Wrap,
        Self::Unwrap,
        Self::Rewrap,
        Self::Rotate,
        Self::Disable,
        Self::Enable,
        Self::SetForDeletion,
        Self::UnsetForDeletion,
        Self::Delete,
        Self::Restore,
        Self::Purge,
        Self::Update,
        Self::Read,
    ];

    /// As in "cannot {verb} a key that is suspended".
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Wrap => "wrap with",
            Self::Unwrap => "unwrap with",
            Self::Rewrap => "rewrap with",
            Self::Rotate => "rotate",
            Self::Disable => "disable",
            Self::Enable => "enable",
            Self::SetForDeletion => "set for deletion",
            Self::UnsetForDeletion => "unset for deletion",
            Self::Delete => "delete",
            Self::Restore => "restore",
            Self::Purge => "purge",
            Self::Update => "update",
            Self::Read => "read",
        }
    }
}

/// Whose rules hold where the seed document and Key Protect differ.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Profile {
    /// The seed's: only imported keys can be restored; a deactivated key cannot be rotated.
    #[default]
    Vpc,
    /// Key Protect's: any key can be restored; a deactivated key can be rotated.
    KeyProtect,
}

impl Profile {
    /// As it is written in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vpc => "vpc",
            Self::KeyProtect => "key-protect",
        }
    }
}

/// Why a state refuses an action.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// The key is suspended.
    Suspended,
    /// The key is deactivated.
    Deactivated,
    /// The key is destroyed.
    Destroyed,
    /// Only a suspended key can be enabled.
    NotSuspended,
    /// Only a destroyed key can be restored or purged.
    NotDestroyed,
}

/// The key's state forbids the action.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("cannot {} a key that is {}", .action.verb(), .state.name())]
pub struct Refused {
    /// What was asked.
    pub action: KeyAction,
    /// The state the key is in.
    pub state: KeyState,
    /// Why it is refused.
    pub refusal: Refusal,
}

impl KeyState {
    /// Whether a key in this state may undergo `action`.
    ///
    /// # Errors
    /// [`Refused`], with the reason, if the table says no.
    pub fn permit(self, action: KeyAction, profile: Profile) -> Result<(), Refused> {
        let column = match self {
            Self::Active => 0,
            Self::Suspended => 1,
            Self::Deactivated => 2,
            Self::Destroyed => 3,
        };
        let refusal = match row(action)[column] {
            Cell::Yes => return Ok(()),
            Cell::KeyProtect(_) if profile == Profile::KeyProtect => return Ok(()),
            Cell::KeyProtect(refusal) | Cell::No(refusal) => refusal,
        };
        Err(Refused { action, state: self, refusal })
    }
}

/// A cell of the permit table.
#[derive(Clone, Copy)]
enum Cell {
    Yes,
    No(Refusal),
    /// Yes under [`Profile::KeyProtect`], else no.
    KeyProtect(Refusal),
}

/// The permit table: one row for each action, one column for each state.
#[rustfmt::skip]
const fn row(action: KeyAction) -> [Cell; 4] {
    use Cell::{KeyProtect, No, Yes};
    use Refusal::{Deactivated as D, Destroyed as X, NotDestroyed as ND, NotSuspended as NS, Suspended as S};
    match action {                     // active   suspended  deactivated     destroyed
        KeyAction::Wrap             => [Yes,       No(S),     No(D),          No(X)],
        KeyAction::Unwrap           => [Yes,       No(S),     Yes,            No(X)],
        KeyAction::Rewrap           => [Yes,       No(S),     Yes,            No(X)],
        KeyAction::Rotate           => [Yes,       No(S),     KeyProtect(D),  No(X)],
        KeyAction::Disable          => [Yes,       No(S),     No(D),          No(X)],
        KeyAction::Enable           => [No(NS),    Yes,       No(NS),         No(X)],
        KeyAction::SetForDeletion   => [Yes,       No(S),     Yes,            No(X)],
        KeyAction::UnsetForDeletion => [Yes,       No(S),     Yes,            No(X)],
        KeyAction::Delete           => [Yes,       Yes,       Yes,            No(X)],
        KeyAction::Restore          => [No(ND),    No(ND),    No(ND),         Yes],
        KeyAction::Purge            => [No(ND),    No(ND),    No(ND),         Yes],
        KeyAction::Update           => [Yes,       Yes,       Yes,            No(X)],
        KeyAction::Read             => [Yes,       Yes,       Yes,            Yes],
    }
}

/// What happened to a key, from which its state follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct History {
    /// When the key came to be, active.
    pub activated: Timestamp,
    /// When it expires, if ever.
    pub expires: Option<Timestamp>,
    /// When it was disabled, unless it was enabled since.
    pub suspended: Option<Moment>,
    /// When it was deleted, unless it was restored since.
    pub destroyed: Option<Moment>,
    /// When it was last restored, if it was and was not deleted since.
    pub restored: Option<Moment>,
    /// Since when its material is being destroyed. No way back.
    pub purging: Option<Moment>,
    /// Whether its expiration was recorded.
    pub expiry_noted: bool,
}

impl History {
    /// Of a key that comes to be at `now`.
    pub const fn begun(now: Timestamp, expires: Option<Timestamp>) -> Self {
        Self {
            activated: now,
            expires,
            suspended: None,
            destroyed: None,
            restored: None,
            purging: None,
            expiry_noted: false,
        }
    }

    /// The state at `now`. Destroyed outranks suspended, which outranks deactivated:
    /// a suspended key stays suspended past its date, and can then not be enabled.
    pub fn state(&self, now: Timestamp) -> KeyState {
        if self.destroyed.is_some() {
            KeyState::Destroyed
        } else if self.suspended.is_some() {
            KeyState::Suspended
        } else if self.expired(now) {
            KeyState::Deactivated
        } else {
            KeyState::Active
        }
    }

    /// Whether the expiration date has come.
    pub fn expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// The permit table as Markdown, for `docs/key-states.md`.
pub fn table_as_markdown() -> String {
    let mut text = String::from("| action | active | suspended | deactivated | destroyed |\n");
    text.push_str("|---|---|---|---|---|\n");
    for action in KeyAction::ALL {
        let cell = |cell: &Cell| match cell {
            Cell::Yes => "yes".to_owned(),
            Cell::No(refusal) => format!("{refusal:?}"),
            Cell::KeyProtect(refusal) => format!("{refusal:?} (yes under `key-protect`)"),
        };
        let cells: Vec<_> = row(action).iter().map(cell).collect();
        text.push_str(&format!("| {action:?} | {} |\n", cells.join(" | ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::RunTime;

    /// `facts/key-protect.md` 1.3, written again by hand: + allowed, - refused,
    /// k allowed under key-protect only. Columns: states 1, 2, 3, 5.
    const FACTS: [(KeyAction, &str); 13] = [
        (KeyAction::Wrap, "+---"),
        (KeyAction::Unwrap, "+-+-"),
        (KeyAction::Rewrap, "+-+-"),
        (KeyAction::Rotate, "+-k-"),
        (KeyAction::Disable, "+---"),
        (KeyAction::Enable, "-+--"),
        // In state 3 too: an expired key could never be deleted otherwise (facts, 5).
        (KeyAction::SetForDeletion, "+-+-"),
        (KeyAction::UnsetForDeletion, "+-+-"),
        (KeyAction::Delete, "+++-"),
        (KeyAction::Restore, "---+"),
        (KeyAction::Purge, "---+"),
        (KeyAction::Update, "+++-"),
        (KeyAction::Read, "++++"),
    ];

    #[test]
    fn every_cell_of_the_permit_table_is_as_the_facts_say() {
        assert_eq!(FACTS.map(|(action, _)| action), KeyAction::ALL);
        for (action, cells) in FACTS {
            for (state, cell) in KeyState::ALL.into_iter().zip(cells.chars()) {
                let vpc = state.permit(action, Profile::Vpc).is_ok();
                let key_protect = state.permit(action, Profile::KeyProtect).is_ok();
                assert_eq!(vpc, cell == '+', "{action:?} {state:?}");
                assert_eq!(key_protect, cell != '-', "{action:?} {state:?}");
            }
        }
    }

    #[test]
    fn a_refusal_names_the_state_that_refuses() {
        for action in KeyAction::ALL {
            for state in KeyState::ALL {
                let Err(refused) = state.permit(action, Profile::Vpc) else { continue };
                let expected = match (action, state) {
                    (_, KeyState::Destroyed) => Refusal::Destroyed,
                    (KeyAction::Enable, _) => Refusal::NotSuspended,
                    (KeyAction::Restore | KeyAction::Purge, _) => Refusal::NotDestroyed,
                    (_, KeyState::Suspended) => Refusal::Suspended,
                    (_, KeyState::Deactivated) => Refusal::Deactivated,
                    (_, KeyState::Active) => panic!("active refuses {action:?}"),
                };
                assert_eq!(refused.refusal, expected, "{action:?} {state:?}");
            }
        }
    }

    #[test]
    fn key_expires_in_the_second_of_its_expiration_date() {
        let expires = Timestamp::from_seconds(100);
        let history = History::begun(Timestamp::from_seconds(0), Some(expires));
        assert_eq!(history.state(Timestamp::from_micros(99_999_999)), KeyState::Active);
        assert_eq!(history.state(expires), KeyState::Deactivated);
    }

    #[test]
    fn destroyed_outranks_suspended_outranks_deactivated() {
        let now = Timestamp::from_seconds(10);
        let moment = Moment { time: now, run: RunTime::default() };
        let mut history = History::begun(now, Some(now));
        assert_eq!(history.state(now), KeyState::Deactivated);
        history.suspended = Some(moment);
        assert_eq!(history.state(now), KeyState::Suspended);
        history.destroyed = Some(moment);
        assert_eq!(history.state(now), KeyState::Destroyed);
    }
}
