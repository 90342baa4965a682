//! A host as the Resource Manager is asked for it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coalition_cloud::{Confidential, NewHost};
use serde_json::{Value, json};
use zeroize::{Zeroize, Zeroizing};

use crate::image::ImageName;
use crate::marks::tags_of;
use crate::setup::{NO_ZONE, Setup};

/// Of the machine itself, and of the interface and address it makes.
pub(crate) const COMPUTE_API: &str = "2025-04-01";
const NETWORK_API: &str = "2022-11-01";
/// Longest user data, in bytes: what every cloud takes.
const MAX_USER_DATA: usize = 16 << 10;
/// Largest disk of a machine that boots from it, GiB.
const MAX_DISK_GIB: u32 = 4_095;
/// The account the Resource Manager insists on. No such user is made: the user data says `users: []`.
const ACCOUNT: &str = "coalition";

/// The key the Resource Manager insists on where passwords are off; otherwise it answers "Authentication using either SSH or
/// by user name and password must be enabled". cloud-init lets it in as root, so it must open nothing: it is the SHA-256 of
/// the words `coalition: a login nobody holds the key of, 1`, the first such that is a point of the curve, and so has no
/// private half that anybody knows. The one login of a host is in its user data.
pub const NOBODYS_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOvGyRGaFZF4B1XnfaLRpbD+wWZCmoH+NhPr0BuTPaLj nobody";

/// The machine of an instance.
pub(crate) fn name_of(instance: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let ends_well = !instance.ends_with('-');
    if instance.is_empty() || instance.len() > 48 || !instance.bytes().all(fits) || !ends_well {
        let given = coalition_cloud::one_line(instance, 60);
        return Err(format!("the instance {given:?} cannot be part of a machine's name; expected 32 hex digits"));
    }
    Ok(format!("c-{instance}"))
}

/// What the name of a size says about confidential computing: `Standard_DC2as_v5` and its like run under AMD SEV-SNP,
/// `Standard_EC4es_v6` and its like under Intel TDX. The request is the same for both, so the name is all that decides.
#[must_use]
pub fn confidential_family(size: &str) -> Option<Confidential> {
    let (family, version) = size.strip_prefix("Standard_")?.split_once('_')?;
    let rest = family.strip_prefix("DC").or_else(|| family.strip_prefix("EC"))?;
    let letters = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let generation: u32 = version.rsplit('_').next()?.strip_prefix('v')?.parse().ok()?;
    let has_count = letters.len() < rest.len();
    if !has_count || generation < 5 {
        // DCsv2 and DCsv3 are SGX.
        return None;
    }
    match letters.as_bytes().first()? {
        b'a' => Some(Confidential::SevSnp),
        b'e' => Some(Confidential::Tdx),
        _ => None,
    }
}

/// The machine as a resource: location, zones, tags and properties. The user data in it is `custom_data`, in base64.
fn resource(
    setup: &Setup,
    image: &ImageName,
    new: &NewHost<'_>,
    name: &str,
    custom_data: String,
) -> Result<Value, String> {
    let tags = tags_of(new.marks)?;
    let mut managed_disk = json!({ "storageAccountType": "StandardSSD_LRS" });
    let mut properties = json!({
        "hardwareProfile": { "vmSize": new.size },
        "osProfile": {
            "computerName": name,
            "adminUsername": ACCOUNT,
            // Extensions could put a second login on the host.
            "allowExtensionOperations": false,
            "linuxConfiguration": {
                "disablePasswordAuthentication": true,
                "provisionVMAgent": false,
                "ssh": { "publicKeys": [{ "path": format!("/home/{ACCOUNT}/.ssh/authorized_keys"), "keyData": NOBODYS_KEY }] },
            },
        },
        "networkProfile": { "networkApiVersion": NETWORK_API, "networkInterfaceConfigurations": [interface(setup, name, &tags)] },
        "diagnosticsProfile": { "bootDiagnostics": { "enabled": setup.boot_diagnostics } },
    });
    if new.confidential.is_some() {
        let kind = if setup.confidential_disk { "DiskWithVMGuestState" } else { "VMGuestStateOnly" };
        managed_disk["securityProfile"] = json!({ "securityEncryptionType": kind });
        properties["securityProfile"] = json!({
            "securityType": "ConfidentialVM",
            "uefiSettings": { "secureBootEnabled": setup.secure_boot, "vTpmEnabled": true },
        });
    }
    properties["storageProfile"] = json!({
        "imageReference": image.reference(),
        "osDisk": {
            "name": format!("{name}-os"),
            "createOption": "FromImage",
            "deleteOption": "Delete",
            "caching": "ReadWrite",
            "diskSizeGB": new.disk_gib,
            "managedDisk": managed_disk,
        },
    });
    properties["osProfile"]["customData"] = custom_data.into();
    let mut machine = json!({ "location": setup.region, "tags": tags, "properties": properties });
    if new.place != NO_ZONE {
        machine["zones"] = json!([new.place]);
    }
    Ok(machine)
}

