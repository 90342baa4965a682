//! What a request for a machine must be: every member known, every value one that Azure takes, and all it names there.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::answer::Refusal;
use crate::world::{Tags, World};
use crate::{IMAGE, REGION, SECURITY_GROUP, SIZES, SUBNET, Size, URN};

/// Longest custom data, in bytes before base64.
const MAX_CUSTOM_DATA: usize = 65_535;
/// Names Azure gives no account.
const NO_ACCOUNTS: [&str; 12] =
    ["administrator", "admin", "user", "test", "root", "guest", "owner", "server", "sys", "backup", "console", "1"];

/// A request that was found right.
pub(crate) struct Wanted {
    pub(crate) size: &'static Size,
    pub(crate) zones: Vec<String>,
    pub(crate) tags: Tags,
    pub(crate) user_data: Vec<u8>,
    pub(crate) disk: String,
    pub(crate) interface: String,
    pub(crate) interface_tags: Tags,
    /// Of the public address, with its tags.
    pub(crate) address: Option<(String, Tags)>,
    pub(crate) has_console: bool,
}

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "InvalidParameter", message)
}

/// The members of an object, all known.
fn known(value: &Value, at: &str, members: &[&str]) -> Result<(), Refusal> {
    let Some(object) = value.as_object() else { return Err(bad(format!("{at} is no object"))) };
    match object.keys().find(|key| !members.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let message = format!("Could not find member '{key}' on object of type '{at}'.");
            Err(Refusal::new(400, "BadRequest", message))
        }
    }
}

fn text<'a>(value: &'a Value, at: &str) -> Result<&'a str, Refusal> {
    let missing = || bad(format!("Required parameter '{at}' is missing (null)."));
    value.pointer(&format!("/{}", at.replace('.', "/"))).and_then(Value::as_str).ok_or_else(missing)
}

fn one_of(value: &Value, at: &str, allowed: &[&str]) -> Result<(), Refusal> {
    let given = text(value, at)?;
    if allowed.contains(&given) {
        Ok(())
    } else {
        Err(bad(format!("The value '{given}' of parameter '{at}' is invalid.")))
    }
}

fn name(value: &Value, at: &str) -> Result<String, Refusal> {
    let given = text(value, at)?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let ends = given.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && !given.ends_with(['-', '.']);
    if ends && given.len() <= 80 && given.bytes().all(fits) {
        return Ok(given.to_owned());
    }
    Err(Refusal::new(400, "InvalidResourceName", format!("Resource name {given} is invalid.")))
}

fn tags(value: &Value) -> Result<Tags, Refusal> {
    let tags = match value.get("tags") {
        None | Some(Value::Null) => return Ok(Tags::new()),
        Some(tags) => tags.as_object().ok_or_else(|| bad("tags is no object"))?.clone(),
    };
    let fits = |(key, value): (&String, &Value)| {
        let name = key.len() <= 512 && !key.is_empty() && !key.contains(['<', '>', '%', '&', '\\', '?', '/']);
        name && value.as_str().is_some_and(|value| value.chars().count() <= 256)
    };
    if tags.len() > 50 || !tags.iter().all(fits) {
        return Err(Refusal::new(
            400,
            "InvalidTagNameCharacters",
            "The tags are too many, too long or have invalid characters.",
        ));
    }
    Ok(tags)
}

