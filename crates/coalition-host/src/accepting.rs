//! Accepting connections: a limit for strangers, and an orderly end.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Pause after a failed accept: out of descriptors, or a connection reset before it was taken.
const PAUSE: Duration = Duration::from_millis(50);

/// True once the service is to end; every connection has one.
pub(crate) type Stopped = watch::Receiver<bool>;

/// A service that is up.
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Listening {
    /// Serves at most `limit` connections of `socket` at one time, each by a future that ends soon once it is stopped.
    pub(crate) fn start<F>(
        socket: TcpListener,
        limit: usize,
        serve: impl Fn(TcpStream, Stopped) -> F + Send + 'static,
    ) -> std::io::Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let address = socket.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept(socket, limit, serve, stopped));
        Ok(Self { address, stop, task })
    }

    /// Stops accepting, closes every connection, and returns when all are gone.
    pub(crate) async fn shutdown(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

async fn accept<F>(
    socket: TcpListener,
    limit: usize,
    serve: impl Fn(TcpStream, Stopped) -> F + Send + 'static,
    mut stopped: Stopped,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(limit));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stopped.wait_for(|s| *s) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = socket.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // A full house drops the newcomer: it sees a closed connection and may try again.
        let Ok(seat) = room.clone().try_acquire_owned() else { continue };
        let served = serve(stream, stopped.clone());
        connections.spawn(async move {
            served.await;
            drop(seat);
        });
    }
    drop(socket);
    while connections.join_next().await.is_some() {}
}
