//! A worker process: opens the token, owns one session, and does the jobs that the
//! daemon sends it over a socket, one at a time, until the socket is closed.
//!
//! A module that crashes or hangs costs this process and the job at hand. When the
//! token is lost the process says so and ends: its successor begins anew, which is
//! what a module is best at. The writer holds a lock as long as it lives, so that a
//! new daemon changes nothing while the writer of a dead one is still at work.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryptoki::context::Pkcs11;
use cryptoki::session::Session;

use super::activity::Activity;
use super::confine::confine;
use super::copying::decide;
use super::job::{Import, Reply, Work};
use super::login::Login;
use super::object::Kind;
use super::supervisor::try_canary;
use super::token::{self, Problem, Token};
use super::wire::{self, Answer, Ask, Begin, Begun, Said, Shown, Trouble};
use super::worker::Worker;
use super::{HsmError, SessionCopies, SessionObjects, Settings};
use crate::domain::SealedMaterial;

/// Serves the daemon at the other end of `stream`. Called by `rootkeyd hsm-worker`.
///
/// # Errors
/// If the daemon does not speak as it should. That it is gone is no error.
pub fn serve_worker(mut stream: UnixStream) -> io::Result<()> {
    let begin: Begin = wire::read(&mut stream)?;
    confine(begin.network)?;
    let begun = lock(&begin).and_then(|lock| Ok((lock, open(&begin)?)));
    let (_lock, Opened { module, session, mut worker, shown }) = match begun {
        Ok(opened) => opened,
        Err(problem) => return wire::write(&mut stream, &Begun::Err(problem)),
    };
    if begin.writer_lock.is_none() {
        // A writer ends when it is done; a reader has nothing to bring to an end. Not
        // before it has logged in: SoftHSM writes the token's own file in C_Login, and
        // a process that is killed over it takes the token with it.
        let with_parent = Some(rustix::process::Signal::KILL);
        rustix::process::set_parent_process_death_signal(with_parent)?;
    }
    wire::write(&mut stream, &Begun::Ok(shown))?;
    let served = serve(&mut worker, &mut stream);
    // In this order; SoftHSM crashes otherwise.
    drop(worker);
    drop(session);
    if let Err(error) = module.finalize() {
        tracing::warn!(%error, "the module cannot be finalized");
    }
    served
}

/// The token, opened.
struct Opened {
    module: Pkcs11,
    /// Holds the login.
    session: Session,
    worker: Worker,
    shown: Shown,
}

fn open(begin: &Begin) -> Result<Opened, Trouble> {
    let settings = begin.settings();
    let opened = || -> Result<Opened, Problem> {
        let module = token::load(&settings.module)?;
        let login = Arc::new(Login::once(settings.pin_file.clone()));
        let (token, session) = Token::open(&module, &settings, &login)?;
        try_canary(&token, &session)?;
        decide(&token, settings.session_objects.copies);
        let token = Arc::new(token);
        let shown = shown(&token);
        let activity = Arc::new(Activity::default());
        let worker = Worker::new(token, settings.sync_directory.clone(), activity);
        let worker = worker.map_err(|lost| Problem::NoSession(lost.to_string()))?;
        Ok(Opened { module, session, worker, shown })
    };
    opened().map_err(|problem| Trouble {
        pin_refused: matches!(problem, Problem::PinRefused { .. }),
        problem: problem.to_string(),
    })
}

fn shown(token: &Token) -> Shown {
    let info = &token.info;
    let mechanisms = info.mechanisms.iter();
    Shown {
        library: info.library.clone(),
        slot: info.slot,
        serial: info.serial.clone(),
        mechanisms: mechanisms.cloned().collect(),
        root_keys: token.shown(Kind::RootKey),
        import_pairs: token.shown(Kind::ImportPair),
        signers: token.shown(Kind::Signer),
        master_keys: token.shown(Kind::MasterKey),
        doubled: token.doubled().iter().copied().collect(),
        unlike: token.unlike().iter().copied().collect(),
        copying: token.said_of_copying(),
    }
}

