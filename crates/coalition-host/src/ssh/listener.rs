//! SSH connections: what a server offers and to whom, limits for strangers, and an orderly end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use russh::keys::{PrivateKey, PublicKey};
use russh::server::{self, run_stream};
use russh::{MethodKind, MethodSet, Preferred, compression};
use tokio::net::{TcpListener, TcpStream};

use super::Traffic;
use super::handler::{Connection, Shared};
use super::process::Launcher;
use crate::accepting::{Listening, Stopped};

/// How long a client may take to log in.
const LOGIN_GRACE: Duration = Duration::from_secs(30);

/// The server's identity and who may log in.
pub(crate) struct ServerKeys {
    pub(crate) host: PrivateKey,
    pub(crate) authorized: Vec<PublicKey>,
}

/// How much of the host one server may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerLimits {
    /// Connections at one time.
    pub(crate) connections: usize,
    /// Channels open at one time on one connection.
    pub(crate) channels: usize,
    /// Messages of up to 32 KiB queued per channel.
    pub(crate) queue: usize,
}

impl ServerLimits {
    /// For the users of a grant, whose sessions cost memory that the grant's own limit does not cover.
    pub(crate) const GRANT: Self = Self { connections: 64, channels: 16, queue: 8 };
    /// For a provider on its own host. The queue holds more than the 64 requests that SFTP clients send ahead, because
    /// a file server that waits for its client must not make that client's connection wait.
    pub(crate) const HOST: Self = Self { connections: 128, channels: 64, queue: 256 };
}

fn config(host: PrivateKey, limits: ServerLimits) -> server::Config {
    server::Config {
        server_id: russh::SshId::Standard("SSH-2.0-coalition".into()),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: Duration::from_millis(300),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![host],
        max_auth_attempts: 8,
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(20)),
        keepalive_max: 3,
        nodelay: true,
        channel_buffer_size: limits.queue,
        event_buffer_size: 32,
        // A compressed stream is a way for a stranger to make us work; images are compressed already.
        preferred: Preferred { compression: std::borrow::Cow::Borrowed(&[compression::NONE]), ..Preferred::DEFAULT },
        ..server::Config::default()
    }
}

/// Serves on a bound socket until shut down.
pub(crate) fn listen(
    socket: TcpListener,
    keys: ServerKeys,
    launcher: Arc<dyn Launcher>,
    traffic: Arc<Traffic>,
    limits: ServerLimits,
) -> std::io::Result<Listening> {
    let config = Arc::new(config(keys.host, limits));
    let shared = Arc::new(Shared { launcher, authorized: keys.authorized, traffic, held: Arc::default(), limits });
    Listening::start(socket, limits.connections, move |stream, stopped| {
        serve(stream, config.clone(), shared.clone(), stopped)
    })
}

async fn serve(stream: TcpStream, config: Arc<server::Config>, shared: Arc<Shared>, mut stopped: Stopped) {
    let _ = stream.set_nodelay(true);
    let logged_in = Arc::new(AtomicBool::new(false));
    let connection = Connection::new(shared, logged_in.clone());
    let deadline = tokio::time::Instant::now() + LOGIN_GRACE;
    let started = tokio::select! {
        started = tokio::time::timeout_at(deadline, run_stream(config, stream, connection)) => started,
        _ = stopped.wait_for(|s| *s) => return,
    };
    let Ok(Ok(mut session)) = started else { return };
    let handle = session.handle();
    let too_slow = async {
        tokio::time::sleep_until(deadline).await;
        if logged_in.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let reason = tokio::select! {
        _ = &mut session => return,
        () = too_slow => "login took too long",
        _ = stopped.wait_for(|s| *s) => "this machine's grant has ended",
    };
    let farewell = async {
        let _ = handle.disconnect(russh::Disconnect::ByApplication, reason.into(), String::new()).await;
        let _ = session.await;
    };
    // A client that does not hang up is left to its own: dropping the session closes the socket.
    let _ = tokio::time::timeout(Duration::from_millis(500), farewell).await;
}
