//! How a root key and its versions are shown: states in words, times that are
//! not set left out of tables, and every field in JSON.

use clap::ValueEnum;
use comfy_table::Table;
use serde::Serialize;

use crate::{
    api::pb,
    cli::{
        output::{NOTHING, fields, human_time, last_segment, or_nothing, rfc3339, rows},
        rotation_period::period_words,
    },
};

/// A root key, as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct KeyView {
    name: String,
    id: String,
    crn: String,
    display_name: String,
    description: String,
    aliases: Vec<String>,
    key_ring: String,
    tags: Vec<String>,
    /// `None` for a state that this client does not know.
    state: Option<StateName>,
    imported: bool,
    primary_version: String,
    create_time: Option<String>,
    created_by: String,
    update_time: Option<String>,
    rotate_time: Option<String>,
    expire_time: Option<String>,
    delete_time: Option<String>,
    restore_expire_time: Option<String>,
    purge_allow_time: Option<String>,
    purge_time: Option<String>,
    registration_count: u64,
    rotation_period_seconds: Option<i64>,
    dual_auth_delete: bool,
    deletion_auth_expire_time: Option<String>,
    etag: String,
}

impl From<pb::Key> for KeyView {
    fn from(key: pb::Key) -> Self {
        let pb::Key {
            name,
            crn,
            display_name,
            description,
            aliases,
            key_ring,
            tags,
            state,
            imported,
            primary_version,
            create_time,
            created_by,
            update_time,
            rotate_time,
            expire_time,
            delete_time,
            restore_expire_time,
            purge_allow_time,
            purge_time,
            registration_count,
            rotation_period,
            dual_auth_delete,
            deletion_auth_expire_time,
            etag,
        } = key;
        let time = |time: Option<prost_types::Timestamp>| time.as_ref().and_then(rfc3339);
        Self {
            id: last_segment(&name).to_owned(),
            name,
            crn,
            display_name,
            description,
            aliases,
            key_ring,
            tags,
            state: StateName::of(state),
            imported,
            primary_version,
            create_time: time(create_time),
            created_by,
            update_time: time(update_time),
            rotate_time: time(rotate_time),
            expire_time: time(expire_time),
            delete_time: time(delete_time),
            restore_expire_time: time(restore_expire_time),
            purge_allow_time: time(purge_allow_time),
            purge_time: time(purge_time),
            registration_count,
            rotation_period_seconds: rotation_period.map(|period| period.seconds),
            dual_auth_delete,
            deletion_auth_expire_time: time(deletion_auth_expire_time),
            etag,
        }
    }
}

impl KeyView {
    fn state_words(&self) -> &'static str {
        self.state.map_or("unknown", StateName::words)
    }

    pub(super) fn list(views: &[Self]) -> Table {
        let row = |view: &Self| {
            vec![
                view.id.clone(),
                view.display_name.clone(),
                or_nothing(&view.aliases.join(", ")),
                or_nothing(&view.key_ring),
                view.state_words().to_owned(),
                view.rotation(),
                view.deletion(),
                view.registration_count.to_string(),
                human_time(view.create_time.as_ref()),
            ]
        };
        let header = [
            "ID",
            "NAME",
            "ALIASES",
            "RING",
            "STATE",
            "ROTATION",
            "DELETION",
            "REGISTRATIONS",
            "CREATED",
        ];
        rows(&header, views.iter().map(row))
    }

    fn rotation(&self) -> String {
        match self.rotation_period_seconds {
            Some(seconds) => period_words(seconds),
            None => "by hand".to_owned(),
        }
    }

    /// By how many it is deleted, and who already has authorized it; of a
    /// destroyed key, how long it is still there.
    fn deletion(&self) -> String {
        let mut lines = Vec::new();
        if self.state != Some(StateName::Destroyed) {
            let principals = if self.dual_auth_delete { "two principals" } else { "one principal" };
            lines.push(format!("by {principals}"));
        }
        let times = [
            ("authorized until", &self.deletion_auth_expire_time),
            ("restorable until", &self.restore_expire_time),
            ("purged", &self.purge_time),
        ];
        for (what, time) in times {
            if time.is_some() {
                lines.push(format!("{what} {}", human_time(time.as_ref())));
            }
        }
        lines.join("\n")
    }

    /// Every field that says something; times that are not set are left out.
    pub(super) fn table(&self) -> Table {
        let origin = if self.imported { "imported" } else { "generated in the HSM" };
        let deletion = if self.dual_auth_delete { "by two principals" } else { "by one principal" };
        let always = [
            ("id", self.id.clone()),
            ("state", self.state_words().to_owned()),
            ("name", self.display_name.clone()),
            ("description", or_nothing(&self.description)),
            ("aliases", or_nothing(&self.aliases.join(", "))),
            ("tags", or_nothing(&self.tags.join(", "))),
            ("key ring", or_nothing(&self.key_ring)),
            ("full name", self.name.clone()),
            ("crn", or_nothing(&self.crn)),
            ("origin", origin.to_owned()),
            ("primary version", or_nothing(last_segment(&self.primary_version))),
            ("registrations", self.registration_count.to_string()),
            ("rotation", self.rotation()),
            ("deletion", deletion.to_owned()),
            ("created by", or_nothing(&self.created_by)),
            ("etag", or_nothing(&self.etag)),
        ];
        let times = [
            ("created", &self.create_time),
            ("updated", &self.update_time),
            ("rotated", &self.rotate_time),
            ("expires", &self.expire_time),
            ("deleted", &self.delete_time),
            ("restorable until", &self.restore_expire_time),
            ("purge allowed from", &self.purge_allow_time),
            ("purged by itself", &self.purge_time),
            ("authorization for deletion until", &self.deletion_auth_expire_time),
        ];
        let times = times.into_iter().map(|(name, time)| (name, human_time(time.as_ref())));
        fields(always.into_iter().chain(times.filter(|(_, time)| time != NOTHING)))
    }
}

