use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use coalition_host::sshd::{HostSshd, HostSshdConfig, serve};
use coalition_host::{Phase, RunnerState, keys, parse_answer};

use super::harness::{Host, await_some, has, openssh, write_private};

struct Client {
    temp: tempfile::TempDir,
    port: u16,
}

async fn up(root: &Path) -> (HostSshd, Client) {
    let temp = tempfile::tempdir().unwrap();
    let user = keys::generate("provider");
    let host = keys::from_seed(&[9; 32], "host");
    write_private(&temp.path().join("key"), user.private_openssh.expose());
    let config = HostSshdConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        host_key: host.private_openssh,
        authorized_keys: vec![user.public_openssh],
        root_dir: root.to_path_buf(),
        env: vec![("HOSTED".into(), "yes".into())],
    };
    let server = serve(config).await.unwrap();
    assert_eq!(server.host_public_key, host.public_openssh);
    let port = server.local_addr.port();
    let known = format!("[127.0.0.1]:{port} {}\n", server.host_public_key);
    fs::write(temp.path().join("known_hosts"), known).unwrap();
    (server, Client { temp, port })
}

impl Client {
    fn command(&self, program: &str, port_option: &str) -> Command {
        openssh(program, self.temp.path(), port_option, self.port)
    }

    async fn ssh(&self, line: &str) -> Output {
        let mut command = tokio::process::Command::from(self.command("ssh", "-p"));
        command.arg("anyone@127.0.0.1").arg(line).stdin(std::process::Stdio::null()).output().await.unwrap()
    }

