//! The HSM on a real SoftHSM token. Each test runs again in a process of its own,
//! since SoftHSM reads its configuration from the environment.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use uuid::Uuid;

use super::object::{Kind, Origin};
use super::*;
use crate::secret::Secret;

/// Runs the test `name` of this file with a token in a new directory.
fn with_token(name: &str, test: impl AsyncFnOnce(Hsm)) {
    run_with_token(&format!("hsm::tests::{name}"), |_as_they_are| (), test);
}

/// Runs the test with that path and with those changes to the settings.
pub(super) fn run_with_token(
    path: &str,
    change: impl FnOnce(&mut Settings),
    test: impl AsyncFnOnce(Hsm),
) {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let mut settings = settings(Path::new(&directory));
        change(&mut settings);
        let pin = Secret::new(b"1234567890".to_vec());
        fs::write(&settings.pin_file, pin.expose()).unwrap();
        make_token(&settings.module, &settings.token_label, &pin, Duration::ZERO).unwrap();
        // Once more changes nothing.
        make_token(&settings.module, &settings.token_label, &pin, Duration::ZERO).unwrap();
        let hsm = Hsm::start(settings).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut health = hsm.watch();
            let ready = health.wait_for(|health| matches!(health, Health::Ready { .. }));
            tokio::time::timeout(Duration::from_secs(30), ready).await.unwrap().unwrap();
            test(hsm.clone()).await;
        });
        hsm.stop();
        assert!(!hsm.is_up());
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens");
    fs::create_dir(&tokens).unwrap();
    let conf = directory.path().join("softhsm2.conf");
    fs::write(&conf, format!("directories.tokendir = {}\n", tokens.display())).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", path, "--nocapture"])
        .env("SOFTHSM2_CONF", &conf)
        .env(DIRECTORY, directory.path())
        .output()
        .unwrap();
    let (said, log) =
        (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && said.contains("1 passed"), "{}\n{said}\n{log}", child.status);
}

const DIRECTORY: &str = "ROOTKEYD_TEST_TOKEN";

fn settings(directory: &Path) -> Settings {
    let modules = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"];
    let module = modules.iter().map(PathBuf::from).find(|module| module.exists());
    Settings {
        module: module.expect("SoftHSM is installed by `make setup`"),
        token_label: "test".into(),
        pin_file: directory.join("pin"),
        workers: 2,
        queue: 8,
        stuck_after: Duration::from_secs(60),
        sync_directory: Some(directory.join("tokens")),
        software_unwrap: false,
        session_objects: SessionObjects {
            copies: SessionCopies::On,
            most: 8,
            renew_after: Duration::from_secs(60),
        },
        isolation: Isolation::Threads,
    }
}

/// The token that worker threads share.
pub(super) fn token(hsm: &Hsm) -> Arc<super::token::Token> {
    match &hsm.0.view {
        View::Threads(token) => token.load_full().unwrap(),
        View::Processes(_) => panic!("the token is in other processes"),
    }
}

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(super) async fn new_key(hsm: &Hsm) -> ObjectId {
    let object = ObjectId::from(Uuid::new_v4());
    hsm.generate(object, soon()).await.unwrap();
    object
}

pub(super) async fn one(hsm: &Hsm, item: Crypt) -> Result<Crypted, HsmError> {
    hsm.crypt(vec![item], soon()).await?.pop().unwrap()
}

pub(super) fn seal(object: ObjectId, dek: &[u8]) -> Crypt {
    Crypt::Seal { key: object.into(), aad: b"aad".to_vec(), dek: Secret::new(dek.to_vec()) }
}

pub(super) fn open(object: ObjectId, sealed: &Sealed) -> Crypt {
    let aad = b"aad".to_vec();
    Crypt::Open { key: object.into(), aad, sealed: sealed.clone(), reseal: None }
}

