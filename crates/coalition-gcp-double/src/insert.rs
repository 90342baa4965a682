//! `instances.insert`: everything Google looks at before it takes a request, as far as its documentation and its known
//! answers tell.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::answer::{Refusal, invalid, refusal};
use crate::world::{
    Disk, IMAGE_GIB, IMAGE_PROJECT, IMAGES, Machine, Operation, SIZES, Work, World, metric_of, now_s, number,
    region_of, zone_url,
};
use crate::{PROJECT, REGION, SUBNETWORK, schema};

/// Longest metadata, in bytes: one value, and all together.
const MAX_VALUE: usize = 256 << 10;
const MAX_METADATA: usize = 512 << 10;
/// What `maxRunDuration` may be, seconds.
const RUN_S: std::ops::RangeInclusive<u64> = 30..=120 * 86_400;

/// The permissions the request needs.
pub(crate) fn permissions(asked: &Value) -> Vec<&'static str> {
    let mut needed = vec!["compute.instances.create", "compute.disks.create", "compute.subnetworks.use"];
    let has = |value: &Value| value.as_object().is_some_and(|map| !map.is_empty());
    needed.extend(has(&asked["labels"]).then_some("compute.instances.setLabels"));
    needed.extend(has(&asked["metadata"]).then_some("compute.instances.setMetadata"));
    needed.extend(has(&asked["tags"]).then_some("compute.instances.setTags"));
    needed.extend(has(&asked["disks"][0]["initializeParams"]["labels"]).then_some("compute.disks.setLabels"));
    let is_public = asked["networkInterfaces"][0]["accessConfigs"].as_array().is_some_and(|list| !list.is_empty());
    needed.extend(is_public.then_some("compute.subnetworks.useExternalIp"));
    needed.extend((!asked["serviceAccounts"].is_null()).then_some("compute.instances.setServiceAccount"));
    needed
}

fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && text.as_bytes()[0].is_ascii_lowercase()
        && !text.ends_with('-')
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn check_labels(field: &str, labels: &Value) -> Result<(), Refusal> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    for (key, value) in labels.as_object().into_iter().flatten() {
        let value = text(value);
        let is_good = key.len() <= 63
            && key.starts_with(|c: char| c.is_ascii_lowercase())
            && key.chars().all(allowed)
            && value.len() <= 63
            && value.chars().all(allowed);
        if !is_good {
            return Err(invalid(field, value, "Label keys and values must match [a-z0-9_-]{0,63}."));
        }
    }
    Ok(())
}

fn check_metadata(metadata: &Value) -> Result<(), Refusal> {
    let mut keys = BTreeSet::new();
    let mut total = 0;
    for item in metadata["items"].as_array().into_iter().flatten() {
        let (key, value) = (text(&item["key"]), text(&item["value"]));
        let is_key = !key.is_empty()
            && key.len() < 128
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if !is_key || !keys.insert(key.to_owned()) || value.len() > MAX_VALUE {
            return Err(invalid("resource.metadata.items", key, "Key malformed, given twice, or its value too long."));
        }
        total += value.len();
    }
    if total > MAX_METADATA { Err(refusal(400, "invalid", "Metadata is too long.")) } else { Ok(()) }
}

fn check_scheduling(asked: &Value) -> Result<(), Refusal> {
    let scheduling = &asked["scheduling"];
    if let Some(seconds) = number(&scheduling["maxRunDuration"]["seconds"]) {
        if !RUN_S.contains(&seconds) {
            let field = "resource.scheduling.maxRunDuration";
            return Err(invalid(field, &seconds.to_string(), "Must be between 30 seconds and 120 days."));
        }
        if scheduling["instanceTerminationAction"].is_null() {
            let why = "Must be set when maxRunDuration is.";
            return Err(invalid("resource.scheduling.instanceTerminationAction", "", why));
        }
    }
    Ok(())
}

