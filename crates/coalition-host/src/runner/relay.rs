//! Connections to a virtual machine's SSH server: accepted on the host, carried to the machine's own network, counted.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::isolate::control::Control;
use crate::machine::qemu::SSH_PORT;
use crate::ssh::Traffic;

/// Connections at one time.
const CONNECTIONS: usize = 64;
/// Bytes carried at once, each way.
const PIECE: usize = 64 * 1024;

/// A relay that is up.
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Carries what arrives at `socket` to the machine in this environment.
    pub(super) fn start(socket: TcpListener, control: Control, traffic: Arc<Traffic>) -> std::io::Result<Self> {
        let address = socket.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept(socket, control, traffic, stopped));
        Ok(Self { address, stop, task })
    }

    /// Stops accepting and closes every connection.
    pub(super) async fn shutdown(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

async fn accept(socket: TcpListener, control: Control, traffic: Arc<Traffic>, mut stopped: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stopped.wait_for(|s| *s) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                // A full house drops the newcomer: it sees a closed connection and may try again.
                let Ok(seat) = room.clone().try_acquire_owned() else { continue };
                let (control, traffic) = (control.clone(), traffic.clone());
                connections.spawn(async move {
                    if let Ok(inside) = connect(&control).await {
                        carry(stream, inside, &traffic).await;
                    }
                    drop(seat);
                });
            }
            // Out of descriptors or a connection reset before it was taken: nothing a pause would not heal.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A connection to the machine's SSH port.
pub(super) async fn connect(control: &Control) -> Result<TcpStream, String> {
    let fd: OwnedFd = control.connect(SSH_PORT).await?;
    let failed = |e: std::io::Error| format!("cannot reach the machine: {e}");
    let stream = TcpStream::from_std(std::net::TcpStream::from(fd)).map_err(failed)?;
    stream.writable().await.map_err(failed)?;
    match stream.take_error().map_err(failed)? {
        Some(e) => Err(failed(e)),
        None => Ok(stream),
    }
}

async fn carry(outside: TcpStream, inside: TcpStream, traffic: &Traffic) {
    let _ = (outside.set_nodelay(true), inside.set_nodelay(true));
    let (from_outside, to_outside) = outside.into_split();
    let (from_inside, to_inside) = inside.into_split();
    tokio::join!(one_way(from_outside, to_inside, traffic), one_way(from_inside, to_outside, traffic));
}

/// Copies until the end, counts, and passes the end on.
async fn one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, traffic: &Traffic) {
    let mut piece = vec![0; PIECE];
    while let Ok(got @ 1..) = from.read(&mut piece).await {
        if to.write_all(&piece[..got]).await.is_err() {
            break;
        }
        traffic.add(got);
    }
    let _ = to.shutdown().await;
}
