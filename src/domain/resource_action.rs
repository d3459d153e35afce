//! What can be done with a resource in each condition of its key, and how it is refused.
//!
//! An action needs that a DEK is wrapped or unwrapped, that one goes on being used, or
//! nothing; it is refused as that is. `facts/key-protect.md` 11.3; docs/adr/0011.
//! Printed in `docs/resource-statuses.md`.

use std::fmt::Write;

use super::resource_status::{Attachment, Authorization, Condition, Subject, row_name};
use super::{Malformed, ResourceKind};

/// What can be done with a resource.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ResourceAction {
    /// Make a resource of the kind that the key protects.
    Provision,
    /// Attach a volume to a virtual server.
    Attach,
    /// Detach it.
    Detach,
    /// Start a virtual server.
    StartInstance,
    /// Stop it.
    StopInstance,
    /// Restore a volume or share from a snapshot.
    Restore,
    /// Mount a file share.
    Mount,
    /// Read and write data.
    ReadWrite,
    /// Make a boot volume from an image.
    BootFromImage,
    /// Delete the resource.
    Delete,
}

/// What an action needs of the key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Need {
    /// That a new DEK is wrapped.
    Wrap,
    /// That the resource's DEK is unwrapped.
    Unwrap,
    /// That the DEK which was unwrapped before may go on being used.
    Use,
    /// Nothing.
    Nothing,
}

/// Why an action cannot be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hindrance {
    /// The key is suspended.
    Suspended,
    /// The key is deactivated.
    Deactivated,
    /// The key is destroyed.
    Destroyed,
    /// The service may not use the key.
    NotAuthorized,
}

impl ResourceAction {
    /// Every action, in the order of the tables.
    pub const ALL: [Self; 10] = [
        Self::Provision,
        Self::Attach,
        Self::Detach,
        Self::StartInstance,
        Self::StopInstance,
        Self::Restore,
        Self::Mount,
        Self::ReadWrite,
        Self::BootFromImage,
        Self::Delete,
    ];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::StartInstance => "start instance",
            Self::StopInstance => "stop instance",
            Self::Restore => "restore",
            Self::Mount => "mount",
            Self::ReadWrite => "read and write",
            Self::BootFromImage => "boot from image",
            Self::Delete => "delete",
        }
    }

    /// What the action needs of the key.
    ///
    /// # Errors
    /// [`Malformed`], of the field `action`, if it makes no sense for `subject`.
    pub fn needs(self, subject: Subject, attachment: Attachment) -> Result<Need, Malformed> {
        let column = match subject {
            Subject::Registered(ResourceKind::CustomImage) => 0,
            Subject::Registered(ResourceKind::BootVolume) => 1,
            Subject::Registered(ResourceKind::DataVolume) => 2,
            Subject::Registered(ResourceKind::Snapshot) => 3,
            Subject::Registered(ResourceKind::FileShare) => 4,
            Subject::VirtualServer => 5,
        };
        let senseless = Malformed::new("action", "cannot be done with such a resource");
        match (needs(self)[column], attachment) {
            (Entry::Needs(need), _) | (Entry::UseIfAttached(need), Attachment::StandAlone) => {
                Ok(need)
            }
            (Entry::UseIfAttached(_), Attachment::Attached) => Ok(Need::Use),
            (Entry::Senseless, _) => Err(senseless),
        }
    }
}

impl Need {
    /// Whether a key in that condition gives what is needed. As for a wrap or unwrap,
    /// the permission is asked before the key's state.
    ///
    /// # Errors
    /// [`Hindrance`], by the table.
    pub fn met(self, condition: Condition, authorization: Authorization) -> Result<(), Hindrance> {
        if authorization == Authorization::Removed {
            self.met_in(Condition::AuthorizationRemoved)?;
        }
        self.met_in(condition)
    }

    fn met_in(self, condition: Condition) -> Result<(), Hindrance> {
        let column = match condition {
            Condition::Active => 0,
            Condition::Suspended => 1,
            Condition::Deactivated => 2,
            Condition::Destroyed => 3,
            Condition::Restored => 4,
            Condition::AuthorizationRemoved => 5,
        };
        hindrances(self)[column].map_or(Ok(()), Err)
    }
}

#[derive(Clone, Copy)]
enum Entry {
    Senseless,
    Needs(Need),
    /// An attached volume goes on; one that stands alone is attached first.
    UseIfAttached(Need),
}

