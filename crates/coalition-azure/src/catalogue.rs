//! Sizes of the region.

use std::collections::BTreeMap;

use coalition_cloud::{Confidential, SizeInfo, one_line};
use serde::Deserialize;

use crate::action::Action;
use crate::client::{Ask, Azure};
use crate::error::AzureError;
use crate::hosts::MAX_PAGES;
use crate::image::same_region;
use crate::machine::Page;

const API: &str = "2021-07-01";
/// Longest page, in bytes. One region's list is a few MiB; all regions' would be a hundred.
const MAX_BYTES: usize = 32 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sku {
    #[serde(default)]
    resource_type: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    locations: Vec<String>,
    #[serde(default)]
    capabilities: Vec<Capability>,
    #[serde(default)]
    restrictions: Vec<Restriction>,
}

#[derive(Deserialize)]
struct Capability {
    name: String,
    value: String,
}

#[derive(Deserialize)]
struct Restriction {
    #[serde(rename = "type", default)]
    kind: String,
}

/// A page of sizes, each by its name, and the next page. Those the subscription may not use in the region are left out.
pub(crate) fn read_sizes(bytes: &[u8], region: &str) -> Result<(BTreeMap<String, SizeInfo>, Option<String>), String> {
    let Page { value, next } = serde_json::from_slice::<Page<Sku>>(bytes).map_err(|error| error.to_string())?;
    let here = |sku: &Sku| {
        sku.resource_type == "virtualMachines" && sku.locations.iter().any(|location| same_region(location, region))
    };
    let allowed = |sku: &Sku| !sku.restrictions.iter().any(|restriction| restriction.kind == "Location");
    let sizes = value.iter().filter(|sku| here(sku) && allowed(sku)).filter_map(read_size);
    Ok((sizes.map(|size| (size.name.clone(), size)).collect(), next))
}

fn read_size(sku: &Sku) -> Option<SizeInfo> {
    let of = |name: &str| sku.capabilities.iter().find(|known| known.name == name).map(|known| known.value.as_str());
    let vcpus = of("vCPUsAvailable").or_else(|| of("vCPUs"))?.parse().ok()?;
    let confidential = match of("ConfidentialComputingType") {
        Some("TDX") => vec![Confidential::Tdx],
        Some("SNP") => vec![Confidential::SevSnp],
        _ => Vec::new(),
    };
    Some(SizeInfo { name: one_line(&sku.name, 60), vcpus, ram_mib: mib(of("MemoryGB")?)?, confidential })
}

/// MiB of a decimal number of GiB, as Azure writes it: `3.5`, `16`.
fn mib(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.len() > 6 || !part.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let scale = 10_u64.pow(u32::try_from(part.len()).ok()?);
    let part: u64 = if part.is_empty() { 0 } else { part.parse().ok()? };
    let whole: u64 = whole.parse::<u32>().ok()?.into();
    u32::try_from(whole * 1_024 + part * 1_024 / scale).ok()
}

impl Azure {
    /// Sizes of these names that the region has for this subscription; Azure writes names without minding case.
    pub(crate) async fn look_at_sizes(&self, names: &[&str]) -> Result<Vec<SizeInfo>, AzureError> {
        let action = Action::ListSizes;
        let region = &self.setup().region;
        let query = format!("api-version={API}&$filter=location%20eq%20%27{region}%27");
        let mut url = self.at(&format!("/providers/Microsoft.Compute/skus?{query}"));
        let mut found: Vec<SizeInfo> = Vec::new();
        for _ in 0..MAX_PAGES {
            let answer = self.ask(&Ask { limit: MAX_BYTES, ..Ask::get(action, url) }).await?;
            let read = read_sizes(&answer.body, region);
            let (page, next) = read.map_err(|problem| AzureError::Garbled { action, problem })?;
            for size in page.into_values() {
                // Under the name it was asked by: an offer is found by it.
                if let Some(name) = names.iter().find(|name| name.eq_ignore_ascii_case(&size.name)) {
                    found.push(SizeInfo { name: (*name).to_owned(), ..size });
                }
            }
            match next {
                Some(next) => url = self.next_page(action, &next)?,
                None => return Ok(found),
            }
        }
        Err(AzureError::Garbled { action, problem: format!("there is no end after {MAX_PAGES} pages") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_this_region_are_read() {
        let sku = |name: &str, location: &str, more: &str| {
            format!(
                r#"{{"resourceType":"virtualMachines","name":"{name}","locations":["{location}"],"restrictions":[{more}],
                "capabilities":[{{"name":"vCPUs","value":"2"}},{{"name":"MemoryGB","value":"3.5"}},{{"name":"ConfidentialComputingType","value":"TDX"}}]}}"#
            )
        };
        let page = format!(
            r#"{{"value":[{},{},{},{},{{"resourceType":"disks","name":"Premium_LRS"}}],"nextLink":"https://x/"}}"#,
            sku("Standard_DC2es_v6", "WestEurope", r#"{"type":"Zone"}"#),
            sku("Standard_A1_v2", "eastus", ""),
            sku("Standard_A2_v2", "westeurope", r#"{"type":"Location","reasonCode":"NotAvailableForSubscription"}"#),
            sku("Standard_A4_v2", "westeurope", "").replace("3.5", "much"),
        );
        let (sizes, next) = read_sizes(page.as_bytes(), "westeurope").unwrap();
        assert_eq!(sizes.keys().collect::<Vec<_>>(), ["Standard_DC2es_v6"]);
        let one = &sizes["Standard_DC2es_v6"];
        assert_eq!((one.vcpus, one.ram_mib, one.confidential.as_slice()), (2, 3_584, &[Confidential::Tdx][..]));
        assert_eq!(next.as_deref(), Some("https://x/"));
        assert!(read_sizes(b"{}", "x").is_err());
    }

    #[test]
    fn memory_is_read_exactly() {
        for (text, expected) in [("0.5", 512), ("3.5", 3_584), ("16", 16_384), ("1.75", 1_792), ("2048", 2_097_152)] {
            assert_eq!(mib(text), Some(expected), "{text}");
        }
        for wrong in ["", ".", "x", "-1", "1e3", "1.0000001", "1.2.3", "4294967296", "9999999"] {
            assert_eq!(mib(wrong), None, "{wrong}");
        }
    }
}
