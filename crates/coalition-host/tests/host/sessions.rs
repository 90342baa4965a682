use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use russh::ChannelMsg;
use russh::client;
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};

use super::harness::{As, Grant, Host, await_some, write_private};

#[test]
fn only_the_one_key_and_only_the_pinned_host() {
    let Some(host) = Host::each().into_iter().next() else { return };
    let grant = host.start(|_| {});
    let key = grant.client.path().join("key");
    let right = std::fs::read_to_string(&key).unwrap();
    write_private(&key, coalition_host::keys::generate("stranger").private_openssh.expose());
    let seen = grant.ssh("echo in");
    assert!(seen.code == 255 && seen.err.contains("Permission denied") && seen.out.is_empty(), "{seen:?}");
    write_private(&key, &right);
    grant.pin(&coalition_host::keys::generate("other host").public_openssh);
    let seen = grant.ssh("echo in");
    assert!(seen.code == 255 && seen.err.contains("Host key verification failed"), "{seen:?}");
    grant.pin(&grant.host_public.clone());
    let seen = grant.ssh_with(&["-o", "PreferredAuthentications=password,keyboard-interactive"], "echo in", b"");
    assert!(seen.code == 255 && seen.out.is_empty(), "{seen:?}");
    assert_eq!(grant.ssh("echo in").out, "in\n");
    grant.clean();
}

#[test]
fn streams_end_and_bytes_survive() {
    for host in Host::each() {
        let grant = host.start(|_| {});
        let mut data = vec![0u8; 9 << 20];
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = u8::try_from((i * 31 + i / 4096) % 251).unwrap();
        }
        let seen = grant.ssh_with(&[], "md5sum; echo done", &data);
        assert!(seen.out.ends_with("done\n"), "{seen:?}");
        let mut child = grant.ssh_command(&[]).arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let copy = data.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&copy));
        let mut back = Vec::new();
        // A slow reader with a full pipe both ways is where a careless pump deadlocks.
        std::thread::sleep(Duration::from_millis(300));
        child.stdout.take().unwrap().read_to_end(&mut back).unwrap();
        writer.join().unwrap().unwrap();
        assert!(child.wait().unwrap().success());
        assert!(back == data, "{} of {} bytes came back", back.len(), data.len());
        let seen = grant.ssh("kill -KILL $$");
        assert_eq!(seen.code, 255);
        let usage = await_some("traffic in the usage", Duration::from_secs(5), || {
            Some(grant.usage()).filter(|u| u.net_bytes >= 3 * (9 << 20))
        });
        assert!(usage.net_bytes < 4 * (9 << 20), "{usage:?}");
        grant.clean();
    }
}

#[test]
fn a_terminal_is_one() {
    for host in Host::each() {
        let grant = host.start(|_| {});
        let seen = grant.ssh_with(&["-tt"], "", b"tty; echo TERM=$TERM; exit 5\n");
        assert_eq!(seen.code, 5, "{seen:?}");
        assert!(seen.out.contains("Hello from a machine of your own") && seen.out.contains("/dev/pts/"), "{seen:?}");
        let seen = grant.ssh_with(&["-tt"], "read line; echo got $line; test -t 0 && echo yes", b"abc\n");
        assert!(seen.code == 0 && seen.out.contains("got abc") && seen.out.contains("yes"), "{seen:?}");
        // The end of input ends a shell on a terminal, too.
        let seen = grant.ssh_with(&["-tt"], "", b"echo bye\n");
        assert!(seen.out.contains("bye"), "{seen:?}");
        grant.clean();
    }
}

#[test]
fn a_background_job_neither_holds_the_session_nor_dies_with_it() {
    for host in Host::each().into_iter().filter(|h| h.kind != As::Bare) {
        let grant = host.start(|_| {});
        let seen = grant.ssh("sleep 77 >/dev/null 2>&1 & echo started");
        assert_eq!(seen.out, "started\n");
        assert!(grant.ssh("ps").out.contains("sleep 77"));
        grant.clean();
    }
}

