//! Names that go into paths, filters and labels: checked before they do.

use coalition_cloud::{Marks, Owner, one_line};
use ring::digest::{SHA256, digest};

/// Longest value of a label.
const MAX_LABEL: usize = 63;
/// How much of a 64-digit id is put in a label; its whole value is in the metadata.
const SHORT: usize = 60;

/// Labels and metadata keys of everything that is made.
pub mod mark {
    /// The provider id.
    pub const BRIDGE: &str = "coalition-bridge";
    /// The offer it was sold as.
    pub const OFFER: &str = "coalition-offer";
    /// The instance's name in the bridge's journal.
    pub const INSTANCE: &str = "coalition-instance";
    /// The coalition's fingerprint.
    pub const COALITION: &str = "coalition-coalition";
    /// The grant, as public in the market's log.
    pub const GRANT: &str = "coalition-grant";
    /// When it switches itself off, Unix seconds.
    pub const UNTIL: &str = "coalition-until";
}

/// A name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no {what}; expected {expected}")]
pub struct NameError {
    /// What it was to name.
    pub what: &'static str,
    /// As given, cut short.
    pub given: String,
    /// What it looks like.
    pub expected: &'static str,
}

fn check(what: &'static str, given: &str, expected: &'static str, is_good: bool) -> Result<(), NameError> {
    if is_good { Ok(()) } else { Err(NameError { what, given: one_line(given, 80), expected }) }
}

/// RFC 1035, as Compute Engine's resources are named: 1 to 63 of `[a-z0-9-]`, a letter first, no `-` last.
pub(crate) fn is_resource_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
}

/// A project id: `my-project-1`, or one of a domain, `example.com:my-project`.
pub(crate) fn check_project(text: &str) -> Result<(), NameError> {
    let (domain, name) = text.rsplit_once(':').map_or((None, text), |(domain, name)| (Some(domain), name));
    let is_domain = |text: &str| {
        (1..=63).contains(&text.len()) && text.split('.').count() > 1 && text.split('.').all(is_resource_name)
    };
    let is_good = is_resource_name(name) && name.len() >= 4 && domain.is_none_or(is_domain);
    check("project id", text, "one like \"my-project-123\"", is_good)
}

/// A region: `europe-west4`.
pub(crate) fn check_region(text: &str) -> Result<(), NameError> {
    let ends = text.ends_with(|c: char| c.is_ascii_digit());
    let is_good = is_resource_name(text) && text.contains('-') && ends && text.len() <= 40;
    check("region", text, "one like \"europe-west4\"", is_good)
}

/// A zone of the region: `europe-west4-a`.
pub(crate) fn check_zone(region: &str, text: &str) -> Result<(), NameError> {
    let of_region = text.strip_prefix(region).and_then(|rest| rest.strip_prefix('-'));
    let is_good = of_region.is_some_and(|rest| !rest.is_empty() && rest.len() <= 3 && is_resource_name(rest));
    check("zone of the region", text, "the region's name with a letter, like \"europe-west4-a\"", is_good)
}

/// Another resource's bare name.
pub(crate) fn check_resource(what: &'static str, text: &str) -> Result<(), NameError> {
    check(what, text, "up to 63 lower-case letters, digits and \"-\", a letter first", is_resource_name(text))
}

/// A quota's metric: `N2D_CPUS`.
pub(crate) fn check_metric(text: &str) -> Result<(), NameError> {
    let is_good = (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    check("quota metric", text, "one like \"N2D_CPUS\"", is_good)
}

/// The image hosts are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageName {
    pub(crate) project: String,
    pub(crate) name: String,
    /// The name is a family's: its newest image is meant.
    pub(crate) is_family: bool,
}

impl ImageName {
    /// `projects/P/global/images/NAME`, or `…/images/family/FAMILY`.
    pub(crate) fn parse(text: &str) -> Result<Self, NameError> {
        let expected = "projects/PROJECT/global/images/NAME or projects/PROJECT/global/images/family/FAMILY";
        let wrong = || NameError { what: "image", given: one_line(text, 80), expected };
        let parts: Vec<&str> = text.split('/').collect();
        let (project, name, is_family) = match parts.as_slice() {
            ["projects", project, "global", "images", name] => (project, name, false),
            ["projects", project, "global", "images", "family", name] => (project, name, true),
            _ => return Err(wrong()),
        };
        if check_project(project).is_err() || !is_resource_name(name) {
            return Err(wrong());
        }
        Ok(Self { project: (*project).to_owned(), name: (*name).to_owned(), is_family })
    }
}

