//! One entry of the systemd journal for each checkpoint, in its native protocol
//! (systemd.io/JOURNAL_NATIVE_PROTOCOL): where the journal goes, the checkpoint goes too.
//!
//! Own code, since `libsystemd` and `tracing-journald` know one fixed address.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use super::notebook::Signed;

/// Sends the checkpoint; whether there is a journal. Never waits.
pub(super) fn tell(socket: &Path, signed: &Signed) -> io::Result<bool> {
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    match sender.send_to(&entry(signed), socket) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn entry(Signed { note, checkpoint, .. }: &Signed) -> Vec<u8> {
    let mut bytes = Vec::new();
    let size = checkpoint.size.to_string();
    field(&mut bytes, "MESSAGE", &format!("audit checkpoint of {size} records"));
    field(&mut bytes, "PRIORITY", NOTICE);
    field(&mut bytes, "SYSLOG_IDENTIFIER", "rootkeyd");
    field(&mut bytes, "ROOTKEYD_AUDIT_ORIGIN", &checkpoint.origin);
    field(&mut bytes, "ROOTKEYD_AUDIT_SIZE", &size);
    field(&mut bytes, "ROOTKEYD_AUDIT_ROOT", &hex::encode(checkpoint.root));
    field(&mut bytes, "ROOTKEYD_AUDIT_HEAD", &hex::encode(checkpoint.head));
    field(&mut bytes, "ROOTKEYD_AUDIT_CHECKPOINT", note);
    bytes
}

/// A value with a line end in it has its length before it, little-endian.
pub fn field(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        bytes.push(b'\n');
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(b'\n');
}

const NOTICE: &str = "5";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_many_lines_has_its_length_before_it() {
        let mut bytes = Vec::new();
        field(&mut bytes, "A", "b");
        field(&mut bytes, "C", "d\ne");
        assert_eq!(bytes, b"A=b\nC\n\x03\0\0\0\0\0\0\0d\ne\n");
    }

    #[test]
    fn no_journal_is_no_failure() {
        let directory = tempfile::tempdir().unwrap();
        let tree = super::super::merkle::Tree::default();
        let checkpoint = super::super::checkpoint::Checkpoint {
            origin: "o".into(),
            size: 0,
            root: tree.root(),
            head: [0; 32],
            boot_id: "b".into(),
            time_micros: 0,
        };
        let signed = Signed { note: "n\n".into(), checkpoint, tree };
        assert!(!tell(&directory.path().join("none"), &signed).unwrap());
    }
}