/// Made with the machine and deleted with it; the disk takes the machine's tags by itself.
fn interface(setup: &Setup, name: &str, tags: &serde_json::Map<String, Value>) -> Value {
    let mut address = json!({ "primary": true, "subnet": { "id": setup.subnet } });
    if !setup.private_addresses {
        address["publicIPAddressConfiguration"] = json!({
            "name": format!("{name}-ip"),
            "sku": { "name": "Standard", "tier": "Regional" },
            "tags": tags,
            "properties": {
                "deleteOption": "Delete",
                "publicIPAllocationMethod": "Static",
                "publicIPAddressVersion": "IPv4",
            },
        });
    }
    let mut properties = json!({
        "primary": true,
        "deleteOption": "Delete",
        "ipConfigurations": [{ "name": "address", "properties": address }],
    });
    if let Some(group) = &setup.security_group {
        properties["networkSecurityGroup"] = json!({ "id": group });
    }
    json!({ "name": format!("{name}-nic"), "tags": tags, "properties": properties })
}

/// Whether the host can be asked for at all; answers the machine's name.
pub(crate) fn check(setup: &Setup, new: &NewHost<'_>) -> Result<String, String> {
    let name = name_of(&new.marks.instance)?;
    let is_size = crate::ids::is_name(new.size) && new.size.starts_with("Standard_");
    if !is_size {
        let given = coalition_cloud::one_line(new.size, 60);
        return Err(format!("{given:?} is no size of Azure; expected one like \"Standard_DC2es_v6\""));
    }
    if !setup.places.iter().any(|place| place == new.place) {
        let given = coalition_cloud::one_line(new.place, 60);
        return Err(format!("the place {given:?} is none of the setup's ({})", setup.places.join(", ")));
    }
    if new.user_data.len() > MAX_USER_DATA {
        return Err(format!("{} bytes of user data; Azure gets at most {MAX_USER_DATA}", new.user_data.len()));
    }
    if !(1..=MAX_DISK_GIB).contains(&new.disk_gib) {
        return Err(format!("a disk of {} GiB; Azure boots from 1 to {MAX_DISK_GIB}", new.disk_gib));
    }
    let runs_under = confidential_family(new.size);
    if new.confidential.is_some() && new.confidential != runs_under {
        let word = |kind| match kind {
            Some(Confidential::Tdx) => "Intel TDX",
            Some(Confidential::SevSnp) => "AMD SEV-SNP",
            None => "neither TDX nor SEV-SNP",
        };
        return Err(format!(
            "{} is asked for and {} runs under {}",
            word(new.confidential),
            new.size,
            word(runs_under)
        ));
    }
    Ok(name)
}