fn check_confidential(asked: &Value, size: &str, features: &[&str]) -> Result<(), Refusal> {
    let config = &asked["confidentialInstanceConfig"];
    let Some(kind) = config["confidentialInstanceType"].as_str() else { return Ok(()) };
    if asked["scheduling"]["onHostMaintenance"] != "TERMINATE" {
        let why = "Confidential VMs must have onHostMaintenance set to TERMINATE.";
        return Err(invalid("resource.scheduling.onHostMaintenance", "MIGRATE", why));
    }
    let (family, feature) = match kind {
        "TDX" => ("c3-standard-", "TDX_CAPABLE"),
        "SEV_SNP" => ("n2d-", "SEV_SNP_CAPABLE"),
        _ => return Err(invalid("resource.confidentialInstanceConfig", kind, "Not supported here.")),
    };
    if !size.starts_with(family) {
        let why = "The machine type does not support this confidential instance type.";
        return Err(invalid("resource.confidentialInstanceConfig", kind, why));
    }
    if kind == "SEV_SNP" && asked["minCpuPlatform"] != "AMD Milan" {
        let why = "SEV_SNP needs at least AMD Milan.";
        return Err(invalid("resource.minCpuPlatform", text(&asked["minCpuPlatform"]), why));
    }
    if !features.contains(&feature) {
        let why = "The image does not support this confidential instance type.";
        return Err(invalid("resource.disks[0].initializeParams.sourceImage", feature, why));
    }
    Ok(())
}

/// What the request names, once it is known to exist.
struct Named {
    vcpus: u32,
    size: &'static str,
}

fn look_up(zone: &str, asked: &Value) -> Result<Named, Refusal> {
    let machine_type = text(&asked["machineType"]);
    let name = machine_type.strip_prefix(&format!("zones/{zone}/machineTypes/")).unwrap_or_default();
    let Some(size) = SIZES.iter().find(|size| size.name == name && size.zones.contains(&zone)) else {
        let why = format!("Machine type with name '{name}' does not exist in zone '{zone}'.");
        return Err(invalid("resource.machineType", machine_type, &why));
    };
    let (field, source) =
        ("resource.disks[0].initializeParams.sourceImage", text(&asked["disks"][0]["initializeParams"]["sourceImage"]));
    let images = format!("projects/{IMAGE_PROJECT}/global/images/");
    let name = source.strip_prefix(&images).unwrap_or_default();
    let family = name.strip_prefix("family/");
    let Some(image) = IMAGES.iter().find(|image| image.name == name || family == Some(image.family)) else {
        return Err(invalid(field, source, "The referenced image resource cannot be found."));
    };
    if image.state != "ACTIVE" || image.architecture != size.architecture {
        return Err(invalid(field, source, "The image cannot be used for this machine."));
    }
    check_confidential(asked, size.name, image.features)?;
    Ok(Named { vcpus: size.vcpus, size: size.name })
}

