//! Every operation on every state of every kind of key by every role, through the
//! socket and SoftHSM, against `tests/states.expected`.
//!
//! The file is written from the tables in `expected` here, which are those of
//! `facts/key-protect.md` 1.2, 1.3, 5, 6 and 9, and never from what the daemon
//! answers: `UPDATE_STATES=1 cargo nextest run --test states`. Who reviews a change
//! of the rules reviews the file.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;
#[path = "common/deletion.rs"]
mod deletion;
#[path = "common/imports.rs"]
mod imports;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::fs;

use common::{Client, Daemon, Refusal, refusal};
use deletion::{
    delete, prevent, purge, register, set_for_deletion, unregister, unset_for_deletion,
};
use futures_util::{StreamExt, stream};
use imports::Imports;
use prost_types::{FieldMask, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rootkeyd::api::pb;
use rootkeyd::domain::Profile;
use tonic::transport::Identity;

/// A dimension of the table: its values, and their names in the file.
macro_rules! dimension {
    ($(#[$doc:meta])* $name:ident: $($value:ident = $text:literal,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        enum $name { $($value,)* }

        impl $name {
            const ALL: &[Self] = &[$(Self::$value,)*];

            const fn name(self) -> &'static str {
                match self { $(Self::$value => $text,)* }
            }
        }
    };
}

dimension! {
    State:
    Active = "active",
    Suspended = "suspended",
    Deactivated = "deactivated",
    Destroyed = "destroyed",
    Purged = "purged",
}

dimension! {
    Origin:
    Generated = "generated",
    Imported = "imported",
}

dimension! {
    /// Whether deletion needs two, and one of them, `officer`, wants it already.
    DualAuth:
    Single = "single",
    Dual = "dual",
    Authorized = "authorized",
}

dimension! {
    /// What is registered against the key.
    Registered:
    Nothing = "nothing",
    Plain = "plain",
    Preventing = "preventing",
}

dimension! {
    /// Who asks. The Reader is a service, the others are people.
    Role:
    Nobody = "nobody",
    Reader = "Reader",
    Writer = "Writer",
    Manager = "Manager",
    KeyPurge = "KeyPurge",
}

dimension! {
    Operation:
    Wrap = "wrap",
    Generate = "generate",
    Unwrap = "unwrap",
    Rewrap = "rewrap",
    Rotate = "rotate",
    RotateAmiss = "rotate amiss",
    Disable = "disable",
    Enable = "enable",
    SetForDeletion = "set for deletion",
    UnsetForDeletion = "unset for deletion",
    Delete = "delete",
    DeleteByForce = "delete by force",
    Restore = "restore",
    Purge = "purge",
    Update = "update",
    Get = "get",
    Versions = "list versions",
    Register = "register",
    Unregister = "unregister",
}

/// A kind of key.
type Kind = (Origin, DualAuth, Registered);

/// A question to the daemon.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Cell {
    role: Role,
    kind: Kind,
    operation: Operation,
    state: State,
}

