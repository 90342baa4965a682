//! What the region and the subscription have.

use serde_json::{Value, json};

use crate::answer::{Answer, Refusal};
use crate::server::Inner;
use crate::world::lock;
use crate::{GROUP, IMAGE, REGION, SIZES, SUBSCRIPTION, URN};

pub(crate) fn subscription(inner: &Inner) -> Answer {
    let state = inner.subscription_state();
    let body = json!({ "id": format!("/subscriptions/{SUBSCRIPTION}"), "subscriptionId": SUBSCRIPTION, "displayName": "For tests", "state": state });
    Answer::json(200, &body)
}

pub(crate) fn group() -> Answer {
    let id = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}");
    let body =
        json!({ "id": id, "name": GROUP, "location": REGION, "properties": { "provisioningState": "Succeeded" } });
    Answer::json(200, &body)
}

pub(crate) fn usages(inner: &Inner) -> Vec<Value> {
    let world = lock(&inner.world);
    let (all, family) = inner.limits();
    let usage = |name: &str, limit: u32, used: u32| json!({ "unit": "Count", "currentValue": used, "limit": limit, "name": { "value": name, "localizedValue": name } });
    let mut usages = vec![
        usage("availabilitySets", 2_500, 0),
        usage("cores", all, world.vcpus(None)),
        usage("virtualMachines", 25_000, 0),
    ];
    usages.extend(SIZES.iter().map(|size| usage(size.family, family, world.vcpus(Some(size.family)))));
    usages
}

pub(crate) fn sizes() -> Vec<Value> {
    let size = |size: &crate::Size| {
        let capability = |name: &str, value: &str| json!({ "name": name, "value": value });
        let mut capabilities = vec![
            capability("vCPUs", &size.vcpus.to_string()),
            capability("MemoryGB", size.memory),
            capability("HyperVGenerations", "V1,V2"),
            capability("CpuArchitectureType", "x64"),
        ];
        capabilities.extend(size.confidential.map(|kind| capability("ConfidentialComputingType", kind)));
        let restrictions = if size.allowed {
            json!([])
        } else {
            json!([{ "type": "Location", "values": [REGION], "reasonCode": "NotAvailableForSubscription" }])
        };
        json!({
            "resourceType": "virtualMachines", "name": size.name, "tier": "Standard", "family": size.family,
            "locations": [REGION], "locationInfo": [{ "location": REGION, "zones": size.zones }],
            "capabilities": capabilities, "restrictions": restrictions,
        })
    };
    let mut sizes: Vec<Value> = SIZES.iter().map(size).collect();
    sizes.push(json!({ "resourceType": "disks", "name": "Premium_LRS", "tier": "Premium", "locations": [REGION], "restrictions": [] }));
    sizes
}

/// A version of a gallery's image, or the image itself; `path` is what the URL has after the resource group's `providers/`.
pub(crate) fn gallery(path: &str) -> Result<Answer, Refusal> {
    let name = |id: &str| id.rsplit('/').next().unwrap_or_default().to_owned();
    if path.eq_ignore_ascii_case(IMAGE) {
        return Ok(Answer::json(
            200,
            &json!({ "id": IMAGE, "name": name(IMAGE), "location": REGION, "properties": {
            "provisioningState": "Succeeded",
            "publishingProfile": { "targetRegions": [{ "name": "West Europe", "regionalReplicaCount": 1 }], "excludeFromLatest": false },
            "storageProfile": { "osDiskImage": { "sizeInGB": 8, "hostCaching": "ReadWrite" } },
        } }),
        ));
    }
    let image = IMAGE.split("/versions/").next().unwrap_or_default();
    if path.eq_ignore_ascii_case(image) {
        return Ok(Answer::json(
            200,
            &json!({ "id": image, "name": name(image), "location": REGION, "properties": {
            "osType": "Linux", "osState": "Generalized", "hyperVGeneration": "V2", "architecture": "x64",
            "features": [{ "name": "SecurityType", "value": "ConfidentialVmSupported" }],
        } }),
        ));
    }
    Err(Refusal::new(404, "ResourceNotFound", "The gallery image was not found."))
}

/// `publishers/…/artifacttypes/vmimage/offers/…/skus/…/versions/…`.
pub(crate) fn marketplace(path: &str) -> Result<Answer, Refusal> {
    let urn: Vec<&str> = URN.split(':').collect();
    let expected =
        format!("publishers/{}/artifacttypes/vmimage/offers/{}/skus/{}/versions/{}", urn[0], urn[1], urn[2], urn[3]);
    if !path.eq_ignore_ascii_case(&expected) {
        return Err(Refusal::new(404, "NotFound", "Artifact: VMImage was not found."));
    }
    Ok(Answer::json(
        200,
        &json!({ "name": urn[3], "location": REGION, "properties": {
        "architecture": "x64", "hyperVGeneration": "V2", "plan": null,
        "osDiskImage": { "operatingSystem": "Linux" },
        "imageDeprecationStatus": { "imageState": "Active" },
    } }),
    ))
}
