//! A disk that fails, and that forgets what was not synced: for tests, loaded into the
//! daemon with LD_PRELOAD (`tests/common/disk.rs` tells it what to do).
//!
//! It stands between the daemon and the C library for files below one directory. Before
//! a write or truncation it keeps what was there in `{side}/undo/`; an fsync that worked
//! forgets that again. After a kill the test plays it back: the disk after a power cut.
//! `{side}/command` says which call is to fail. Names of files that were made, renamed or
//! removed and whose directory was not synced stay: only content and length are cut.

#![allow(unsafe_code, reason = "it takes the place of functions of the C library")]
#![allow(clippy::cast_sign_loss, clippy::cast_possible_wrap, reason = "types of the C library")]
#![allow(clippy::cast_possible_truncation, reason = "files of a test are small")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// What the test set up.
struct Disk {
    root: PathBuf,
    side: PathBuf,
    /// The command as it was read last, and how many calls it has met.
    command: Mutex<(String, u64)>,
}

/// What becomes of a call.
enum Fate {
    Works,
    Fails(Errno),
    /// Says that it worked, and has done nothing.
    Lies,
}

/// One at a time: what is kept must fit what is then done.
static ONE: Mutex<()> = Mutex::new(());

fn disk() -> Option<&'static Disk> {
    static DISK: OnceLock<Option<Disk>> = OnceLock::new();
    let read = |name| std::env::var_os(name).map(PathBuf::from);
    let make = || {
        let (root, side) = (read("CHAOS_DISK_ROOT")?, read("CHAOS_DISK_SIDE")?);
        Some(Disk { root, side, command: Mutex::default() })
    };
    DISK.get_or_init(make).as_ref()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    /// The path of `fd` below the root; `None` if it is elsewhere.
    fn path_of(&self, fd: c_int) -> Option<PathBuf> {
        let link = rustix::fs::readlink(format!("/proc/self/fd/{fd}"), Vec::new()).ok()?;
        self.inside(Path::new(std::ffi::OsStr::from_bytes(link.as_bytes())))
    }

    fn inside(&self, path: &Path) -> Option<PathBuf> {
        path.strip_prefix(&self.root).ok().map(Path::to_owned)
    }

    fn undo_file(&self, path: &Path) -> PathBuf {
        self.side.join("undo").join(path.to_string_lossy().replace('/', "%"))
    }

    /// What the command says of this call: `{enospc|eio|lie} {write|sync} {end of the path} {nth}`,
    /// and `on` behind it if all that follow fail too.
    fn fate(&self, kind: &str, path: &Path) -> Fate {
        let text = read(&self.side.join("command"));
        let mut command = lock(&self.command);
        if command.0 != text {
            *command = (text, 0);
        }
        let words: Vec<_> = command.0.split_whitespace().map(str::to_owned).collect();
        let [fate, of, end, nth, rest @ ..] = &words[..] else { return Fate::Works };
        if of != kind || !path.to_string_lossy().ends_with(end.as_str()) {
            return Fate::Works;
        }
        command.1 += 1;
        let nth: u64 = nth.parse().unwrap_or(1);
        if command.1 != nth && !(command.1 > nth && rest.contains(&"on".to_owned())) {
            return Fate::Works;
        }
        append(&self.side.join("fired"), b"x");
        match fate.as_str() {
            "enospc" => Fate::Fails(Errno::NOSPC),
            "eio" => Fate::Fails(Errno::IO),
            _ => Fate::Lies,
        }
    }

    /// Keeps what is at `offset`, before `length` bytes are written there.
    fn keep(&self, fd: BorrowedFd<'_>, path: &Path, offset: u64, length: u64, old_length: u64) {
        let Ok(found) = rustix::fs::fstat(fd) else { return };
        let size = found.st_size as u64;
        let mut old = vec![0; old_length.min(size.saturating_sub(offset)) as usize];
        // The file may be open for writing alone: another way to it.
        let Ok(readable) = rustix::fs::open(self.root.join(path), OFlags::RDONLY, Mode::empty())
        else {
            return;
        };
        let read = rustix::io::pread(&readable, &mut old[..], offset).unwrap_or(0);
        old.truncate(read);
        let mut entry = Vec::new();
        for number in [offset, size, length, old.len() as u64] {
            entry.extend_from_slice(&number.to_le_bytes());
        }
        entry.extend_from_slice(&old);
        append(&self.undo_file(path), &entry);
    }

    fn forget(&self, path: &Path) {
        // There may be none.
        let _ = rustix::fs::unlink(self.undo_file(path));
    }
}

fn read(path: &Path) -> String {
    let Ok(file) = rustix::fs::open(path, OFlags::RDONLY, Mode::empty()) else {
        return String::new();
    };
    let mut bytes = [0; 256];
    let read = rustix::io::read(&file, &mut bytes[..]).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

fn append(path: &Path, bytes: &[u8]) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND;
    let Ok(file) = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)) else { return };
    let mut rest = bytes;
    while let Ok(written @ 1..) = rustix::io::write(&file, rest) {
        rest = &rest[written..];
    }
}

fn borrowed<'a>(fd: c_int) -> BorrowedFd<'a> {
    // SAFETY: the caller of the C function says that it is open, for as long as that runs.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn answer<T: TryInto<isize>>(result: Result<T, Errno>) -> isize {
    match result {
        Ok(value) => value.try_into().unwrap_or(isize::MAX),
        Err(error) => {
            // SAFETY: the C library gives each thread a place for it.
            unsafe { *__errno_location() = error.raw_os_error() };
            -1
        }
    }
}

