//! Import tokens: a pair in the HSM to which key material is sealed. An instance has
//! one; a new one takes the place of the old, whose pair is destroyed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::tenants::Tenant;
use super::{Answer, Call, Service, within};
use crate::domain::{
    ImportAlgorithm, ImportToken, InstanceId, KeyId, ObjectId, Outcome, TokenEnded,
};
use crate::error::{Error, Reason};
use crate::store::{Change, ImportTokenWrite, Intent, IntentStage};

/// A token, and what material can be sealed with.
pub type TokenAndAlgorithms = (ImportToken, Vec<ImportAlgorithm>);

impl Service {
    /// Makes an import token of an instance, in the place of the one before.
    ///
    /// # Errors
    /// Of HSM and store.
    pub async fn create_import_token(
        self: &Arc<Self>,
        call: &Call,
        instance: InstanceId,
        (lifetime, retrievals): (Duration, u16),
    ) -> Result<Answer<TokenAndAlgorithms>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let tenant = service.tenants.find(&instance)?;
            let _changing = within(call.caller.deadline, tenant.changing.lock()).await?;
            let (object, public_key) = service.make_pair(&tenant).await?;
            let mut nonce = [0; crate::domain::import_token::NONCE_BYTES];
            if getrandom::fill(&mut nonce).is_err() {
                service.abandon(object);
                return Err(Error::new(Reason::Internal, "the system has no random bytes"));
            }
            let token = ImportToken {
                instance,
                object,
                public_key: public_key.into(),
                nonce,
                created: service.now(),
                lifetime,
                retrievals,
                remaining: retrievals,
            };
            let put = ImportTokenWrite::Put(token.clone());
            if let Err(error) = service.write_token(&call, &tenant, put, vec![object]).await {
                service.abandon(object);
                return Err(error);
            }
            service.intents.end(object);
            tenant.set_import_token(Some(token.clone()));
            Ok(Answer::recorded((token, service.hsm.import_algorithms())))
        })
        .await
    }

    /// The import token of an instance, which can be retrieved once less then. Not
    /// before it is known what material can be sealed with: a token that does not say
    /// would be counted and of no use.
    ///
    /// # Errors
    /// IMPORT_TOKEN_EXPIRED, HSM_UNAVAILABLE, or of the store.
    pub async fn retrieve_import_token(
        self: &Arc<Self>,
        call: &Call,
        instance: InstanceId,
    ) -> Result<Answer<TokenAndAlgorithms>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let tenant = service.tenants.find(&instance)?;
            let _changing = within(call.caller.deadline, tenant.changing.lock()).await?;
            let token = tenant.import_token().ok_or_else(|| none(&instance))?;
            let token = token.retrieved(service.now()).map_err(|why| ended(&instance, why))?;
            let algorithms = service.hsm.import_algorithms();
            if algorithms.is_empty() {
                let message = "it is not known now what key material the HSM unwraps";
                let error = Error::new(Reason::HsmUnavailable, message);
                return Err(error.about(token_name(&instance)));
            }
            let put = ImportTokenWrite::Put(token.clone());
            service.write_token(&call, &tenant, put, Vec::new()).await?;
            tenant.set_import_token(Some(token.clone()));
            Ok(Answer::recorded((token, algorithms)))
        })
        .await
    }

    /// The token that material is unwrapped by now.
    ///
    /// # Errors
    /// IMPORT_TOKEN_EXPIRED.
    pub(super) fn good_import_token(
        &self,
        instance: &InstanceId,
    ) -> Result<Arc<ImportToken>, Error> {
        let token = self.tenants.find(instance)?.import_token().ok_or_else(|| none(instance))?;
        token.check(self.now()).map_err(|why| ended(instance, why))?;
        Ok(token)
    }

    /// Destroys the pairs of tokens whose time is over, and of deleted instances.
    pub(super) async fn end_import_tokens(self: &Arc<Self>) {
        if !self.hsm.is_up() {
            return;
        }
        for tenant in self.tenants.with_token() {
            let Some(token) = tenant.import_token() else { continue };
            let gone = tenant.info().deleted.is_some();
            if token.check(self.now()).is_ok() && !gone {
                continue;
            }
            let _changing = tenant.changing.lock().await;
            if tenant.import_token().is_none_or(|newer| newer.object != token.object) {
                continue;
            }
            let begin = vec![self.destroying(token.object, &tenant)];
            let remove = Some(ImportTokenWrite::Remove(tenant.id.clone()));
            let change = Change { begin, import_token: remove, ..Change::default() };
            match self.store.commit(change).await {
                Ok(()) => {
                    tenant.set_import_token(None);
                    self.abandon(token.object);
                }
                Err(error) => {
                    self.intents.end(token.object);
                    tracing::warn!(%error, "an import token cannot be ended");
                }
            }
        }
    }

    async fn make_pair(self: &Arc<Self>, tenant: &Tenant) -> Result<(ObjectId, Vec<u8>), Error> {
        let object = ObjectId::from(Uuid::new_v4());
        let intent = intent(object, tenant, IntentStage::Creating, self.now().time);
        self.begin_intent(intent).await?;
        // An RSA-4096 pair takes seconds, and more where the HSM is busy.
        let deadline = Instant::now() + self.settings.object_deadline + PAIR_PATIENCE;
        match self.hsm.generate_import_pair(object, deadline).await {
            Ok(public_key) => {
                failpoint!("pair.made");
                Ok((object, public_key))
            }
            Err(error) => Err(self.not_made(object, error)),
        }
    }

    /// Commits a token with its record. The pair of the one before is given up.
    async fn write_token(
        self: &Arc<Self>,
        call: &Call,
        tenant: &Tenant,
        write: ImportTokenWrite,
        end: Vec<ObjectId>,
    ) -> Result<(), Error> {
        let mut event = self.event(
            &call.caller,
            call.method.action,
            (&token_name(&tenant.id), Outcome::Success),
        );
        if let ImportTokenWrite::Put(token) = &write {
            event.details = vec![
                ("expiration_date_micros".into(), token.expires().as_micros().to_string()),
                ("max_allowed_retrievals".into(), token.retrievals.to_string()),
                ("remaining_retrievals".into(), token.remaining.to_string()),
            ];
        }
        let old = tenant.import_token().filter(|_| !end.is_empty());
        let begin = old.as_ref().map(|old| self.destroying(old.object, tenant));
        let change = Change {
            begin: begin.into_iter().collect(),
            end,
            import_token: Some(write),
            events: vec![event.clone()],
            ..Change::default()
        };
        let committed = self.store.commit(change).await;
        if let Some(old) = old {
            match committed {
                Ok(()) => self.abandon(old.object),
                Err(_) => self.intents.end(old.object),
            }
        }
        committed?;
        failpoint!("token.committed");
        self.publish(vec![event]).await;
        Ok(())
    }

    /// An intent that is begun to destroy a pair, and at work until it is abandoned.
    fn destroying(&self, object: ObjectId, tenant: &Tenant) -> Intent {
        let intent = intent(object, tenant, IntentStage::Destroying, self.now().time);
        self.intents.begin(intent.clone());
        intent
    }
}

fn intent(
    object: ObjectId,
    tenant: &Tenant,
    stage: IntentStage,
    begun: crate::domain::Timestamp,
) -> Intent {
    // A pair is no key's: the column has the pair's own id.
    let key = KeyId::from_bytes(*object.as_bytes());
    Intent {
        object,
        key,
        stage,
        begun,
        purpose: format!("import token {}", token_name(&tenant.id)),
    }
}

fn token_name(instance: &InstanceId) -> String {
    format!("instances/{instance}/importToken")
}

fn none(instance: &InstanceId) -> Error {
    Error::new(Reason::ImportTokenExpired, "the instance has no import token")
        .about(token_name(instance))
}

fn ended(instance: &InstanceId, why: TokenEnded) -> Error {
    Error::new(Reason::ImportTokenExpired, why.to_string()).about(token_name(instance))
}

/// Beyond what another object may take.
const PAIR_PATIENCE: Duration = Duration::from_secs(60);
