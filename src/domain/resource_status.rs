//! What a key's state means for the resources that it protects: their status. Which
//! actions with them fail is `resource_action.rs`.
//!
//! The tables are the seed's ("Customer root key states and resource statuses"), with
//! `facts/key-protect.md` 11 where the seed is silent. Where the seed contradicts
//! itself the decision is docs/adr/0011. Printed in `docs/resource-statuses.md`.

use std::fmt::Write;

use super::{Key, KeyState, Moment, ResourceKind};

/// What a status is of.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Subject {
    /// A resource that is registered.
    Registered(ResourceKind),
    /// A virtual server that registered volumes are attached to.
    VirtualServer,
}

/// What a key is to the service that has a resource; the mildest first, and of two
/// that hold at once the later one is told.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Condition {
    /// The key is active.
    Active,
    /// The key is active again after it was destroyed.
    Restored,
    /// The key is deactivated.
    Deactivated,
    /// The service may not use the key any more.
    AuthorizationRemoved,
    /// The key is suspended.
    Suspended,
    /// The key is destroyed.
    Destroyed,
}

/// Whether a resource is attached to a virtual server.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Attachment {
    /// It is.
    Attached,
    /// It is not.
    StandAlone,
}

/// Whether the principal that registered a resource may still use the key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Authorization {
    /// It may.
    Held,
    /// It may not.
    Removed,
}

/// What a resource is, in the seed's words.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Status {
    /// Of an image that can be used.
    Active,
    /// Of a volume or virtual server that can be used.
    Available,
    /// Of a snapshot or share that can be used.
    Stable,
    /// It cannot be used.
    Unusable,
    /// Of a share that is offline.
    Suspended,
}

/// Where a cell of the table is from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// The seed's table of that caption, in the row of the subject.
    Seed(&'static str),
    /// The seed's section of that title.
    SeedProse(&'static str),
    /// `facts/key-protect.md`, that section.
    Facts(&'static str),
    /// docs/adr/0011.
    Decided,
}

/// A cell of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cell {
    /// What the resource is.
    pub status: Status,
    /// What that means for whoever uses the resource, in a sentence.
    pub consequence: &'static str,
    /// Where that is from.
    pub source: Source,
}

impl Subject {
    /// Every one, in the order of the seed's tables.
    pub const ALL: [Self; 6] = [
        Self::Registered(ResourceKind::CustomImage),
        Self::Registered(ResourceKind::BootVolume),
        Self::Registered(ResourceKind::DataVolume),
        Self::Registered(ResourceKind::Snapshot),
        Self::Registered(ResourceKind::FileShare),
        Self::VirtualServer,
    ];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Registered(ResourceKind::CustomImage) => "custom image",
            Self::Registered(ResourceKind::BootVolume) => "boot volume",
            Self::Registered(ResourceKind::DataVolume) => "data volume",
            Self::Registered(ResourceKind::Snapshot) => "snapshot",
            Self::Registered(ResourceKind::FileShare) => "file share",
            Self::VirtualServer => "virtual server",
        }
    }

    /// Whether it is a volume, which a virtual server cannot run without.
    pub const fn is_volume(self) -> bool {
        matches!(self, Self::Registered(ResourceKind::BootVolume | ResourceKind::DataVolume))
    }
}

impl Condition {
    /// Every one, in the order of the tables.
    pub const ALL: [Self; 6] = [
        Self::Active,
        Self::Suspended,
        Self::Deactivated,
        Self::Destroyed,
        Self::Restored,
        Self::AuthorizationRemoved,
    ];

    /// Of a key at `now`, to a service that may use it.
    pub fn of(key: &Key, now: Moment) -> Self {
        match key.state(now) {
            KeyState::Active if key.history.restored.is_some() => Self::Restored,
            KeyState::Active => Self::Active,
            KeyState::Suspended => Self::Suspended,
            KeyState::Deactivated => Self::Deactivated,
            KeyState::Destroyed => Self::Destroyed,
        }
    }