/// The subnetwork hosts are in, as the API names it: a bare name is one of the project and region.
pub(crate) fn subnetwork(project: &str, region: &str, given: &str) -> Result<String, NameError> {
    let expected = "its name, or projects/PROJECT/regions/REGION/subnetworks/NAME";
    let wrong = || NameError { what: "subnetwork of the region", given: one_line(given, 80), expected };
    if is_resource_name(given) {
        return Ok(format!("projects/{project}/regions/{region}/subnetworks/{given}"));
    }
    match given.split('/').collect::<Vec<_>>().as_slice() {
        ["projects", host, "regions", theirs, "subnetworks", name]
            if check_project(host).is_ok() && *theirs == region && is_resource_name(name) =>
        {
            Ok(given.to_owned())
        }
        _ => Err(wrong()),
    }
}

/// A host or a disk: its zone and its name in it, written `ZONE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Placed {
    pub(crate) zone: String,
    pub(crate) name: String,
}

impl Placed {
    pub(crate) fn parse(region: &str, text: &str) -> Result<Self, NameError> {
        let expected = "ZONE/NAME with a zone of the region";
        let parts =
            text.split_once('/').filter(|(zone, name)| check_zone(region, zone).is_ok() && is_resource_name(name));
        let (zone, name) = parts.ok_or(NameError { what: "host or disk", given: one_line(text, 80), expected })?;
        Ok(Self { zone: zone.to_owned(), name: name.to_owned() })
    }
}

impl std::fmt::Display for Placed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.zone, self.name)
    }
}

/// The name of the host of an instance, and of its disk.
pub(crate) fn host_name(instance: &str) -> String {
    format!("c-{instance}")
}

