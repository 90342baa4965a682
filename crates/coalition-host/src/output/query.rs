//! What a requester asks for: the name of an SSH subsystem with options behind it.

use std::fmt;

/// The subsystem's name.
pub const SUBSYSTEM: &str = "coalition-logs";

/// Which part of a workload's output is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Go on until the workload has ended.
    pub follow: bool,
    /// Nothing older than this, milliseconds since 1970 by the host's clock.
    pub since_unix_ms: u64,
}

/// A subsystem request that is no query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Another subsystem.
    #[error("the subsystem is not {SUBSYSTEM}")]
    OtherSubsystem,
    /// An option it does not have, or one said twice.
    #[error("{0:?} is not expected; the options are --follow and --since MILLISECONDS")]
    Option(String),
    /// A time that is none.
    #[error("--since {0:?} is not a number of milliseconds since 1970")]
    Since(String),
}

impl LogQuery {
    /// Parses `coalition-logs [--follow] [--since MILLISECONDS]`.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        let mut words = text.split(' ');
        if words.next() != Some(SUBSYSTEM) {
            return Err(QueryError::OtherSubsystem);
        }
        let (mut query, mut since) = (Self::default(), None);
        while let Some(word) = words.next() {
            match word {
                "--follow" if !query.follow => query.follow = true,
                "--since" if since.is_none() => {
                    let value = words.next().unwrap_or_default();
                    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                    let parsed = value.parse().ok().filter(|_| digits);
                    since = Some(parsed.ok_or_else(|| QueryError::Since(value.chars().take(40).collect()))?);
                }
                other => return Err(QueryError::Option(other.chars().take(40).collect())),
            }
        }
        query.since_unix_ms = since.unwrap_or_default();
        Ok(query)
    }
}

impl fmt::Display for LogQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SUBSYSTEM)?;
        if self.follow {
            f.write_str(" --follow")?;
        }
        if self.since_unix_ms > 0 {
            write!(f, " --since {}", self.since_unix_ms)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_wrong_word_is_named() {
        for (text, error) in [
            ("sftp", QueryError::OtherSubsystem),
            ("", QueryError::OtherSubsystem),
            ("coalition-logs --colour", QueryError::Option("--colour".into())),
            ("coalition-logs --follow --follow", QueryError::Option("--follow".into())),
            ("coalition-logs  --follow", QueryError::Option(String::new())),
            ("coalition-logs --since", QueryError::Since(String::new())),
            ("coalition-logs --since +1", QueryError::Since("+1".into())),
            ("coalition-logs --since 99999999999999999999", QueryError::Since("99999999999999999999".into())),
        ] {
            assert_eq!(LogQuery::parse(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_query_reads_as_it_is_written(follow: bool, since_unix_ms: u64) {
            let query = LogQuery { follow, since_unix_ms };
            prop_assert_eq!(LogQuery::parse(&query.to_string()), Ok(query));
        }

        #[test]
        fn any_text_is_judged(text in "(coalition-logs)?.{0,60}") {
            let _ = LogQuery::parse(&text);
        }
    }
}
