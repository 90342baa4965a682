//! What a region has and what the account may hold: images, sizes, quotas.

use coalition_cloud::{Confidential, Image, Quota, SizeInfo, one_line};
use google_cloud_compute_v1::model::{Image as GoogleImage, MachineType, Region, deprecation_status, image};

/// Families whose processors' virtual CPUs count in the quota `CPUS`; all others have one of their own.
const COMMON_QUOTA: [&str; 4] = ["e2", "n1", "f1", "g1"];

/// Name of the quota in which virtual CPUs of this size count: `N2D_CPUS` for `n2d-standard-2`, `CPUS` for `e2-medium`.
#[must_use]
pub fn quota_metric(size: &str) -> String {
    let family = size.split('-').next().unwrap_or_default();
    if COMMON_QUOTA.contains(&family) { "CPUS".to_owned() } else { format!("{}_CPUS", family.to_ascii_uppercase()) }
}

/// What confidential computing a size can do. The API does not tell, so it is by name, as Google's documentation has it:
/// `c3-standard-*` without local disks and `a3-highgpu-1g` run under TDX, `n2d-*` under SEV-SNP.
#[must_use]
pub fn confidential(size: &str) -> Vec<Confidential> {
    let plain = |prefix: &str| size.strip_prefix(prefix).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
    if plain("c3-standard-") || size == "a3-highgpu-1g" {
        return vec![Confidential::Tdx];
    }
    let is_snp = ["n2d-standard-", "n2d-highmem-", "n2d-highcpu-"].into_iter().any(plain);
    if is_snp { vec![Confidential::SevSnp] } else { Vec::new() }
}

pub(crate) const fn word(kind: Confidential) -> &'static str {
    match kind {
        Confidential::Tdx => "Intel TDX",
        Confidential::SevSnp => "AMD SEV-SNP",
    }
}

/// The feature an image must declare.
pub(crate) const fn feature(kind: Confidential) -> &'static str {
    match kind {
        Confidential::Tdx => "TDX_CAPABLE",
        Confidential::SevSnp => "SEV_SNP_CAPABLE",
    }
}

/// An architecture as Rust calls it. Images older than the field have none, and are for x86-64.
pub(crate) fn architecture(google: Option<&str>) -> String {
    match google {
        None | Some("X86_64" | "ARCHITECTURE_UNSPECIFIED") => "x86_64".to_owned(),
        Some("ARM64") => "aarch64".to_owned(),
        Some(other) => one_line(other, 40).to_ascii_lowercase(),
    }
}

/// An image of an answer. Deprecated ones still work; obsolete and deleted ones do not.
pub(crate) fn read_image(id: &str, image: &GoogleImage) -> Result<Image, String> {
    let disk_gib = image.disk_size_gb.and_then(|gib| u32::try_from(gib).ok()).filter(|gib| *gib > 0);
    let disk_gib = disk_gib.ok_or("it has no size")?;
    let status = image.status.as_ref().ok_or("it has no status")?;
    let state = image.deprecated.as_ref().and_then(|deprecated| deprecated.state.as_ref());
    let gone =
        state.filter(|state| matches!(state, deprecation_status::State::Obsolete | deprecation_status::State::Deleted));
    let unusable = match (status, gone) {
        (image::Status::Ready, None) => None,
        (image::Status::Ready, Some(state)) => state.name(),
        (status, _) => status.name().or(Some("in no known state")),
    };
    // A family stands for its newest image: the operator wants to know which.
    let name = image.name.as_deref().filter(|name| !id.ends_with(&format!("/{name}")));
    let id = name.map_or_else(|| id.to_owned(), |name| format!("{id} ({})", one_line(name, 63)));
    let architecture = architecture(image.architecture.as_ref().and_then(|known| known.name()));
    Ok(Image { id, architecture, disk_gib, unusable: unusable.map(|word| one_line(word, 40).to_ascii_lowercase()) })
}

/// Whether the image declares a feature.
pub(crate) fn has_feature(image: &GoogleImage, wanted: &str) -> bool {
    image.guest_os_features.iter().any(|feature| feature.r#type.as_ref().and_then(|kind| kind.name()) == Some(wanted))
}

/// A size of an answer.
pub(crate) fn read_size(name: &str, machine: &MachineType) -> Result<SizeInfo, String> {
    if machine.name.as_deref() != Some(name) {
        return Err("it is of another machine type".into());
    }
    let number =
        |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0);
    let vcpus = number(machine.guest_cpus).ok_or("it has no CPUs")?;
    let ram_mib = number(machine.memory_mb).ok_or("it has no memory")?;
    Ok(SizeInfo { name: name.to_owned(), vcpus, ram_mib, confidential: confidential(name) })
}