    /// The same to a service that may use it, or may not any more.
    #[must_use]
    pub fn with(self, authorization: Authorization) -> Self {
        match authorization {
            Authorization::Held => self,
            Authorization::Removed => self.max(Self::AuthorizationRemoved),
        }
    }

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Restored => "restored",
            Self::Deactivated => "deactivated",
            Self::AuthorizationRemoved => "authorization removed",
            Self::Suspended => "suspended",
            Self::Destroyed => "destroyed",
        }
    }

    /// The seed's reason code. Always told, whatever the status (ADR 11).
    pub const fn status_reason(self) -> Option<&'static str> {
        match self {
            Self::Suspended => Some("encryption_key_disabled"),
            Self::Destroyed => Some("encryption_key_deleted"),
            Self::Active | Self::Restored | Self::Deactivated | Self::AuthorizationRemoved => None,
        }
    }

    /// What a console shows beside the resource. None is documented for other
    /// conditions.
    pub const fn tooltip(self) -> Option<&'static str> {
        match self {
            Self::Suspended => Some("key suspended"),
            Self::Active
            | Self::Restored
            | Self::Deactivated
            | Self::AuthorizationRemoved
            | Self::Destroyed => None,
        }
    }
}

impl Attachment {
    /// Both, in the order of the tables.
    pub const ALL: [Self; 2] = [Self::Attached, Self::StandAlone];

    const fn name(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::StandAlone => "stand-alone",
        }
    }
}

impl Status {
    /// As the seed has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Available => "available",
            Self::Stable => "stable",
            Self::Unusable => "unusable",
            Self::Suspended => "suspended",
        }
    }
}

/// What a resource is: the seed's three tables, and the columns that it lacks.
pub const fn cell(subject: Subject, condition: Condition, attachment: Attachment) -> Cell {
    match condition {
        Condition::Active => active(subject),
        Condition::Suspended => suspended(subject, attachment),
        Condition::Deactivated => deactivated(subject),
        Condition::Destroyed => destroyed(subject, attachment),
        Condition::Restored => restored(subject, attachment),
        Condition::AuthorizationRemoved => authorization_removed(subject, attachment),
    }
}

#[rustfmt::skip]
const fn active(subject: Subject) -> Cell {
    use ResourceKind::{BootVolume, CustomImage, DataVolume, FileShare, Snapshot};
    use Subject::{Registered, VirtualServer};
    let source = Source::Seed("Enabled root key");
    let (status, consequence) = match subject {
        Registered(CustomImage) => (Status::Active,    "Images can be used to create virtual server instances."),
        Registered(BootVolume)  => (Status::Available, "Boot volumes are available to start instances."),
        Registered(DataVolume)  => (Status::Available, "Data volumes can be attached to instances."),
        Registered(Snapshot)    => (Status::Stable,    "The snapshot can be used to restore a volume or share."),
        Registered(FileShare)   => (Status::Stable,    "The file share is available: mount targets can be added and removed, data read and written."),
        VirtualServer           => (Status::Available, "Instances can be restarted."),
    };
    Cell { status, consequence, source }
}