/// What the facts say of a cell: `ok`, or the reason of the refusal. Permission comes
/// first, then whether there is such a key, the form that a key of this kind asks for,
/// the state, and last what else must hold.
fn expected(profile: Profile, cell: Cell) -> &'static str {
    const S: &str = "KEY_SUSPENDED";
    const D: &str = "KEY_DEACTIVATED";
    const X: &str = "KEY_DESTROYED";
    const NS: &str = "KEY_NOT_SUSPENDED";
    const ND: &str = "KEY_NOT_DESTROYED";
    const NA: &str = "KEY_NOT_ACTIVE";
    use Operation as O;
    let Cell { role, kind: (origin, dual_auth, registered), operation, state } = cell;
    let key_protect = profile == Profile::KeyProtect;
    // May rotate a deactivated key, Key Protect says; the seed: it is not active.
    let dr = if key_protect { OK } else { D };
    let amiss = match origin {
        Origin::Generated => "MATERIAL_REFUSED",
        Origin::Imported => "MATERIAL_REQUIRED",
    };
    #[rustfmt::skip]
    let (roles, row) = match operation { // roles   active suspended deactivated destroyed
        O::Wrap             =>          ("RWM",   [OK,    S,        D,          X]),
        O::Generate         =>          ("RWM",   [OK,    S,        D,          X]),
        O::Unwrap           =>          ("RWM",   [OK,    S,        OK,         X]),
        O::Rewrap           =>          ("RWM",   [OK,    S,        OK,         X]),
        O::Rotate           =>          ("WM",    [OK,    S,        dr,         X]),
        O::RotateAmiss      =>          ("WM",    [amiss, amiss,    amiss,      amiss]),
        O::Disable          =>          ("M",     [OK,    S,        D,          X]),
        O::Enable           =>          ("M",     [NS,    OK,       NS,         X]),
        // Deactivated too: such a key could never be deleted otherwise.
        O::SetForDeletion   =>          ("WM",    [OK,    S,        OK,         X]),
        O::UnsetForDeletion =>          ("WM",    [OK,    S,        OK,         X]),
        O::Delete           =>          ("M",     [OK,    OK,       OK,         X]),
        O::DeleteByForce    =>          ("M",     [OK,    OK,       OK,         X]),
        O::Restore          =>          ("M",     [ND,    ND,       ND,         OK]),
        O::Purge            =>          ("P",     [ND,    ND,       ND,         OK]),
        O::Update           =>          ("M",     [OK,    OK,       OK,         X]),
        O::Get              =>          ("RWM",   [OK,    OK,       OK,         OK]),
        O::Versions         =>          ("RWM",   [OK,    OK,       OK,         OK]),
        O::Register         =>          ("RWM",   [OK,    NA,       NA,         NA]),
        O::Unregister       =>          ("RWM",   [OK,    OK,       OK,         OK]),
    };
    let letter = match role {
        Role::Nobody => '-',
        Role::Reader => 'R',
        Role::Writer => 'W',
        Role::Manager => 'M',
        Role::KeyPurge => 'P',
    };
    if !roles.contains(letter) {
        return DENIED;
    }
    if matches!(operation, O::Register | O::Unregister) && role != Role::Reader {
        return "SERVICE_ONLY";
    }
    let by_state = match state {
        State::Active => row[0],
        State::Suspended => row[1],
        State::Deactivated => row[2],
        State::Destroyed => row[3],
        // It is the registration that is named.
        State::Purged if operation == O::Unregister => "REGISTRATION_NOT_FOUND",
        State::Purged => "KEY_NOT_FOUND",
    };
    if by_state != OK {
        return by_state;
    }
    // The first that is true refuses.
    let force = operation == O::DeleteByForce;
    #[rustfmt::skip]
    let guards: &[(bool, &str)] = match operation {
        O::SetForDeletion | O::UnsetForDeletion => &[
            (dual_auth == DualAuth::Single,                 "NOT_DUAL_AUTH"),
        ],
        O::Delete | O::DeleteByForce => &[
            (registered == Registered::Preventing,          "DELETION_PREVENTED"),
            (dual_auth == DualAuth::Dual,                   "AUTHORIZATIONS_NOT_MET"),
            (registered == Registered::Plain && !force,     "KEY_REGISTERED"),
        ],
        O::Restore => &[
            (origin == Origin::Generated && !key_protect,   "KEY_NOT_IMPORTED"),
        ],
        O::Unregister => &[
            (registered == Registered::Nothing,             "REGISTRATION_NOT_FOUND"),
        ],
        O::Wrap | O::Generate | O::Unwrap | O::Rewrap | O::Rotate | O::RotateAmiss | O::Disable
        | O::Enable | O::Purge | O::Update | O::Get | O::Versions | O::Register => &[],
    };
    guards.iter().find(|(holds, _)| *holds).map_or(OK, |(_, reason)| reason)
}