/// The quotas of these metrics: the smallest counts.
pub(crate) fn read_quota(metrics: &[String], region: &Region) -> Quota {
    let mut least: Option<u32> = None;
    let mut said = Vec::new();
    for metric in metrics {
        let named = |quota: &&google_cloud_compute_v1::model::Quota| {
            quota.metric.as_ref().and_then(|known| known.name()) == Some(metric.as_str())
        };
        let quota = region.quotas.iter().find(named);
        match quota.and_then(|quota| Some((whole(quota.limit?)?, whole(quota.usage.unwrap_or_default())?))) {
            Some((limit, used)) => {
                least = Some(least.map_or(limit, |least| least.min(limit)));
                said.push(format!("{metric} is {limit} vCPUs, {used} of them in use"));
            }
            None => said.push(format!("{metric} is unknown")),
        }
    }
    let text = if said.is_empty() { "no quota was asked for".to_owned() } else { said.join("; ") };
    Quota { vcpus: least, text: format!("the region's quota {text}") }
}

/// A quota's number, rounded down; `None` for what is no count.
fn whole(number: f64) -> Option<u32> {
    if !number.is_finite() || number < 0.0 {
        return None;
    }
    let whole = format!("{:.0}", number.floor());
    Some(whole.parse().unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_by_family() {
        assert_eq!(quota_metric("n2d-standard-2"), "N2D_CPUS");
        assert_eq!(quota_metric("c3-standard-4"), "C3_CPUS");
        assert_eq!(quota_metric("e2-medium"), "CPUS");
        let region = r#"{"quotas":[{"metric":"CPUS","limit":24.0,"usage":3},{"metric":"N2D_CPUS","limit":8.9,"usage":0},
            {"metric":"C3_CPUS","limit":-1.0,"usage":0},{"metric":"A_NEW_CPUS","limit":5}]}"#;
        let region: Region = serde_json::from_str(region).unwrap();
        let read = |metrics: &[&str]| read_quota(&metrics.iter().map(ToString::to_string).collect::<Vec<_>>(), &region);
        assert_eq!(read(&["CPUS", "N2D_CPUS"]).vcpus, Some(8));
        assert_eq!(read(&["A_NEW_CPUS"]).vcpus, Some(5));
        let unknown = read(&["C3_CPUS"]);
        assert_eq!((unknown.vcpus, unknown.text.as_str()), (None, "the region's quota C3_CPUS is unknown"));
        assert_eq!(read(&["CPUS"]).text, "the region's quota CPUS is 24 vCPUs, 3 of them in use");
        assert_eq!((whole(1e300), whole(f64::NAN), whole(0.9)), (Some(u32::MAX), None, Some(0)));
    }

    #[test]
    fn what_runs_under_what() {
        assert_eq!(confidential("c3-standard-4"), [Confidential::Tdx]);
        assert_eq!(confidential("a3-highgpu-1g"), [Confidential::Tdx]);
        assert_eq!(confidential("n2d-highmem-8"), [Confidential::SevSnp]);
        for none in
            ["c3-standard-4-lssd", "c3-highmem-4", "n2-standard-2", "e2-medium", "n2d-standard-2x", "c3d-standard-4"]
        {
            assert!(confidential(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn images_that_are_not_ready_are_unusable() {
        let read = |text: &str| read_image("projects/p/global/images/x", &serde_json::from_str(text).unwrap());
        let good = read(r#"{"name":"x","status":"READY","diskSizeGb":"10","architecture":"ARM64"}"#).unwrap();
        assert_eq!((good.architecture.as_str(), good.disk_gib, good.unusable), ("aarch64", 10, None));
        let old = read(r#"{"status":"READY","diskSizeGb":"10","deprecated":{"state":"OBSOLETE"}}"#).unwrap();
        assert_eq!((old.unusable.as_deref(), old.architecture.as_str()), (Some("obsolete"), "x86_64"));
        assert_eq!(read(r#"{"status":"PENDING","diskSizeGb":"10"}"#).unwrap().unusable.as_deref(), Some("pending"));
        for wrong in ["{}", r#"{"status":"READY"}"#, r#"{"status":"READY","diskSizeGb":"-4"}"#, r#"{"diskSizeGb":"1"}"#]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
