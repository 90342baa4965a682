//! Reading and writing the crate's hand-specified byte layouts: big-endian integers, length-prefixed strings.

use thiserror::Error;

use crate::identity::{UniqueId, ZERO_ID};

/// A field could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Truncated {
    /// The bytes end inside the field.
    #[error("the {field} needs {needed} bytes, {left} are left")]
    Short {
        /// The field.
        field: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes left.
        left: usize,
    },
    /// The field's stated length is over its limit.
    #[error("the {field} has a length of {found}, at most {max} is allowed")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Length stated.
        found: usize,
        /// Length allowed.
        max: usize,
    },
    /// The field's bytes are no UTF-8 text.
    #[error("the {field} is no UTF-8 text")]
    Text {
        /// The field.
        field: &'static str,
    },
    /// The field's value is none of those defined.
    #[error("the {field} has the value {found}, which means nothing")]
    Value {
        /// The field.
        field: &'static str,
        /// Value found.
        found: u8,
    },
}

/// A cursor over bytes from outside. Never panics, never allocates more than it was given.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn take(&mut self, field: &'static str, needed: usize) -> Result<&'a [u8], Truncated> {
        let (head, rest) =
            self.rest.split_at_checked(needed).ok_or(Truncated::Short { field, needed, left: self.rest.len() })?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Truncated> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, Truncated> {
        Ok(self.array::<1>(field)?[0])
    }

    pub(crate) fn str_u8(&mut self, field: &'static str) -> Result<&'a str, Truncated> {
        let len = usize::from(self.u8(field)?);
        std::str::from_utf8(self.take(field, len)?).map_err(|_| Truncated::Text { field })
    }

    pub(crate) fn string_u8(&mut self, field: &'static str) -> Result<String, Truncated> {
        self.str_u8(field).map(str::to_owned)
    }

    /// A presence byte (0 or 1), then 32 bytes, all zero when absent.
    pub(crate) fn optional_id(&mut self, field: &'static str) -> Result<Option<UniqueId>, Truncated> {
        let present = self.u8(field)?;
        let id = UniqueId::from_bytes(self.array(field)?);
        match present {
            1 => Ok(Some(id)),
            0 if id == ZERO_ID => Ok(None),
            found => Err(Truncated::Value { field, found }),
        }
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, Truncated> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn bytes_u32(&mut self, field: &'static str, max: usize) -> Result<&'a [u8], Truncated> {
        let found = usize::try_from(u32::from_be_bytes(self.array(field)?)).unwrap_or(usize::MAX);
        if found > max {
            return Err(Truncated::TooLong { field, found, max });
        }
        self.take(field, found)
    }
}

/// Appends a string behind its length as one byte, cut at 255 bytes (validation refuses longer names first).
pub(crate) fn put_str_u8(out: &mut Vec<u8>, text: &str) {
    let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
    out.push(len);
    out.extend(&text.as_bytes()[..usize::from(len)]);
}

/// Appends bytes behind their length as a big-endian `u32` (validation refuses anything near that limit first).
pub(crate) fn put_bytes_u32(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend(len.to_be_bytes());
    out.extend(bytes);
}
