//! Connections to a virtual machine's SSH server: accepted on the host, carried to the machine's own network, counted.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::accepting::Listening;
use crate::isolate::control::Control;
use crate::machine::qemu::SSH_PORT;
use crate::ssh::Traffic;

/// Connections at one time.
const CONNECTIONS: usize = 64;
/// Bytes carried at once, each way.
const PIECE: usize = 64 * 1024;

/// Carries what arrives at `socket` to the machine in this environment.
pub(super) fn start(socket: TcpListener, control: Control, traffic: Arc<Traffic>) -> std::io::Result<Listening> {
    Listening::start(socket, CONNECTIONS, move |stream, mut stopped| {
        let (control, traffic) = (control.clone(), traffic.clone());
        async move {
            let carried = async {
                if let Ok(inside) = connect(&control).await {
                    carry(stream, inside, &traffic).await;
                }
            };
            tokio::select! {
                () = carried => {}
                _ = stopped.wait_for(|s| *s) => {}
            }
        }
    })
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
        traffic.pass(got).await;
    }
    let _ = to.shutdown().await;
}
