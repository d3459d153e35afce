//! Virtual servers: QEMU without KVM boots Debian's kernel from the encrypted boot
//! volume. The process has the DEK until it ends, whatever becomes of the key.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rootkeyd::client::Secret;

use super::{
    failure::{Failure, file},
    luks::{self, Handed, Process},
};

#[derive(Debug)]
pub(crate) struct Machine {
    name: String,
    pub(crate) process: Process,
    pub(crate) console: PathBuf,
}

impl Machine {
    pub(crate) fn of(run: &Path, name: &str) -> Self {
        let process = Process(run.join(format!("{name}.server.pid")));
        Self { name: name.into(), process, console: run.join(format!("{name}.console")) }
    }

    /// Starts it, and waits until its system says that it is up. `data` are the sockets
    /// of the volumes that are attached.
    pub(crate) async fn start(
        &self,
        kernel: &Path,
        (volume, dek): (&Path, &Secret),
        data: &[PathBuf],
    ) -> Result<(), Failure> {
        fs::write(&self.console, "").map_err(file(&self.console))?;
        let handed = Handed::new("boot", dek)?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-name", &self.name, "-M", "q35,accel=tcg", "-m", "256", "-nodefaults"]);
        command.args(["-no-user-config", "-no-reboot", "-display", "none", "-daemonize"]);
        command.arg("-pidfile").arg(&self.process.0);
        command.arg("-serial").arg(format!("file:{}", self.console.display()));
        command.arg("-kernel").arg(kernel).args(["-append", COMMAND_LINE]);
        command.args(["-object", &handed.object(), "-blockdev"]);
        command.arg(format!(
            "driver=luks,node-name=boot,key-secret=boot,file.driver=file,file.filename={}",
            volume.display()
        ));
        // One controller: its namespaces have their numbers in every boot.
        command.args(["-device", "nvme,id=disks,serial=disks"]);
        command.args(["-device", "nvme-ns,bus=disks,drive=boot,nsid=1"]);
        for (socket, number) in data.iter().zip(2..) {
            command.arg("-blockdev").arg(format!(
                "driver=nbd,node-name=data{number},server.type=unix,server.path={}",
                socket.display()
            ));
            let namespace = format!("nvme-ns,bus=disks,drive=data{number},nsid={number}");
            command.args(["-device", &namespace]);
        }
        luks::run("qemu-system-x86_64", &mut command)?;
        self.wait_until_up().await
    }

    /// SIGTERM: the power is off.
    pub(crate) fn stop(&self) -> Result<(), Failure> {
        self.process.end()
    }

    pub(crate) fn printed(&self) -> String {
        let printed = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&printed).replace('\r', "")
    }

    async fn wait_until_up(&self) -> Result<(), Failure> {
        let began = Instant::now();
        while !self.printed().contains(BANNER) {
            if self.process.running().is_none() || began.elapsed() > PATIENCE {
                self.stop()?;
                let printed = self.printed();
                let last = printed.lines().rev().take(4).collect::<Vec<_>>().join(" < ");
                return Err(Failure::NotUp { name: self.name.clone(), said: last });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

/// Makes the file system of a server that does nothing but say that it is up, how
/// often it was started, and what its data volumes begin with. Plain, and no secret.
pub(crate) fn make_root(busybox: &Path, size: u64, to: &Path) -> Result<(), Failure> {
    let root = to.with_extension("root");
    let make = || {
        for folder in ["bin", "proc", "dev"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::copy(busybox, root.join("bin/busybox"))?;
        let init = root.join("init");
        fs::write(&init, INIT)?;
        for program in [init, root.join("bin/busybox")] {
            fs::set_permissions(program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        fs::File::create(to)?.set_len(size)
    };
    make().map_err(file(&root))?;
    let mut command = Command::new("mkfs.ext4");
    // In a folder that only root has in PATH.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let made = luks::run("mkfs.ext4", command.args(["-q", "-F", "-d"]).arg(&root).arg(to));
    fs::remove_dir_all(&root).map_err(file(&root))?;
    made.map(|_| ())
}

pub(crate) const BANNER: &str = "volume-service: up";
const COMMAND_LINE: &str = "console=ttyS0 root=/dev/nvme0n1 rw init=/init quiet panic=-1";
const PATIENCE: Duration = Duration::from_secs(150);
const INIT: &str = r#"#!/bin/busybox sh
exec 2>&1
B=/bin/busybox
$B mount -t proc proc /proc
[ -e /dev/nvme0n1 ] || $B mount -t devtmpfs dev /dev
n=$(( $($B cat /boots 2>/dev/null || echo 0) + 1 ))
echo $n > /boots
$B sync
for disk in /dev/nvme0n[2-9]; do
    [ -b $disk ] && echo "volume-service: $disk $($B head -c 8 $disk | $B hexdump -e '8/1 "%02x"')"
done
echo "volume-service: up, boot $n"
while :; do
    $B sleep 1
    echo "volume-service: still there after $($B cut -d ' ' -f 1 /proc/uptime)"
done
"#;
