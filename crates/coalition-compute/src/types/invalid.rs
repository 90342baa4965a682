//! One error for values outside their stated limits.

/// A value lies outside its stated limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A number is too small or too large.
    #[error("{field} is {given}; it must be {min} to {max}")]
    Range {
        /// Field name.
        field: &'static str,
        /// Value given.
        given: u64,
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
    },
    /// A name has a wrong length or a wrong character.
    #[error("{field} {given:?} must be 1 to 32 characters of a-z, 0-9 and '-', with a letter or digit at both ends")]
    Name {
        /// Field name.
        field: &'static str,
        /// Text given, cut to 40 characters.
        given: String,
    },
    /// A list names the same thing twice.
    #[error("{field} lists {item} twice")]
    Duplicate {
        /// Field name.
        field: &'static str,
        /// The item.
        item: String,
    },
    /// A rate is above the limit.
    #[error("{field} is {given} USD per hour; the limit is {limit}")]
    Rate {
        /// Field name.
        field: &'static str,
        /// Rate given, decimal.
        given: String,
        /// Rate allowed, decimal.
        limit: String,
    },
    /// Two fields contradict each other.
    #[error("{what}")]
    Contradiction {
        /// What contradicts what, and what to do.
        what: &'static str,
    },
}

impl Invalid {
    /// Checks a number against an inclusive range.
    ///
    /// # Errors
    /// [`Invalid::Range`] when outside.
    pub const fn check_range(field: &'static str, given: u64, min: u64, max: u64) -> Result<(), Self> {
        if given < min || given > max {
            return Err(Self::Range { field, given, min, max });
        }
        Ok(())
    }
}
