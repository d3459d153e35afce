//! What a resource is shown as, by what happened to its root key: the three tables of
//! "Managing data encryption". Only shown: whether something can be done is asked of
//! rootkeyd each time.

use super::metadata::{Kind, Mark, Metadata, Resource, Server};

/// `(status, status_reason)`; no reason is empty.
pub(crate) fn of_resource(resource: &Resource) -> (&'static str, &'static str) {
    const DISABLED: &str = "encryption_key_disabled";
    const DELETED: &str = "encryption_key_deleted";
    #[rustfmt::skip]
    let row = match resource.kind { // active             key disabled             key deleted
        Kind::Image      => [("active", ""),    ("unusable", DISABLED), ("unusable", DELETED)],
        Kind::BootVolume => [("available", ""), ("available", ""),      ("unusable", DELETED)],
        Kind::DataVolume => [("available", ""), ("available", ""),      ("unusable", DELETED)],
        Kind::Snapshot   => [("stable", ""),    ("unusable", DISABLED), ("unusable", DELETED)],
        Kind::Share      => [("stable", ""),    ("stable", ""),         ("suspended", DELETED)],
    };
    row[match resource.mark {
        None => 0,
        Some(Mark::KeyDisabled) => 1,
        Some(Mark::KeyDeleted) => 2,
    }]
}

/// Of a virtual server: it is as its boot volume is.
pub(crate) fn of_server(metadata: &Metadata, server: &Server) -> (&'static str, &'static str) {
    let boot = metadata.resource(&server.boot_volume).map(of_resource);
    boot.unwrap_or(("failed", ""))
}