/// The body of the request that makes the host.
pub(crate) fn machine(setup: &Setup, image: &ImageName, new: &NewHost<'_>) -> Result<Zeroizing<Vec<u8>>, String> {
    let name = check(setup, new)?;
    let mut machine = resource(setup, image, new, &name, STANDARD.encode(new.user_data))?;
    let text = Zeroizing::new(serde_json::to_vec(&machine).map_err(|error| error.to_string())?);
    wipe(&mut machine);
    Ok(text)
}

/// The body of the request that asks whether it would be made: the machine as the only resource of a template. Its user data
/// is not in it.
pub(crate) fn template(setup: &Setup, image: &ImageName, new: &NewHost<'_>) -> Result<Zeroizing<Vec<u8>>, String> {
    let name = check(setup, new)?;
    let mut machine = resource(setup, image, new, &name, STANDARD.encode("#cloud-config\n{}\n"))?;
    machine["type"] = "Microsoft.Compute/virtualMachines".into();
    machine["apiVersion"] = COMPUTE_API.into();
    machine["name"] = name.into();
    escape(&mut machine);
    let body = json!({ "properties": { "mode": "Incremental", "template": {
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "resources": [machine],
    } } });
    Ok(Zeroizing::new(serde_json::to_vec(&body).map_err(|error| error.to_string())?))
}

/// In a template, text in brackets is a program.
fn escape(value: &mut Value) {
    match value {
        Value::String(text) if text.starts_with('[') => text.insert(0, '['),
        Value::Array(items) => items.iter_mut().for_each(escape),
        Value::Object(fields) => fields.values_mut().for_each(escape),
        _ => {}
    }
}

fn wipe(machine: &mut Value) {
    if let Some(Value::String(data)) = machine.pointer_mut("/properties/osProfile/customData") {
        data.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use curve25519_dalek::edwards::CompressedEdwardsY;
    use sha2::{Digest, Sha256};

    #[test]
    fn the_key_is_the_hash_of_words_and_so_nobodys() {
        let hash =
            |n: u32| -> [u8; 32] { Sha256::digest(format!("coalition: a login nobody holds the key of, {n}")).into() };
        let is_point = |n| CompressedEdwardsY(hash(n)).decompress().is_some_and(|point| !point.is_small_order());
        assert!(!is_point(0) && is_point(1), "the first that is a point");
        let wire = STANDARD.decode(NOBODYS_KEY.split(' ').nth(1).unwrap()).unwrap();
        let expected = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 32], &hash(1)].concat();
        assert_eq!(wire, expected);
    }

    #[test]
    fn names_of_sizes_say_what_they_run_under() {
        let families = [
            ("Standard_DC2es_v6", Some(Confidential::Tdx)),
            ("Standard_EC128es_v6", Some(Confidential::Tdx)),
            ("Standard_DC4eds_v5", Some(Confidential::Tdx)),
            ("Standard_DC2as_v5", Some(Confidential::SevSnp)),
            ("Standard_DC2ads_v5", Some(Confidential::SevSnp)),
            ("Standard_EC8as_cc_v5", Some(Confidential::SevSnp)),
            ("Standard_EC96as_v6", Some(Confidential::SevSnp)),
            ("Standard_DC2s_v3", None),
            ("Standard_DC1ds_v3", None),
            ("Standard_DCas_v5", None),
            ("Standard_D2as_v5", None),
            ("Standard_E2s_v5", None),
            ("DC2as_v5", None),
            ("", None),
        ];
        for (size, expected) in families {
            assert_eq!(confidential_family(size), expected, "{size}");
        }
    }

    #[test]
    fn names_are_names_and_templates_hold_no_programs() {
        assert_eq!(name_of("0123abcd").unwrap(), "c-0123abcd");
        for wrong in ["", "A", "a/b", "a b", "a-", &"a".repeat(49), "ä"] {
            assert!(name_of(wrong).is_err(), "{wrong}");
        }
        let mut value = json!({ "a": ["[x]", "y"], "b": "[resourceGroup()]" });
        escape(&mut value);
        assert_eq!(value, json!({ "a": ["[[x]", "y"], "b": "[[resourceGroup()]" }));
    }
}