/// One version of a root key, as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct VersionView {
    name: String,
    primary: bool,
    create_time: Option<String>,
}

impl From<pb::KeyVersion> for VersionView {
    fn from(version: pb::KeyVersion) -> Self {
        let pb::KeyVersion { name, create_time, primary } = version;
        Self { name, primary, create_time: create_time.as_ref().and_then(rfc3339) }
    }
}

impl VersionView {
    pub(super) fn list(views: &[Self]) -> Table {
        let row = |view: &Self| {
            let role = if view.primary { "primary (wraps)" } else { "retired (unwraps)" };
            vec![
                last_segment(&view.name).to_owned(),
                role.to_owned(),
                human_time(view.create_time.as_ref()),
            ]
        };
        rows(&["VERSION", "ROLE", "CREATED"], views.iter().map(row))
    }
}

/// What a purge leaves to be shown.
#[derive(Debug, Serialize)]
pub(super) struct PurgeView {
    name: String,
    purge_time: Option<String>,
}

impl PurgeView {
    pub(super) fn new(name: String, response: pb::PurgeKeyResponse) -> Self {
        let pb::PurgeKeyResponse { purge_time } = response;
        Self { name, purge_time: purge_time.as_ref().and_then(rfc3339) }
    }

    pub(super) fn table(&self) -> Table {
        let gone = human_time(self.purge_time.as_ref());
        fields([("full name", self.name.clone()), ("gone from the HSM", gone)])
    }
}

/// Where a root key is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum StateName {
    /// Wraps and unwraps
    Active,
    /// Disabled; does nothing until enabled
    Suspended,
    /// Expired; unwraps, never wraps
    Deactivated,
    /// Deleted; can be restored for a while
    Destroyed,
}

impl StateName {
    pub(super) fn number(self) -> i32 {
        let state = match self {
            Self::Active => pb::key::State::Active,
            Self::Suspended => pb::key::State::Suspended,
            Self::Deactivated => pb::key::State::Deactivated,
            Self::Destroyed => pb::key::State::Destroyed,
        };
        state.into()
    }

    fn of(number: i32) -> Option<Self> {
        match pb::key::State::try_from(number).ok()? {
            pb::key::State::Unspecified => None,
            pb::key::State::Active => Some(Self::Active),
            pb::key::State::Suspended => Some(Self::Suspended),
            pb::key::State::Deactivated => Some(Self::Deactivated),
            pb::key::State::Destroyed => Some(Self::Destroyed),
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended (disabled)",
            Self::Deactivated => "deactivated (expired)",
            Self::Destroyed => "destroyed (deleted)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> pb::Key {
        pb::Key {
            name: "instances/default/keys/0b8f".to_owned(),
            display_name: "Block".to_owned(),
            state: pb::key::State::Suspended.into(),
            create_time: Some(prost_types::Timestamp { seconds: 1_767_323_045, nanos: 0 }),
            ..pb::Key::default()
        }
    }

    #[test]
    fn states_are_words_in_tables() {
        for (state, words) in [
            (1, "active"),
            (2, "suspended (disabled)"),
            (3, "deactivated (expired)"),
            (5, "destroyed (deleted)"),
            (0, "unknown"),
            (4, "unknown"),
        ] {
            assert_eq!(KeyView::from(pb::Key { state, ..key() }).state_words(), words);
        }
    }

    #[test]
    fn json_names_the_state_and_the_times() {
        let json = serde_json::to_value(KeyView::from(key())).unwrap();
        assert_eq!(json["id"], "0b8f");
        assert_eq!(json["state"], "suspended");
        assert_eq!(json["create_time"], "2026-01-02T03:04:05Z");
        assert_eq!(json["expire_time"], serde_json::Value::Null);
        assert_eq!(json["aliases"], serde_json::json!([]));
    }

    #[test]
    fn a_list_says_how_a_key_is_rotated_and_deleted() {
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let held = KeyView::from(pb::Key {
            rotation_period: Some(prost_types::Duration { seconds: 7_776_000, nanos: 0 }),
            dual_auth_delete: true,
            deletion_auth_expire_time: time(1_767_323_045),
            ..key()
        });
        assert_eq!(held.rotation(), "every 90 days");
        assert_eq!(held.deletion(), "by two principals\nauthorized until 2026-01-02T03:04:05Z");
        let destroyed = KeyView::from(pb::Key {
            state: pb::key::State::Destroyed.into(),
            restore_expire_time: time(1_767_323_045),
            purge_time: time(1_767_323_046),
            ..key()
        });
        assert_eq!(
            destroyed.deletion(),
            "restorable until 2026-01-02T03:04:05Z\npurged 2026-01-02T03:04:06Z"
        );
    }

    #[test]
    fn a_table_leaves_out_times_that_are_not_set() {
        let table = KeyView::from(key()).table().to_string();
        assert!(table.contains("2026-01-02T03:04:05Z"), "{table}");
        assert!(!table.contains("expires"), "{table}");
    }
}
