//! The calls: what is asked by method and path, and what is answered.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::answer::{Refusal, invalid, not_found, refusal};
use crate::auth::Auth;
use crate::insert::{insert, permissions};
use crate::world::{
    BASE, IMAGE_GIB, IMAGE_PROJECT, IMAGES, Image, SIZES, Size, Work, World, ZONES, region_of, zone_url,
};
use crate::{Fault, PROJECT, REGION, telemetry};

/// One call, by its name in the API and with what its path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) call: &'static str,
    project: String,
    zone: String,
    name: String,
}

/// The call that method and path mean.
pub(crate) fn route(method: &str, path: &str) -> Option<Route> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    if let ("GET", ["v3", "projects", project, "timeSeries"]) = (method, parts.as_slice()) {
        let (project, zone, name) = ((*project).to_owned(), String::new(), String::new());
        return Some(Route { call: "timeSeries.list", project, zone, name });
    }
    let ["compute", "v1", "projects", project, rest @ ..] = parts.as_slice() else { return None };
    let (call, zone, name) = match (method, rest) {
        ("POST", ["zones", zone, "instances"]) => ("instances.insert", *zone, ""),
        ("GET", ["zones", zone, "instances", name]) => ("instances.get", *zone, *name),
        ("DELETE", ["zones", zone, "instances", name]) => ("instances.delete", *zone, *name),
        ("GET", ["zones", zone, "instances", name, "serialPort"]) => ("instances.getSerialPortOutput", *zone, *name),
        ("GET", ["aggregated", "instances"]) => ("instances.aggregatedList", "", ""),
        ("GET", ["aggregated", "disks"]) => ("disks.aggregatedList", "", ""),
        ("DELETE", ["zones", zone, "disks", name]) => ("disks.delete", *zone, *name),
        ("GET", ["global", "images", name]) => ("images.get", "", *name),
        ("GET", ["global", "images", "family", name]) => ("images.getFromFamily", "", *name),
        ("GET", ["zones", zone, "machineTypes", name]) => ("machineTypes.get", *zone, *name),
        ("GET", ["regions", name]) => ("regions.get", "", *name),
        ("GET", ["zones", zone, "operations"]) => ("zoneOperations.list", *zone, ""),
        ("GET", ["zones", zone, "operations", name]) => ("zoneOperations.get", *zone, *name),
        _ => return None,
    };
    Some(Route { call, project: (*project).to_owned(), zone: zone.to_owned(), name: name.to_owned() })
}

fn needed(route: &Route, body: &Value) -> Vec<&'static str> {
    match route.call {
        "instances.insert" => permissions(body),
        "instances.get" => vec!["compute.instances.get"],
        "instances.delete" => vec!["compute.instances.delete"],
        "instances.getSerialPortOutput" => vec!["compute.instances.getSerialPortOutput"],
        "instances.aggregatedList" => vec!["compute.instances.list"],
        "disks.aggregatedList" => vec!["compute.disks.list"],
        "disks.delete" => vec!["compute.disks.delete"],
        "machineTypes.get" => vec!["compute.machineTypes.get"],
        "regions.get" => vec!["compute.regions.get"],
        "zoneOperations.list" => vec!["compute.zoneOperations.list"],
        "timeSeries.list" => vec!["monitoring.timeSeries.list"],
        "zoneOperations.get" => vec!["compute.zoneOperations.get"],
        // Images of other projects are open to everybody here, as Google's public ones are.
        "images.get" if route.project == PROJECT => vec!["compute.images.get"],
        "images.getFromFamily" if route.project == PROJECT => vec!["compute.images.getFromFamily"],
        _ => Vec::new(),
    }
}

/// Does the call.
pub(crate) fn call(
    world: &mut World,
    auth: &Auth,
    route: &Route,
    query: &BTreeMap<String, String>,
    body: &[u8],
    fault: Option<&Fault>,
) -> Result<Value, Refusal> {
    let resource = format!("projects/{}/zones/{}/…/{}", route.project, route.zone, route.name);
    let body: Value = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(body).map_err(|_| refusal(400, "parseError", "Parse Error"))?
    };
    if route.project != PROJECT && !route.call.starts_with("images.") {
        return Err(refusal(403, "forbidden", &format!("Permission denied on resource project {}.", route.project)));
    }
    auth.permit(&needed(route, &body), &resource)?;
    world.settle();
    match route.call {
        "instances.insert" => {
            let how = (fails(fault), takes(world, fault));
            insert(world, &route.zone, query.get("requestId"), &body, how).map(|operation| operation.shown())
        }
        "instances.get" => machine(world, route).map(|machine| machine.shown(world.has_no_addresses)),
        "instances.delete" => delete(world, route, fault),
        "instances.getSerialPortOutput" => {
            machine(world, route)?;
            let (contents, end) = (&world.console, world.console.len().to_string());
            Ok(json!({ "kind": "compute#serialPortOutput", "contents": contents, "start": "0", "next": end }))
        }
        "instances.aggregatedList" => {
            let has_no_addresses = world.has_no_addresses;
            let all = world.machines.values().map(|one| (one.zone.clone(), one.shown(has_no_addresses)));
            list("instance", all.collect(), query, world.page)
        }
        "disks.aggregatedList" => list(
            "disk",
            world.disks.values().map(|disk| (disk.zone.clone(), disk.shown())).collect(),
            query,
            world.page,
        ),
        "disks.delete" => delete_disk(world, route, fault),
        "images.get" | "images.getFromFamily" => image(route),
        "machineTypes.get" => machine_type(route),
        "regions.get" => region(world, route),
        "timeSeries.list" => {
            auth.check_counting()?;
            telemetry::series(world, query)
        }
        "zoneOperations.list" => telemetry::operations(world, &route.zone, query),
        _ => {
            let found = world.operations.get(&route.name).filter(|operation| operation.zone == route.zone);
            found.map(|operation| operation.shown()).ok_or_else(|| not_found(&resource))
        }
    }
}