/// What state a key is in after an operation that was allowed.
fn after(operation: Operation, before: State) -> State {
    use Operation as O;
    match operation {
        O::Disable => State::Suspended,
        O::Enable | O::Restore => State::Active,
        O::Delete | O::DeleteByForce => State::Destroyed,
        O::Purge => State::Purged,
        O::Wrap | O::Generate | O::Unwrap | O::Rewrap | O::Rotate | O::RotateAmiss => before,
        O::SetForDeletion | O::UnsetForDeletion | O::Update | O::Get | O::Versions => before,
        O::Register | O::Unregister => before,
    }
}

/// Whether the operation changes the key, or what is registered against it.
fn changes(operation: Operation) -> bool {
    use Operation as O;
    match operation {
        O::Wrap | O::Generate | O::Unwrap | O::Rewrap | O::Get | O::Versions => false,
        O::Rotate | O::RotateAmiss | O::Disable | O::Enable | O::Restore | O::Purge => true,
        O::SetForDeletion | O::UnsetForDeletion | O::Delete | O::DeleteByForce => true,
        O::Update | O::Register | O::Unregister => true,
    }
}

fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for origin in Origin::ALL {
        for dual_auth in DualAuth::ALL {
            kinds.extend(Registered::ALL.iter().map(|it| (*origin, *dual_auth, *it)));
        }
    }
    kinds
}

/// The operations that a table of the file has: under key-protect those that differ.
fn operations(profile: Profile, role: Role, kind: Kind) -> Vec<Operation> {
    let differs = |operation: &Operation| {
        State::ALL.iter().any(|state| {
            let cell = Cell { role, kind, operation: *operation, state: *state };
            expected(Profile::Vpc, cell) != expected(Profile::KeyProtect, cell)
        })
    };
    let all = Operation::ALL.iter().copied();
    all.filter(|operation| profile == Profile::Vpc || differs(operation)).collect()
}

/// One part of the file: a table for each role. An operation has one row for all the
/// kinds of keys that are answered alike.
fn render(profile: Profile, answer: impl Fn(Cell) -> String) -> String {
    let mut text = format!("\n==== profile {} ====\n", profile.name());
    for role in Role::ALL.iter().copied() {
        let (mut rows, mut denied) = (String::new(), Vec::new());
        for operation in Operation::ALL.iter().copied() {
            let asked = |kind: &Kind| operations(profile, role, *kind).contains(&operation);
            for (answers, kinds) in alike(kinds().into_iter().filter(asked), |kind, state| {
                answer(Cell { role, kind, operation, state })
            }) {
                if answers.iter().all(|answer| answer == DENIED) {
                    denied.extend(names(&kinds).iter().map(|it| operation.name().to_owned() + it));
                    continue;
                }
                for names in names(&kinds) {
                    let head = format!("{:<18}{names}", operation.name());
                    rows.push_str(&row(&head, answers.iter().map(String::as_str)));
                }
            }
        }
        if !rows.is_empty() {
            rows.insert_str(0, &row(role.name(), State::ALL.iter().map(|state| state.name())));
            text.push_str(&format!("\n{rows}"));
        }
        if !denied.is_empty() {
            let gap = if rows.is_empty() { "\n" } else { "" };
            text.push_str(&format!("{gap}{}: {DENIED}: {}\n", role.name(), denied.join(", ")));
        }
    }
    text
}

/// Kinds of keys by what is answered for them, state by state.
fn alike(
    kinds: impl Iterator<Item = Kind>,
    answer: impl Fn(Kind, State) -> String,
) -> Vec<(Vec<String>, Vec<Kind>)> {
    let mut groups: Vec<(Vec<String>, Vec<Kind>)> = Vec::new();
    for kind in kinds {
        let answers: Vec<_> = State::ALL.iter().map(|state| answer(kind, *state)).collect();
        match groups.iter_mut().find(|(other, _)| *other == answers) {
            Some((_, kinds)) => kinds.push(kind),
            None => groups.push((answers, vec![kind])),
        }
    }
    groups
}

