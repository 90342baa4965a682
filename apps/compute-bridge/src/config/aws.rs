//! Sections `[[aws]]`: regions of AWS accounts.

use std::path::PathBuf;

use toml::Spanned;

use super::cloud::{CloudKind, ConfidentialKind, cloud_section};

cloud_section! {
    /// One region of one account: one offer.
    AwsConfig {
        /// Where it is, as AWS calls it; `region` when absent.
        pub aws_region: Option<String>,
        /// Access keys in a file as AWS's own tools write it, mode 600; from the environment when absent.
        pub credentials_file: Option<Spanned<PathBuf>>,
        /// Section of that file.
        #[serde(default = "profile")]
        pub profile: String,
        /// Another address for the API: `https://…`, or `http://` on loopback for a test.
        pub endpoint: Option<String>,
        /// The image hosts are made of: Linux with cloud-init, systemd and OpenSSH.
        pub image: String,
        /// At least one; the next is tried when one has no room.
        pub subnets: Vec<String>,
        /// At least one.
        pub security_groups: Vec<String>,
        /// Which of the account's quotas of EC2 counts; on-demand standard families when absent.
        #[serde(default = "quota_code")]
        pub quota_code: String,
    }
}

fn profile() -> String {
    "default".into()
}

fn quota_code() -> String {
    coalition_aws::STANDARD_VCPUS.into()
}

/// Families of EC2 that run under AMD SEV-SNP.
const SEV_SNP: [&str; 3] = ["m6a.", "c6a.", "r6a."];

impl AwsConfig {
    pub(super) const KIND: CloudKind = CloudKind::Aws;

    /// The region as AWS calls it.
    #[must_use]
    pub fn api_region(&self) -> &str {
        self.aws_region.as_deref().unwrap_or_else(|| self.region.as_str())
    }

    pub(super) const fn secret(&self) -> Option<&Spanned<PathBuf>> {
        self.credentials_file.as_ref()
    }

    /// What is wrong with the keys that only AWS has.
    pub(super) fn own_problem(&self) -> Option<String> {
        let id = |prefix: &str, text: &str| {
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            text.strip_prefix(prefix).is_some_and(|rest| (8..=17).contains(&rest.len()) && rest.bytes().all(hex))
        };
        let listed =
            |key: &str, prefix: &str, ids: &[String], most: usize| match ids.iter().find(|one| !id(prefix, one)) {
                Some(wrong) => Some(format!("{key} has {wrong:?}; expected {prefix} and 8 to 17 hex digits")),
                None if ids.is_empty() || ids.len() > most => {
                    Some(format!("{key} has {} entries; expected 1 to {most}", ids.len()))
                }
                None => None,
            };
        (!id("ami-", &self.image))
            .then(|| format!("image = {:?}; expected ami- and 8 to 17 hex digits", self.image))
            .or_else(|| listed("subnets", "subnet-", &self.subnets, 16))
            .or_else(|| listed("security_groups", "sg-", &self.security_groups, 16))
            .or_else(|| self.sizes.iter().find_map(confidential_problem))
    }
}

fn confidential_problem(size: &super::CloudSize) -> Option<String> {
    let name = &size.size;
    match size.confidential? {
        ConfidentialKind::Tdx => Some(format!("{name} with confidential = \"tdx\"; EC2 has no Intel TDX")),
        ConfidentialKind::SevSnp if SEV_SNP.iter().any(|family| name.starts_with(family)) => None,
        ConfidentialKind::SevSnp => {
            Some(format!("{name} with confidential = \"sev_snp\"; EC2 has AMD SEV-SNP on m6a, c6a and r6a only"))
        }
    }
}
