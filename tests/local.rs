//! The Unix socket: the kernel says who a caller is, and the configuration which
//! principal that is.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

use common::{CLI, Client, DAEMON, Daemon};
use tempfile::TempDir;
use tonic::transport::Endpoint;

const LOCAL: &str = "spiffe://rootkeyd.dev/service/local";

/// A daemon with a socket where every user gets at it, and `principals` there.
struct Local {
    daemon: Daemon,
    socket: PathBuf,
    _folder: TempDir,
}

fn start(principals: &str) -> Local {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let socket = folder.path().join("socket");
    let daemon = Daemon::start_edited(|config| {
        let config = config.replace("[tls]", &format!("unix = {socket:?}\n\n[tls]"));
        let binding = format!(
            "[[bindings]]\nprincipal = {LOCAL:?}\nrole = \"Writer\"\ninstance = \"default\""
        );
        format!("{config}\n{principals}\n{binding}\n")
    });
    Local { daemon, socket, _folder: folder }
}

fn principal(who: &str, number: u32) -> String {
    format!("[[local_principals]]\n{who} = {number}\nprincipal = {LOCAL:?}\n")
}

fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

impl Local {
    fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    async fn client(&self) -> Client {
        let endpoint = Endpoint::from_shared(self.url()).unwrap();
        Client::new(endpoint.connect().await.unwrap())
    }

    /// `rootkeyctl` through the socket, without any file.
    fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(CLI);
        command.args(arguments).args(["--endpoint", &self.url()]).env_remove("ROOTKEYCTL_CONFIG");
        command
    }
}

#[tokio::test]
async fn a_user_who_is_listed_works_through_the_socket_and_is_recorded_as_its_principal() {
    for who in [principal("uid", uid()), principal("gid", rustix::process::getgid().as_raw())] {
        let local = start(&who);
        let mode = fs::metadata(&local.socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let mut client = local.client().await;
        let key = client.create("volumes").await.name;
        let wrapped = client.wrap(&key, b"a dek", &[]).await.unwrap();
        assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap().dek, b"a dek".as_slice());
        // It is a Writer and no more.
        assert_eq!(client.disable(&key).await.unwrap_err().reason, "PERMISSION_DENIED");
        let records = local.daemon.client("admin").await.audit_events().await;
        let made = records.iter().find(|it| it.subject == key).unwrap();
        assert_eq!(made.principal, LOCAL);
        assert!(made.source_address.starts_with("unix:uid="), "{made:?}");
    }
}

#[tokio::test]
async fn rootkeyctl_needs_an_endpoint_and_no_file() {
    let local = start(&principal("uid", uid()));
    let made = local.cli(&["key", "create", "--name", "volumes"]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let config = local.socket.with_file_name("client.toml");
    fs::write(&config, format!("endpoint = {:?}\n", local.url())).unwrap();
    let mut command = Command::new(CLI);
    let listed = command.args(["key", "list", "--config"]).arg(&config).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("volumes"), "{listed}");
}

#[tokio::test]
async fn who_is_not_listed_is_nobody_and_each_of_its_calls_is_recorded() {
    for nobody in [String::new(), principal("uid", uid() + 1)] {
        let local = start(&nobody);
        let refused = local.client().await.get("instances/default/keys/none").await.unwrap_err();
        assert_eq!(refused.reason, "UNAUTHENTICATED");
        let records = local.daemon.client("admin").await.audit_events().await;
        let refused: Vec<_> = records.iter().filter(|it| it.reason == "UNAUTHENTICATED").collect();
        let [refused] = refused[..] else { panic!("{refused:?}") };
        assert_eq!(refused.principal, "");
        assert!(refused.source_address.contains(&format!("uid={}", uid())), "{refused:?}");
    }
}

/// As root alone: no one else can be two users.
#[tokio::test]
async fn another_user_is_not_the_one_who_is_listed() {
    let local = start(&principal("uid", uid()));
    let (socket, mut arguments) = (&local.socket, vec!["key", "list", "--endpoint"]);
    let url = local.url();
    arguments.push(&url);
    let cli = socket.with_file_name("rootkeyctl");
    fs::copy(CLI, &cli).unwrap();
    let as_other = |reachable: bool| {
        let mode = if reachable { 0o666 } else { 0o660 };
        fs::set_permissions(socket, Permissions::from_mode(mode)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        let output = command.arg(&cli).args(&arguments).env_clear().output().unwrap();
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    if uid() == 0 {
        let said = as_other(true);
        assert!(said.contains("UNAUTHENTICATED"), "{said}");
        let said = as_other(false);
        assert!(said.contains("Permission denied"), "{said}");
    }
    assert!(local.cli(&["key", "list"]).status().unwrap().success());
}

#[tokio::test]
async fn a_socket_that_is_left_is_removed_and_one_that_is_served_is_not() {
    let mut local = start(&principal("uid", uid()));
    local.daemon.kill();
    assert!(local.socket.exists());
    local.daemon.start_again();
    local.client().await.create("volumes").await;
    local.daemon.stop().await;

    let _ = fs::remove_file(&local.socket);
    let _other = UnixListener::bind(&local.socket).unwrap();
    let config = local.daemon.dir.join("rootkeyd.toml");
    let mut command = Command::new(DAEMON);
    command.arg("--config").arg(config);
    command.env("SOFTHSM2_CONF", local.daemon.dir.join("softhsm2.conf"));
    let refused = command.output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("socket") && said.contains("in use"), "{said}");
    assert!(local.socket.exists());

    // What is no socket is not ours to remove.
    fs::remove_file(&local.socket).unwrap();
    fs::write(&local.socket, "a letter").unwrap();
    assert!(!command.output().unwrap().status.success());
    assert_eq!(fs::read_to_string(&local.socket).unwrap(), "a letter");
}
