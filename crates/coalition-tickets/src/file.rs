//! The file a person is given: one issued ticket as text, and perhaps a line end.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::issuer::{IssuedTicket, MAX_ISSUED_BYTES};
use crate::refused::Refused;

/// Most white space around a ticket.
const MAX_BLANKS: usize = 16;

/// Why a file holds no ticket.
#[derive(Debug, Error)]
pub enum TicketFileError {
    /// It cannot be read.
    #[error("the ticket {} cannot be read", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// More than any ticket has.
    #[error("{} holds no ticket: it has more than {MAX_ISSUED_BYTES} bytes", .path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Other text.
    #[error("{} holds no ticket", .path.display())]
    NoTicket {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, when it is text at all.
        #[source]
        source: Option<Refused>,
    },
}

impl IssuedTicket {
    /// Reads a ticket's file. Its form is checked, not its signature.
    ///
    /// # Errors
    /// [`TicketFileError`].
    pub fn read(path: &Path) -> Result<Self, TicketFileError> {
        let unreadable = |source| TicketFileError::Unreadable { path: path.to_owned(), source };
        let limit = MAX_ISSUED_BYTES + MAX_BLANKS;
        let mut text = Vec::new();
        let file = std::fs::File::open(path).map_err(unreadable)?;
        file.take(limit as u64 + 1).read_to_end(&mut text).map_err(unreadable)?;
        if text.len() > limit {
            return Err(TicketFileError::TooLong { path: path.to_owned() });
        }
        let none = |source| TicketFileError::NoTicket { path: path.to_owned(), source };
        let ticket = Self::from_ascii(text.trim_ascii()).ok_or_else(|| none(None))?;
        ticket.claimed().map_err(|refused| none(Some(refused)))?;
        Ok(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_ticket_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ticket");
        let said = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            IssuedTicket::read(&path).unwrap_err()
        };
        assert!(matches!(said(&[b'a'; 5_000]), TicketFileError::TooLong { .. }));
        assert!(matches!(said(b"\xff\xfe"), TicketFileError::NoTicket { source: None, .. }));
        assert!(matches!(said(b"a.b.c\n"), TicketFileError::NoTicket { source: Some(_), .. }));
        std::fs::remove_file(&path).unwrap();
        let missing = IssuedTicket::read(&path).unwrap_err();
        assert!(matches!(missing, TicketFileError::Unreadable { .. }) && missing.to_string().contains("a.ticket"));
    }
}
