//! LUKS files, by QEMU's tools: made, copied, exported as a block device, read and
//! written.
//!
//! A passphrase goes to QEMU through a pipe of ours, which it opens by its name in
//! /proc. It is never an argument, an environment variable or a file.

use std::{
    fmt::Write as _,
    fs,
    io::{self, PipeReader, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rootkeyd::client::Secret;
use rustix::process::{Pid, Signal, kill_process};

use super::failure::{Failure, file};

/// A passphrase that one process of QEMU can read, once.
#[derive(Debug)]
pub(crate) struct Handed {
    id: &'static str,
    pipe: PipeReader,
}

impl Handed {
    /// The DEK in hexadecimal, since QEMU wants UTF-8.
    pub(crate) fn new(id: &'static str, dek: &Secret) -> Result<Self, Failure> {
        let mut text = Secret::zeroed(2 * dek.len());
        for (digits, byte) in text.expose_mut().chunks_exact_mut(2).zip(dek.expose()) {
            digits[0] = DIGITS[usize::from(byte >> 4)];
            digits[1] = DIGITS[usize::from(byte & 15)];
        }
        // Less than a pipe holds, so nobody has to read yet.
        let handed = || {
            let (pipe, mut end) = io::pipe()?;
            end.write_all(text.expose())?;
            Ok(Self { id, pipe })
        };
        handed().map_err(file(Path::new("pipe")))
    }

    /// The value of `--object`.
    pub(crate) fn object(&self) -> String {
        let (process, pipe) = (std::process::id(), self.pipe.as_raw_fd());
        format!("secret,id={},file=/proc/{process}/fd/{pipe}", self.id)
    }
}

/// Makes an empty LUKS file of `size` bytes.
pub(crate) fn create(path: &Path, size: u64, dek: &Secret, iter_time: u32) -> Result<(), Failure> {
    // Debian 12's own QEMU (7.2) times its key derivation by the CPU time that the
    // kernel counts in ticks, and gives up if it finds none: it is asked again.
    for attempt in 1.. {
        let handed = Handed::new("new", dek)?;
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "luks", "--object", &handed.object(), "-o"]);
        command.arg(format!("key-secret=new,hash-alg=sha512,iter-time={iter_time}"));
        match run("qemu-img", command.arg(path).arg(size.to_string())) {
            Err(Failure::Tool { said, .. }) if attempt < 5 && said.contains("accurate CPU") => {
                fs::remove_file(path).or_else(missing_is_fine).map_err(file(path))?;
            }
            done => return done.map(|_| ()),
        }
    }
    Ok(())
}

/// Fills a LUKS file that is there from a plain one, which has to be no secret.
pub(crate) fn fill(from: &Path, to: &Path, dek: &Secret) -> Result<(), Failure> {
    let handed = Handed::new("new", dek)?;
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-n", "--object", &handed.object(), "--target-image-opts"]);
    command.args(["-f", "raw"]).arg(from).arg(options("new", to));
    run("qemu-img", &mut command).map(|_| ())
}

/// Fills a LUKS file from another one: what is read under one passphrase is written
/// under the other.
pub(crate) fn copy(
    (from, old): (&Path, &Secret),
    (to, new): (&Path, &Secret),
) -> Result<(), Failure> {
    let (old, new) = (Handed::new("old", old)?, Handed::new("new", new)?);
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-n", "--object", &old.object(), "--object", &new.object()]);
    command.args(["--image-opts", "--target-image-opts"]);
    command.arg(options("old", from)).arg(options("new", to));
    run("qemu-img", &mut command).map(|_| ())
}

/// A LUKS file that is open: a process of QEMU serves its blocks on a socket, and has
/// the passphrase until it ends.
#[derive(Debug)]
pub(crate) struct Export {
    pub(crate) socket: PathBuf,
    pub(crate) process: Process,
}

