//! The token as callers of [`super::Hsm`] see it, whoever drives it: worker threads or
//! worker processes.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::TokenInfo;
use super::object::Kind;
use super::shelf::Shelf;
use super::token::Token;
use crate::domain::{ImportAlgorithm, ObjectId};

/// The token as it is now. Where an answer is an `Option`, it is `None` while the token
/// is away.
pub(super) enum View {
    /// Of worker threads; empty while it is away.
    Threads(Arc<ArcSwapOption<Token>>),
    /// Of worker processes.
    Processes(Arc<Shelf>),
}

impl View {
    pub(super) fn is_up(&self) -> bool {
        match self {
            Self::Threads(token) => token.load().is_some(),
            Self::Processes(shelf) => shelf.is_up(),
        }
    }

    /// How many DEKs go to it as one job, if they come at the same time.
    pub(super) fn together(&self) -> usize {
        match self {
            Self::Threads(token) => token.load().as_ref().map_or(1, |token| token.pace.together()),
            Self::Processes(shelf) => shelf.pace.together(),
        }
    }

    pub(super) fn info(&self) -> Option<TokenInfo> {
        match self {
            Self::Threads(token) => token.load().as_ref().map(|token| token.info()),
            Self::Processes(shelf) => shelf.info(),
        }
    }

    /// The objects of that kind.
    pub(super) fn shown(&self, kind: Kind) -> Option<Vec<ObjectId>> {
        match self {
            Self::Threads(token) => token.load().as_ref().map(|token| token.shown(kind)),
            Self::Processes(shelf) => shelf.objects(kind),
        }
    }

    pub(super) fn doubled(&self) -> Option<Vec<ObjectId>> {
        match self {
            Self::Threads(token) => {
                token.load().as_ref().map(|token| token.doubled().iter().copied().collect())
            }
            Self::Processes(shelf) => shelf.doubled(),
        }
    }

    pub(super) fn unlike(&self) -> Option<BTreeSet<ObjectId>> {
        match self {
            Self::Threads(token) => token.load().as_ref().map(|token| token.unlike().clone()),
            Self::Processes(shelf) => shelf.unlike(),
        }
    }

    pub(super) fn withhold(&self, object: ObjectId) {
        match self {
            Self::Threads(token) => {
                if let Some(token) = &*token.load() {
                    token.withhold(object);
                }
            }
            Self::Processes(shelf) => shelf.withhold(object),
        }
    }

    /// Retires session keys; true if worker threads are to be told.
    pub(super) fn retire(&self, objects: &[ObjectId]) -> bool {
        match self {
            Self::Threads(token) => {
                let token = token.load();
                let Some(token) = &*token else { return false };
                token.session_keys.retire(objects)
            }
            Self::Processes(shelf) => {
                shelf.retire(objects);
                false
            }
        }
    }

    /// Empty while they are not known.
    pub(super) fn import_algorithms(&self) -> Vec<ImportAlgorithm> {
        match self {
            Self::Threads(token) => {
                let token = token.load();
                let ways = token.as_ref().and_then(|token| token.ways.get());
                ways.map(|ways| ways.algorithms().collect()).unwrap_or_default()
            }
            Self::Processes(shelf) => shelf.algorithms().unwrap_or_default(),
        }
    }
}
