//! The part of [`Audit`] that is about proof and about following the log: snapshots,
//! the signer, checkpoints, records behind a place, and exports.

use std::ops::ControlFlow;

use tokio::sync::watch;

use super::exporter::Exporter;
use super::forward::{Place, Readable};
use super::page::Walk;
use super::proof::{CHECKPOINTS, PublicKey, Snapshot};
use super::{Audit, AuditError, ObjectId, Record, Signed};
use crate::domain::LogPosition;

impl Audit {
    /// Where the durable records end now.
    pub fn position(&self) -> LogPosition {
        let head = self.0.state.read().head;
        LogPosition { records: head.records, hash: head.hash }
    }

    /// Visits every record behind `position`, newest first; whether the log has that
    /// position. Costs as much as there is behind it. Blocks.
    ///
    /// # Errors
    /// [`AuditError::Corrupt`] at a record that does not verify; [`AuditError::Unavailable`].
    pub fn each_behind(
        &self,
        position: &LogPosition,
        mut visit: impl FnMut(Record),
    ) -> Result<bool, AuditError> {
        let (segments, end) = self.readable();
        let mut walk = Walk::new(&self.0.directory, &segments, end, None)?;
        while let Some(record) = walk.back()? {
            if record.sequence <= position.records {
                return Ok((record.sequence, record.hash) == (position.records, position.hash));
            }
            visit(record);
        }
        Ok(position.records == 0)
    }

    /// The durable records as they are now, to be signed.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.0.state.read();
        Snapshot { tree: state.tree.clone(), head: state.head }
    }

    /// CKA_ID of the object that signs, once that was begun.
    pub fn signer(&self) -> Option<ObjectId> {
        self.0.proof.lock().signer
    }

    /// Writes durably that `object` will be the signer. Blocks.
    ///
    /// # Errors
    /// [`AuditError::Corrupt`], if there are checkpoints, which have a signer;
    /// [`AuditError::Unavailable`].
    pub fn begin_signer(&self, object: ObjectId) -> Result<(), AuditError> {
        self.0.proof.lock().begin_signer(object)
    }

    /// Notes the public key of the signer (the DER of its SubjectPublicKeyInfo). Blocks.
    ///
    /// # Errors
    /// [`AuditError::Corrupt`], if there are checkpoints by another one;
    /// [`AuditError::Unavailable`].
    pub fn adopt_key(&self, spki: Vec<u8>) -> Result<(), AuditError> {
        self.0.proof.lock().adopt_key(spki)
    }

    /// What checkpoints are verified with; `None` before there was a signer.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.0.proof.lock().key.clone()
    }

    /// The newest checkpoint.
    pub fn newest_checkpoint(&self) -> Option<Signed> {
        self.0.proof.lock().newest.clone()
    }

    /// How many records the newest checkpoint covers; `None` before the first one.
    pub fn covered(&self) -> Option<u64> {
        self.0.proof.lock().newest.as_ref().map(|newest| newest.checkpoint.size)
    }

    /// Keeps a checkpoint of `snapshot`, and sends it to where copies go. Blocks.
    ///
    /// # Errors
    /// [`AuditError::Corrupt`], if the known key did not sign it;
    /// [`AuditError::Unavailable`].
    pub fn add_checkpoint(&self, snapshot: Snapshot, note: &str) -> Result<(), AuditError> {
        self.0.proof.lock().add(snapshot, note)
    }

    /// Changes whenever more records are durable.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.0.durable.subscribe()
    }

    /// The place behind the record of that number; `None` if there are fewer. Blocks.
    ///
    /// # Errors
    /// As [`Audit::page`].
    pub fn place_after(&self, records: u64) -> Result<Option<Place>, AuditError> {
        let (segments, end) = self.readable();
        let log = Readable { directory: &self.0.directory, segments: &segments, end };
        log.after(records)
    }

    /// Records behind `place`, which moves on, that are `wanted`: at most `limit`, of at most
    /// 2000 that are looked at. Blocks.
    ///
    /// # Errors
    /// As [`Audit::page`].
    pub fn read_after(
        &self,
        place: &mut Place,
        limit: usize,
        wanted: impl Fn(&Record) -> bool,
    ) -> Result<Vec<Record>, AuditError> {
        let (segments, end) = self.readable();
        let log = Readable { directory: &self.0.directory, segments: &segments, end };
        let (mut records, mut seen, mut bad) = (Vec::new(), 0, None);
        log.walk(place, |item| {
            seen += 1;
            match item.record() {
                Ok(record) if wanted(&record) => records.push(record),
                Ok(_) => {}
                Err(what) => bad = Some(what),
            }
            let more = records.len() < limit && seen < LOOKS_AT && bad.is_none();
            if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        match bad {
            None => Ok(records),
            Some(what) => Err(AuditError::Corrupt { place: "a record".into(), what }),
        }
    }

    /// Begins an export of the records behind the first `skipped`, up to the newest
    /// checkpoint; `None` if that does not reach so far. Blocks.
    ///
    /// # Errors
    /// As [`Audit::page`].
    pub fn export(&self, skipped: u64) -> Result<Option<Exporter>, AuditError> {
        let end = self.covered().unwrap_or(0);
        if end < skipped {
            return Ok(None);
        }
        let (segments, newest_end) = self.readable();
        let directory = self.0.directory.clone();
        let log = Readable { directory: &directory, segments: &segments, end: newest_end };
        let checkpoints = directory.join(CHECKPOINTS);
        Exporter::begin(log, &checkpoints, skipped, end).map(Some)
    }

    /// The next part of an export, of about `bytes`; empty at its end. Blocks.
    ///
    /// # Errors
    /// As [`Audit::page`].
    pub fn export_more(&self, export: &mut Exporter, bytes: usize) -> Result<Vec<u8>, AuditError> {
        let (segments, end) = self.readable();
        let log = Readable { directory: &self.0.directory, segments: &segments, end };
        export.more(log, bytes)
    }
}

/// Records that one call looks at.
const LOOKS_AT: usize = 2_000;