fn fails(fault: Option<&Fault>) -> Option<(String, u16)> {
    match fault {
        Some(Fault::FailOperation(code, status)) => Some(((*code).to_owned(), *status)),
        _ => None,
    }
}

fn takes(world: &World, fault: Option<&Fault>) -> Duration {
    match fault {
        Some(Fault::Slow(takes)) => *takes,
        _ => world.slowness,
    }
}

fn resource(route: &Route, kind: &str) -> String {
    format!("projects/{PROJECT}/zones/{}/{kind}/{}", route.zone, route.name)
}

fn machine<'a>(world: &'a World, route: &Route) -> Result<&'a crate::world::Machine, Refusal> {
    let found = world.machines.get(&(route.zone.clone(), route.name.clone()));
    found.ok_or_else(|| not_found(&resource(route, "instances")))
}

fn delete(world: &mut World, route: &Route, fault: Option<&Fault>) -> Result<Value, Refusal> {
    let machine = machine(world, route)?.clone();
    if machine.status == "STOPPING" {
        let words = format!("The resource '{}' is not ready", resource(route, "instances"));
        return Err(refusal(400, "resourceNotReady", &words));
    }
    let takes = takes(world, fault);
    let mut operation = world.begin(Work::Delete, &route.zone, &route.name, takes);
    if let Some((code, status)) = fails(fault) {
        // What fails changes nothing.
        operation.work = Work::Insert;
        operation.target = "nothing".into();
        operation.error = Some((code, "It cannot be deleted now, as the test has it.".into(), status));
        world.operations.insert(operation.name.clone(), operation.clone());
        return Ok(operation.shown());
    }
    world.power_off(&machine);
    if let Some(kept) = world.machines.get_mut(&(machine.zone, machine.name)) {
        kept.status = "STOPPING";
        kept.address = None;
    }
    Ok(operation.shown())
}

fn delete_disk(world: &mut World, route: &Route, fault: Option<&Fault>) -> Result<Value, Refusal> {
    let found = world.disks.get(&(route.zone.clone(), route.name.clone()));
    let disk = found.ok_or_else(|| not_found(&resource(route, "disks")))?;
    if let Some(user) = &disk.user {
        let words = format!("The disk resource is already being used by '{}/instances/{user}'", zone_url(&disk.zone));
        return Err(refusal(400, "resourceInUseByAnotherResource", &words));
    }
    let takes = takes(world, fault);
    Ok(world.begin(Work::DeleteDisk, &route.zone, &route.name, takes).shown())
}

fn image(route: &Route) -> Result<Value, Refusal> {
    let is_family = route.call == "images.getFromFamily";
    let is_meant = |image: &&Image| {
        let newest = image.family == route.name && image.state == "ACTIVE";
        route.project == IMAGE_PROJECT && if is_family { newest } else { image.name == route.name }
    };
    let Some(image) = IMAGES.iter().find(is_meant) else {
        return Err(not_found(&format!("projects/{}/global/images/{}", route.project, route.name)));
    };
    let features: Vec<Value> = image.features.iter().map(|feature| json!({ "type": feature })).collect();
    let mut shown = json!({
        "kind": "compute#image", "id": "42", "name": image.name, "family": image.family, "status": "READY",
        "diskSizeGb": IMAGE_GIB.to_string(), "architecture": image.architecture, "guestOsFeatures": features,
        "selfLink": format!("{BASE}/projects/{IMAGE_PROJECT}/global/images/{}", image.name),
    });
    if image.state != "ACTIVE" {
        shown["deprecated"] = json!({ "state": image.state });
    }
    Ok(shown)
}

fn machine_type(route: &Route) -> Result<Value, Refusal> {
    if region_of(&route.zone).is_none() {
        return Err(invalid("zone", &route.zone, "Unknown zone."));
    }
    let is_meant = |size: &&Size| size.name == route.name && size.zones.contains(&route.zone.as_str());
    let size = SIZES.iter().find(is_meant).ok_or_else(|| not_found(&resource(route, "machineTypes")))?;
    Ok(json!({
        "kind": "compute#machineType", "id": "1000", "name": size.name, "guestCpus": size.vcpus,
        "memoryMb": size.ram_mib, "architecture": size.architecture, "isSharedCpu": size.name == "e2-medium",
        "zone": route.zone, "selfLink": format!("{}/machineTypes/{}", zone_url(&route.zone), size.name),
    }))
}

