//! The image hosts are made of: a version in a gallery, or of the marketplace.

use coalition_cloud::{Image, one_line};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::action::Action;
use crate::client::{Answer, Ask, Azure};
use crate::error::AzureError;
use crate::ids::{ResourceId, is_name};

const GALLERY_API: &str = "2024-03-03";
const COMPUTE_API: &str = "2025-04-01";
/// What a disk is taken to need where Azure does not say, as of images of the marketplace: its usual size for Linux, GiB.
const USUAL_GIB: u32 = 30;
const EXPECTED: &str = "/subscriptions/…/resourceGroups/…/providers/Microsoft.Compute/galleries/…/images/…/versions/1.2.3, or \
    publisher:offer:sku:version; with a version's number, as \"latest\" may be another image tomorrow";

/// Which image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ImageName {
    Gallery(ResourceId),
    Marketplace { publisher: String, offer: String, sku: String, version: String },
}

impl std::str::FromStr for ImageName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let is_version =
            |text: &str| text.split('.').count() == 3 && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if let Some(id) = ResourceId::parse(text) {
            let fits = id.is("Microsoft.Compute", &["galleries", "images", "versions"]) && is_version(id.name());
            return if fits { Ok(Self::Gallery(id)) } else { Err(EXPECTED) };
        }
        let parts: Vec<&str> = text.split(':').collect();
        let [publisher, offer, sku, version] = parts.as_slice() else { return Err(EXPECTED) };
        if ![publisher, offer, sku].iter().all(|part| is_name(part)) || !is_version(version) || !is_name(version) {
            return Err(EXPECTED);
        }
        let text = |part: &str| part.to_owned();
        Ok(Self::Marketplace { publisher: text(publisher), offer: text(offer), sku: text(sku), version: text(version) })
    }
}

impl ImageName {
    /// As a virtual machine's `imageReference`.
    pub(crate) fn reference(&self) -> Value {
        match self {
            Self::Gallery(_) => json!({ "id": self.to_string() }),
            Self::Marketplace { publisher, offer, sku, version } => {
                json!({ "publisher": publisher, "offer": offer, "sku": sku, "version": version })
            }
        }
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gallery(id) => {
                let (subscription, group) = (&id.subscription, &id.group);
                write!(f, "/subscriptions/{subscription}/resourceGroups/{group}/providers/{}", id.namespace)?;
                id.path.iter().try_for_each(|(kind, name)| write!(f, "/{kind}/{name}"))
            }
            Self::Marketplace { publisher, offer, sku, version } => write!(f, "{publisher}:{offer}:{sku}:{version}"),
        }
    }
}

/// What a version is: its smallest disk, and why it cannot be used.
pub(crate) struct Version {
    pub(crate) disk_gib: u32,
    pub(crate) unusable: Option<String>,
}