/// Judges the body of a request; what it says of zones is judged against what is there, too.
pub(crate) fn judge(vm: &str, body: &Value, world: &World, limits: (u32, u32)) -> Result<Wanted, Refusal> {
    known(body, "VirtualMachine", &["location", "tags", "zones", "properties"])?;
    if text(body, "location")? != REGION {
        return Err(Refusal::new(
            400,
            "LocationNotAvailableForResourceType",
            "The provided location is not available.",
        ));
    }
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if vm.is_empty() || vm.len() > 64 || !vm.bytes().all(fits) || vm.ends_with('-') {
        return Err(bad(
            "Linux host name cannot exceed 64 characters in length or contain the following characters: …",
        ));
    }
    let properties = &body["properties"];
    let members = [
        "hardwareProfile",
        "osProfile",
        "networkProfile",
        "diagnosticsProfile",
        "securityProfile",
        "storageProfile",
        "priority",
    ];
    known(properties, "VirtualMachineProperties", &members)?;
    let size = size_of(properties)?;
    let zones = zones_of(body, size)?;
    check_security(properties, size)?;
    let disk = check_storage(properties)?;
    let user_data = check_system(properties, vm)?;
    let (interface, interface_tags, address) = check_network(properties)?;
    check_quota(size, world, limits)?;
    known(
        properties.get("diagnosticsProfile").unwrap_or(&Value::Object(Tags::new())),
        "DiagnosticsProfile",
        &["bootDiagnostics"],
    )?;
    let has_console = properties.pointer("/diagnosticsProfile/bootDiagnostics/enabled") == Some(&Value::Bool(true));
    let tags = tags(body)?;
    Ok(Wanted { size, zones, tags, user_data, disk, interface, interface_tags, address, has_console })
}

fn size_of(properties: &Value) -> Result<&'static Size, Refusal> {
    known(&properties["hardwareProfile"], "HardwareProfile", &["vmSize"])?;
    let given = text(properties, "hardwareProfile.vmSize")?;
    let size = SIZES.iter().find(|size| size.name.eq_ignore_ascii_case(given));
    let size = size.ok_or_else(|| bad(format!("The value {given} provided for the VM size is not valid.")))?;
    if size.allowed {
        return Ok(size);
    }
    let message =
        format!("The requested VM size '{given}' is not available in location '{REGION}' for this subscription.");
    Err(Refusal::new(409, "SkuNotAvailable", message))
}

fn zones_of(body: &Value, size: &Size) -> Result<Vec<String>, Refusal> {
    let Some(zones) = body.get("zones") else { return Ok(Vec::new()) };
    let zones: Option<Vec<String>> =
        zones.as_array().map(|zones| zones.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect());
    let Some([zone]) = zones.as_deref() else { return Err(bad("Please specify a single availability zone.")) };
    if !["1", "2", "3"].contains(&zone.as_str()) {
        return Err(Refusal::new(400, "InvalidAvailabilityZone", format!("The zone '{zone}' is not supported.")));
    }
    if !size.zones.contains(&zone.as_str()) {
        let message = format!(
            "The requested VM size '{}' is currently not available in location '{REGION}' zones '{zone}'.",
            size.name
        );
        return Err(Refusal::new(409, "SkuNotAvailable", message));
    }
    Ok(vec![zone.clone()])
}

/// A machine is confidential, its disk is, and its size can be, or none of the three.
fn check_security(properties: &Value, size: &Size) -> Result<(), Refusal> {
    let disk = properties.pointer("/storageProfile/osDisk/managedDisk/securityProfile");
    let Some(profile) = properties.get("securityProfile") else {
        return match (size.confidential, disk) {
            (None, None) => Ok(()),
            (Some(_), _) => Err(bad(format!(
                "The VM size '{}' is not supported for creation of VMs and Virtual Machine Scale Set with '<NULL>' security type.",
                size.name
            ))),
            (None, Some(_)) => Err(bad("securityProfile of the disk needs the security type ConfidentialVM.")),
        };
    };
    known(profile, "SecurityProfile", &["securityType", "uefiSettings"])?;
    known(&profile["uefiSettings"], "UefiSettings", &["secureBootEnabled", "vTpmEnabled"])?;
    one_of(profile, "securityType", &["ConfidentialVM"])?;
    if size.confidential.is_none() {
        return Err(bad(format!("The VM size '{}' is not supported with security type 'ConfidentialVM'.", size.name)));
    }
    if profile.pointer("/uefiSettings/vTpmEnabled") != Some(&Value::Bool(true)) {
        return Err(bad("vTpmEnabled must be true for ConfidentialVM."));
    }
    let disk = disk.ok_or_else(|| bad("ConfidentialVM needs securityEncryptionType."))?;
    known(disk, "VMDiskSecurityProfile", &["securityEncryptionType"])?;
    one_of(disk, "securityEncryptionType", &["VMGuestStateOnly", "DiskWithVMGuestState"])?;
    let secure = profile.pointer("/uefiSettings/secureBootEnabled") == Some(&Value::Bool(true));
    if disk["securityEncryptionType"] == "DiskWithVMGuestState" && !secure {
        return Err(bad("DiskWithVMGuestState needs secureBootEnabled."));
    }
    Ok(())
}