/// The id of the request that makes this host in this place: a UUID of version 8, from a hash of both.
#[must_use]
pub fn request_id(instance: &str, place: &str) -> String {
    let hash = digest(&SHA256, format!("coalition.gcp.request.v1\n{instance}\n{place}").as_bytes());
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// A value as labels allow it: lower case, at most [`SHORT`] characters, `_` for what they do not allow.
pub(crate) fn label(value: &str) -> String {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    value.to_ascii_lowercase().chars().map(|c| if allowed(c) { c } else { '_' }).take(SHORT.min(MAX_LABEL)).collect()
}

/// The labels by which things of this owner, or of this one instance, are found.
pub(crate) fn filter(owner: Owner<'_>, instance: Option<&str>) -> String {
    let term = |key: &str, value: &str| format!("(labels.{key} = \"{}\")", label(value));
    let mut terms = vec![term(mark::BRIDGE, owner.bridge), term(mark::OFFER, owner.offer)];
    terms.extend(instance.map(|instance| term(mark::INSTANCE, instance)));
    terms.join(" AND ")
}

/// The labels of everything that is made.
pub(crate) fn labels(marks: &Marks) -> [(&'static str, String); 3] {
    [(mark::BRIDGE, label(&marks.bridge)), (mark::OFFER, label(&marks.offer)), (mark::INSTANCE, label(&marks.instance))]
}

/// Whole values, for the metadata.
pub(crate) fn whole(marks: &Marks) -> [(&'static str, String); 6] {
    [
        (mark::BRIDGE, marks.bridge.clone()),
        (mark::OFFER, marks.offer.clone()),
        (mark::INSTANCE, marks.instance.clone()),
        (mark::COALITION, marks.coalition.clone()),
        (mark::GRANT, marks.grant.clone()),
        (mark::UNTIL, marks.until_s.to_string()),
    ]
}

/// A disk's description: disks have no metadata, and labels are too short for a whole id.
pub(crate) fn description(owner: Owner<'_>, instance: &str) -> String {
    format!("{}={} {}={} {}={instance}", mark::BRIDGE, owner.bridge, mark::OFFER, owner.offer, mark::INSTANCE)
}

/// The instance of a disk's description, if the disk is this owner's.
pub(crate) fn described(text: &str, owner: Owner<'_>) -> Option<String> {
    let instance = text.rsplit_once(&format!(" {}=", mark::INSTANCE))?.1;
    (description(owner, instance) == text).then(|| instance.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names() {
        for good in ["my-project-1", "example.com:my-project", "abcd"] {
            check_project(good).unwrap();
        }
        for wrong in ["", "a", "My-project", "a/b", "..", "my-project?x", "example:my-project", "my project", "1abc"] {
            assert!(check_project(wrong).is_err(), "{wrong}");
        }
        assert!(check_region("europe-west4").is_ok() && check_region("us-central1").is_ok());
        for wrong in ["", "europe", "europe-west4-a", "Europe-west4", "a/b-1", "-1"] {
            assert!(check_region(wrong).is_err(), "{wrong}");
        }
        assert!(check_zone("europe-west4", "europe-west4-a").is_ok());
        assert!(check_zone("us-south1", "us-south1-ai1").is_ok());
        for wrong in ["europe-west4", "europe-west4-", "europe-west40-a", "us-central1-a", "europe-west4-a/b", "a"] {
            let error = check_zone("europe-west4", wrong).unwrap_err().to_string();
            assert!(error.contains("europe-west4-a\""), "{error}");
        }
        assert!(check_metric("C3_CPUS").is_ok() && check_metric("c3").is_err());
        assert!(is_resource_name(&"a".repeat(63)) && !is_resource_name(&"a".repeat(64)));
    }

    #[test]
    fn images_and_subnetworks() {
        let one = ImageName::parse("projects/debian-cloud/global/images/debian-12-v2026").unwrap();
        assert_eq!(
            (one.project.as_str(), one.name.as_str(), one.is_family),
            ("debian-cloud", "debian-12-v2026", false)
        );
        assert!(ImageName::parse("projects/debian-cloud/global/images/family/debian-12").unwrap().is_family);
        for wrong in [
            "debian-12",
            "projects/x/global/images/y",
            "projects/abcd/global/images/",
            "/projects/abcd/global/images/x",
            "projects/abcd/global/images/a/b",
        ] {
            assert!(ImageName::parse(wrong).is_err(), "{wrong}");
        }
        let own = subnetwork("my-project", "us-east1", "hosts").unwrap();
        assert_eq!(own, "projects/my-project/regions/us-east1/subnetworks/hosts");
        let shared = "projects/net-host/regions/us-east1/subnetworks/hosts";
        assert_eq!(subnetwork("my-project", "us-east1", shared).unwrap(), shared);
        assert!(subnetwork("my-project", "us-east4", shared).is_err());
    }

    #[test]
    fn ids_of_requests_are_uuids_and_differ_by_instance_and_place() {
        let one = request_id("0123", "us-east1-b");
        let shape: Vec<usize> = one.split('-').map(str::len).collect();
        assert_eq!(shape, [8, 4, 4, 4, 12]);
        assert_eq!((&one[14..15], one == request_id("0123", "us-east1-b")), ("8", true));
        assert!(matches!(&one[19..20], "8" | "9" | "a" | "b"), "{one}");
        assert!(one != request_id("0123", "us-east1-c") && one != request_id("0124", "us-east1-b"));
    }

    #[test]
    fn labels_are_short_and_descriptions_whole() {
        let bridge = "ab".repeat(32);
        assert_eq!(label(&bridge).len(), 60);
        assert_eq!(label("None: a check\u{e4}\""), "none__a_check__");
        let owner = Owner { bridge: &bridge, offer: "gcp-1" };
        let text = description(owner, "0123");
        assert_eq!(described(&text, owner).as_deref(), Some("0123"));
        let other = format!("{}cc", &bridge[..62]);
        assert_eq!(label(&other), label(&bridge), "labels alone do not tell them apart");
        assert_eq!(described(&text, Owner { bridge: &other, ..owner }), None);
        assert_eq!(described("coalition-instance=1", owner), None);
        let found = filter(owner, Some("x\") OR (labels.a = \"b"));
        assert!(!found.contains("OR ("), "{found}");
    }
}
