//! Which port of a machine is reached from which port here. Pure.

use std::{fmt, net::IpAddr, str::FromStr};

/// Where a forward listens unless told otherwise.
const LOOPBACK: &str = "127.0.0.1";

/// One forwarded port, as OpenSSH's `-L` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Address to listen on here.
    pub bind: String,
    /// Port to listen on here.
    pub port: u16,
    /// The machine's own loopback, by the name it was given.
    pub host: String,
    /// Port there.
    pub host_port: u16,
}

/// Why a forward was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// Not of the form.
    #[error("{0:?} is no forward: write [BIND:]PORT:HOST:PORT, as in 8080:localhost:80")]
    Form(String),
    /// Not a port.
    #[error("{0:?} is no port: write 1 to 65535")]
    Port(String),
    /// Not an address to listen on.
    #[error(
        "{0:?} is no address to listen on: write localhost, 127.0.0.1, 0.0.0.0 or another of this machine's addresses"
    )]
    Bind(String),
    /// Somewhere else than on the machine.
    #[error("a machine is a way to nowhere else: {0:?} must be localhost, 127.0.0.1 or ::1")]
    Host(String),
}

/// Splits at colons, but for those within brackets, which are taken off.
fn fields(text: &str) -> Option<Vec<&str>> {
    let (mut fields, mut rest) = (Vec::new(), text);
    loop {
        let (field, after) = match rest.strip_prefix('[') {
            Some(bracketed) => bracketed.split_once(']')?,
            None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
        };
        fields.push(field);
        match after.strip_prefix(':') {
            Some(more) => rest = more,
            None if after.is_empty() => return Some(fields),
            None => return None,
        }
    }
}

fn port(text: &str) -> Result<u16, ForwardError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.ok_or_else(|| ForwardError::Port(text.into()))
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let form = || ForwardError::Form(text.into());
        let (bind, rest) = match fields(text).ok_or_else(form)?[..] {
            [here, host, there] => (LOOPBACK, [here, host, there]),
            [bind, here, host, there] => (bind, [here, host, there]),
            _ => return Err(form()),
        };
        let [here, host, there] = rest;
        if bind != "localhost" && bind.parse::<IpAddr>().is_err() {
            return Err(ForwardError::Bind(bind.into()));
        }
        if !matches!(host, "localhost" | "127.0.0.1" | "::1") {
            return Err(ForwardError::Host(host.into()));
        }
        Ok(Self { bind: bind.into(), port: port(here)?, host: host.into(), host_port: port(there)? })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |text: &str| if text.contains(':') { format!("[{text}]") } else { text.to_owned() };
        write!(f, "{}:{}:{}:{}", part(&self.bind), self.port, part(&self.host), self.host_port)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forwards_are_read_and_written_as_openssh_does() {
        for (text, written) in [
            ("8080:localhost:80", "127.0.0.1:8080:localhost:80"),
            ("0.0.0.0:1:127.0.0.1:65535", "0.0.0.0:1:127.0.0.1:65535"),
            ("[::1]:22:[::1]:22", "[::1]:22:[::1]:22"),
        ] {
            let parsed: Forward = text.parse().unwrap();
            assert_eq!(parsed.to_string(), written);
            assert_eq!(written.parse(), Ok(parsed));
        }
    }

    #[test]
    fn each_wrong_part_is_named() {
        let wrong = |text: &str| text.parse::<Forward>().unwrap_err();
        for text in ["", "80", "80:80", "a:b:c:d:e", "[::1:22:localhost:22", "[::1]22:localhost:22"] {
            assert_eq!(wrong(text), ForwardError::Form(text.into()));
        }
        assert_eq!(wrong("0:localhost:80"), ForwardError::Port("0".into()));
        assert_eq!(wrong("80:localhost:+1"), ForwardError::Port("+1".into()));
        assert_eq!(wrong("80:localhost:65536"), ForwardError::Port("65536".into()));
        assert_eq!(wrong("80:example.org:80"), ForwardError::Host("example.org".into()));
        assert_eq!(wrong("-oProxyCommand=x:80:localhost:80"), ForwardError::Bind("-oProxyCommand=x".into()));
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "[a-z0-9:.\\[\\]-]{0,40}") {
            if let Ok(forward) = text.parse::<Forward>() {
                prop_assert_eq!(forward.to_string().parse(), Ok(forward));
            }
        }
    }
}
