//! The tickets a person keeps: `tickets/peer.key`, which they are issued to, and `tickets/*.ticket`.
//!
//! A client is somebody else with every command, and holds no ticket. Where a market admits writers by ticket, it comes as the
//! one peer that its tickets name: the members then see that one peer's requests belong together.

use std::{
    fs,
    path::{Path, PathBuf},
};

use coalition_organism::TicketSource;
use coalition_tickets::{Bearer, IssuedTicket, Nonce, Presentation, TicketFileError, presentation::MAX_TICKETS};
use coalition_universe::NodeKey;
use futures::{FutureExt, future::BoxFuture};

use crate::{
    error::{CliError, Result},
    home::{Home, private_dir},
};

/// The directory of tickets below a home.
#[must_use]
pub fn directory(home: &Home) -> PathBuf {
    home.root().join("tickets")
}

fn key_path(home: &Home) -> PathBuf {
    directory(home).join("peer.key")
}

/// The key tickets are issued to, made when there is none.
///
/// # Errors
/// When the file is unusable.
pub fn peer_key(home: &Home) -> Result<NodeKey> {
    home.ensure()?;
    private_dir(&directory(home))?;
    load(&key_path(home))
}

/// The key to come as, if this home has one.
///
/// # Errors
/// When its file is unusable.
pub fn existing_key(home: &Home) -> Result<Option<NodeKey>> {
    let path = key_path(home);
    if path.exists() { load(&path).map(Some) } else { Ok(None) }
}

fn load(path: &Path) -> Result<NodeKey> {
    NodeKey::load_or_create(path)
        .map_err(|error| CliError::input("key_unusable", "a key file cannot be used").because(error))
}

/// Reads a ticket's file.
///
/// # Errors
/// When it cannot be read, or holds no ticket.
pub fn read(path: &Path) -> Result<IssuedTicket> {
    IssuedTicket::read(path).map_err(|error| {
        let code = match error {
            TicketFileError::Unreadable { .. } => "ticket_unreadable",
            TicketFileError::TooLong { .. } | TicketFileError::NoTicket { .. } => "ticket_invalid",
        };
        CliError::input(code, "a ticket cannot be used").because(error)
    })
}

/// Shows the tickets of a home at the doors they name. They are read again each time.
#[derive(Debug, Clone)]
pub struct Kept(PathBuf);

impl Kept {
    /// Those of this home.
    #[must_use]
    pub fn of(home: &Home) -> Self {
        Self(directory(home))
    }

    fn gather(&self, bearer: &Bearer) -> Presentation {
        let files = fs::read_dir(&self.0).into_iter().flatten().filter_map(|file| Some(file.ok()?.path()));
        let mut files: Vec<PathBuf> =
            files.filter(|path| path.extension().is_some_and(|end| end == "ticket")).collect();
        files.sort();
        let tickets = files
            .iter()
            .filter_map(|path| read(path).inspect_err(|error| tracing::warn!(%error, "a ticket is not shown")).ok());
        let here = tickets.filter(|ticket| ticket.claimed().is_ok_and(|(audience, ..)| audience == bearer.audience));
        here.take(MAX_TICKETS).fold(Presentation::empty(), Presentation::with_issued)
    }
}

impl TicketSource for Kept {
    fn present(&self, bearer: Bearer, _: Nonce) -> BoxFuture<'static, std::result::Result<Presentation, String>> {
        let kept = self.clone();
        async move {
            let shown = tokio::task::spawn_blocking(move || kept.gather(&bearer)).await.map_err(|e| e.to_string())?;
            if shown.tickets().is_empty() {
                return Err(format!(
                    "no ticket for {} is kept; `coalition ticket` says how to get one",
                    bearer.audience
                ));
            }
            Ok(shown)
        }
        .boxed()
    }
}
