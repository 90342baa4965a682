//! Reading TOML configs: unknown keys refused with a suggestion, relative paths relative to the file.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use serde::de::DeserializeOwned;

use crate::error::{CliError, Context, Result};

/// Largest config file read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Reads a TOML file into a type that denies unknown fields.
///
/// # Errors
/// Unreadable, too large, not TOML, a key unknown or of the wrong type: each names the file, the line and the key.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let shown = path.display();
    let size = fs::metadata(path).or_input("config_unreadable", || format!("cannot read config {shown}"))?.len();
    if size > MAX_CONFIG_BYTES {
        let message = format!("config {shown} has {size} bytes, at most {MAX_CONFIG_BYTES} are read");
        return Err(CliError::input("config_too_large", message));
    }
    let text = fs::read_to_string(path).or_input("config_unreadable", || format!("cannot read config {shown}"))?;
    parse(&text, path)
}

/// Parses the text of a TOML file.
///
/// # Errors
/// As [`load`].
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        let place = line.map_or_else(|| path.display().to_string(), |line| format!("{}, line {line}", path.display()));
        let message = format!("config {place}: {}", error.message().trim());
        let refused = CliError::input("config_invalid", message);
        match suggestion(error.message()) {
            Some(known) => refused.hint(format!("did you mean `{known}`?")),
            None => refused,
        }
    })
}

/// Resolves a path of a config against the directory the config is in.
#[must_use]
pub fn relative_to(config: &Path, path: &Path) -> PathBuf {
    let mut resolved = config.parent().unwrap_or_else(|| Path::new(".")).to_path_buf();
    let mut rest = path.components().peekable();
    // `roles/../data` is shown to people as `data`; a symbolic link named like the directory of the configs is not expected.
    while rest.next_if_eq(&Component::ParentDir).is_some() {
        if resolved.file_name().is_none() || !resolved.pop() {
            resolved.push(Component::ParentDir);
        }
    }
    resolved.join(rest.collect::<PathBuf>())
}

/// For serde's "unknown field `a`, expected one of `b`, `c`": the expected name closest to the unknown one, if close.
fn suggestion(message: &str) -> Option<String> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    closest(unknown, quoted).map(str::to_owned)
}

/// The candidate that differs least from `word`, if it differs by at most a third of its letters (at least 2).
pub fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(2);
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance: letters inserted, removed or replaced.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only the parsing is of interest")]
    struct Sample {
        listen: std::net::SocketAddr,
        data_dir: PathBuf,
    }

    fn refused(text: &str) -> String {
        parse::<Sample>(text, Path::new("role.toml")).unwrap_err().to_string()
    }

    #[test]
    fn a_mistyped_key_is_named_with_its_line_and_the_likely_one() {
        let shown = refused("listen = \"127.0.0.1:1\"\ndatadir = \"x\"\n");
        assert!(shown.contains("role.toml, line 2") && shown.contains("`datadir`"), "{shown}");
        assert!(shown.ends_with("hint: did you mean `data_dir`?"), "{shown}");
    }

    #[test]
    fn other_faults_are_named_too() {
        assert!(refused("listen = 5\ndata_dir = \"x\"").contains("line 1"));
        assert!(refused("listen = \"127.0.0.1:1\"").contains("missing field `data_dir`"));
        assert!(refused("listen = \"nowhere\"\ndata_dir = \"x\"").contains("socket address"));
        assert!(refused("= nonsense").contains("line 1"));
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        for (config, path, expected) in [
            ("/home/roles/m.toml", "../data/m", "/home/data/m"),
            ("/home/roles/m.toml", "key", "/home/roles/key"),
            ("/home/roles/m.toml", "/etc/key", "/etc/key"),
            ("m.toml", "../data", "../data"),
            ("roles/m.toml", "../../data", "../data"),
        ] {
            assert_eq!(relative_to(Path::new(config), Path::new(path)), Path::new(expected), "{path} in {config}");
        }
    }

    #[test]
    fn distances() {
        assert_eq!((distance("kitten", "sitting"), distance("", "abc"), distance("same", "same")), (3, 3, 0));
        assert_eq!(closest("lisetn", ["listen", "data_dir"].into_iter()), Some("listen"));
        assert_eq!(closest("color", ["listen", "data_dir"].into_iter()), None);
    }
}
