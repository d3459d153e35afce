//! Wraps, unwraps, rewraps and generates DEKs: one function for one and for many.
//!
//! The DEKs of a chunk go to the HSM as one job and to the audit log as one
//! append. After the records are durable the key and the caller's permission are
//! looked at once more: a DEK whose key was disabled meanwhile is wiped and
//! refused, so that no unwrap that begins after DisableKey returned succeeds.

use std::sync::Arc;

use super::registry::Slot;
use super::{Asked, Caller, Method, Service, details, refused};
use crate::domain::{Aad, Event, Key, KeyAction, KeyName, Malformed, Outcome, VersionId};
use crate::envelope::{self, DEK_BYTES, Unverified, Wrapped};
use crate::error::Error;
use crate::hsm::{Crypt, Crypted, HsmError, RootKey, Sealed};
use crate::secret::Secret;

/// What is asked about one DEK.
#[derive(Debug)]
pub struct DekRequest {
    /// Name of the key, as it was given.
    pub key: String,
    /// Items of AAD, as they were given.
    pub aad: Vec<Vec<u8>>,
    /// CRN of the resource, for the record; may be empty.
    pub resource: String,
    /// What to do.
    pub action: DekAction,
}

/// What to do with a DEK.
#[derive(Debug)]
pub enum DekAction {
    /// Wrap this one, of 1 to 7500 bytes.
    Wrap(Secret),
    /// Unwrap this one; it is rewrapped too if an older version had wrapped it.
    Unwrap(Vec<u8>),
    /// Unwrap this one and wrap it under the primary version.
    Rewrap(Vec<u8>),
    /// Make one of that many bytes, and wrap it.
    Generate(usize),
}

/// What became of one DEK.
#[derive(Debug)]
pub struct DekAnswer {
    /// The key, as it was then.
    pub key: Arc<Key>,
    /// The DEK itself.
    pub dek: Secret,
    /// The version that opened it; of a new one, the version that sealed it.
    pub version: VersionId,
    /// The DEK wrapped under the primary version, and that version's id. `None`
    /// if it was unwrapped and the primary version had wrapped it.
    pub wrapped: Option<(VersionId, Vec<u8>)>,
}

/// A request that may go to the HSM.
pub(super) struct Permitted {
    pub(super) slot: Arc<Slot>,
    key: Arc<Key>,
    action: KeyAction,
    /// The version that opens or seals.
    version: VersionId,
    /// The version that seals what was opened.
    reseal: Option<VersionId>,
    crypt: Crypt,
}

impl Service {
    /// Does what is asked about each of `requests`; each succeeds or fails alone,
    /// and the answer is as long as `requests` and in its order. Every one has
    /// its record when this returns.
    pub async fn deks(
        &self,
        caller: &Arc<Caller>,
        method: &'static Method,
        requests: Vec<DekRequest>,
    ) -> Vec<Result<DekAnswer, Error>> {
        let names: Vec<_> = requests.iter().map(|r| (r.key.clone(), r.resource.clone())).collect();
        let mut permitted: Vec<_> = requests
            .into_iter()
            .map(|request| self.permit_dek(caller, method, request, || Ok(())))
            .collect();
        for item in &mut permitted {
            let granted = match item {
                Ok(permitted) => self.grant_wrap(permitted).await,
                Err(_) => Ok(()),
            };
            if let Err(error) = granted {
                *item = Err(error);
            }
        }
        let mut results = self.run_deks(caller, permitted).await;

        let events: Vec<Event> = results
            .iter()
            .zip(&names)
            .map(|(result, name)| self.dek_event(caller, method, name, result))
            .inspect(|event| self.count_call(caller, method.action, event))
            .collect();
        if let Err(error) = self.append(events, caller.deadline).await {
            return results.iter().map(|_wiped| Err(error.again())).collect();
        }

        let mut events = Vec::new();
        for (result, name) in results.iter_mut().zip(&names) {
            let Ok((answer, action)) = result else { continue };
            if let Err(late) = self.still_permitted(caller, method, &answer.key, *action) {
                // The DEK is wiped as it is dropped.
                *result = Err(late);
                let mut event = self.dek_event(caller, method, name, result);
                event.details.push(("refused".into(), "late: changed after the HSM call".into()));
                events.push(event);
            }
        }
        if !events.is_empty() {
            let recorded = self.append(events, caller.deadline).await;
            if let Err(error) = recorded {
                return results.iter().map(|_wiped| Err(error.again())).collect();
            }
        }
        results.into_iter().map(|result| result.map(|(answer, _action)| answer)).collect()
    }