#[rustfmt::skip]
const fn suspended(subject: Subject, attachment: Attachment) -> Cell {
    use Attachment::{Attached, StandAlone};
    use ResourceKind::{BootVolume, CustomImage, DataVolume, FileShare, Snapshot};
    use Subject::{Registered, VirtualServer};
    let seed = Source::Seed("Disabled root key");
    let (status, source, consequence) = match (subject, attachment) {
        (Registered(CustomImage), _) => (Status::Unusable, seed, "Images cannot be used for creating boot volumes during instance provisioning."),
        (Registered(BootVolume), Attached) => (Status::Available, seed, "Boot volumes remain encrypted with the suspended key; if you stop the instance that uses that boot volume, it can't restart."),
        (Registered(BootVolume), StandAlone) => (Status::Available, seed, "Boot volumes remain encrypted with the suspended key, and no instance can start from it."),
        (Registered(DataVolume), Attached) => (Status::Available, seed, "Data volumes remain encrypted, attached, and available until you stop the instance."),
        (Registered(DataVolume), StandAlone) => (Status::Available, seed, "Stand-alone data volumes that are encrypted by the suspended key can't be attached to an instance."),
        (Registered(Snapshot), _) => (Status::Unusable, seed, "The snapshot cannot be used to restore a volume or file share."),
        (Registered(FileShare), _) => (Status::Stable, seed, "Data on the file share is accessible but you can't create a file share with that key."),
        (VirtualServer, _) => (Status::Available, seed, "Instance workloads continue to run; if you stop instances, they can't restart."),
    };
    Cell { status, consequence, source }
}

#[rustfmt::skip]
const fn deactivated(subject: Subject) -> Cell {
    use ResourceKind::{BootVolume, CustomImage, DataVolume, FileShare, Snapshot};
    use Subject::{Registered, VirtualServer};
    let consequence = match subject {
        Registered(CustomImage) => "Images can be used to create virtual server instances, and no image can be made with that key.",
        Registered(BootVolume)  => "Boot volumes are available to start instances, and none can be made with that key.",
        Registered(DataVolume)  => "Data volumes can be attached to instances, and none can be made with that key.",
        Registered(Snapshot)    => "The snapshot can be used to restore a volume or share, which another key must protect.",
        Registered(FileShare)   => "The file share is available, and none can be made with that key.",
        VirtualServer           => "Instances can be restarted.",
    };
    Cell { status: active(subject).status, consequence, source: Source::Decided }
}

#[rustfmt::skip]
const fn destroyed(subject: Subject, attachment: Attachment) -> Cell {
    use Attachment::{Attached, StandAlone};
    use ResourceKind::{BootVolume, CustomImage, DataVolume, FileShare, Snapshot};
    use Subject::{Registered, VirtualServer};
    let source = Source::Seed("Deleted root key");
    let (status, consequence) = match (subject, attachment) {
        (Registered(CustomImage), _) => (Status::Unusable, "Images can't be used for creating boot volumes to provision a new virtual server instance."),
        (Registered(BootVolume), Attached) => (Status::Unusable, "The associated virtual server instance is stopped, and cannot be started while the boot volume is unusable."),
        (Registered(BootVolume), StandAlone) => (Status::Unusable, "No instance can be started while its boot volume is unusable."),
        (Registered(DataVolume), Attached) => (Status::Unusable, "If the data volume is attached to a running instance, the instance is stopped; you can delete the volume."),
        (Registered(DataVolume), StandAlone) => (Status::Unusable, "Stand-alone data volumes cannot be attached to instances; you can delete the volume."),
        (Registered(Snapshot), _) => (Status::Unusable, "The snapshot is inaccessible and can't be used to restore a volume or file share."),
        (Registered(FileShare), _) => (Status::Suspended, "The File Storage system is offline and data cannot be accessed."),
        (VirtualServer, _) => (Status::Unusable, "The instance was automatically stopped and cannot restart."),
    };
    Cell { status, consequence, source }
}

#[rustfmt::skip]
const fn restored(subject: Subject, attachment: Attachment) -> Cell {
    use Attachment::{Attached, StandAlone};
    use ResourceKind::{BootVolume, CustomImage, DataVolume, FileShare, Snapshot};
    use Subject::{Registered, VirtualServer};
    let seed = Source::SeedProse("Restoring deleted root keys");
    let facts = Source::Facts("11.1");
    let (source, consequence) = match (subject, attachment) {
        (Registered(CustomImage), _) => (seed, "Access is restored: images can be used to create virtual server instances."),
        (Registered(BootVolume), _) => (seed, "Access is restored: the instance can be restarted."),
        (Registered(DataVolume), Attached) => (seed, "Access is restored: restart the instance or reattach the volume, whose attachment ID is then another than before."),
        (Registered(DataVolume), StandAlone) => (seed, "Access is restored: data volumes can be attached to instances."),
        (Registered(Snapshot), _) => (seed, "Access is restored: the snapshot can be used to restore a volume or share."),
        (Registered(FileShare), _) => (seed, "Access is restored: the file share is available."),
        (VirtualServer, _) => (facts, "The instance can be restarted; it is not started by itself."),
    };
    Cell { status: active(subject).status, consequence, source }
}