    async fn sftp(&self, batch: &str) -> Output {
        let file = self.temp.path().join("batch");
        fs::write(&file, batch).unwrap();
        let mut command = tokio::process::Command::from(self.command("sftp", "-P"));
        command.arg("-b").arg(file).arg("anyone@127.0.0.1").output().await.unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn commands_run_as_the_current_user() {
    if !has("ssh") {
        eprintln!("skipped: no ssh");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (server, client) = up(root.path()).await;
    let output = client.ssh("pwd; echo $HOSTED; id -u; echo oops >&2; exit 9").await;
    let expected = format!("{}\nyes\n{}\n", root.path().canonicalize().unwrap().display(), nix::unistd::geteuid());
    assert_eq!(
        (output.status.code(), text(&output.stdout), text(&output.stderr)),
        (Some(9), expected, "oops\n".into())
    );
    server.shutdown().await;
    let output = client.ssh("true").await;
    assert_eq!(output.status.code(), Some(255));
}

/// The server closes a finished channel first, and the library then reports no close: the channel must count no more.
#[tokio::test]
async fn finished_channels_are_given_back_on_one_connection() {
    if !has("ssh") || !has("sftp") {
        eprintln!("skipped: no ssh or sftp");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (server, client) = up(root.path()).await;
    let socket = format!("ControlPath={}", client.temp.path().join("shared").display());
    let batch = client.temp.path().join("batch");
    fs::write(&batch, "pwd\n").unwrap();
    let shared = |program: &str, port_option: &str| {
        let mut command = tokio::process::Command::from(client.command(program, port_option));
        command.args(["-o", "ControlMaster=auto", "-o", "ControlPersist=30", "-o", &socket]);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null());
        command
    };
    // Each kind alone exceeds the 64 channels a connection may have open at once.
    for turn in 0..70 {
        let ran = shared("ssh", "-p").args(["anyone@127.0.0.1", "true"]).status().await.unwrap();
        assert!(ran.success(), "command {turn} on one connection: {ran}");
        let sent = shared("sftp", "-P").arg("-b").arg(&batch).arg("anyone@127.0.0.1").status().await.unwrap();
        assert!(sent.success(), "file session {turn} on one connection: {sent}");
    }
    let ended = shared("ssh", "-p").args(["-O", "exit", "anyone@127.0.0.1"]).status().await.unwrap();
    assert!(ended.success(), "the shared connection was really shared: {ended}");
    server.shutdown().await;
}

#[tokio::test]
async fn files_go_to_one_directory() {
    if !has("sftp") {
        eprintln!("skipped: no sftp");
        return;
    }
    // Not below the temporary directory, which is allowed anyway.
    let root = tempfile::Builder::new().prefix("coalition-sftp-").tempdir_in("/var/tmp").unwrap();
    let (server, client) = up(root.path()).await;
    let local = client.temp.path().join("local");
    let data: Vec<u8> = (0..5_000_000u32).map(|i| i.to_le_bytes()[1]).collect();
    fs::write(&local, &data).unwrap();
    let back = client.temp.path().join("back");
    let batch = format!(
        "mkdir sub\nput -p {0} sub/there\nrename sub/there sub/moved\nls -l sub\nget sub/moved {1}\nchmod 600 sub/moved\nrm sub/moved\nrmdir sub\n",
        local.display(),
        back.display()
    );
    let output = client.sftp(&batch).await;
    assert!(output.status.success(), "{} {}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("moved"));
    assert!(fs::read(&back).unwrap() == data);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    let stolen = client.temp.path().join("stolen");
    let output = client.sftp(&format!("get /etc/passwd {}\n", stolen.display())).await;
    assert!(!output.status.success() && !stolen.exists());
    server.shutdown().await;
}

#[tokio::test]
async fn a_stranger_is_refused() {
    if !has("ssh") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (server, client) = up(root.path()).await;
    write_private(&client.temp.path().join("key"), keys::generate("stranger").private_openssh.expose());
    let output = client.ssh("echo in").await;
    assert!(output.status.code() == Some(255) && output.stdout.is_empty());
    assert!(text(&output.stderr).contains("Permission denied"));
    server.shutdown().await;
}

#[tokio::test]
async fn no_key_no_server() {
    let config = HostSshdConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        host_key: keys::generate("h").private_openssh,
        authorized_keys: vec![],
        root_dir: "/tmp".into(),
        env: vec![],
    };
    assert!(serve(config.clone()).await.is_err_and(|e| e.to_string().contains("nobody could log in")));
    let key = keys::generate("u").public_openssh;
    let missing = HostSshdConfig { root_dir: "/nonexistent".into(), authorized_keys: vec![key], ..config };
    assert!(serve(missing).await.is_err_and(|e| e.to_string().contains("/nonexistent")));
}

#[tokio::test]
async fn a_grant_started_over_it_survives_the_connection_and_the_server() {
    for host in Host::each().into_iter().take(1) {
        let (server, client) = up(host.temp.path()).await;
        let mut grant = host.prepare(|spec| spec.command = vec!["sleep".into(), "500".into()]);
        let output = client.ssh(&format!("./runner runner start --dir {}", grant.dir_text())).await;
        let state: RunnerState = parse_answer(text(&output.stdout).trim_end()).unwrap();
        grant.ready(state);
        server.shutdown().await;
        assert!(matches!(grant.status().phase, Phase::Ready { .. }));
        let alive = await_some("a session", Duration::from_secs(10), || Some(grant.ssh("echo alive")));
        assert_eq!(alive.out, "alive\n");
        grant.clean();
    }
}

#[tokio::test]
async fn a_command_whose_client_is_gone_ends() {
    if !has("ssh") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (server, client) = up(root.path()).await;
    let mut command = tokio::process::Command::from(client.command("ssh", "-p"));
    let mut child = command.arg("x@127.0.0.1").arg("echo $$ > pid; sleep 300").kill_on_drop(true).spawn().unwrap();
    let path = root.path().join("pid");
    let pid: i32 = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Some(pid) = fs::read_to_string(&path).ok().and_then(|t| t.trim().parse().ok()) {
                break pid;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    child.kill().await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), async {
        while coalition_host::proc::stat(pid).is_some_and(|s| s.state != 'Z') {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    server.shutdown().await;
}
