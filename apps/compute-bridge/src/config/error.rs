//! What is wrong with a boot file, said so that it can be put right without this code.

use std::fmt;
use std::path::{Path, PathBuf};

use super::secret::SecretFileError;

/// Where in which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The key, with its section; empty when the file as a whole is meant.
    pub key: String,
    /// Line, from 1; 0 when it is a key that is missing.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ", line {}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ", key `{}`", self.key)?;
        }
        Ok(())
    }
}

/// Why a boot file is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the boot file {path} cannot be read; `compute-bridge example-config` prints one to start from")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or a key is unknown, missing, or holds a value it cannot.
    #[error("{place}: {problem}")]
    Form {
        /// Where.
        place: Place,
        /// What is wrong, what is allowed, and what may have been meant.
        problem: String,
    },
    /// A value is well formed but cannot be used.
    #[error("{place}: {problem}")]
    Value {
        /// Where.
        place: Place,
        /// What is wrong, with the value, and what would be right.
        problem: String,
    },
    /// A file with a secret cannot be used.
    #[error("{place}")]
    Secret {
        /// Where it is named.
        place: Place,
        /// Why.
        #[source]
        source: SecretFileError,
    },
    /// The node's key file cannot be used.
    #[error("{place}")]
    NodeKey {
        /// Where it is named.
        place: Place,
        /// Why.
        #[source]
        source: coalition_universe::KeyError,
    },
    /// The published config of the coalition cannot be used.
    #[error("{place}")]
    Coalition {
        /// Where it is named.
        place: Place,
        /// Why.
        #[source]
        source: Box<coalition::published::PublishedError>,
    },
}

/// Turns the parser's refusal into one with place, allowed keys and a guess at what was meant.
pub(super) fn from_toml(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text.get(..start).map_or(1, |before| before.matches('\n').count() + 1);
    let message = error.message();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let (key, problem) = if message.starts_with("unknown field") {
        let (given, allowed) = quoted.split_first().map_or(("", &[][..]), |(first, rest)| (*first, rest));
        (key_path(text, line, Some(given)), unknown_key(given, allowed))
    } else if message.starts_with("missing field") {
        let missing = quoted.first().copied().unwrap_or_default();
        let hint = "see `compute-bridge example-config` for what it holds";
        (key_path(text, line, Some(missing)), format!("the key `{missing}` is missing; {hint}"))
    } else {
        (key_path(text, line, None), message.to_owned())
    };
    ConfigError::Form { place: Place { file: file.into(), key, line }, problem }
}

fn unknown_key(given: &str, allowed: &[&str]) -> String {
    let list = allowed.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    let guess = allowed
        .iter()
        .map(|key| (distance(given, key), *key))
        // A key cut short or written out is as good a guess as one with a slip of the finger.
        .filter(|(steps, key)| {
            *steps <= (key.len() / 3).max(2) || (given.len() > 3 && (key.starts_with(given) || given.starts_with(key)))
        })
        .min()
        .map(|(_, key)| format!("; did you mean `{key}`?"));
    format!("there is no key `{given}` here{}; allowed here: {list}", guess.unwrap_or_default())
}

/// The section header above a line and the key on it: `baremetal.machines.host`.
pub(super) fn key_path(text: &str, line: usize, key: Option<&str>) -> String {
    let before: Vec<&str> = text.lines().take(line).collect();
    let section = before.iter().rev().find_map(|l| {
        let header = l.trim().strip_prefix('[')?;
        Some(header.trim_start_matches('[').split(']').next()?.trim().to_owned())
    });
    let on_line = before.last().and_then(|l| l.split_once('=')).map(|(name, _)| name.trim().to_owned());
    let key = key.map(ToOwned::to_owned).or(on_line).unwrap_or_default();
    match section {
        Some(section) if key.is_empty() || section == key => section,
        Some(section) => format!("{section}.{key}"),
        None => key,
    }
}

/// Levenshtein distance: single-character edits between two keys.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