#[rustfmt::skip]
const fn authorization_removed(subject: Subject, attachment: Attachment) -> Cell {
    use Attachment::{Attached, StandAlone};
    use ResourceKind::{BootVolume, CustomImage, DataVolume, FileShare, Snapshot};
    use Subject::{Registered, VirtualServer};
    let facts = Source::Facts("11.1");
    let seed = Source::SeedProse("Removing IAM service authorization to a root key");
    let (source, consequence) = match (subject, attachment) {
        (Registered(CustomImage), _) => (facts, "No boot volume can be made from the image; if it is deleted now, its registration stays."),
        (Registered(BootVolume), Attached) => (seed, "The instance runs until it is stopped, and can't restart; if the volume is deleted now, its registration stays."),
        (Registered(BootVolume), StandAlone) => (facts, "No instance can start from it; if the volume is deleted now, its registration stays."),
        (Registered(DataVolume), Attached) => (seed, "The volume is available until you stop the instance; if it is deleted now, its registration stays."),
        (Registered(DataVolume), StandAlone) => (facts, "The volume can't be attached to an instance; if it is deleted now, its registration stays."),
        (Registered(Snapshot), _) => (facts, "The snapshot can't be used to restore a volume or file share; if it is deleted now, its registration stays."),
        (Registered(FileShare), _) => (facts, "Data is accessible until the share must be unwrapped again; if it is deleted now, its registration stays."),
        (VirtualServer, _) => (seed, "The instance runs until it is stopped, and can't restart."),
    };
    Cell { status: active(subject).status, consequence, source }
}

/// The tables of statuses as Markdown, for `docs/resource-statuses.md`.
pub fn table_as_markdown() -> String {
    let none = || "none".to_owned();
    let mut text = String::from("### Status\n");
    for condition in Condition::ALL {
        let reason = condition.status_reason().map_or_else(none, |it| format!("`{it}`"));
        let tooltip = condition.tooltip().map_or_else(none, |it| format!("`{it}`"));
        let name = condition.name();
        let head = format!("\n#### Key: {name}\n\nstatus_reason: {reason}; tooltip: {tooltip}\n\n");
        text.push_str(&head);
        text.push_str("| resource | status | consequence | from |\n|---|---|---|---|\n");
        for subject in Subject::ALL {
            let [attached, alone] = Attachment::ALL.map(|it| cell(subject, condition, it));
            let same = attached == alone;
            status_row(&mut text, (subject, (!same).then_some(Attachment::Attached)), attached);
            if !same {
                status_row(&mut text, (subject, Some(Attachment::StandAlone)), alone);
            }
        }
    }
    text
}

fn status_row(text: &mut String, of: (Subject, Option<Attachment>), cell: Cell) {
    let Cell { status, consequence, source } = cell;
    let source = match source {
        Source::Seed(table) => format!("seed, table “{table}”"),
        Source::SeedProse(section) => format!("seed, “{section}”"),
        Source::Facts(section) => format!("Key Protect facts {section}"),
        Source::Decided => "decided, [ADR 11](adr/0011-resource-statuses.md)".to_owned(),
    };
    let (of, status) = (row_name(of), status.name());
    let written = writeln!(text, "| {of} | `{status}` | {consequence} | {source} |");
    written.expect("a String takes everything");
}