fn check_storage(properties: &Value) -> Result<String, Refusal> {
    let storage = &properties["storageProfile"];
    known(storage, "StorageProfile", &["imageReference", "osDisk"])?;
    let image = &storage["imageReference"];
    known(image, "ImageReference", &["id", "publisher", "offer", "sku", "version"])?;
    let urn = ["publisher", "offer", "sku", "version"].map(|part| image[part].as_str().unwrap_or_default()).join(":");
    if image["id"] != IMAGE && urn != URN {
        let (code, what) = if image.get("id").is_some() {
            ("GalleryImageNotFound", "gallery")
        } else {
            ("PlatformImageNotFound", "platform")
        };
        return Err(Refusal::new(404, code, format!("The {what} image is not available.")));
    }
    let disk = &storage["osDisk"];
    known(disk, "OSDisk", &["name", "createOption", "deleteOption", "caching", "diskSizeGB", "managedDisk"])?;
    known(&disk["managedDisk"], "ManagedDiskParameters", &["storageAccountType", "securityProfile"])?;
    one_of(disk, "createOption", &["FromImage"])?;
    one_of(disk, "deleteOption", &["Delete"])?;
    one_of(disk, "caching", &["None", "ReadOnly", "ReadWrite"])?;
    one_of(disk, "managedDisk.storageAccountType", &["Standard_LRS", "StandardSSD_LRS", "Premium_LRS"])?;
    match disk["diskSizeGB"].as_u64() {
        Some(8..=4_095) => name(disk, "name"),
        _ => Err(bad("The value of diskSizeGB is out of range: the image needs 8.")),
    }
}

fn check_system(properties: &Value, vm: &str) -> Result<Vec<u8>, Refusal> {
    let system = &properties["osProfile"];
    let members = ["computerName", "adminUsername", "allowExtensionOperations", "linuxConfiguration", "customData"];
    known(system, "OSProfile", &members)?;
    let account = text(system, "adminUsername")?;
    if NO_ACCOUNTS.contains(&account) || account.len() > 64 {
        return Err(bad("The Admin Username specified is not allowed."));
    }
    if text(system, "computerName")? != vm {
        return Err(bad("the test expects the machine's own name"));
    }
    let linux = &system["linuxConfiguration"];
    known(linux, "LinuxConfiguration", &["disablePasswordAuthentication", "provisionVMAgent", "ssh"])?;
    let off = |value: &Value| *value == Value::Bool(false);
    if off(&linux["provisionVMAgent"]) && !off(&system["allowExtensionOperations"]) {
        return Err(bad("allowExtensionOperations must be false when provisionVMAgent is."));
    }
    let keys = linux.pointer("/ssh/publicKeys").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if linux["disablePasswordAuthentication"] != Value::Bool(true) || keys.is_empty() {
        let words = "Authentication using either SSH or by user name and password must be enabled in Linux profile.";
        return Err(bad(words));
    }
    for key in keys {
        known(key, "SshPublicKey", &["path", "keyData"])?;
        if text(key, "path")? != format!("/home/{account}/.ssh/authorized_keys") {
            return Err(bad("Destination path for SSH public keys is currently limited to its default value."));
        }
        let mut parts = text(key, "keyData")?.split(' ');
        let is_kind = matches!(parts.next(), Some("ssh-rsa" | "ssh-ed25519"));
        if !is_kind || parts.next().is_none_or(|data| STANDARD.decode(data).is_err()) {
            return Err(bad("The value of parameter linuxConfiguration.ssh.publicKeys.keyData is invalid."));
        }
    }
    let data = STANDARD.decode(text(system, "customData")?);
    let data = data.map_err(|_| bad("Custom data in OSProfile must be in Base64 encoding."))?;
    if data.len() > MAX_CUSTOM_DATA { Err(bad("Custom data in OSProfile is too long.")) } else { Ok(data) }
}