impl Export {
    pub(crate) fn of(run: &Path, name: &str) -> Self {
        let process = Process(run.join(format!("{name}.nbd.pid")));
        Self { socket: run.join(format!("{name}.nbd")), process }
    }

    pub(crate) fn open(&self, path: &Path, dek: &Secret) -> Result<(), Failure> {
        let handed = Handed::new("dek", dek)?;
        self.process.forget()?;
        let mut command = Command::new("qemu-nbd");
        // A virtual server and the service itself.
        command.args(["--fork", "--persistent", "--shared=4", "--object", &handed.object()]);
        command.arg("--pid-file").arg(&self.process.0).arg("--socket").arg(&self.socket);
        command.arg("--image-opts").arg(options("dek", path));
        run("qemu-nbd", &mut command).map(|_| ())
    }

    pub(crate) fn close(&self) -> Result<(), Failure> {
        self.process.end()?;
        fs::remove_file(&self.socket).or_else(missing_is_fine).map_err(file(&self.socket))
    }

    /// Writes or reads a pattern; `false` if what was read is something else.
    pub(crate) fn io(&self, verb: &str, extent: Extent) -> Result<bool, Failure> {
        let Extent { pattern, offset, length } = extent;
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw", "-c", &format!("{verb} -P {pattern} {offset} {length}")]);
        if verb == "write" {
            command.args(["-c", "flush"]);
        }
        command.arg(format!("nbd+unix:///?socket={}", self.socket.display()));
        let output = output("qemu-io", &mut command)?;
        let said = said(&output);
        if said.contains("verification failed") {
            return Ok(false);
        }
        if output.status.success() && said.contains(&format!("{length}/{length} bytes")) {
            return Ok(true);
        }
        Err(Failure::Tool { tool: "qemu-io", said })
    }
}

/// Bytes of one value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) pattern: u8,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A process of ours that goes on when we end, known by its pid file.
#[derive(Debug)]
pub(crate) struct Process(pub(crate) PathBuf);

impl Process {
    /// Its id, if it runs. That it is ours is seen by its arguments: a number alone may
    /// by now be another's.
    pub(crate) fn running(&self) -> Option<Pid> {
        let number: i32 = fs::read_to_string(&self.0).ok()?.trim().parse().ok()?;
        let arguments = fs::read(format!("/proc/{number}/cmdline")).ok()?;
        let ours = self.0.to_str()?.as_bytes();
        arguments.split(|byte| *byte == 0).any(|it| it == ours).then(|| Pid::from_raw(number))?
    }

    /// SIGTERM; waits.
    pub(crate) fn end(&self) -> Result<(), Failure> {
        let began = Instant::now();
        while let Some(pid) = self.running() {
            let signal = if began.elapsed() < PATIENCE { Signal::TERM } else { Signal::KILL };
            // It may have gone by itself meanwhile.
            let _gone = kill_process(pid, signal);
            thread::sleep(Duration::from_millis(20));
        }
        self.forget()
    }

    fn forget(&self) -> Result<(), Failure> {
        fs::remove_file(&self.0).or_else(missing_is_fine).map_err(file(&self.0))
    }
}

/// Runs a tool to its end; what it says is the failure.
pub(crate) fn run(tool: &'static str, command: &mut Command) -> Result<String, Failure> {
    let output = output(tool, command)?;
    let said = said(&output);
    if output.status.success() { Ok(said) } else { Err(Failure::Tool { tool, said }) }
}

fn output(tool: &'static str, command: &mut Command) -> Result<Output, Failure> {
    let output = command.stdin(Stdio::null()).output();
    output.map_err(|error| Failure::Tool { tool, said: error.to_string() })
}

fn said(output: &Output) -> String {
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    let _fits = write!(said, "{}", String::from_utf8_lossy(&output.stderr));
    said.trim().to_owned()
}

fn options(secret: &str, path: &Path) -> String {
    format!("driver=luks,key-secret={secret},file.filename={}", path.display())
}

pub(crate) fn missing_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";
const PATIENCE: Duration = Duration::from_secs(10);
