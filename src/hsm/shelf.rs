//! What worker processes show: the token's objects as the daemon knows them, without
//! a session of its own.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::TokenInfo;
use super::object::Kind;
use super::wire::Shown;
use crate::domain::{ImportAlgorithm, ObjectId};

/// The objects of the token, while it is there.
#[derive(Default)]
pub(super) struct Shelf(RwLock<Inner>);

#[derive(Default)]
struct Inner {
    /// `None` while the token is away.
    up: Option<Up>,
    /// What was made and destroyed of late: a process that lists the token at the same
    /// time may have missed it.
    recent: VecDeque<(Instant, Kind, ObjectId, bool)>,
}

struct Up {
    info: TokenInfo,
    objects: HashSet<(Kind, ObjectId)>,
    algorithms: Option<Vec<ImportAlgorithm>>,
}

impl Shelf {
    /// The token is there, and shows this.
    pub(super) fn put_up(&self, shown: Shown) {
        let Shown { library, slot, serial, mechanisms, root_keys, import_pairs, signers } = shown;
        let of = |kind, ids: Vec<ObjectId>| ids.into_iter().map(move |id| (kind, id));
        let objects = of(Kind::RootKey, root_keys)
            .chain(of(Kind::ImportPair, import_pairs))
            .chain(of(Kind::Signer, signers));
        let mut inner = self.0.write();
        let mut objects: HashSet<_> = objects.collect();
        for (_, kind, object, is_there) in &inner.recent {
            mark(&mut objects, *kind, *object, *is_there);
        }
        let info = TokenInfo { library, slot, serial, mechanisms };
        inner.up = Some(Up { info, objects, algorithms: None });
    }

    /// It is away.
    pub(super) fn take_down(&self) {
        self.0.write().up = None;
    }

    /// Whether it is there.
    pub(super) fn is_up(&self) -> bool {
        self.0.read().up.is_some()
    }

    /// An object was made, or is gone.
    pub(super) fn note(&self, kind: Kind, object: ObjectId, is_there: bool) {
        let mut inner = self.0.write();
        while inner.recent.front().is_some_and(|(at, ..)| at.elapsed() > RECENT) {
            inner.recent.pop_front();
        }
        inner.recent.push_back((Instant::now(), kind, object, is_there));
        if let Some(up) = &mut inner.up {
            mark(&mut up.objects, kind, object, is_there);
        }
    }

    /// The algorithms by which key material can be imported, by name; `None` if that
    /// could not be found out now.
    pub(super) fn unwraps(&self, names: Option<Vec<String>>) {
        let Some(names) = names else { return };
        let algorithms = names.iter().filter_map(|name| name.parse().ok()).collect();
        if let Some(up) = &mut self.0.write().up {
            up.algorithms = Some(algorithms);
        }
    }

    /// The same, if it is known.
    pub(super) fn algorithms(&self) -> Option<Vec<ImportAlgorithm>> {
        self.0.read().up.as_ref()?.algorithms.clone()
    }

    /// What module and token say of themselves.
    pub(super) fn info(&self) -> Option<TokenInfo> {
        self.0.read().up.as_ref().map(|up| up.info.clone())
    }

    /// The objects of that kind.
    pub(super) fn objects(&self, of: Kind) -> Option<Vec<ObjectId>> {
        let inner = self.0.read();
        let objects = inner.up.as_ref()?.objects.iter();
        Some(objects.filter(|(kind, _)| *kind == of).map(|(_, object)| *object).collect())
    }
}

fn mark(objects: &mut HashSet<(Kind, ObjectId)>, kind: Kind, object: ObjectId, is_there: bool) {
    if is_there {
        objects.insert((kind, object));
    } else {
        objects.remove(&(kind, object));
    }
}

/// Longer than a process takes to list the token.
const RECENT: Duration = Duration::from_secs(60);