fn row<'a>(head: &str, cells: impl Iterator<Item = &'a str>) -> String {
    let cells: String = cells.map(|cell| format!(" {cell:<22}")).collect();
    format!("{}\n", format!("{head:<51}{cells}").trim_end())
}

/// Names kinds of keys by what not all keys have: in one line if they are a product,
/// which they should be.
fn names(kinds: &[Kind]) -> Vec<String> {
    let origins: BTreeSet<_> = kinds.iter().map(|kind| kind.0).collect();
    let dual_auths: BTreeSet<_> = kinds.iter().map(|kind| kind.1).collect();
    let registered: BTreeSet<_> = kinds.iter().map(|kind| kind.2).collect();
    if kinds.len() != origins.len() * dual_auths.len() * registered.len() {
        return kinds.iter().flat_map(|kind| names(&[*kind])).collect();
    }
    let parts = [
        (origins.iter().map(|it| it.name()).collect::<Vec<_>>(), Origin::ALL.len()),
        (dual_auths.iter().map(|it| it.name()).collect(), DualAuth::ALL.len()),
        (registered.iter().map(|it| it.name()).collect(), Registered::ALL.len()),
    ];
    let some = parts.iter().filter(|(names, all)| names.len() < *all);
    let some: Vec<_> = some.map(|(names, _)| names.join("/")).collect();
    let names = if some.is_empty() { String::new() } else { format!(" {}", some.join(", ")) };
    vec![names]
}

fn part_of_file(profile: Profile) -> String {
    let file = fs::read_to_string(FILE).unwrap();
    let begin = file.find(&format!("\n==== profile {} ", profile.name())).unwrap();
    let rest = &file[begin..];
    let end = rest[1..].find("\n====").map_or(rest.len(), |end| end + 1);
    rest[..end].to_owned()
}

#[test]
fn the_file_is_what_the_facts_say() {
    let part = |profile| render(profile, |cell| expected(profile, cell).to_owned());
    let parts = [part(Profile::Vpc), part(Profile::KeyProtect)];
    let text = format!("{HEADER}{}", parts.concat());
    if std::env::var_os("UPDATE_STATES").is_some() {
        fs::write(FILE, &text).unwrap();
    }
    assert!(
        fs::read_to_string(FILE).is_ok_and(|file| file == text),
        "{FILE} is not what the facts say; UPDATE_STATES=1 cargo nextest run --test states"
    );
}

#[tokio::test]
async fn every_cell_of_the_table_is_as_the_file_says() {
    compare_with_file(Profile::Vpc).await;
}

#[tokio::test]
async fn under_key_protects_rules_the_cells_that_differ_are_as_the_file_says() {
    compare_with_file(Profile::KeyProtect).await;
}

async fn compare_with_file(profile: Profile) {
    let answers = walk(profile).await;
    let wrong: Vec<_> = answers
        .iter()
        .filter(|(cell, answer)| expected(profile, **cell) != answer.as_str())
        .map(|(cell, answer)| format!("{cell:?}: {answer}, not {}", expected(profile, *cell)))
        .collect();
    assert!(wrong.is_empty(), "{} cells:\n{}", wrong.len(), wrong.join("\n"));
    let rendered = render(profile, |cell| answers[&cell].clone());
    assert!(rendered == part_of_file(profile), "{FILE} says otherwise:\n{rendered}");
}

/// One key, and what is asked of it. A cell that is to change its key has the key
/// alone; the others share one, and leave it as it is.
struct Plan {
    kind: Kind,
    state: State,
    cells: Vec<Cell>,
}