pub(super) fn row_name((subject, attachment): (Subject, Option<Attachment>)) -> String {
    let attachment = attachment.map_or(String::new(), |it| format!(", {}", it.name()));
    format!("{}{attachment}", subject.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::key::tests::key_at;
    use crate::domain::time::tests::at;

    /// The seed's three tables and `facts/key-protect.md` 11.1, written again by hand,
    /// in the order of [`Condition::ALL`]: active, suspended, deactivated, destroyed,
    /// restored, authorization removed.
    #[rustfmt::skip]
    const SEED: [(&str, [&str; 6]); 6] = [
        ("custom image",   ["active",    "unusable",  "active",    "unusable",  "active",    "active"]),
        ("boot volume",    ["available", "available", "available", "unusable",  "available", "available"]),
        ("data volume",    ["available", "available", "available", "unusable",  "available", "available"]),
        ("snapshot",       ["stable",    "unusable",  "stable",    "unusable",  "stable",    "stable"]),
        ("file share",     ["stable",    "stable",    "stable",    "suspended", "stable",    "stable"]),
        ("virtual server", ["available", "available", "available", "unusable",  "available", "available"]),
    ];

    #[test]
    fn every_status_is_as_the_seed_says() {
        for (subject, (name, row)) in Subject::ALL.into_iter().zip(SEED) {
            assert_eq!(subject.name(), name);
            for (condition, expected) in Condition::ALL.into_iter().zip(row) {
                for attachment in Attachment::ALL {
                    let cell = cell(subject, condition, attachment);
                    assert_eq!(cell.status.name(), expected, "{name} {condition:?}");
                    let one = cell.consequence.matches(". ").count() == 0;
                    assert!(one && cell.consequence.ends_with('.'), "{}", cell.consequence);
                }
            }
        }
    }

    #[test]
    fn the_three_tables_of_the_seed_are_named_as_the_source_and_no_others() {
        let tables = [
            (Condition::Active, "Enabled root key"),
            (Condition::Suspended, "Disabled root key"),
            (Condition::Destroyed, "Deleted root key"),
        ];
        for subject in Subject::ALL {
            for condition in Condition::ALL {
                let table = tables.iter().find(|(it, _)| *it == condition).map(|(_, table)| *table);
                for attachment in Attachment::ALL {
                    let said = match cell(subject, condition, attachment).source {
                        Source::Seed(table) => Some(table),
                        Source::SeedProse(_) | Source::Facts(_) | Source::Decided => None,
                    };
                    assert_eq!(said, table, "{subject:?} {condition:?}");
                }
            }
        }
    }

    #[test]
    fn a_disabled_and_a_deleted_key_have_their_reason_codes() {
        let told = Condition::ALL.map(|it| (it.status_reason(), it.tooltip()));
        let none = (None, None);
        let disabled = (Some("encryption_key_disabled"), Some("key suspended"));
        let deleted = (Some("encryption_key_deleted"), None);
        assert_eq!(told, [none, disabled, none, deleted, none, none]);
    }

    #[test]
    fn what_a_key_is_outranks_a_removed_authorization_if_it_is_worse() {
        assert_eq!(Condition::Destroyed.with(Authorization::Removed), Condition::Destroyed);
        assert_eq!(Condition::Suspended.with(Authorization::Removed), Condition::Suspended);
        let removed = Condition::AuthorizationRemoved;
        for milder in [Condition::Active, Condition::Restored, Condition::Deactivated] {
            assert_eq!(milder.with(Authorization::Removed), removed);
            assert_eq!(milder.with(Authorization::Held), milder);
        }
    }

    #[test]
    fn a_key_is_restored_only_while_it_is_active() {
        let mut key = key_at(at(1));
        assert_eq!(Condition::of(&key, at(2)), Condition::Active);
        key.history.restored = Some(at(2));
        assert_eq!(Condition::of(&key, at(2)), Condition::Restored);
        key.history.suspended = Some(at(3));
        assert_eq!(Condition::of(&key, at(3)), Condition::Suspended);
    }
}
