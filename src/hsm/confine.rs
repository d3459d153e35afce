//! What a worker process may not do any more: a filter of system calls (seccomp).
//!
//! A vendor's module is C code that parses what it is given. It needs files, memory
//! and perhaps the network; it starts no programs, looks into no process, and changes
//! no system. What is refused is refused with EPERM, so that the module can say so.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Confines this process for good. Without `network` the only sockets are local ones.
///
/// # Errors
/// If the kernel has no seccomp, or the machine is of an architecture without a filter.
pub(super) fn confine(network: bool) -> io::Result<()> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        FORBIDDEN.iter().map(|call| (*call, Vec::new())).collect();
    if !network {
        rules.insert(libc::SYS_socket, vec![not_local().map_err(io::Error::other)?]);
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let refuse = SeccompAction::Errno(EPERM);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch);
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
    seccompiler::apply_filter_all_threads(&program).map_err(io::Error::other)
}

/// Any domain but AF_UNIX.
fn not_local() -> Result<SeccompRule, seccompiler::BackendError> {
    let local = u64::from(libc::AF_UNIX.unsigned_abs());
    let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, local)?;
    SeccompRule::new(vec![other])
}

/// Other programs, other processes, the kernel, the machine.
const FORBIDDEN: [i64; 40] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_kill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    libc::SYS_bpf,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_personality,
    libc::SYS_syslog,
];
const EPERM: u32 = 1;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::*;

    /// In a process of its own, which it confines for good.
    #[test]
    fn a_confined_process_starts_no_program_and_opens_no_network_socket() {
        const NAME: &str =
            "hsm::confine::tests::a_confined_process_starts_no_program_and_opens_no_network_socket";
        if std::env::var_os(CONFINED).is_some() {
            let refused = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
            assert!(TcpListener::bind("127.0.0.1:0").is_ok());
            confine(true).unwrap();
            assert!(Command::new("true").status().is_err_and(refused));
            assert!(TcpListener::bind("127.0.0.1:0").is_ok());
            confine(false).unwrap();
            assert!(TcpListener::bind("127.0.0.1:0").is_err_and(refused));
            assert!(UnixStream::pair().is_ok());
            return;
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        let done = command.args(["--exact", NAME]).env(CONFINED, "").output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && said.contains("1 passed"), "{said}");
    }

    const CONFINED: &str = "ROOTKEYD_TEST_CONFINED";
}