fn serve(worker: &mut Worker, stream: &mut UnixStream) -> io::Result<()> {
    loop {
        let ask = match wire::read(stream) {
            Ok(ask) => ask,
            // The daemon has ended, or wants no more of us.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let answer = answer(worker, ask);
        wire::write(stream, &answer)?;
        if let Some(lost) = answer.lost {
            tracing::error!(lost, "an HSM worker lost the token");
            return Ok(());
        }
    }
}

fn answer(worker: &mut Worker, ask: Ask) -> Answer {
    if let Ask::Crypt(_, withheld) = &ask {
        for object in withheld {
            worker.token.withhold(*object);
        }
    }
    let mut lost = None;
    let mut run = |work| lost = worker.work(work).err().map(|lost| lost.to_string());
    let said = match ask {
        Ask::Crypt(items, _withheld) => Said::Crypted(done(|reply| run(Work::Crypt(items, reply)))),
        Ask::Generate(object) => Said::Sealed(done(|reply| run(Work::Generate(object, reply)))),
        Ask::MakeMaster(object) => Said::Done(done(|reply| run(Work::MakeMaster(object, reply)))),
        Ask::TryWrapping(master) => {
            let master = master.first().copied();
            Said::Done(done(|reply| run(Work::TryWrapping(master, reply))))
        }
        Ask::GenerateWrapped { object, master } => {
            Said::Wrapped(done(|reply| run(Work::GenerateWrapped { object, master, reply })))
        }
        Ask::GenerateImportPair(object) => {
            Said::Bytes(done(|reply| run(Work::GenerateImportPair(object, reply))))
        }
        Ask::Import {
            object,
            pair,
            encrypted_key,
            algorithm,
            encrypted_nonce,
            nonce_iv,
            nonce,
        } => {
            let material =
                SealedMaterial::new(encrypted_key, &algorithm, encrypted_nonce, &nonce_iv);
            Said::Sealed(match material {
                Ok(material) => {
                    let import = Import { object, pair, material, nonce };
                    done(|reply| run(Work::Import(import, reply)))
                }
                Err(_malformed) => Err(HsmError::Material),
            })
        }
        Ask::MakeSigner(object) => Said::Bytes(done(|reply| run(Work::MakeSigner(object, reply)))),
        Ask::SignerKey(object) => Said::Bytes(done(|reply| run(Work::SignerKey(object, reply)))),
        Ask::Sign(object, hash) => Said::Bytes(done(|reply| run(Work::Sign(object, hash, reply)))),
        Ask::Destroy(object) => Said::Done(done(|reply| run(Work::Destroy(object, reply)))),
        Ask::RoundTrip => {
            let took: Result<Duration, _> = done(|reply| run(Work::RoundTrip(reply)));
            Said::Took(took.map(|took| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)))
        }
        Ask::Probe => {
            let proven = worker.prove_canary();
            match proven {
                Ok(()) => lost = worker.tidy().err().map(|lost| lost.to_string()),
                Err(rv) => lost = Some(format!("the probe failed: {rv}")),
            }
            Said::Works(proven.is_ok())
        }
        Ask::Tidy(retired) => {
            run(Work::Tidy(retired));
            Said::Tidied
        }
        Ask::TryUnwrapping => {
            run(Work::TryUnwrapping);
            let ways = worker.token.ways.get();
            Said::Unwraps(ways.map(|ways| {
                ways.algorithms().map(|algorithm| algorithm.name().to_owned()).collect()
            }))
        }
    };
    Answer { said, lost }
}

/// The answer that `work` sent. A worker answers before it returns.
fn done<T>(work: impl FnOnce(Reply<T>)) -> Result<T, HsmError> {
    let (reply, mut answer) = Reply::new();
    work(reply);
    answer.try_recv().unwrap_or(Err(HsmError::Unavailable))
}

/// Taken by a writer, and held until its process ends.
fn lock(begin: &Begin) -> Result<Option<File>, Trouble> {
    let Some(path) = &begin.writer_lock else { return Ok(None) };
    let trouble = |problem| Trouble { problem, pin_refused: false };
    let opened = File::options().write(true).create(true).truncate(false).open(path);
    let file = opened.map_err(|error| trouble(format!("{path}: {error}")))?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => return Err(trouble(UNFINISHED.into())),
            Err(TryLockError::Error(error)) => return Err(trouble(format!("{path}: {error}"))),
        }
    }
}

impl Begin {
    /// Of a worker process: a writer if it has a lock to take.
    pub(super) fn of(settings: &Settings, writer_lock: Option<&Path>, network: bool) -> Self {
        let text = |path: &Path| path.display().to_string();
        Self {
            module: text(&settings.module),
            token_label: settings.token_label.clone(),
            pin_file: text(&settings.pin_file),
            sync_directory: settings.sync_directory.as_deref().map(text),
            software_unwrap: settings.software_unwrap,
            session_copies: match writer_lock {
                Some(_) => SessionCopies::Off,
                None => settings.session_objects.copies,
            },
            session_objects: settings.session_objects.most,
            session_copy_millis: millis(settings.session_objects.renew_after),
            writer_lock: writer_lock.map(text),
            network,
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            module: PathBuf::from(&self.module),
            token_label: self.token_label.clone(),
            pin_file: PathBuf::from(&self.pin_file),
            // The rest is the daemon's business.
            workers: 1,
            queue: 1,
            stuck_after: Duration::MAX,
            sync_directory: self.sync_directory.as_ref().map(PathBuf::from),
            software_unwrap: self.software_unwrap,
            session_objects: SessionObjects {
                copies: self.session_copies,
                most: self.session_objects,
                renew_after: Duration::from_millis(self.session_copy_millis),
            },
            isolation: super::Isolation::Threads,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Most changes of an object are done by then, so that nobody need hear of them.
const LOCK_PATIENCE: Duration = Duration::from_millis(2_500);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// What a new writer says while the one of a daemon that died is still at work.
const UNFINISHED: &str = "the worker process of an earlier daemon still changes an object in the \
                          HSM; this daemon begins when it is done";