/// What each action needs, in a column for each subject. When a DEK is unwrapped:
/// `facts/key-protect.md` 11.3 and 11.4.
#[rustfmt::skip]
const fn needs(action: ResourceAction) -> [Entry; 6] {
    const W: Entry = Entry::Needs(Need::Wrap);
    const U: Entry = Entry::Needs(Need::Unwrap);
    const G: Entry = Entry::Needs(Need::Use);
    const A: Entry = Entry::UseIfAttached(Need::Unwrap);
    const N: Entry = Entry::Needs(Need::Nothing);
    const X: Entry = Entry::Senseless;
    match action {                       // image  boot  data  snapshot  share  server
        ResourceAction::Provision     => [  W,     W,    W,    W,        W,     X ],
        ResourceAction::Attach        => [  X,     U,    U,    X,        X,     X ],
        ResourceAction::Detach        => [  X,     N,    N,    X,        X,     X ],
        ResourceAction::StartInstance => [  X,     U,    U,    X,        X,     U ],
        ResourceAction::StopInstance  => [  X,     N,    N,    X,        X,     N ],
        ResourceAction::Restore       => [  X,     X,    X,    U,        X,     X ],
        ResourceAction::Mount         => [  X,     X,    X,    X,        G,     X ],
        ResourceAction::ReadWrite     => [  X,     A,    A,    X,        G,     X ],
        ResourceAction::BootFromImage => [  U,     X,    X,    X,        X,     X ],
        ResourceAction::Delete        => [  N,     N,    N,    N,        N,     N ],
    }
}

/// What stands against each need, in a column for each condition. The first two rows
/// are those of wrap and unwrap in `lifecycle.rs`; a test compares them.
#[rustfmt::skip]
const fn hindrances(need: Need) -> [Option<Hindrance>; 6] {
    const Y: Option<Hindrance> = None;
    const S: Option<Hindrance> = Some(Hindrance::Suspended);
    const D: Option<Hindrance> = Some(Hindrance::Deactivated);
    const X: Option<Hindrance> = Some(Hindrance::Destroyed);
    const P: Option<Hindrance> = Some(Hindrance::NotAuthorized);
    match need {         // active  suspended  deactivated  destroyed  restored  removed
        Need::Wrap    => [  Y,      S,         D,           X,         Y,        P ],
        Need::Unwrap  => [  Y,      S,         Y,           X,         Y,        P ],
        Need::Use     => [  Y,      Y,         Y,           X,         Y,        Y ],
        Need::Nothing => [  Y,      Y,         Y,           Y,         Y,        Y ],
    }
}

/// The table of actions as Markdown, for `docs/resource-statuses.md`.
pub fn table_as_markdown() -> String {
    let mut text = String::new();
    let names = Condition::ALL.map(Condition::name).join(" | ");
    text.push_str(&format!("\n### Actions\n\n| action | resource | {names} |\n"));
    text.push_str("|---|---|---|---|---|---|---|---|\n");
    for action in ResourceAction::ALL {
        for subject in Subject::ALL {
            let [attached, alone] = Attachment::ALL.map(|it| action.needs(subject, it));
            let (Ok(attached), Ok(alone)) = (attached, alone) else { continue };
            let same = attached == alone;
            let first = (!same).then_some(Attachment::Attached);
            action_row(&mut text, action, (subject, first), attached);
            if !same {
                action_row(&mut text, action, (subject, Some(Attachment::StandAlone)), alone);
            }
        }
    }
    text
}

