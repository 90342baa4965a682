//! Machines, interfaces and addresses as Azure describes them.

use std::net::IpAddr;

use coalition_cloud::{ErrorKind, HostState, one_line};
use reqwest::Url;
use serde::Deserialize;

use crate::error::kind_of;
use crate::ids::{is_guid, is_name};
use crate::marks::Tags;

/// One machine as Azure describes it.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) tags: Tags,
    pub(crate) size: String,
    pub(crate) zone: Option<String>,
    /// Its own id, which no other machine ever has.
    pub(crate) unique: Option<String>,
    pub(crate) state: HostState,
    /// When it was made, Unix seconds.
    pub(crate) since_s: Option<u64>,
    /// Whether there was room for it.
    pub(crate) is_placed: bool,
    pub(crate) reason: Option<(ErrorKind, String)>,
    /// Its first network interface.
    pub(crate) interface: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Page<T> {
    pub(crate) value: Vec<T>,
    #[serde(rename = "nextLink", default)]
    pub(crate) next: Option<String>,
}

/// One of a list.
#[derive(Deserialize)]
pub(crate) struct Listed {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) tags: Option<Tags>,
}

#[derive(Deserialize)]
struct Document {
    name: String,
    #[serde(default)]
    tags: Option<Tags>,
    #[serde(default)]
    zones: Option<Vec<String>>,
    properties: Properties,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties {
    #[serde(default)]
    vm_id: Option<String>,
    #[serde(default)]
    time_created: Option<String>,
    provisioning_state: String,
    hardware_profile: Hardware,
    #[serde(default)]
    network_profile: Option<Network>,
    #[serde(default)]
    instance_view: Option<View>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hardware {
    vm_size: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Network {
    network_interfaces: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    id: String,
    #[serde(default)]
    properties: Option<Primary>,
}

#[derive(Deserialize)]
struct Primary {
    #[serde(default)]
    primary: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct View {
    statuses: Vec<Status>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: String,
    message: String,
}

#[derive(Deserialize)]
struct InterfaceDocument {
    properties: InterfaceProperties,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InterfaceProperties {
    #[serde(default)]
    ip_configurations: Vec<Configuration>,
}

#[derive(Deserialize)]
struct Configuration {
    properties: ConfigurationProperties,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigurationProperties {
    #[serde(default)]
    primary: bool,
    #[serde(rename = "privateIPAddress", default)]
    private_address: Option<String>,
    #[serde(rename = "publicIPAddress", default)]
    public_address: Option<Identified>,
}

#[derive(Deserialize)]
struct Identified {
    id: String,
}

#[derive(Deserialize)]
struct AddressDocument {
    properties: AddressProperties,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AddressProperties {
    #[serde(default)]
    ip_address: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConsoleDocument {
    #[serde(default)]
    serial_console_log_blob_uri: Option<String>,
}

/// A machine as it was answered or listed.
pub(crate) fn read_machine(bytes: &[u8]) -> Result<Machine, String> {
    let Document { name, tags, zones, properties } =
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if !is_name(&name) {
        return Err(format!("a machine has the name {:?}", one_line(&name, 40)));
    }
    let view = properties.instance_view.unwrap_or_default();
    let of = |prefix: &str| {
        view.statuses.iter().find_map(|status| Some((status.code.strip_prefix(prefix)?, status.message.as_str())))
    };
    let power = of("PowerState/").map(|(power, _)| power);
    let state = state_of(&properties.provisioning_state, power);
    let is_placed = matches!(power, Some("starting" | "running"));
    let reason = of("ProvisioningState/failed").map(|(code, message)| {
        let code = code.trim_start_matches('/');
        (kind_of(code, message, 400), one_line(&format!("{code}: {message}"), 300))
    });
    let mut interfaces = properties.network_profile.unwrap_or_default().network_interfaces;
    // The primary one first; one of several says so.
    interfaces.sort_by_key(|interface| !interface.properties.as_ref().is_some_and(|properties| properties.primary));
    Ok(Machine {
        name,
        tags: tags.unwrap_or_default(),
        size: one_line(&properties.hardware_profile.vm_size, 60),
        zone: zones.unwrap_or_default().into_iter().next(),
        unique: properties.vm_id.filter(|id| is_guid(id)),
        since_s: properties.time_created.as_deref().and_then(coalition_cloud::unix_s),
        state,
        is_placed,
        reason,
        interface: interfaces.into_iter().next().map(|interface| interface.id),
    })
}

/// A machine that failed to be made is billed for what there is of it, so it is stopped, not over.
fn state_of(provisioning: &str, power: Option<&str>) -> HostState {
    if provisioning.eq_ignore_ascii_case("Deleting") {
        return HostState::Stopping;
    }
    match power {
        Some("running") => HostState::Running,
        Some("starting") => HostState::Coming,
        Some("stopping" | "deallocating") => HostState::Stopping,
        Some("stopped" | "deallocated") => HostState::Stopped,
        _ if ["Failed", "Canceled"].iter().any(|end| provisioning.eq_ignore_ascii_case(end)) => HostState::Stopped,
        _ => HostState::Coming,
    }
}

pub(crate) fn read_page(bytes: &[u8]) -> Result<(Vec<Listed>, Option<String>), String> {
    let Page { value, next } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok((value, next))
}

/// The private address of an interface, and the id of its public one.
pub(crate) fn read_interface(bytes: &[u8]) -> Result<(Option<IpAddr>, Option<String>), String> {
    let document: InterfaceDocument = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut all = document.properties.ip_configurations;
    all.sort_by_key(|configuration| !configuration.properties.primary);
    let Some(Configuration { properties }) = all.into_iter().next() else { return Ok((None, None)) };
    let private = properties.private_address.and_then(|text| text.parse().ok());
    Ok((private, properties.public_address.map(|address| address.id)))
}

pub(crate) fn read_address(bytes: &[u8]) -> Result<Option<IpAddr>, String> {
    let document: AddressDocument = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok(document.properties.ip_address.and_then(|text| text.parse().ok()))
}

/// Where a console is kept, signed: a secret for as long as it counts.
pub(crate) fn read_console_place(bytes: &[u8]) -> Result<Option<Url>, String> {
    let document: ConsoleDocument = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let Some(text) = document.serial_console_log_blob_uri else { return Ok(None) };
    text.parse().map(Some).map_err(|_| "the console's place is no URL".to_owned())
}