fn region(world: &World, route: &Route) -> Result<Value, Refusal> {
    let Some((name, zones)) = ZONES.iter().find(|(name, _)| *name == route.name) else {
        return Err(not_found(&format!("projects/{PROJECT}/regions/{}", route.name)));
    };
    let quota = |(metric, limit): (&String, &u32)| {
        let used = if *name == REGION { world.in_use(metric) } else { 0 };
        json!({ "metric": metric, "limit": f64::from(*limit), "usage": f64::from(used) })
    };
    let zones: Vec<String> = zones.iter().map(|zone| zone_url(zone)).collect();
    let quotas: Vec<Value> = world.quotas.iter().map(quota).collect();
    Ok(json!({ "kind": "compute#region", "id": "1", "name": name, "status": "UP", "zones": zones, "quotas": quotas }))
}

/// A page of all zones' things that the filter takes.
fn list(
    kind: &str,
    all: Vec<(String, Value)>,
    query: &BTreeMap<String, String>,
    page: usize,
) -> Result<Value, Refusal> {
    let terms = terms(query.get("filter").map(String::as_str).unwrap_or_default())?;
    let is_wanted = |one: &Value| terms.iter().all(|(key, value)| one["labels"][key] == *value);
    let wanted: Vec<(String, Value)> = all.into_iter().filter(|(_, one)| is_wanted(one)).collect();
    let number = |name: &str, otherwise: usize| query.get(name).map_or(Ok(otherwise), |text| text.parse());
    let wrong = |name: &str| invalid(name, query.get(name).map(String::as_str).unwrap_or_default(), "No number.");
    let from = number("pageToken", 0).map_err(|_| wrong("pageToken"))?;
    let most = number("maxResults", page).map_err(|_| wrong("maxResults"))?.min(page);
    let plural = format!("{kind}s");
    let mut items = Map::new();
    for (_, zones) in ZONES {
        for zone in zones {
            let page = wanted.iter().skip(from).take(most).filter(|(of, _)| of == zone);
            let here: Vec<Value> = page.map(|(_, one)| one.clone()).collect();
            let scope = if here.is_empty() {
                let words = format!("There are no results for scope 'zones/{zone}' on this page.");
                let data = json!([{ "key": "scope", "value": format!("zones/{zone}") }]);
                json!({ "warning": { "code": "NO_RESULTS_ON_PAGE", "message": words, "data": data } })
            } else {
                json!({ plural.as_str(): here })
            };
            items.insert(format!("zones/{zone}"), scope);
        }
    }
    let id = format!("projects/{PROJECT}/aggregated/{plural}");
    let mut shown = json!({ "kind": format!("compute#{kind}AggregatedList"), "id": id, "items": items });
    if from + most < wanted.len() {
        shown["nextPageToken"] = (from + most).to_string().into();
    }
    Ok(shown)
}

/// The labels that a filter asks for: `(labels.key = "value") AND (labels.other = "value")`.
fn terms(filter: &str) -> Result<Vec<(String, String)>, Refusal> {
    let wrong = || {
        refusal(
            400,
            "invalid",
            &format!("Invalid value for field 'filter': '{filter}'. Invalid list filter expression."),
        )
    };
    let parts = filter.split(" AND ").map(str::trim).filter(|part| !part.is_empty());
    let term = |part: &str| {
        let part = part.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).unwrap_or(part);
        let (key, value) = part.split_once('=').ok_or_else(wrong)?;
        let key = key.trim().strip_prefix("labels.").ok_or_else(wrong)?;
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
        if value.contains(['"', '(', ')', ' ']) { Err(wrong()) } else { Ok((key.to_owned(), value.to_owned())) }
    };
    parts.map(term).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_or_refused() {
        let read = terms("(labels.a-b = \"x\") AND (labels.c = \"y_1\")").unwrap();
        assert_eq!(read, [("a-b".into(), "x".into()), ("c".into(), "y_1".into())]);
        assert_eq!(terms("labels.a=x").unwrap().len(), 1);
        assert!(terms("").unwrap().is_empty());
        for wrong in ["name = \"x\"", "labels.a", "labels.a = \"x\" OR labels.b = \"y\""] {
            assert!(terms(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let one = route("GET", "/compute/v1/projects/p/zones/z/instances/i/serialPort").unwrap();
        assert_eq!((one.call, one.zone.as_str(), one.name.as_str()), ("instances.getSerialPortOutput", "z", "i"));
        for (method, path) in [
            ("PUT", "/compute/v1/projects/p/zones/z/instances"),
            ("GET", "/compute/v2/projects/p/regions/r"),
            ("GET", "/compute/v1/projects/p/zones/z/instances/i/x"),
            ("GET", "/"),
        ] {
            assert!(route(method, path).is_none(), "{path}");
        }
    }
}
