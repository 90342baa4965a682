//! Reading strict text: lines that each end in a newline, with fixed beginnings.

use crate::{
    checkpoint::{parse_decimal, shorten},
    tree::{Hash, MAX_PROOF_HASHES},
};

/// A line is missing, or is not what stands there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not the expected {expected}: {found:?}")]
pub struct LineError {
    /// Which line, from 1.
    pub line: usize,
    /// What belongs there.
    pub expected: &'static str,
    /// What stands there, shortened.
    pub found: String,
}

/// The lines of a text, each of which must end in a newline.
pub(crate) struct Lines<'a> {
    pub(crate) rest: &'a str,
    number: usize,
}

impl<'a> Lines<'a> {
    pub(crate) const fn new(text: &'a str) -> Self {
        Self { rest: text, number: 0 }
    }

    pub(crate) fn next(&mut self, expected: &'static str) -> Result<&'a str, LineError> {
        self.number += 1;
        let Some((line, rest)) = self.rest.split_once('\n') else {
            return Err(LineError { line: self.number, expected, found: shorten(self.rest) });
        };
        self.rest = rest;
        Ok(line)
    }

    pub(crate) fn field<T>(
        &mut self,
        expected: &'static str,
        prefix: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, LineError> {
        let line = self.next(expected)?;
        let found = || LineError { line: self.number, expected, found: shorten(line) };
        line.strip_prefix(prefix).and_then(parse).ok_or_else(found)
    }

    /// Nothing may follow.
    pub(crate) fn end(&self) -> Result<(), LineError> {
        let more = || LineError { line: self.number + 1, expected: "end", found: shorten(self.rest) };
        if self.rest.is_empty() { Ok(()) } else { Err(more()) }
    }

    pub(crate) fn path(&mut self) -> Result<Vec<Hash>, LineError> {
        let in_bounds = |text: &str| parse_decimal(text).filter(|count| *count <= MAX_PROOF_HASHES as u64);
        let count = self.field("path line", "path ", in_bounds)?;
        (0..count).map(|_| self.field("hash of the path", "", Hash::from_base64)).collect()
    }
}
