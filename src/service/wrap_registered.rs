//! Wraps or generates a DEK and registers the resource that it encrypts: both or
//! neither.
//!
//! Order: permission, form, service-only, the key's state, HSM; then, under the key's
//! lock, all of that again and one commit with the registration, its record and the
//! wrap's. If it cannot be registered the DEK is wiped. The rules of a registration
//! are `registrations.rs`.

use std::sync::Arc;

use super::crypto::{DekAnswer, DekRequest};
use super::registrations::{NewRegistration, check_new};
use super::{Asked, Caller, Method, Service, within};
use crate::domain::{KeyAction, KeyName, Malformed};
use crate::error::{Error, Reason};

impl Service {
    /// Does what `request` asks, which is to wrap or to generate, and registers `new`
    /// as the method `registering` does. Both have their records when this returns.
    ///
    /// # Errors
    /// As of the one and the other; then nothing is registered and nothing leaves.
    pub async fn dek_registered(
        self: &Arc<Self>,
        caller: &Arc<Caller>,
        (method, registering): (&'static Method, &'static Method),
        request: DekRequest,
        new: Result<NewRegistration, Malformed>,
    ) -> Result<DekAnswer, Error> {
        let resource = match &new {
            Ok(new) if request.resource.is_empty() => new.resource.as_str().to_owned(),
            Ok(_) | Err(_) => request.resource.clone(),
        };
        let name = (request.key.clone(), resource);
        let work = self.wrap_and_register(caller, (method, registering), (request, new), &name);
        let done = work.await.map_err(of_register);
        let event = self.dek_event(caller, method, &name, &done);
        self.count_call(caller, method.action, &event);
        if done.is_err() {
            self.append(vec![event], caller.deadline).await?;
        }
        done.map(|(answer, _action)| answer)
    }

    async fn wrap_and_register(
        self: &Arc<Self>,
        caller: &Arc<Caller>,
        (method, registering): (&'static Method, &'static Method),
        (request, new): (DekRequest, Result<NewRegistration, Malformed>),
        name: &(String, String),
    ) -> Result<(DekAnswer, KeyAction), Error> {
        let resource = request.resource.clone();
        let mut asked = None;
        let form = || {
            let new = new?;
            if !resource.is_empty() && resource != new.resource.as_str() {
                return Err(Malformed::new("resource", "must be the one that is registered").into());
            }
            let key: KeyName = name.0.parse()?;
            let call = self.enter(caller, registering, Ok(Asked::Key(&key)))?;
            check_new(&call, &new)?;
            asked = Some((call, new));
            Ok(())
        };
        let mut permitted = self.permit_dek(caller, method, request, form)?;
        let (call, mut new) = asked.expect("the form was asked");
        self.grant_wrap(&mut permitted).await?;
        let slot = Arc::clone(&permitted.slot);
        let mut done = self.run_deks(caller, vec![Ok(permitted)]).await;
        let (answer, action) = done.pop().expect("one answer for one request")?;

        let (service, caller, name) = (Arc::clone(self), Arc::clone(caller), name.clone());
        self.change(call.clone(), async move {
            let _changing = within(caller.deadline, slot.changing.lock()).await?;
            service.still_permitted(&caller, method, &answer.key, action)?;
            let wrapped_by = answer.key.version_name(answer.version);
            if *new.version.get_or_insert_with(|| wrapped_by.clone()) != wrapped_by {
                let message = "it is not the key version that wraps the DEK";
                let error = Error::new(Reason::KeyVersionInvalid, message);
                return Err(error.of_field("register.key_version").about(answer.key.name()));
            }
            let alteration = service.registering(&call, &slot, new).await?;
            let done = Ok((answer, action));
            let event = service.dek_event(&caller, method, &name, &done);
            service.alter(&call, &slot, alteration, vec![event]).await?;
            done
        })
        .await
    }
}

/// The registration is a field of another name here.
fn of_register(mut error: Error) -> Error {
    let field = match error.field {
        Some("registration") => "register",
        Some("registration.resource") => "register.resource",
        Some("registration.kind") => "register.kind",
        Some("registration.attached_to") => "register.attached_to",
        Some("registration.source") => "register.source",
        Some("registration.description") => "register.description",
        Some("registration.key_version") => "register.key_version",
        _other => return error,
    };
    if let Some(rest) = error.message.strip_prefix("registration") {
        error.message = format!("register{rest}");
    }
    error.of_field(field)
}
