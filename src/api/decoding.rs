//! What the bytes of a request become before it is asked whether the caller may: each
//! request of the contract decoded and taken apart, without a daemon. Whatever the bytes,
//! the end is a [`Form`] and no panic: `fuzz/` holds it to that.
//!
//! The methods themselves are in `grpc/`, which call the same converters in their order.

use std::str::FromStr;

use prost::Message;

use super::convert::{self, Register};
use super::grpc::parent as place;
use super::{pb, status};
use crate::domain::{
    BindingCollection, Crn, InstanceId, KeyRingId, KeyRingName, Malformed, PrincipalId,
    RegistrationName,
};
use crate::error::Error;

/// What bytes turned out to be.
#[derive(Debug)]
pub enum Form {
    /// Not an encoding of the message.
    NotTheMessage,
    /// The message, with a field that has not its form.
    Refused(Error),
    /// A message that a method goes on with.
    Right,
}

/// A request of the contract by the name of its message, and what decodes it.
pub type Decoder = (&'static str, fn(&[u8]) -> Form);

macro_rules! decoders {
    ($($request:ident => $convert:expr;)*) => {
        /// Every request of the contract.
        pub const DECODERS: &[Decoder] = &[$(
            (stringify!($request), |bytes| form::<pb::$request>(bytes, $convert)),
        )*];
    };
}

fn form<M: Message + Default>(bytes: &[u8], convert: fn(M) -> Result<(), Error>) -> Form {
    let Ok(message) = M::decode(bytes) else { return Form::NotTheMessage };
    match convert(message) {
        Ok(()) => Form::Right,
        Err(error) => {
            // What a refusal looks like is made of what came, too.
            drop(status::status(&error, "a request"));
            Form::Refused(error)
        }
    }
}

#[rustfmt::skip]
decoders! {
    WrapDekRequest             => |m| register(convert::wrap_request(m).1);
    UnwrapDekRequest           => |m| done(convert::unwrap_request(m));
    RewrapDekRequest           => |m| done(convert::rewrap_request(m));
    GenerateDekRequest         => |m| register(convert::generate_request(m).0.1);
    BatchUnwrapDeksRequest     => |m| done(m.requests.into_iter().map(convert::unwrap_request).count());
    StreamUnwrapDeksRequest    => |m| done(convert::unwrap_request(m.request.unwrap_or_default()));
    CreateKeyRequest           => |m| { let it = instance(&m.parent)?; convert::new_key(it, m).map(drop) };
    ImportKeyRequest           => |m| { let it = instance(&m.parent)?; convert::imported_key(it, m).map(drop) };
    GetKeyRequest              => |m| key(&m.name);
    ListKeysRequest            => |m| { let it = instance(&m.parent)?; convert::key_query(it, m).map(drop) };
    UpdateKeyRequest           => |m| convert::update(m.key.unwrap_or_default(), m.update_mask).map(drop);
    RotateKeyRequest           => |m| convert::rotation(m).map(drop);
    DisableKeyRequest          => |m| key(&m.name);
    EnableKeyRequest           => |m| key(&m.name);
    SetKeyForDeletionRequest   => |m| key(&m.name);
    UnsetKeyForDeletionRequest => |m| key(&m.name);
    DeleteKeyRequest           => |m| key(&m.name);
    RestoreKeyRequest          => |m| key(&m.name);
    PurgeKeyRequest            => |m| key(&m.name);
    ListKeyVersionsRequest     => |m| { key(&m.parent)?; page(m.page_size) };
    CreateKeyRingRequest       => |m| { instance(&m.parent)?; parsed::<KeyRingId>(&m.key_ring_id) };
    ListKeyRingsRequest        => |m| { instance(&m.parent)?; page(m.page_size) };
    DeleteKeyRingRequest       => |m| parsed::<KeyRingName>(&m.name);
    CreateImportTokenRequest   => |m| done(convert::new_import_token(m)?);
    GetImportTokenRequest      => |m| done(convert::import_token_instance(&m.name)?);
    GetInstancePoliciesRequest => |m| done(instance(&m.parent)?);
    SetInstancePolicyRequest   => |m| done(convert::policy_change(m)?);
    GetInstanceMetricsRequest  => |m| done(instance(&m.parent)?);
    CreateRegistrationRequest  => |m| done(convert::new_registration(m.registration)?);
    UpdateRegistrationRequest  => |m| done(convert::registration_update(m.registration.unwrap_or_default(), m.update_mask)?);
    GetRegistrationRequest     => |m| parsed::<RegistrationName>(&m.name);
    ListRegistrationsRequest   => |m| done(convert::registrations_wanted(place(&m.parent)?, m)?);
    DeleteRegistrationRequest  => |m| parsed::<RegistrationName>(&m.name);
    GetResourceStatusRequest   => |m| { instance(&m.parent)?; parsed::<Crn>(&m.resource) };
    ListResourceStatusesRequest => |m| done(convert::statuses_wanted(place(&m.parent)?, m)?);
    CheckResourceActionRequest => |m| done(convert::action_wanted(instance(&m.parent)?, m)?);
    PreviewKeyImpactRequest    => |m| done(convert::impact_wanted(m.name.parse()?, m)?);
    WatchKeyEventsRequest      => |m| done(instance(&m.parent)?);
    AcknowledgeKeyEventRequest => |m| done(convert::event_answer(m.key.parse()?, m));
    SyncKeyRequest             => |m| key(&m.name);
    CreateRewrapCampaignRequest => |m| key(&m.parent);
    GetRewrapCampaignRequest   => |m| done(convert::campaign_key(&m.name)?);
    PauseRewrapCampaignRequest => |m| done(convert::campaign_key(&m.name)?);
    ResumeRewrapCampaignRequest => |m| done(convert::campaign_key(&m.name)?);
    CreateInstanceRequest      => |m| done(convert::new_instance(m)?);
    GetInstanceRequest         => |m| done(instance(&m.name)?);
    ListInstancesRequest       => |m| page(m.page_size);
    DeleteInstanceRequest      => |m| done(instance(&m.name)?);
    ListAuditEventsRequest     => |m| done(convert::audit_query(instance(&m.parent)?, m)?);
    WatchAuditEventsRequest    => |m| done(convert::records_wanted(instance(&m.parent)?, m)?);
    GetCheckpointRequest       => |m| done(m.fresh);
    ExportAuditLogRequest      => |m| done(m.first_sequence);
    CreateBindingRequest       => |m| done(convert::new_binding(&instance(&m.parent)?, m.binding)?);
    ListBindingsRequest        => |m| { instance(&m.parent)?; page(m.page_size) };
    DeleteBindingRequest       => |m| binding(BindingCollection::Bindings, &m.name);
    CreateServiceAuthorizationRequest => |m| done(convert::new_authorization(&instance(&m.parent)?, m.service_authorization)?);
    ListServiceAuthorizationsRequest => |m| { instance(&m.parent)?; page(m.page_size) };
    DeleteServiceAuthorizationRequest => |m| binding(BindingCollection::ServiceAuthorizations, &m.name);
    TestPermissionsRequest     => tested;
    GetServerInfoRequest       => |_m| Ok(());
    GetHsmStatusRequest        => |_m| Ok(());
}

fn register(wanted: Register) -> Result<(), Error> {
    Ok(wanted.transpose().map(drop)?)
}

fn instance(name: &str) -> Result<InstanceId, Malformed> {
    InstanceId::from_parent(name)
}

fn key(name: &str) -> Result<(), Error> {
    Ok(convert::key_name(name).map(drop)?)
}

fn binding(collection: BindingCollection, name: &str) -> Result<(), Error> {
    Ok(collection.parse(name).map(drop)?)
}

fn page(size: i32) -> Result<(), Error> {
    Ok(convert::page_size_of(size).map(drop)?)
}

fn tested(request: pb::TestPermissionsRequest) -> Result<(), Error> {
    let pb::TestPermissionsRequest { resource, methods, principal, source_address } = request;
    convert::tested_resource(&resource)?;
    principal.parse::<PrincipalId>()?;
    convert::address(&source_address)?;
    Ok(convert::tested_methods(&methods).map(drop)?)
}

fn parsed<T: FromStr<Err = Malformed>>(name: &str) -> Result<(), Error> {
    Ok(name.parse::<T>().map(drop)?)
}

/// All that was made of the message is there; it is not looked at.
fn done<T>(_made: T) -> Result<(), Error> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost_types::FileDescriptorSet;

    use super::*;

    fn decode(request: &str, bytes: &[u8]) -> Form {
        let (_, decode) = DECODERS.iter().find(|(name, _)| *name == request).unwrap();
        decode(bytes)
    }

    #[test]
    fn every_request_of_the_contract_is_decoded() {
        let files = FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap().file;
        let ours = files.iter().filter(|file| file.package() == pb::ERROR_DOMAIN);
        let methods = ours.flat_map(|file| &file.service).flat_map(|service| &service.method);
        let wanted: BTreeSet<_> =
            methods.map(|method| method.input_type().rsplit('.').next().unwrap()).collect();
        assert_eq!(DECODERS.iter().map(|(name, _)| *name).collect::<BTreeSet<_>>(), wanted);
    }

    #[test]
    fn a_request_is_right_or_refused_or_another_message() {
        let right = pb::GetKeyRequest { name: "instances/default/keys/volumes".into() };
        assert!(matches!(decode("GetKeyRequest", &right.encode_to_vec()), Form::Right));
        let Form::Refused(error) = decode("GetKeyRequest", b"") else { panic!("not refused") };
        assert_eq!(error.field, Some("name"));
        assert!(matches!(decode("GetKeyRequest", b"\xff"), Form::NotTheMessage));
    }
}