fn action_row(
    text: &mut String,
    action: ResourceAction,
    of: (Subject, Option<Attachment>),
    need: Need,
) {
    let cells = Condition::ALL.map(|condition| match need.met_in(condition) {
        Ok(()) => "yes".to_owned(),
        Err(hindrance) => format!("{hindrance:?}"),
    });
    let (action, of, cells) = (action.name(), row_name(of), cells.join(" | "));
    let written = writeln!(text, "| {action} | {of} | {cells} |");
    written.expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{KeyAction, KeyState, Profile, Refusal};

    /// `facts/key-protect.md` 11.3 and the seed's results, written again by hand: for
    /// each action and subject, attached and stand-alone, a letter for each condition.
    /// y allowed; s, d, x, p refused since suspended, deactivated, destroyed, not
    /// permitted.
    #[rustfmt::skip]
    const ACTIONS: [(&str, &str, &str, &str); 23] = [
        ("provision",       "custom image",   "ysdxyp", "ysdxyp"),
        ("provision",       "boot volume",    "ysdxyp", "ysdxyp"),
        ("provision",       "data volume",    "ysdxyp", "ysdxyp"),
        ("provision",       "snapshot",       "ysdxyp", "ysdxyp"),
        ("provision",       "file share",     "ysdxyp", "ysdxyp"),
        ("attach",          "boot volume",    "ysyxyp", "ysyxyp"),
        ("attach",          "data volume",    "ysyxyp", "ysyxyp"),
        ("detach",          "boot volume",    "yyyyyy", "yyyyyy"),
        ("detach",          "data volume",    "yyyyyy", "yyyyyy"),
        ("start instance",  "boot volume",    "ysyxyp", "ysyxyp"),
        ("start instance",  "data volume",    "ysyxyp", "ysyxyp"),
        ("start instance",  "virtual server", "ysyxyp", "ysyxyp"),
        ("stop instance",   "boot volume",    "yyyyyy", "yyyyyy"),
        ("stop instance",   "data volume",    "yyyyyy", "yyyyyy"),
        ("stop instance",   "virtual server", "yyyyyy", "yyyyyy"),
        ("restore",         "snapshot",       "ysyxyp", "ysyxyp"),
        ("mount",           "file share",     "yyyxyy", "yyyxyy"),
        ("read and write",  "boot volume",    "yyyxyy", "ysyxyp"),
        ("read and write",  "data volume",    "yyyxyy", "ysyxyp"),
        ("read and write",  "file share",     "yyyxyy", "yyyxyy"),
        ("boot from image", "custom image",   "ysyxyp", "ysyxyp"),
        ("delete",          "custom image",   "yyyyyy", "yyyyyy"),
        ("delete",          "virtual server", "yyyyyy", "yyyyyy"),
    ];

    #[test]
    fn every_action_is_allowed_and_refused_as_the_seed_says() {
        let mut found = 0;
        for action in ResourceAction::ALL {
            for subject in Subject::ALL {
                let expected = ACTIONS.iter().find(|(name, of, _, _)| {
                    let like = action == ResourceAction::Delete && *of == "custom image";
                    *name == action.name() && (*of == subject.name() || like)
                });
                let columns = Attachment::ALL.map(|it| action.needs(subject, it));
                let Some((_, _, attached, alone)) = expected else {
                    assert!(
                        columns.iter().all(|it| it.as_ref().is_err_and(|e| e.field == "action"))
                    );
                    continue;
                };
                found += 1;
                for (need, cells) in columns.into_iter().zip([attached, alone]) {
                    let letter = |condition: &Condition| {
                        let (condition, authorization) =
                            if *condition == Condition::AuthorizationRemoved {
                                (Condition::Active, Authorization::Removed)
                            } else {
                                (*condition, Authorization::Held)
                            };
                        match need.unwrap().met(condition, authorization) {
                            Ok(()) => 'y',
                            Err(Hindrance::Suspended) => 's',
                            Err(Hindrance::Deactivated) => 'd',
                            Err(Hindrance::Destroyed) => 'x',
                            Err(Hindrance::NotAuthorized) => 'p',
                        }
                    };
                    let said: String = Condition::ALL.iter().map(letter).collect();
                    assert_eq!(&said, cells, "{action:?} {subject:?}");
                }
            }
        }
        assert_eq!(found, ACTIONS.len() + 4);
    }

    #[test]
    fn what_needs_a_wrap_or_unwrap_is_refused_just_as_the_key_refuses_that() {
        let states = [
            (KeyState::Active, Condition::Active),
            (KeyState::Active, Condition::Restored),
            (KeyState::Suspended, Condition::Suspended),
            (KeyState::Deactivated, Condition::Deactivated),
            (KeyState::Destroyed, Condition::Destroyed),
        ];
        let pairs = [(KeyAction::Wrap, Need::Wrap), (KeyAction::Unwrap, Need::Unwrap)];
        for (action, need) in pairs {
            for (state, condition) in states {
                let refused = state.permit(action, Profile::Vpc).err().map(|it| match it.refusal {
                    Refusal::Suspended => Hindrance::Suspended,
                    Refusal::Deactivated => Hindrance::Deactivated,
                    Refusal::Destroyed => Hindrance::Destroyed,
                    Refusal::NotSuspended | Refusal::NotDestroyed => panic!("{it}"),
                });
                assert_eq!(
                    need.met(condition, Authorization::Held).err(),
                    refused,
                    "{condition:?}"
                );
            }
        }
    }

    #[test]
    fn the_permission_is_asked_before_the_state() {
        let refused = Need::Unwrap.met(Condition::Destroyed, Authorization::Removed);
        assert_eq!(refused, Err(Hindrance::NotAuthorized));
        let refused = Need::Use.met(Condition::Destroyed, Authorization::Removed);
        assert_eq!(refused, Err(Hindrance::Destroyed));
    }
}
