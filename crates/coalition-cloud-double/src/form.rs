//! Forms and queries.

use std::collections::BTreeMap;

/// The pairs of a form or a query, unescaped.
#[must_use]
pub fn form(text: &str) -> BTreeMap<String, String> {
    text.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (unescape(k), unescape(v))).collect()
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut i) = (Vec::with_capacity(bytes.len()), 0);
    while i < bytes.len() {
        let hex = || text.get(i + 1..i + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[i], hex()) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone_and_halves_are_left() {
        let read = form("a=1&b+c=%C3%A4%20x&half=%2&odd&d=");
        assert_eq!((read["a"].as_str(), read["b c"].as_str(), read["half"].as_str()), ("1", "ä x", "%2"));
        assert_eq!((read["d"].as_str(), read.len()), ("", 4));
    }
}
