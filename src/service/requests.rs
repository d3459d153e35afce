//! Requests with an id of the caller's own, so that they can be repeated: what was
//! made once is not made again.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};
use uuid::Uuid;

use super::{Answer, Call, Service, interrupted, within};
use crate::domain::{Key, KeyId, PrincipalId, Timestamp};
use crate::error::{Error, Reason};
use crate::store::Request;

/// The caller's id of a request that makes something, so that it can be repeated.
#[derive(Clone, Copy, Debug)]
pub struct RequestId {
    /// The caller's own.
    pub id: Uuid,
    /// SHA-256 of the rest of the request.
    pub fingerprint: [u8; 32],
}

/// Requests with an id that are under way, by principal and id.
pub(super) type UnderWay = HashMap<(PrincipalId, Uuid), Weak<Mutex<()>>>;

impl Service {
    /// Waits until no other request with this id is under way, so that the same
    /// request twice at once makes one thing.
    pub(super) async fn alone(
        &self,
        call: &Call,
        request: Option<RequestId>,
    ) -> Result<Option<OwnedMutexGuard<()>>, Error> {
        let Some(request) = request else { return Ok(None) };
        let gate = {
            let mut under_way = self.under_way.lock();
            under_way.retain(|_, gate| gate.strong_count() > 0);
            let name = (call.principal.clone(), request.id);
            let gate = under_way.get(&name).and_then(Weak::upgrade).unwrap_or_default();
            under_way.insert(name, Arc::downgrade(&gate));
            gate
        };
        Ok(Some(within(call.caller.deadline, gate.lock_owned()).await?))
    }

    /// What this request made, if it was made before.
    pub(super) async fn made_before(
        &self,
        call: &Call,
        request: Option<RequestId>,
    ) -> Result<Option<Answer<Arc<Key>>>, Error> {
        let Some(request) = request else { return Ok(None) };
        let found = self.store.find_request(&call.principal, request.id).await?;
        let now = self.now().time;
        let Some(found) = found.filter(|found| now < found.time + REQUEST_ID_KEPT) else {
            return Ok(None);
        };
        if found.fingerprint != request.fingerprint {
            return Err(Error::new(
                Reason::RequestIdReused,
                "request_id was used for another request in the last 24 hours",
            ));
        }
        let slot = self.registry.by_id(found.key).ok_or_else(interrupted)?;
        let key = slot.key();
        let name = key.name();
        Ok(Some(Answer::about(key, name)))
    }
}

/// What is remembered of a request.
pub(super) fn remembered(
    call: &Call,
    request: Option<RequestId>,
    key: KeyId,
    time: Timestamp,
) -> Option<Request> {
    let RequestId { id, fingerprint } = request?;
    Some(Request { principal: call.principal.clone(), id, fingerprint, key, time })
}

/// How long a request id is remembered.
const REQUEST_ID_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