#[test]
fn a_port_inside_is_reached_by_forwarding() {
    for host in Host::each().into_iter().filter(|h| h.kind != As::Bare) {
        let grant = host.start(|spec| {
            let line = "mkdir -p /srv && echo inside > /srv/index.html && exec httpd -f -p 80 -h /srv";
            spec.command = vec!["/bin/sh".into(), "-c".into(), line.into()];
        });
        let request = b"GET /index.html HTTP/1.0\r\n\r\n";
        let seen = await_some("the web server", Duration::from_secs(20), || {
            let seen = grant.ssh_with(&["-W", "127.0.0.1:80"], "", request);
            seen.out.contains("inside").then_some(seen)
        });
        assert!(seen.out.starts_with("HTTP/1."), "{seen:?}");
        let seen = grant.ssh_with(&["-W", "10.0.0.1:80"], "", request);
        assert!(seen.code != 0 && seen.out.is_empty(), "{seen:?}");
        grant.clean();
    }
}

struct Pinned(PublicKey);

impl client::Handler for Pinned {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(matches!(key, PublicKeyOrCertificate::PublicKey { key, .. } if key.key_data() == self.0.key_data()))
    }
}

async fn connect(grant: &Grant<'_>) -> client::Handle<Pinned> {
    let pinned = Pinned(PublicKey::from_openssh(&grant.host_public).unwrap());
    let address = ("127.0.0.1", grant.port());
    let mut session = client::connect(Arc::new(client::Config::default()), address, pinned).await.unwrap();
    let key = PrivateKey::read_openssh_file(grant.client.path().join("key")).unwrap();
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    assert!(session.authenticate_publickey("root", key).await.unwrap().success());
    session
}

/// Reads until `text` has come by.
async fn await_text(channel: &mut russh::Channel<client::Msg>, text: &str) -> String {
    let mut seen = String::new();
    let wait = async {
        while !seen.contains(text) {
            match channel.wait().await {
                Some(ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. }) => {
                    seen.push_str(&String::from_utf8_lossy(&data));
                }
                Some(_) => {}
                None => break,
            }
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(20), wait).await;
    assert!(done.is_ok() && seen.contains(text), "waited for {text:?}, saw {seen:?}");
    seen
}

#[tokio::test]
async fn window_changes_signals_and_exit_signals_arrive() {
    for host in Host::each() {
        let grant = host.start(|_| {});
        let session = connect(&grant).await;
        let mut channel = session.channel_open_session().await.unwrap();
        channel.request_pty(true, "xterm", 80, 24, 0, 0, &[(russh::Pty::ECHO, 0)]).await.unwrap();
        channel.exec(true, "stty size; read x; stty size; sleep 50").await.unwrap();
        await_text(&mut channel, "24 80").await;
        channel.window_change(132, 50, 0, 0).await.unwrap();
        channel.data(&b"go\n"[..]).await.unwrap();
        await_text(&mut channel, "50 132").await;
        drop(channel);

        let mut channel = session.channel_open_session().await.unwrap();
        channel.set_env(true, "COLOUR", "blue").await.unwrap();
        channel.exec(true, "echo $COLOUR; exec sleep 50").await.unwrap();
        await_text(&mut channel, "blue").await;
        channel.signal(russh::Sig::TERM).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                match channel.wait().await {
                    Some(ChannelMsg::ExitSignal { signal_name, .. }) => break Some(signal_name),
                    Some(_) => {}
                    None => break None,
                }
            }
        });
        assert!(matches!(ended.await, Ok(Some(russh::Sig::TERM))));
        session.disconnect(russh::Disconnect::ByApplication, "", "").await.unwrap();
        grant.clean();
    }
}

#[test]
fn a_client_that_vanishes_hangs_its_terminal_up() {
    let Some(host) = Host::each().into_iter().find(|h| h.kind != As::Bare) else { return };
    let grant = host.start(|_| {});
    let mut client = grant.ssh_command(&["-tt"]);
    let mut client = client.arg("exec sleep 71").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let running = || grant.ssh("ps").out.contains("sleep 71");
    await_some("the program", Duration::from_secs(20), || running().then_some(()));
    client.kill().unwrap();
    client.wait().unwrap();
    await_some("the hang-up", Duration::from_secs(20), || (!running()).then_some(()));
    grant.clean();
}