#[test]
fn a_root_key_never_leaves_the_token_and_does_nothing_but_gcm() {
    let name = "a_root_key_never_leaves_the_token_and_does_nothing_but_gcm";
    with_token(name, async |hsm| {
        let object = new_key(&hsm).await;
        let token = self::token(&hsm);
        let session = token.session().unwrap();
        let handle = token.handle(Kind::RootKey, object).unwrap();
        let asked = super::object::template(object, Origin::Generated);
        assert!(super::object::is_as_asked(&session, handle, &asked).unwrap());

        let read = session.get_attributes(handle, &[AttributeType::Value]).unwrap();
        assert!(read.is_empty(), "the token shows the root key");
        let wrapping = [
            Attribute::Token(false),
            Attribute::ValueLen(32.into()),
            Attribute::Wrap(true),
            Attribute::Encrypt(true),
        ];
        let wrapper = session.generate_key(&Mechanism::AesKeyGen, &wrapping).unwrap();
        let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, wrapper, handle);
        assert!(matches!(wrapped, Err(Error::Pkcs11(RvError::KeyUnextractable, _))), "{wrapped:?}");
        // Nor does it wrap others, nor encrypt in another way than GCM.
        let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, handle, wrapper);
        assert!(wrapped.is_err(), "{wrapped:?}");
        let ecb = session.encrypt(&Mechanism::AesEcb, handle, &[0; 16]);
        assert!(ecb.is_err(), "{ecb:?}");
        let copy = session.copy_object(handle, &[Attribute::Extractable(true)]);
        assert!(copy.is_err(), "{copy:?}");
    });
}

#[test]
fn a_tampered_ciphertext_is_refused_and_the_items_beside_it_are_not() {
    let name = "a_tampered_ciphertext_is_refused_and_the_items_beside_it_are_not";
    with_token(name, async |hsm| {
        let (object, other) = (new_key(&hsm).await, new_key(&hsm).await);
        let sealed = one(&hsm, seal(object, b"dek")).await.unwrap().sealed.unwrap().unwrap();
        let mut tampered = sealed.clone();
        tampered.bytes[0] ^= 1;
        let unknown = ObjectId::from(Uuid::new_v4());
        for _ in 0..20 {
            let items = vec![
                open(object, &sealed),
                open(object, &tampered),
                open(object, &sealed),
                open(other, &sealed),
                open(unknown, &sealed),
                open(object, &sealed),
            ];
            let done = hsm.crypt(items, soon()).await.unwrap();
            let said: Vec<_> = done
                .into_iter()
                .map(|result| result.map(|crypted| crypted.dek.expose().to_vec()))
                .collect();
            let dek = Ok(b"dek".to_vec());
            let no = Err(HsmError::Unverified);
            let missing = Err(HsmError::Missing);
            assert_eq!(said, [dek.clone(), no.clone(), dek.clone(), no, missing, dek]);
        }
    });
}

#[test]
fn a_dek_is_resealed_in_the_same_job_and_generated_ones_are_random() {
    let name = "a_dek_is_resealed_in_the_same_job_and_generated_ones_are_random";
    with_token(name, async |hsm| {
        let (old, new) = (new_key(&hsm).await, new_key(&hsm).await);
        let sealed = one(&hsm, seal(old, &[7; 7500])).await.unwrap().sealed.unwrap().unwrap();
        let aad = b"aad".to_vec();
        let reseal = Some((new.into(), aad.clone()));
        let item = Crypt::Open { key: old.into(), aad: aad.clone(), sealed, reseal };
        let resealed = one(&hsm, item).await.unwrap();
        assert_eq!(resealed.dek.expose(), [7; 7500]);
        let again = one(&hsm, open(new, &resealed.sealed.unwrap().unwrap())).await.unwrap();
        assert_eq!(again.dek.expose(), [7; 7500]);

        let generate = || Crypt::Generate { key: new.into(), aad: aad.clone(), length: 32 };
        let (one_dek, two) =
            (one(&hsm, generate()).await.unwrap(), one(&hsm, generate()).await.unwrap());
        assert_ne!(one_dek.dek.expose(), two.dek.expose());
        assert_eq!(one_dek.dek.len(), 32);

        // Opened is not lost because it cannot be sealed again.
        let sealed = one(&hsm, seal(old, b"dek")).await.unwrap().sealed.unwrap().unwrap();
        let nowhere = Some((ObjectId::from(Uuid::new_v4()).into(), aad.clone()));
        let item = Crypt::Open { key: old.into(), aad, sealed, reseal: nowhere };
        let crypted = one(&hsm, item).await.unwrap();
        assert_eq!(crypted.dek.expose(), b"dek");
        assert_eq!(crypted.sealed, Some(Err(HsmError::Missing)));
    });
}