fn plans(profile: Profile) -> Vec<Plan> {
    let mut plans = Vec::new();
    for kind in kinds() {
        for state in State::ALL.iter().copied() {
            let cells = Role::ALL.iter().flat_map(|role| {
                let operations = operations(profile, *role, kind).into_iter();
                operations.map(|operation| Cell { role: *role, kind, operation, state })
            });
            let changing = |cell: &Cell| changes(cell.operation) && expected(profile, *cell) == OK;
            let (alone, shared): (Vec<_>, Vec<_>) = cells.partition(changing);
            let alone = alone.into_iter().map(|cell| vec![cell]);
            let each = alone.chain([shared]).filter(|cells| !cells.is_empty());
            plans.extend(each.map(|cells| Plan { kind, state, cells }));
        }
    }
    plans
}

/// A key in the state that was planned, or soon.
struct Made {
    key: String,
    wrapped: Vec<u8>,
    /// Its registration, or the name of none.
    registration: String,
}

struct Walk {
    profile: Profile,
    daemon: Daemon,
    imports: Imports,
    clients: HashMap<Role, Client>,
    officer: Client,
}

/// Asks every question of a profile.
async fn walk(profile: Profile) -> HashMap<Cell, String> {
    let walk = Walk::begin(profile).await;
    let plans = plans(profile);
    let made: Vec<Made> = stream::iter(&plans)
        .map(|plan| Box::pin(walk.make(plan)))
        .buffered(AT_ONCE)
        .collect()
        .await;
    // More than 30 seconds and 4 hours after what was done, less than 7 days.
    walk.daemon.set_clock("2030-01-01T05:00:00Z");
    let keys: Vec<_> = plans.iter().zip(&made).collect();
    for (_, made) in keys.iter().filter(|(plan, _)| plan.state == State::Purged) {
        purge(&walk.clients[&Role::KeyPurge], &made.key).await.unwrap();
    }
    walk.until_expirations_are_noted(&plans).await;
    let answers: Vec<_> = stream::iter(keys)
        .map(|(plan, made)| Box::pin(walk.ask_all(plan, made)))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let answers: HashMap<_, _> = answers.into_iter().flatten().collect();
    eprintln!("{} keys, {} cells", plans.len(), answers.len());
    answers
}

impl Walk {
    async fn begin(profile: Profile) -> Self {
        let profiled = |config: String| {
            let changed = format!("profile = \"{}\"", profile.name());
            config.replace("profile = \"vpc\"", &changed)
        };
        let daemon = Daemon::start_edited(profiled);
        daemon.set_clock("2030-01-01T00:00:00Z");
        let mut clients = HashMap::new();
        for role in Role::ALL {
            let client = match role {
                Role::Nobody => nobody(&daemon).await,
                Role::Reader => daemon.client("block-storage").await,
                Role::Writer => daemon.client("writer").await,
                Role::Manager => daemon.client("admin").await,
                Role::KeyPurge => daemon.client("key-purge").await,
            };
            clients.insert(*role, client);
        }
        let officer = daemon.client("officer").await;
        let imports = Imports::new(&officer).await;
        Self { profile, daemon, imports, clients, officer }
    }