    /// Everything that can refuse a DEK before the HSM sees it, in the order of
    /// refusals; `form` is asked along with the form of the rest.
    pub(super) fn permit_dek(
        &self,
        caller: &Arc<Caller>,
        method: &'static Method,
        request: DekRequest,
        form: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Permitted, Error> {
        let DekRequest { key: name, aad, resource, action } = request;
        let name = name.parse::<KeyName>().map_err(|malformed| malformed.of("key"));
        let asked = name.as_ref().map(Asked::Key).map_err(|error| *error);
        self.enter(caller, method, asked)?;
        let name = name?;
        let aad = Aad::new(aad)?;
        check_resource(&resource)?;
        check_size(&action)?;
        form()?;
        let slot = self.registry.find(&name)?;
        let key = slot.key();
        self.permit(&key, action_of(&action), self.now())?;
        let subject = key.name();
        prepare((slot, key), &aad, action)
            .map_err(|unverified| Error::from(unverified).about(subject))
    }

    /// Counts the wrap that this is, if it is one. An unwrap does not fail because
    /// its DEK cannot be rewrapped: it is rewrapped another time.
    pub(super) async fn grant_wrap(&self, permitted: &mut Permitted) -> Result<(), Error> {
        if permitted.action == KeyAction::Unwrap && permitted.reseal.is_none() {
            return Ok(());
        }
        let granted = self.take_wrap(&permitted.slot, &permitted.key).await;
        match granted {
            Err(error) if permitted.action == KeyAction::Unwrap => {
                tracing::warn!(key = %permitted.key.id, %error, "unwrapped, but not rewrapped");
                permitted.reseal = None;
                if let Crypt::Open { reseal, .. } = &mut permitted.crypt {
                    *reseal = None;
                }
                Ok(())
            }
            granted => granted,
        }
    }

    /// Sends what is permitted to the HSM as one job, and puts the answers back
    /// in their places.
    pub(super) async fn run_deks(
        &self,
        caller: &Caller,
        permitted: Vec<Result<Permitted, Error>>,
    ) -> Vec<Result<(DekAnswer, KeyAction), Error>> {
        let mut items = Vec::with_capacity(permitted.len());
        let placed: Vec<_> = permitted
            .into_iter()
            .map(|permitted| {
                let Permitted { slot: _, key, action, version, reseal, crypt } = permitted?;
                items.push(crypt);
                Ok((key, action, version, reseal))
            })
            .collect();
        let done = if items.is_empty() {
            Ok(Vec::new())
        } else {
            self.hsm.crypt(items, caller.deadline).await
        };
        let (mut done, failed) = match done {
            Ok(done) => (done.into_iter(), None),
            Err(error) => (Vec::new().into_iter(), Some(error)),
        };
        let answers = placed.into_iter().map(|placed: Result<_, Error>| {
            let (key, action, version, reseal) = placed?;
            let crypted = match failed {
                Some(error) => Err(error),
                None => done.next().expect("the HSM answers every item"),
            };
            let crypted = crypted.map_err(|error| {
                if error == HsmError::Damaged {
                    self.note_damaged(&key, version);
                }
                Error::from(error).about(key.name())
            })?;
            Ok((finish(key, action, version, reseal, crypted)?, action))
        });
        answers.collect()
    }

    /// For `rootkeyctl doctor`.
    fn note_damaged(&self, key: &Key, version: VersionId) {
        if let Some(version) = key.version(version) {
            self.findings.note_damaged(version.object);
        }
    }

    /// The same questions as before the HSM call, asked of what holds now. An unwrap
    /// that may leave is noted.
    pub(super) fn still_permitted(
        &self,
        caller: &Arc<Caller>,
        method: &'static Method,
        key: &Key,
        action: KeyAction,
    ) -> Result<(), Error> {
        let slot = self.registry.by_id(key.id).ok_or_else(Error::denied)?;
        // It may have moved to another ring.
        self.enter(caller, method, Ok(Asked::Known(&slot.key())))?;
        let now = self.now();
        if let Err(late) = self.permit(&slot.key(), action, now) {
            // This use may have come after those that the change retired.
            self.retire_unless_used(&slot.key());
            return Err(late);
        }
        if action == KeyAction::Unwrap && slot.note_unwrap(now.time) {
            self.unwrapped.lock().push(slot);
        }
        Ok(())
    }

    pub(super) fn dek_event(
        &self,
        caller: &Caller,
        method: &'static Method,
        (name, resource): &(String, String),
        result: &Result<(DekAnswer, KeyAction), Error>,
    ) -> Event {
        let mut event = match result {
            Ok((answer, _)) => {
                let key = &answer.key;
                let mut event = self.event(caller, method.action, (&key.name(), Outcome::Success));
                event.key_version = key.version_name(answer.version);
                // Of a key that never expires it costs nothing.
                if key.history.expires.is_some() {
                    event.details = details::of_expiration(key, event.time);
                }
                if let Some((to, _)) =
                    answer.wrapped.as_ref().filter(|(to, _)| *to != answer.version)
                {
                    event.details.push(("rewrapped_key_version".into(), key.version_name(*to)));
                }
                event
            }
            Err(error) => {
                let subject = error.subject.as_deref().unwrap_or(name);
                self.event(caller, method.action, (subject, refused(error)))
            }
        };
        if check_resource(resource).is_ok() {
            event.resource.clone_from(resource);
        }
        event
    }
}

/// What the HSM must do, and with which versions.
fn prepare(
    (slot, key): (Arc<Slot>, Arc<Key>),
    aad: &Aad,
    action: DekAction,
) -> Result<Permitted, Unverified> {
    let primary = key.primary();
    let (newest, newest_key) = (primary.id, || RootKey::from(primary));
    let bound = |version| envelope::authenticated(key.id, version, aad);
    let permitted_action = action_of(&action);
    let (version, reseal, crypt) = match action {
        DekAction::Wrap(dek) => {
            (newest, None, Crypt::Seal { key: newest_key(), aad: bound(newest), dek })
        }
        DekAction::Generate(length) => {
            (newest, None, Crypt::Generate { key: newest_key(), aad: bound(newest), length })
        }
        DekAction::Unwrap(bytes) | DekAction::Rewrap(bytes) => {
            let wrapped = Wrapped::decode(&bytes)?;
            let version = key.version(wrapped.version).filter(|_| wrapped.key == key.id);
            let version = version.ok_or(Unverified)?;
            let again = permitted_action == KeyAction::Rewrap || version.id != newest;
            let reseal = again.then_some(newest);
            let crypt = Crypt::Open {
                key: version.into(),
                aad: bound(version.id),
                sealed: Sealed { iv: wrapped.iv, bytes: wrapped.sealed.to_vec() },
                reseal: reseal.map(|newest| (newest_key(), bound(newest))),
            };
            (version.id, reseal, crypt)
        }
    };
    Ok(Permitted { slot, key, action: permitted_action, version, reseal, crypt })
}

/// The answer, from what the HSM did.
fn finish(
    key: Arc<Key>,
    action: KeyAction,
    version: VersionId,
    reseal: Option<VersionId>,
    crypted: Crypted,
) -> Result<DekAnswer, Error> {
    let Crypted { dek, sealed } = crypted;
    let sealed = match sealed {
        Some(Ok(sealed)) => Some(sealed),
        None => None,
        // It was unwrapped, which is what was asked; it is rewrapped next time.
        Some(Err(error)) if action == KeyAction::Unwrap => {
            tracing::warn!(key = %key.id, %error, "unwrapped, but not rewrapped");
            None
        }
        Some(Err(error)) => return Err(Error::from(error).about(key.name())),
    };
    let sealed_under = reseal.unwrap_or(version);
    let wrapped = sealed.map(|Sealed { iv, bytes }| {
        let wrapped = Wrapped { key: key.id, version: sealed_under, iv, sealed: &bytes };
        (sealed_under, wrapped.encode())
    });
    Ok(DekAnswer { key, dek, version, wrapped })
}

fn action_of(action: &DekAction) -> KeyAction {
    match action {
        DekAction::Wrap(_) | DekAction::Generate(_) => KeyAction::Wrap,
        DekAction::Unwrap(_) => KeyAction::Unwrap,
        DekAction::Rewrap(_) => KeyAction::Rewrap,
    }
}

fn check_size(action: &DekAction) -> Result<(), Malformed> {
    match action {
        DekAction::Wrap(dek) if !DEK_BYTES.contains(&dek.len()) => {
            Err(Malformed::new("dek", "must be 1 to 7500 bytes"))
        }
        DekAction::Generate(length) if !GENERATED_BYTES.contains(length) => {
            Err(Malformed::new("size_bytes", "must be 16 to 512, or 0 for 32"))
        }
        DekAction::Wrap(_)
        | DekAction::Generate(_)
        | DekAction::Unwrap(_)
        | DekAction::Rewrap(_) => Ok(()),
    }
}

fn check_resource(resource: &str) -> Result<(), Malformed> {
    if resource.len() > LONGEST_RESOURCE || resource.chars().any(char::is_control) {
        let problem = "must be a CRN of at most 512 bytes, without control characters";
        return Err(Malformed::new("resource", problem));
    }
    Ok(())
}

/// What can be generated, in bytes.
const GENERATED_BYTES: std::ops::RangeInclusive<usize> = 16..=512;
/// In bytes. IBM's CRNs are at most 256 characters (`facts/clients.md` 4).
const LONGEST_RESOURCE: usize = 512;