#[test]
fn a_destroyed_object_is_gone_and_destroying_it_again_is_fine() {
    let name = "a_destroyed_object_is_gone_and_destroying_it_again_is_fine";
    with_token(name, async |hsm| {
        let (object, kept) = (new_key(&hsm).await, new_key(&hsm).await);
        let sealed = one(&hsm, seal(object, b"dek")).await.unwrap().sealed.unwrap().unwrap();
        hsm.destroy(object, soon()).await.unwrap();
        hsm.destroy(object, soon()).await.unwrap();
        assert_eq!(one(&hsm, open(object, &sealed)).await.unwrap_err(), HsmError::Missing);
        assert_eq!(hsm.objects().unwrap(), [kept]);
        let session = token(&hsm).session().unwrap();
        let class = [Attribute::Class(ObjectClass::SECRET_KEY)];
        // The key that is kept, and the canary.
        assert_eq!(session.find_objects(&class).unwrap().len(), 2);
    });
}

#[test]
fn a_check_value_opens_with_its_key_alone() {
    with_token("a_check_value_opens_with_its_key_alone", async |hsm| {
        let (object, other) = (ObjectId::from(Uuid::new_v4()), new_key(&hsm).await);
        let Sealed { iv, bytes } = hsm.generate(object, soon()).await.unwrap();
        let check_value = [&iv[..], &bytes].concat();
        assert!(one(&hsm, Hsm::check(object, &check_value).unwrap()).await.is_ok());
        let wrong = one(&hsm, Hsm::check(other, &check_value).unwrap()).await;
        assert_eq!(wrong.unwrap_err(), HsmError::Unverified);
        assert!(Hsm::check(object, &check_value[..11]).is_none());
    });
}

#[test]
fn two_objects_with_one_id_are_neither_used_nor_taken_for_a_new_key() {
    let name = "two_objects_with_one_id_are_neither_used_nor_taken_for_a_new_key";
    with_token(name, async |hsm| {
        let object = new_key(&hsm).await;
        assert_eq!(hsm.generate(object, soon()).await, Err(HsmError::Missing));
        let session = token(&hsm).session().unwrap();
        let index = super::object::index(&session, &[Kind::RootKey]).unwrap();
        assert!(!index.handles.contains_key(&(Kind::RootKey, object)));
    });
}

#[test]
fn a_job_past_its_deadline_is_not_begun_and_a_full_queue_says_so() {
    let name = "a_job_past_its_deadline_is_not_begun_and_a_full_queue_says_so";
    with_token(name, async |hsm| {
        let object = new_key(&hsm).await;
        let late = hsm.crypt(vec![seal(object, b"dek")], Instant::now()).await;
        assert_eq!(late.unwrap_err(), HsmError::Deadline);
        // 2 workers and 8 places: of 200 long jobs at once most find no place.
        let jobs = (0..200).map(|_| {
            let items = (0..300).map(|_| seal(object, b"dek")).collect();
            hsm.crypt(items, soon())
        });
        let done = futures_util::future::join_all(jobs).await;
        let overloaded = done.iter().filter(|r| matches!(r, Err(HsmError::Overloaded))).count();
        assert!(overloaded > 100 && overloaded < 200, "{overloaded}");
        assert!(done.iter().all(|r| matches!(r, Ok(_) | Err(HsmError::Overloaded))));
        assert!(hsm.round_trip(soon()).await.is_ok());
    });
}

#[test]
fn a_stopped_hsm_refuses_what_waits_and_what_comes() {
    with_token("a_stopped_hsm_refuses_what_waits_and_what_comes", async |hsm| {
        let object = new_key(&hsm).await;
        let jobs: Vec<_> = (0..6)
            .map(|_| {
                let hsm = hsm.clone();
                let items = (0..300).map(|_| seal(object, b"dek")).collect();
                tokio::spawn(async move { hsm.crypt(items, soon()).await.map(|done| done.len()) })
            })
            .collect();
        tokio::task::yield_now().await;
        hsm.stop();
        for job in jobs {
            let result = job.await.unwrap();
            assert!(matches!(result, Ok(300) | Err(HsmError::Unavailable)), "{result:?}");
        }
        assert_eq!(one(&hsm, seal(object, b"dek")).await.unwrap_err(), HsmError::Unavailable);
    });
}
