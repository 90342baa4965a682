//! How a system that is not ours is given the grant's keys: as a cloud would, on a disk that cloud-init reads (NoCloud), and as
//! a hypervisor would, in credentials that systemd reads from the machine's firmware tables. Pure: keys in, bytes out.
//!
//! Both hold the private host key of the grant, which the system in the machine is to show. Nobody else sees them: they are
//! made in memory, and in the machine only its own root reads them.

use std::io::{self, Cursor, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::cloud_config::CloudConfig;

/// Size of the disk: the smallest that every driver of FAT has seen before.
const DISK_BYTES: usize = 1440 * 1024;
/// The label by which cloud-init knows its disk.
const LABEL: [u8; 11] = *b"cidata     ";
/// Where OpenSSH has the host key.
const HOST_KEY: &str = "/etc/ssh/ssh_host_ed25519_key";

/// The keys of a grant, as texts.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// The grant.
    pub grant_id: &'a str,
    /// The host key, an Ed25519 private key in OpenSSH's form.
    pub host_private: &'a str,
    /// Its public half.
    pub host_public: &'a str,
    /// The one key root may log in with, an `authorized_keys` line.
    pub login_public: &'a str,
}

/// `meta-data` of NoCloud.
#[derive(Serialize)]
struct MetaData<'a> {
    #[serde(rename = "instance-id")]
    instance_id: &'a str,
    #[serde(rename = "local-hostname")]
    local_hostname: &'a str,
}

/// A file's name and contents.
type Document = (&'static str, Zeroizing<Vec<u8>>);

impl Keys<'_> {
    /// Both documents of NoCloud; JSON is YAML.
    fn documents(&self) -> io::Result<[Document; 2]> {
        let host_name = format!("grant-{}", self.grant_id.get(..8).unwrap_or(self.grant_id));
        let meta = serde_json::to_vec(&MetaData { instance_id: self.grant_id, local_hostname: &host_name })?;
        let Self { host_private, host_public, login_public, .. } = *self;
        let user = CloudConfig { host_private, host_public, login_public, boot_command: None }.document();
        Ok([("meta-data", Zeroizing::new(meta)), ("user-data", user)])
    }

    /// The disk that cloud-init reads: a FAT file system called `cidata`. The same keys make the same bytes.
    ///
    /// # Errors
    /// [`io::Error`] when the documents do not fit, which no key is large enough for.
    pub fn disk(&self) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut disk = Zeroizing::new(vec![0; DISK_BYTES]);
        let options = FormatVolumeOptions::new().volume_label(LABEL).fat_type(FatType::Fat12).volume_id(0);
        format_volume(Cursor::new(&mut disk[..]), options)?;
        let files = FileSystem::new(Cursor::new(&mut disk[..]), FsOptions::new())?;
        for (name, bytes) in self.documents()? {
            let mut file = files.root_dir().create_file(name)?;
            file.write_all(&bytes)?;
            file.flush()?;
        }
        files.unmount()?;
        Ok(disk)
    }

    /// What systemd is told in strings of the SMBIOS table for the machine's maker: those that are no secret.
    #[must_use]
    pub fn public_credentials(&self) -> [String; 2] {
        let login = format!("{}\n", self.login_public.trim_end());
        // The first is put into root's home; the second is read by servers that systemd itself sets up.
        ["ssh.authorized_keys.root", "ssh.ephemeral-authorized_keys-all"].map(|name| credential(name, &login))
    }

    /// The one that is a secret: lines for systemd-tmpfiles, which put the host key where OpenSSH looks for it.
    #[must_use]
    pub fn secret_credential(&self) -> Zeroizing<String> {
        let line =
            |path: &str, mode: &str, text: &str| format!("f+~ {path} {mode} root root - {}\n", STANDARD.encode(text));
        let mut lines = Zeroizing::new(line(HOST_KEY, "0600", self.host_private));
        lines.push_str(&line(&format!("{HOST_KEY}.pub"), "0644", &format!("{}\n", self.host_public.trim_end())));
        Zeroizing::new(credential("tmpfiles.extra", &lines))
    }
}

fn credential(name: &str, value: &str) -> String {
    format!("io.systemd.credential.binary:{name}={}", STANDARD.encode(value))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const KEYS: Keys<'_> = Keys {
        grant_id: "00112233445566778899aabbccddeeff",
        host_private: "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        host_public: "ssh-ed25519 BBBB",
        login_public: "ssh-ed25519 CCCC me\n",
    };

    fn read(disk: &mut [u8], name: &str) -> serde_json::Value {
        let files = FileSystem::new(Cursor::new(disk), FsOptions::new()).unwrap();
        assert_eq!(files.volume_label().trim_end(), "cidata");
        let mut text = String::new();
        files.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
        let body = text.strip_prefix("#cloud-config\n").unwrap_or(&text);
        assert_eq!(body.len() != text.len(), name == "user-data");
        serde_json::from_str(body).unwrap()
    }

    #[test]
    fn the_disk_says_who_may_log_in_and_what_the_host_shows() {
        let mut disk = KEYS.disk().unwrap();
        assert_eq!(disk, KEYS.disk().unwrap(), "the same keys make another disk");
        assert_eq!(disk[510..512], [0x55, 0xaa]);
        let (meta, user) = (read(&mut disk, "meta-data"), read(&mut disk, "user-data"));
        assert_eq!((&meta["instance-id"], &meta["local-hostname"]), (&KEYS.grant_id.into(), &"grant-00112233".into()));
        assert_eq!(user["ssh_keys"]["ed25519_private"], KEYS.host_private);
        assert_eq!(user["ssh_keys"]["ed25519_public"], KEYS.host_public);
        assert_eq!(user["ssh_authorized_keys"], serde_json::json!(["ssh-ed25519 CCCC me"]));
        assert_eq!((&user["disable_root"], &user["ssh_pwauth"]), (&false.into(), &false.into()));
    }

    #[test]
    fn golden_credentials() {
        let decoded = |text: &str, name: &str| {
            let value = text.strip_prefix("io.systemd.credential.binary:").unwrap().strip_prefix(name).unwrap();
            String::from_utf8(STANDARD.decode(value.strip_prefix('=').unwrap()).unwrap()).unwrap()
        };
        let [root, all] = KEYS.public_credentials();
        assert_eq!(decoded(&root, "ssh.authorized_keys.root"), "ssh-ed25519 CCCC me\n");
        assert_eq!(decoded(&all, "ssh.ephemeral-authorized_keys-all"), "ssh-ed25519 CCCC me\n");
        // QEMU's options end at a comma.
        assert!(!root.contains(',') && !all.contains(','));
        let lines = decoded(&KEYS.secret_credential(), "tmpfiles.extra");
        let private = STANDARD.encode(KEYS.host_private);
        let wanted = format!(
            "f+~ /etc/ssh/ssh_host_ed25519_key 0600 root root - {private}\n\
             f+~ /etc/ssh/ssh_host_ed25519_key.pub 0644 root root - c3NoLWVkMjU1MTkgQkJCQgo=\n"
        );
        assert_eq!(lines, wanted);
    }
}
