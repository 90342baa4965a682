//! Asking the host's own resolvers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::dns::{self, Asked, Heard};

/// Wait for one resolver; the C library waits 5 s, and asks them in turn, too.
const PATIENCE: Duration = Duration::from_secs(3);
/// Times each resolver is asked.
const ROUNDS: usize = 2;
const FILE: &str = "/etc/resolv.conf";
const PORT: u16 = 53;

/// What the resolvers of this host say; none when none says anything.
pub(super) async fn resolve(asked: &Asked) -> Option<(Vec<u8>, Vec<(IpAddr, u32)>)> {
    // Read anew each time: a laptop's changes as it is carried about.
    let mut resolvers = dns::resolvers(&tokio::fs::read_to_string(FILE).await.unwrap_or_default());
    if resolvers.is_empty() {
        resolvers.push(Ipv4Addr::LOCALHOST.into());
    }
    for resolver in resolvers.iter().cycle().take(resolvers.len() * ROUNDS) {
        let at = SocketAddr::new(*resolver, PORT);
        let mut heard = timeout(PATIENCE, by_udp(asked, at)).await;
        if let Ok(Ok(Heard::Truncated)) = heard {
            heard = timeout(PATIENCE, by_tcp(asked, at)).await;
        }
        if let Ok(Ok(Heard::Answer(answer, addresses))) = heard {
            return Some((answer, addresses));
        }
    }
    None
}

async fn by_udp(asked: &Asked, at: SocketAddr) -> io::Result<Heard> {
    let socket = bound(at.ip()).await?;
    socket.connect(at).await?;
    socket.send(&asked.packet).await?;
    let mut piece = vec![0; 4096];
    loop {
        let length = socket.recv(&mut piece).await?;
        match asked.hear(&piece[..length]) {
            Heard::Noise => {}
            heard => return Ok(heard),
        }
    }
}

async fn by_tcp(asked: &Asked, at: SocketAddr) -> io::Result<Heard> {
    let mut stream = TcpStream::connect(at).await?;
    write_message(&mut stream, &asked.packet).await?;
    Ok(asked.hear(&read_message(&mut stream).await?))
}

/// A socket of this kind of address.
pub(super) async fn bound(like: IpAddr) -> io::Result<UdpSocket> {
    let any = if like.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0)).await
}

/// Reads a message with its length before it (RFC 1035, 4.2.2).
pub(super) async fn read_message(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = from.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    from.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message with its length before it.
pub(super) async fn write_message(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut whole = length.to_be_bytes().to_vec();
    whole.extend_from_slice(message);
    to.write_all(&whole).await
}