    async fn make(&self, plan: &Plan) -> Made {
        let Plan { kind: (origin, dual_auth, registered), state, cells: _ } = plan;
        let mut admin = self.clients[&Role::Manager].clone();
        let service = &self.clients[&Role::Reader];
        let expires = *state == State::Deactivated;
        let new = pb::Key {
            display_name: "volumes".into(),
            expire_time: expires.then_some(Timestamp { seconds: BEGIN + 60, nanos: 0 }),
            dual_auth_delete: *dual_auth != DualAuth::Single,
            ..Default::default()
        };
        let key = match origin {
            Origin::Generated => admin.create_key(new).await.unwrap(),
            Origin::Imported => self.imports.import(&admin, new).await,
        };
        let key = key.name;
        let wrapped = admin.wrap(&key, b"dek", &[]).await.unwrap();
        let deleted = matches!(state, State::Destroyed | State::Purged);
        let prevents = *registered == Registered::Preventing;
        let registration = if *registered == Registered::Nothing {
            format!("{key}/registrations/{}", uuid::Uuid::new_v4())
        } else {
            register(service, &key, ("one", prevents && !deleted)).await.unwrap().name
        };
        // None is deleted without the authorization, nor keeps it.
        if *dual_auth == DualAuth::Authorized || (*dual_auth == DualAuth::Dual && deleted) {
            set_for_deletion(&self.officer, &key).await.unwrap();
        }
        if *state == State::Suspended {
            admin.disable(&key).await.unwrap();
        }
        if deleted {
            delete(&admin, &key, true).await.unwrap();
            if prevents {
                prevent(service, &registration, true).await;
            }
        }
        Made { key, wrapped, registration }
    }

    /// The record of an expiration is a change of its key.
    async fn until_expirations_are_noted(&self, plans: &[Plan]) {
        let expired = plans.iter().filter(|plan| plan.state == State::Deactivated).count();
        let mut admin = self.clients[&Role::Manager].clone();
        let noted = async || {
            let events = admin.audit_events().await;
            events.iter().filter(|event| event.action == "kms.secrets.expire").count() == expired
        };
        self.daemon.until("expirations are noted", noted).await;
    }

    async fn ask_all(&self, plan: &Plan, made: &Made) -> Vec<(Cell, String)> {
        let before = self.shown(made).await;
        let mut answers = Vec::new();
        for cell in &plan.cells {
            answers.push((*cell, self.ask(*cell, made).await));
        }
        // What was wrong is told by the caller.
        if answers.iter().all(|(cell, answer)| expected(self.profile, *cell) == answer) {
            let now = self.shown(made).await;
            match &plan.cells[..] {
                [cell] if changes(cell.operation) && answers[0].1 == OK => {
                    let is = now.map_or(State::Purged, |key| state_of(key.state()));
                    assert_eq!(is, after(cell.operation, plan.state), "after {cell:?}");
                }
                _ => assert_eq!(now, before, "a refused operation changed the key"),
            }
        }
        answers
    }

    async fn shown(&self, made: &Made) -> Option<pb::Key> {
        self.clients[&Role::Manager].clone().get(&made.key).await.ok()
    }

    async fn ask(&self, cell: Cell, made: &Made) -> String {
        use Operation as O;
        let mut client = self.clients[&cell.role].clone();
        let key = made.key.as_str();
        let sealed = || Some(self.imports.sealed());
        match (cell.operation, cell.kind.0) {
            (O::Wrap, _) => said(client.wrap(key, b"dek", &[]).await),
            (O::Generate, _) => {
                let request = pb::GenerateDekRequest { key: key.into(), ..Default::default() };
                said(client.crypto.generate_dek(request).await.map_err(refusal))
            }
            (O::Unwrap, _) => said(client.unwrap(key, &made.wrapped, &[]).await),
            (O::Rewrap, _) => {
                let request = pb::RewrapDekRequest {
                    key: key.into(),
                    wrapped_dek: made.wrapped.clone(),
                    ..Default::default()
                };
                said(client.crypto.rewrap_dek(request).await.map_err(refusal))
            }
            (O::Rotate, Origin::Generated) | (O::RotateAmiss, Origin::Imported) => {
                said(client.rotate(key).await)
            }
            (O::Rotate, Origin::Imported) | (O::RotateAmiss, Origin::Generated) => {
                let (name, material) = (key.into(), sealed());
                let request = pb::RotateKeyRequest { name, material, ..Default::default() };
                said(client.keys.rotate_key(request).await.map_err(refusal))
            }
            (O::Disable, _) => said(client.disable(key).await),
            (O::Enable, _) => said(client.enable(key).await),
            (O::SetForDeletion, _) => said(set_for_deletion(&client, key).await),
            (O::UnsetForDeletion, _) => said(unset_for_deletion(&client, key).await),
            (O::Delete, _) => said(delete(&client, key, false).await),
            (O::DeleteByForce, _) => said(delete(&client, key, true).await),
            (O::Restore, _) => said(client.restore(key).await),
            (O::Purge, _) => said(purge(&client, key).await),
            (O::Update, _) => said(rename(&client, key).await),
            (O::Get, _) => said(client.get(key).await),
            (O::Versions, _) => {
                let request =
                    pb::ListKeyVersionsRequest { parent: key.into(), ..Default::default() };
                said(client.keys.list_key_versions(request).await.map_err(refusal))
            }
            (O::Register, _) => said(register(&client, key, ("other", false)).await),
            (O::Unregister, _) => said(unregister(&client, &made.registration).await),
        }
    }
}