type Interface = (String, Tags, Option<(String, Tags)>);

fn check_network(properties: &Value) -> Result<Interface, Refusal> {
    let network = &properties["networkProfile"];
    known(network, "NetworkProfile", &["networkApiVersion", "networkInterfaceConfigurations"])?;
    one_of(network, "networkApiVersion", &["2020-11-01", "2022-11-01"])?;
    let configurations = network["networkInterfaceConfigurations"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [interface] = configurations else { return Err(bad("the test expects one interface")) };
    known(interface, "VirtualMachineNetworkInterfaceConfiguration", &["name", "tags", "properties"])?;
    let inner = &interface["properties"];
    let members = ["primary", "deleteOption", "ipConfigurations", "networkSecurityGroup"];
    known(inner, "VirtualMachineNetworkInterfaceConfigurationProperties", &members)?;
    one_of(inner, "deleteOption", &["Delete"])?;
    if inner.get("networkSecurityGroup").is_some_and(|group| group["id"] != SECURITY_GROUP) {
        return Err(Refusal::new(400, "InvalidResourceReference", "The network security group was not found."));
    }
    let [configuration] = inner["ipConfigurations"].as_array().map(Vec::as_slice).unwrap_or_default() else {
        return Err(bad("the test expects one address configuration"));
    };
    known(configuration, "VirtualMachineNetworkInterfaceIPConfiguration", &["name", "properties"])?;
    name(configuration, "name")?;
    let inner = &configuration["properties"];
    let members = ["primary", "subnet", "publicIPAddressConfiguration"];
    known(inner, "VirtualMachineNetworkInterfaceIPConfigurationProperties", &members)?;
    if inner["subnet"]["id"] != SUBNET {
        return Err(Refusal::new(400, "InvalidResourceReference", "The subnet was not found."));
    }
    let address = inner.get("publicIPAddressConfiguration").map(check_address).transpose()?;
    Ok((name(interface, "name")?, tags(interface)?, address))
}

fn check_address(address: &Value) -> Result<(String, Tags), Refusal> {
    known(address, "VirtualMachinePublicIPAddressConfiguration", &["name", "sku", "tags", "properties"])?;
    known(&address["sku"], "PublicIPAddressSku", &["name", "tier"])?;
    let members = ["deleteOption", "publicIPAllocationMethod", "publicIPAddressVersion"];
    known(&address["properties"], "VirtualMachinePublicIPAddressConfigurationProperties", &members)?;
    one_of(address, "properties.deleteOption", &["Delete"])?;
    one_of(address, "sku.name", &["Standard"])?;
    // Standard addresses are static.
    one_of(address, "properties.publicIPAllocationMethod", &["Static"])?;
    Ok((name(address, "name")?, tags(address)?))
}

fn check_quota(size: &Size, world: &World, (all, family): (u32, u32)) -> Result<(), Refusal> {
    for (what, limit, used) in
        [("Total Regional", all, world.vcpus(None)), (size.family, family, world.vcpus(Some(size.family)))]
    {
        if used + size.vcpus > limit {
            let message = format!(
                "Operation could not be completed as it results in exceeding approved {what} Cores quota. Additional details - \
                 Deployment Model: Resource Manager, Location: {REGION}, Current Limit: {limit}, Current Usage: {used}, \
                 Additional Required: {}.",
                size.vcpus
            );
            return Err(Refusal::new(409, "OperationNotAllowed", message));
        }
    }
    Ok(())
}
