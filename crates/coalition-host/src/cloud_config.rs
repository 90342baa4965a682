//! cloud-init's user data for a system that is given its keys before its first boot: one host key, one login for root.

use serde::Serialize;
use zeroize::Zeroizing;

/// What is decided of a system before it exists.
#[derive(Clone, Copy)]
pub struct CloudConfig<'a> {
    /// Its host key, as OpenSSH keeps it.
    pub host_private: &'a str,
    /// The same key's public line.
    pub host_public: &'a str,
    /// The one key root may log in with, an `authorized_keys` line.
    pub login_public: &'a str,
    /// A shell command for early in every boot.
    pub boot_command: Option<&'a str>,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    bootcmd: Option<[[&'a str; 3]; 1]>,
    ssh_deletekeys: bool,
    ssh_genkeytypes: [&'a str; 1],
    ssh_keys: HostKeys<'a>,
    users: [&'a str; 0],
    disable_root: bool,
    ssh_pwauth: bool,
    ssh_authorized_keys: [&'a str; 1],
    package_update: bool,
    package_upgrade: bool,
}

#[derive(Serialize)]
struct HostKeys<'a> {
    ed25519_private: &'a str,
    ed25519_public: &'a str,
}

impl CloudConfig<'_> {
    /// The document: a `#cloud-config` in JSON, which is YAML. Wiped when dropped, as it holds a private key.
    ///
    /// # Panics
    /// Never: plain data always serialises to memory.
    #[must_use]
    pub fn document(&self) -> Zeroizing<Vec<u8>> {
        let document = Document {
            bootcmd: self.boot_command.map(|command| [["sh", "-c", command]]),
            ssh_deletekeys: true,
            ssh_genkeytypes: ["ed25519"],
            ssh_keys: HostKeys { ed25519_private: self.host_private, ed25519_public: self.host_public.trim_end() },
            users: [],
            disable_root: false,
            ssh_pwauth: false,
            ssh_authorized_keys: [self.login_public.trim_end()],
            package_update: false,
            package_upgrade: false,
        };
        let mut text = Zeroizing::new(b"#cloud-config\n".to_vec());
        serde_json::to_writer(&mut *text, &document).expect("plain data always serialises to memory");
        text.push(b'\n');
        text
    }
}