fn writes(fd: c_int, bytes: &[u8], offset: Option<u64>) -> Result<usize, Errno> {
    let file = borrowed(fd);
    let really = |bytes: &[u8]| match offset {
        Some(offset) => rustix::io::pwrite(file, bytes, offset),
        None => rustix::io::write(file, bytes),
    };
    let Some((disk, path)) = disk().and_then(|disk| Some((disk, disk.path_of(fd)?))) else {
        return really(bytes);
    };
    let _one = lock(&ONE);
    let appends = rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(OFlags::APPEND));
    let at = match offset {
        Some(offset) => offset,
        None if appends => rustix::fs::fstat(file)?.st_size as u64,
        None => rustix::fs::tell(file)?,
    };
    match disk.fate("write", &path) {
        Fate::Works | Fate::Lies => {
            disk.keep(file, &path, at, bytes.len() as u64, bytes.len() as u64);
            really(bytes)
        }
        // As a disk does that becomes full: a part is written.
        Fate::Fails(error) => {
            let part = &bytes[..bytes.len() / 2];
            disk.keep(file, &path, at, part.len() as u64, part.len() as u64);
            really(part)?;
            Err(error)
        }
    }
}

fn cuts(fd: c_int, length: u64) -> Result<u8, Errno> {
    let file = borrowed(fd);
    let Some((disk, path)) = disk().and_then(|disk| Some((disk, disk.path_of(fd)?))) else {
        return rustix::fs::ftruncate(file, length).map(|()| 0);
    };
    let _one = lock(&ONE);
    match disk.fate("truncate", &path) {
        Fate::Works | Fate::Lies => {
            disk.keep(file, &path, length, 0, u64::MAX);
            rustix::fs::ftruncate(file, length).map(|()| 0)
        }
        Fate::Fails(error) => Err(error),
    }
}

fn syncs(fd: c_int, really: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>) -> Result<u8, Errno> {
    let Some((disk, path)) = disk().and_then(|disk| Some((disk, disk.path_of(fd)?))) else {
        return really(borrowed(fd)).map(|()| 0);
    };
    let _one = lock(&ONE);
    match disk.fate("sync", &path) {
        Fate::Works => {
            really(borrowed(fd))?;
            disk.forget(&path);
            Ok(0)
        }
        Fate::Fails(error) => Err(error),
        Fate::Lies => Ok(0),
    }
}

/// `write` of the C library.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize {
    // SAFETY: the caller says that there are so many bytes.
    answer(writes(fd, unsafe { slice(bytes, count) }, None))
}

/// `pwrite64` of the C library.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    fd: c_int,
    bytes: *const c_void,
    count: usize,
    offset: i64,
) -> isize {
    // SAFETY: the caller says that there are so many bytes.
    answer(writes(fd, unsafe { slice(bytes, count) }, Some(offset as u64)))
}

/// `pwrite` of the C library.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(
    fd: c_int,
    bytes: *const c_void,
    count: usize,
    offset: i64,
) -> isize {
    // SAFETY: the caller says that there are so many bytes.
    answer(writes(fd, unsafe { slice(bytes, count) }, Some(offset as u64)))
}

/// `ftruncate64` of the C library.
#[unsafe(no_mangle)]
pub extern "C" fn ftruncate64(fd: c_int, length: i64) -> c_int {
    answer(cuts(fd, length as u64)) as c_int
}

/// `ftruncate` of the C library.
#[unsafe(no_mangle)]
pub extern "C" fn ftruncate(fd: c_int, length: i64) -> c_int {
    answer(cuts(fd, length as u64)) as c_int
}

/// `fsync` of the C library.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(fd: c_int) -> c_int {
    answer(syncs(fd, |fd| rustix::fs::fsync(fd))) as c_int
}

/// `fdatasync` of the C library.
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(fd: c_int) -> c_int {
    answer(syncs(fd, |fd| rustix::fs::fdatasync(fd))) as c_int
}

/// `rename` of the C library: what is kept of a file goes with it.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller says that both are texts that end.
    let (from, to) = unsafe { (CStr::from_ptr(from), CStr::from_ptr(to)) };
    let _one = lock(&ONE);
    let renamed = rustix::fs::rename(from, to);
    if let (Some(disk), true) = (disk(), renamed.is_ok()) {
        let inside =
            |path: &CStr| disk.inside(Path::new(std::ffi::OsStr::from_bytes(path.to_bytes())));
        if let (Some(from), Some(to)) = (inside(from), inside(to)) {
            disk.forget(&to);
            let _ = rustix::fs::rename(disk.undo_file(&from), disk.undo_file(&to));
        }
    }
    answer(renamed.map(|()| 0_u8)) as c_int
}

/// `unlink` of the C library.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller says that it is a text that ends.
    let path = unsafe { CStr::from_ptr(path) };
    let _one = lock(&ONE);
    let gone = rustix::fs::unlink(path);
    if let (Some(disk), true) = (disk(), gone.is_ok())
        && let Some(path) = disk.inside(Path::new(std::ffi::OsStr::from_bytes(path.to_bytes())))
    {
        disk.forget(&path);
    }
    answer(gone.map(|()| 0_u8)) as c_int
}

/// # Safety
/// There are `count` bytes at `bytes`.
unsafe fn slice<'a>(bytes: *const c_void, count: usize) -> &'a [u8] {
    if count == 0 {
        return &[];
    }
    // SAFETY: the caller says so.
    unsafe { std::slice::from_raw_parts(bytes.cast(), count) }
}