/// What became of an operation: `ok`, or the reason.
fn said<T: Debug>(result: Result<T, Refusal>) -> String {
    result.map_or_else(|refusal| refusal.reason, |_| OK.to_owned())
}

fn state_of(state: pb::key::State) -> State {
    match state {
        pb::key::State::Active => State::Active,
        pb::key::State::Suspended => State::Suspended,
        pb::key::State::Deactivated => State::Deactivated,
        pb::key::State::Destroyed => State::Destroyed,
        pb::key::State::Unspecified => panic!("a key without a state"),
    }
}

async fn rename(client: &Client, key: &str) -> Result<(), Refusal> {
    let key = pb::Key { name: key.into(), display_name: "renamed".into(), ..Default::default() };
    let update_mask = Some(FieldMask { paths: vec!["display_name".into()] });
    let request = pb::UpdateKeyRequest { key: Some(key), update_mask };
    client.keys.clone().update_key(request).await.map(drop).map_err(refusal)
}

/// Somebody whom the daemon knows by a certificate of its CA, and whom nothing binds.
async fn nobody(daemon: &Daemon) -> Client {
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(rcgen::DnType::CommonName, "rootkeyd dev CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_key = fs::read_to_string(daemon.dir.join("tls/ca.key")).unwrap();
    let issuer = Issuer::new(ca, KeyPair::from_pem(&ca_key).unwrap());
    let mut params = CertificateParams::default();
    params.subject_alt_names =
        vec![SanType::URI("spiffe://rootkeyd.dev/nobody".try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (date_time_ymd(2024, 1, 1), date_time_ymd(2054, 1, 1));
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    let identity = Identity::from_pem(certificate, key.serialize_pem());
    Client::new(daemon.endpoint_as(Some(identity)).connect().await.unwrap())
}

const OK: &str = "ok";
const DENIED: &str = "PERMISSION_DENIED";
/// 2030-01-01, where the clock stands while the keys are made.
const BEGIN: i64 = 1_893_456_000;
/// Keys that are made or asked at once.
const AT_ONCE: usize = 8;
const FILE: &str = "tests/states.expected";
const HEADER: &str = "\
What becomes of every operation on every kind of key in every state, for every role:
`ok`, or the reason of the refusal. Written from the tables in tests/states.rs, never
from what the daemon answers: UPDATE_STATES=1 cargo nextest run --test states

Kinds of keys, which are named where they are not answered alike:
  generated, imported
  single         its deletion needs one principal
  dual           it needs two, and none has given the first authorization
  authorized     it needs two, and another Manager has given the first authorization
  nothing        no resource is registered against it
  plain          one is
  preventing     one is, and prevents the deletion of the key
The Reader is a service; nobody has a certificate of the CA and no role.
rotate: an imported key with new material, a generated one without; amiss: the other
way round. It is asked 5 hours after the key was made, authorized to be deleted,
expired, disabled or deleted.
Under key-protect: the rows that differ from vpc.
";
