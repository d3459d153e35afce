//! What worker processes show: the token's objects as the daemon knows them, without
//! a session of its own.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::TokenInfo;
use super::notice::Notice;
use super::object::Kind;
use super::pace::Pace;
use super::wire::Shown;
use crate::domain::{ImportAlgorithm, ObjectId};

/// The objects of the token, while it is there.
#[derive(Default)]
pub(super) struct Shelf {
    pub(super) pace: Pace,
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Whether a reader has it.
    is_up: bool,
    /// As a writer listed it, with what was made and destroyed since.
    token: Option<Token>,
    /// Whether readers copy root keys, in words of the last that came up.
    copying: String,
    /// Those of whom each reader is to hear.
    notices: Vec<Arc<Notice>>,
    /// What was made and destroyed of late: it may be heard of before the list.
    recent: VecDeque<(Instant, Kind, ObjectId, bool)>,
}

struct Token {
    info: TokenInfo,
    objects: HashSet<(Kind, ObjectId)>,
    algorithms: Option<Vec<ImportAlgorithm>>,
    doubled: Vec<ObjectId>,
    unlike: BTreeSet<ObjectId>,
    /// Root keys that are not what they were; each process hears of them with its jobs.
    withheld: Vec<ObjectId>,
}

impl Inner {
    fn token(&self) -> Option<&Token> {
        self.token.as_ref().filter(|_token| self.is_up)
    }
}

impl Shelf {
    /// A writer has the token, and this is what it shows.
    pub(super) fn list(&self, shown: Shown) {
        let Shown { root_keys, import_pairs, signers, master_keys, doubled, unlike, .. } = shown;
        // The writer copies none.
        let Shown { library, slot, serial, mechanisms, copying: _, .. } = shown;
        let of = |kind, ids: Vec<ObjectId>| ids.into_iter().map(move |id| (kind, id));
        let objects = of(Kind::RootKey, root_keys)
            .chain(of(Kind::ImportPair, import_pairs))
            .chain(of(Kind::Signer, signers))
            .chain(of(Kind::MasterKey, master_keys));
        let mut inner = self.inner.write();
        let mut objects: HashSet<_> = objects.collect();
        for (_, kind, object, is_there) in &inner.recent {
            mark(&mut objects, *kind, *object, *is_there);
        }
        let info = TokenInfo { library, slot, serial, mechanisms };
        let unlike = unlike.into_iter().collect();
        let (algorithms, withheld) = (None, Vec::new());
        inner.token = Some(Token { info, objects, algorithms, doubled, unlike, withheld });
    }

    /// A reader has it.
    pub(super) fn put_up(&self) {
        self.inner.write().is_up = true;
    }

    /// None has it any more.
    pub(super) fn take_down(&self) {
        self.inner.write().is_up = false;
    }

    /// Whether one has it.
    pub(super) fn is_up(&self) -> bool {
        self.inner.read().token().is_some()
    }

    /// An object was made, or is gone.
    pub(super) fn note(&self, kind: Kind, object: ObjectId, is_there: bool) {
        let mut inner = self.inner.write();
        while inner.recent.front().is_some_and(|(at, ..)| at.elapsed() > RECENT) {
            inner.recent.pop_front();
        }
        inner.recent.push_back((Instant::now(), kind, object, is_there));
        if let Some(token) = &mut inner.token {
            mark(&mut token.objects, kind, object, is_there);
        }
    }

    /// The algorithms by which key material can be imported, by name; `None` if that
    /// could not be found out now.
    pub(super) fn unwraps(&self, names: Option<Vec<String>>) {
        let Some(names) = names else { return };
        let algorithms = names.iter().filter_map(|name| name.parse().ok()).collect();
        if let Some(token) = &mut self.inner.write().token {
            token.algorithms = Some(algorithms);
        }
    }

    /// The same, if it is known.
    pub(super) fn algorithms(&self) -> Option<Vec<ImportAlgorithm>> {
        self.inner.read().token()?.algorithms.clone()
    }

    /// CKA_IDs that two objects have.
    pub(super) fn doubled(&self) -> Option<Vec<ObjectId>> {
        self.inner.read().token().map(|token| token.doubled.clone())
    }

    /// Root keys that are not as they were asked for.
    pub(super) fn unlike(&self) -> Option<BTreeSet<ObjectId>> {
        self.inner.read().token().map(|token| token.unlike.clone())
    }

    /// Readers are to hear by that of what is retired.
    pub(super) fn notify(&self, notice: Arc<Notice>) {
        self.inner.write().notices.push(notice);
    }

    /// Has every reader destroy its session keys of these root keys.
    pub(super) fn retire(&self, objects: &[ObjectId]) {
        for notice in &self.inner.read().notices {
            notice.give(objects);
        }
    }

    /// A reader has found out whether it copies root keys.
    pub(super) fn note_copying(&self, copying: String) {
        self.inner.write().copying = copying;
    }

    /// Has a root key not be used until a writer lists the token anew.
    pub(super) fn withhold(&self, object: ObjectId) {
        self.retire(&[object]);
        if let Some(token) = &mut self.inner.write().token {
            token.withheld.push(object);
        }
    }

    /// Those that are not to be used.
    pub(super) fn withheld(&self) -> Vec<ObjectId> {
        self.inner.read().token().map(|token| token.withheld.clone()).unwrap_or_default()
    }

    /// What module and token say of themselves.
    pub(super) fn info(&self) -> Option<TokenInfo> {
        let inner = self.inner.read();
        Some(inner.token()?.info.clone().and_copying(&inner.copying))
    }

    /// The objects of that kind.
    pub(super) fn objects(&self, of: Kind) -> Option<Vec<ObjectId>> {
        let inner = self.inner.read();
        let objects = inner.token()?.objects.iter();
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