fn check_disk(zone: &str, asked: &Value) -> Result<(), Refusal> {
    let disks = asked["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [disk] = disks else { return Err(refusal(400, "invalid", "Exactly one boot disk is expected here.")) };
    if disk["boot"] != true {
        return Err(invalid("resource.disks[0].boot", "false", "The first disk must be a boot disk."));
    }
    let params = &disk["initializeParams"];
    check_labels("resource.disks[0].initializeParams.labels", &params["labels"])?;
    let gib = number(&params["diskSizeGb"]).unwrap_or(IMAGE_GIB);
    if gib < IMAGE_GIB {
        let why = format!("Requested disk size cannot be smaller than the image size ({IMAGE_GIB} GB)");
        return Err(invalid("resource.disks[0].initializeParams.diskSizeGb", &gib.to_string(), &why));
    }
    let disk_type = text(&params["diskType"]);
    let known = ["pd-balanced", "pd-ssd", "pd-standard", "hyperdisk-balanced"];
    if !known.iter().any(|name| disk_type == format!("zones/{zone}/diskTypes/{name}")) {
        return Err(invalid("resource.disks[0].initializeParams.diskType", disk_type, "The resource was not found."));
    }
    Ok(())
}

fn check(zone: &str, asked: &Value) -> Result<Named, Refusal> {
    schema::check(asked)?;
    if region_of(zone).is_none() {
        return Err(invalid("zone", zone, "Unknown zone."));
    }
    let name = text(&asked["name"]);
    if !is_name(name) {
        return Err(invalid("resource.name", name, "Must be a match of regex '[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?'"));
    }
    check_labels("resource.labels", &asked["labels"])?;
    check_metadata(&asked["metadata"])?;
    check_scheduling(asked)?;
    let named = look_up(zone, asked)?;
    check_disk(zone, asked)?;
    let subnetwork = text(&asked["networkInterfaces"][0]["subnetwork"]);
    if subnetwork != SUBNETWORK || region_of(zone) != Some(REGION) {
        let why = "The referenced subnetwork resource cannot be found.";
        return Err(invalid("resource.networkInterfaces[0].subnetwork", subnetwork, why));
    }
    if let Some(tag) = asked["tags"]["items"].as_array().into_iter().flatten().find(|tag| !is_name(text(tag))) {
        return Err(invalid("resource.tags.items", text(tag), "Must be a match of regex."));
    }
    Ok(named)
}

fn is_uuid(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    let is_hex = text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
    lengths == [8, 4, 4, 4, 12] && is_hex && text.bytes().any(|b| b != b'-' && b != b'0')
}

/// The operation that a request of this id began before.
fn before(world: &World, request_id: Option<&String>) -> Result<Option<Operation>, Refusal> {
    let Some(id) = request_id else { return Ok(None) };
    if !is_uuid(id) {
        return Err(invalid("requestId", id, "The request ID must be a valid UUID other than zero."));
    }
    Ok(world.requests.get(id).and_then(|name| world.operations.get(name)).cloned())
}

fn check_free(world: &World, zone: &str, name: &str, disk: &str) -> Result<(), Refusal> {
    let at = |name: &str| (zone.to_owned(), name.to_owned());
    let taken = match (world.machines.contains_key(&at(name)), world.disks.contains_key(&at(disk))) {
        (true, _) => format!("instances/{name}"),
        (false, true) => format!("disks/{disk}"),
        (false, false) => return Ok(()),
    };
    let words = format!("The resource 'projects/{PROJECT}/zones/{zone}/{taken}' already exists");
    Err(refusal(409, "alreadyExists", &words))
}

/// How the operation is to fail: as the test has it, or as the quota does.
fn failure(world: &World, zone: &str, named: &Named, fails: Option<(String, u16)>) -> Option<(String, String, u16)> {
    if let Some((code, status)) = fails {
        let words = format!("The zone '{}' cannot do this now, as the test has it.", zone_url(zone));
        return Some((code, words, status));
    }
    let metric = metric_of(named.size);
    let limit = world.quotas.get(&metric).copied().unwrap_or(u32::MAX);
    let is_over = world.in_use(&metric).saturating_add(named.vcpus) > limit;
    let words = format!("Quota '{metric}' exceeded.  Limit: {limit}.0 in region {REGION}.");
    is_over.then(|| ("QUOTA_EXCEEDED".to_owned(), words, 403))
}

/// Takes the request: the machine is listed from now on, and comes up, or fails with this code, when the operation is done.
pub(crate) fn insert(
    world: &mut World,
    zone: &str,
    request_id: Option<&String>,
    asked: &Value,
    (fails, takes): (Option<(String, u16)>, Duration),
) -> Result<Operation, Refusal> {
    if let Some(operation) = before(world, request_id)? {
        return Ok(operation);
    }
    let named = check(zone, asked)?;
    let name = text(&asked["name"]).to_owned();
    let params = &asked["disks"][0]["initializeParams"];
    let disk_name = params["diskName"].as_str().unwrap_or(&name).to_owned();
    check_free(world, zone, &name, &disk_name)?;
    let error = failure(world, zone, &named, fails);
    let mut operation = world.begin(Work::Insert, zone, &name, takes);
    operation.error = error;
    world.operations.insert(operation.name.clone(), operation.clone());
    if let Some(id) = request_id {
        world.requests.insert(id.clone(), operation.name.clone());
    }
    let disk = Disk {
        id: world.next_id(),
        zone: zone.to_owned(),
        name: disk_name.clone(),
        labels: if params["labels"].is_null() { json!({}) } else { params["labels"].clone() },
        description: text(&params["description"]).to_owned(),
        gib: number(&params["diskSizeGb"]).unwrap_or(IMAGE_GIB),
        auto_delete: asked["disks"][0]["autoDelete"] == true,
        user: Some(name.clone()),
    };
    world.disks.insert((zone.to_owned(), disk_name), disk);
    let machine = Machine {
        id: world.next_id(),
        zone: zone.to_owned(),
        name: name.clone(),
        asked: asked.clone(),
        status: "PROVISIONING",
        since: world.now(),
        address: None,
        vcpus: named.vcpus,
        made_s: now_s(),
    };
    world.machines.insert((zone.to_owned(), name), machine);
    Ok(operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_and_names() {
        assert!(is_uuid("0b2e9c3a-1111-8222-8333-444455556666"));
        for wrong in [
            "",
            "00000000-0000-0000-0000-000000000000",
            "0b2e9c3a111182228333444455556666",
            "zb2e9c3a-1111-8222-8333-444455556666",
        ] {
            assert!(!is_uuid(wrong), "{wrong}");
        }
        assert!(is_name("c-0123") && !is_name("0c") && !is_name("c_") && !is_name("c-") && !is_name(""));
    }
}
