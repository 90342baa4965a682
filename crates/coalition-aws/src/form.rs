//! Bodies of the Query protocol: `application/x-www-form-urlencoded`, in the order they were written.

use std::fmt::Write;

use crate::action::Action;

/// One request's parameters.
pub(crate) struct Form {
    body: String,
}

impl Form {
    pub(crate) fn of(action: Action) -> Self {
        let mut form = Self { body: String::with_capacity(256) };
        form.set("Action", action.name());
        form.set("Version", action.service().version());
        form
    }

    pub(crate) fn set(&mut self, key: &str, value: &str) {
        if !self.body.is_empty() {
            self.body.push('&');
        }
        escape(&mut self.body, key);
        self.body.push('=');
        escape(&mut self.body, value);
    }

    /// `prefix.1`, `prefix.2`, …
    pub(crate) fn list<'a>(&mut self, prefix: &str, values: impl IntoIterator<Item = &'a str>) {
        for (i, value) in values.into_iter().enumerate() {
            self.set(&format!("{prefix}.{}", i + 1), value);
        }
    }

    /// `Filter.n.Name` and its values; `n` counts from 1.
    pub(crate) fn filter<'a>(&mut self, n: usize, name: &str, values: impl IntoIterator<Item = &'a str>) {
        self.set(&format!("Filter.{n}.Name"), name);
        self.list(&format!("Filter.{n}.Value"), values);
    }

    pub(crate) fn into_body(self) -> String {
        self.body
    }
}

/// Everything but unreserved characters, and a plus for a space: as forms and boto3 have it.
fn escape(into: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            into.push(char::from(byte));
        } else if byte == b' ' {
            into.push('+');
        } else {
            // Writing to a string cannot fail.
            let _ = write!(into, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_what_aws_reads() {
        let mut form = Form::of(Action::DescribeInstances);
        form.filter(1, "tag:a b", ["x&y=z", "ü~"]);
        assert_eq!(
            form.into_body(),
            "Action=DescribeInstances&Version=2016-11-15&Filter.1.Name=tag%3Aa+b&Filter.1.Value.1=x%26y%3Dz&Filter.1.Value.2=%C3%BC~"
        );
    }
}