/// What all versions of an image are.
pub(crate) struct Definition {
    pub(crate) architecture: String,
    pub(crate) unusable: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionDocument {
    properties: VersionProperties,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionProperties {
    provisioning_state: String,
    publishing_profile: PublishingProfile,
    #[serde(default)]
    storage_profile: StorageProfile,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PublishingProfile {
    #[serde(default)]
    target_regions: Vec<TargetRegion>,
}

#[derive(Deserialize)]
struct TargetRegion {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StorageProfile {
    os_disk_image: OsDiskImage,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OsDiskImage {
    #[serde(alias = "sizeInGB", alias = "sizeInGb")]
    size_in_gb: Option<u32>,
    #[serde(rename = "operatingSystem")]
    operating_system: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DefinitionDocument {
    properties: DefinitionProperties,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DefinitionProperties {
    os_type: String,
    os_state: String,
    #[serde(default)]
    architecture: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MarketplaceDocument {
    properties: MarketplaceProperties,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MarketplaceProperties {
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    os_disk_image: OsDiskImage,
    #[serde(default)]
    plan: Option<Value>,
    #[serde(default)]
    image_deprecation_status: Deprecation,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Deprecation {
    image_state: String,
}

/// Azure's `West Europe` and `westeurope` are one region.
pub(crate) fn same_region(one: &str, other: &str) -> bool {
    let plain = |text: &str| text.chars().filter(|c| *c != ' ').collect::<String>().to_ascii_lowercase();
    plain(one) == plain(other)
}

fn architecture(given: Option<&str>) -> String {
    match given.unwrap_or("x64") {
        "x64" => "x86_64".to_owned(),
        "Arm64" => "aarch64".to_owned(),
        other => one_line(other, 20),
    }
}

pub(crate) fn read_version(bytes: &[u8], region: &str) -> Result<Version, String> {
    let document: VersionDocument = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let VersionProperties { provisioning_state, publishing_profile, storage_profile } = document.properties;
    let here = publishing_profile.target_regions.iter().any(|target| same_region(&target.name, region));
    let unusable = match provisioning_state.as_str() {
        "Succeeded" if here => None,
        "Succeeded" => Some(format!("not replicated to {region}")),
        other => Some(one_line(other, 40)),
    };
    Ok(Version { disk_gib: storage_profile.os_disk_image.size_in_gb.unwrap_or(USUAL_GIB), unusable })
}

pub(crate) fn read_definition(bytes: &[u8]) -> Result<Definition, String> {
    let document: DefinitionDocument = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let DefinitionProperties { os_type, os_state, architecture: given } = document.properties;
    let unusable = if os_type != "Linux" {
        Some(format!("for {}", one_line(&os_type, 20)))
    } else if os_state != "Generalized" {
        // Nothing may be told to such a host at its first boot: no host key, no login.
        Some(format!("{}; hosts need a generalized one", one_line(&os_state.to_lowercase(), 20)))
    } else {
        None
    };
    Ok(Definition { architecture: architecture(given.as_deref()), unusable })
}

pub(crate) fn read_marketplace(bytes: &[u8]) -> Result<(Definition, u32), String> {
    let document: MarketplaceDocument = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let MarketplaceProperties { architecture: given, os_disk_image, plan, image_deprecation_status } =
        document.properties;
    let unusable = if os_disk_image.operating_system != "Linux" {
        Some(format!("for {}", one_line(&os_disk_image.operating_system, 20)))
    } else if plan.is_some_and(|plan| !plan.is_null()) {
        Some("sold under a plan of its own, which somebody must agree to".to_owned())
    } else {
        let state = image_deprecation_status.image_state;
        // An image that is to be deprecated can be used until then.
        (state == "Deprecated").then(|| "deprecated".to_owned())
    };
    let gib = os_disk_image.size_in_gb.unwrap_or(USUAL_GIB);
    Ok((Definition { architecture: architecture(given.as_deref()), unusable }, gib))
}

impl Azure {
    /// The setup's image; `None` when there is none of that name.
    pub(crate) async fn look_at_image(&self) -> Result<Option<Image>, AzureError> {
        let image = self.image_name();
        let garbled = |action| move |problem| AzureError::Garbled { action, problem };
        match image {
            ImageName::Gallery(id) => {
                let path = image.to_string();
                let url = |path: &str| {
                    let path = path.strip_prefix(&format!("/subscriptions/{}", id.subscription)).unwrap_or(path);
                    self.at_subscription(&id.subscription, &format!("{path}?api-version={GALLERY_API}"))
                };
                let (one, all) = (Action::GetImageVersion, Action::GetImageDefinition);
                let Some(version) = self.there(&Ask::get(one, url(&path))).await? else { return Ok(None) };
                let version = read_version(&version.body, &self.setup().region).map_err(garbled(one))?;
                let outer = path.rsplit_once("/versions/").map_or(path.as_str(), |(outer, _)| outer);
                let Some(definition) = self.there(&Ask::get(all, url(outer))).await? else { return Ok(None) };
                let definition = read_definition(&definition.body).map_err(garbled(all))?;
                Ok(Some(Image {
                    id: path,
                    architecture: definition.architecture,
                    disk_gib: version.disk_gib,
                    unusable: version.unusable.or(definition.unusable),
                }))
            }
            ImageName::Marketplace { publisher, offer, sku, version } => {
                let region = &self.setup().region;
                let path = format!(
                    "/providers/Microsoft.Compute/locations/{region}/publishers/{publisher}/artifacttypes/vmimage/offers/{offer}\
                     /skus/{sku}/versions/{version}?api-version={COMPUTE_API}"
                );
                let action = Action::GetMarketplaceImage;
                let Some(answer) = self.there(&Ask::get(action, self.at(&path))).await? else { return Ok(None) };
                let (Definition { architecture, unusable }, disk_gib) =
                    read_marketplace(&answer.body).map_err(garbled(action))?;
                Ok(Some(Image { id: image.to_string(), architecture, disk_gib, unusable }))
            }
        }
    }

    /// A thing that may not exist.
    pub(crate) async fn there(&self, ask: &Ask) -> Result<Option<Answer>, AzureError> {
        match self.ask(ask).await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.kind() == coalition_cloud::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "/subscriptions/01234567-89ab-cdef-0123-456789abcdef/resourceGroups/g/providers/Microsoft.Compute/galleries/ga/images/i/versions/1.2.3";

    #[test]
    fn both_forms_of_names() {
        let gallery: ImageName = ID.parse().unwrap();
        assert_eq!((gallery.to_string().as_str(), gallery.reference()), (ID, json!({ "id": ID })));
        let urn: ImageName = "Debian:debian-12:12-gen2:0.20241004.1890".parse().unwrap();
        assert_eq!(urn.reference()["sku"], "12-gen2");
        for wrong in [
            "",
            "a:b:c",
            "a:b:c:latest",
            "a:b:c:1.2",
            "a:b:c:1..2",
            "a:b/../c:c:1.2.3",
            "a b:b:c:1.2.3",
            &ID.replace("1.2.3", "latest"),
            &ID.replace("/versions/1.2.3", ""),
            &ID.replace("galleries", "disks"),
        ] {
            assert!(wrong.parse::<ImageName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_keeps_an_image_from_being_used_is_said() {
        let version = |state: &str, region: &str| {
            let text = format!(
                r#"{{"properties":{{"provisioningState":"{state}","publishingProfile":{{"targetRegions":[{{"name":"{region}"}}]}},
                "storageProfile":{{"osDiskImage":{{"sizeInGB":8}}}}}}}}"#
            );
            read_version(text.as_bytes(), "westeurope").unwrap()
        };
        assert!(
            version("Succeeded", "West Europe").unusable.is_none() && version("Succeeded", "westeurope").disk_gib == 8
        );
        assert_eq!(version("Creating", "westeurope").unusable.unwrap(), "Creating");
        assert_eq!(version("Succeeded", "eastus").unusable.unwrap(), "not replicated to westeurope");
        let definition = |os: &str, state: &str| {
            let text = format!(r#"{{"properties":{{"osType":"{os}","osState":"{state}","architecture":"Arm64"}}}}"#);
            read_definition(text.as_bytes()).unwrap()
        };
        let good = definition("Linux", "Generalized");
        assert_eq!((good.architecture.as_str(), good.unusable), ("aarch64", None));
        assert!(definition("Linux", "Specialized").unusable.unwrap().contains("generalized"));
        assert!(definition("Windows", "Generalized").unusable.is_some());
        let market = |more: &str| {
            let text = format!(r#"{{"properties":{{"osDiskImage":{{"operatingSystem":"Linux"}}{more}}}}}"#);
            read_marketplace(text.as_bytes()).unwrap()
        };
        assert_eq!((market("").1, market("").0.unusable), (30, None));
        assert!(market(r#","plan":{"name":"p"}"#).0.unusable.is_some());
        assert!(
            market(r#","plan":null,"imageDeprecationStatus":{"imageState":"ScheduledForDeprecation"}"#)
                .0
                .unusable
                .is_none()
        );
        assert!(market(r#","imageDeprecationStatus":{"imageState":"Deprecated"}"#).0.unusable.is_some());
        assert!(
            read_version(b"{}", "x").is_err() && read_definition(b"{}").is_err() && read_marketplace(b"[]").is_err()
        );
    }
}
