//! Machines: made, looked at, ended.

use serde_json::{Value, json};

use crate::answer::{Answer, Refusal};
use crate::rules::{Wanted, judge};
use crate::server::{Fault, Inner};
use crate::world::{
    ADDRESSES, DISKS, INTERFACES, MACHINES, Machine, Operation, Part, Stage, World, envelope, id, lock, now_s,
};
use crate::{REGION, SUBSCRIPTION};
use coalition_cloud::rfc3339;
use coalition_cloud_double::next_address;

fn missing(name: &str) -> Refusal {
    let message = format!("The Resource '{MACHINES}/{name}' under resource group '{}' was not found.", crate::GROUP);
    Refusal::new(404, "ResourceNotFound", message)
}

/// Where an operation is to be looked at.
pub(crate) fn operation_url(inner: &Inner, id: &str, monitor: bool) -> String {
    let more = if monitor { "&monitor=true" } else { "" };
    let endpoint = &inner.endpoint;
    format!(
        "{endpoint}/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute/locations/{REGION}/operations/{id}?api-version=2025-04-01{more}"
    )
}

/// The machine as Azure shows it; custom data is never shown.
fn shown(inner: &Inner, name: &str, machine: &Machine, with_view: bool) -> Value {
    let mut properties = machine.properties.clone();
    properties["vmId"] = machine.unique.clone().into();
    properties["timeCreated"] = rfc3339(machine.since_s).into();
    let state = match machine.stage {
        Stage::Creating => "Creating",
        Stage::Made => "Succeeded",
        Stage::Failed => "Failed",
        Stage::Deleting => "Deleting",
    };
    properties["provisioningState"] = state.into();
    properties["networkProfile"] = json!({ "networkInterfaces": [
        { "id": id(INTERFACES, &machine.interface), "properties": { "primary": true, "deleteOption": "Delete" } }
    ] });
    if with_view {
        let mut statuses = Vec::new();
        match (&machine.fails, machine.stage) {
            (Some(code), Stage::Failed) => statuses.push(json!({
                "code": format!("ProvisioningState/failed/{code}"), "level": "Error",
                "displayStatus": "Provisioning failed", "message": "as the test has it",
            })),
            _ => statuses.push(json!({
                "code": format!("ProvisioningState/{}", state.to_lowercase()), "level": "Info", "displayStatus": "Provisioning",
                "time": rfc3339(machine.since_s),
            })),
        }
        if inner.silent_failures() {
            statuses.clear();
        }
        if !machine.power.is_empty() {
            statuses.push(json!({ "code": format!("PowerState/{}", machine.power), "level": "Info" }));
        }
        properties["instanceView"] = json!({ "statuses": statuses });
    }
    let mut machine_json = envelope(MACHINES, name, &machine.tags, &properties);
    if !machine.zones.is_empty() {
        machine_json["zones"] = json!(machine.zones);
    }
    machine_json
}

/// What may not be changed of a machine that is there.
fn check_change(there: &Machine, wanted: &Wanted) -> Result<(), Refusal> {
    let refused = |what: &str| {
        let message = format!("Changing property '{what}' is not allowed.");
        Err(Refusal::new(409, "PropertyChangeNotAllowed", message))
    };
    if there.zones != wanted.zones {
        return refused("zones");
    }
    if there.size != wanted.size.name {
        return refused("hardwareProfile.vmSize");
    }
    Ok(())
}

/// PUT: made, or found to be there.
pub(crate) fn put(
    inner: &Inner,
    name: &str,
    body: &Value,
    only_new: bool,
    fault: Option<&Fault>,
) -> Result<Answer, Refusal> {
    let mut world = lock(&inner.world);
    let there = world.machines.get(name).cloned();
    if only_new && there.is_some() {
        return Err(Refusal::new(412, "PreconditionFailed", format!("The resource {name} exists already.")));
    }
    let wanted = judge(name, body, &world, inner.limits())?;
    if let Some(there) = there {
        check_change(&there, &wanted)?;
        return Ok(Answer::json(200, &shown(inner, name, &there, false)));
    }
    let fails = match fault {
        Some(Fault::FailLater(code)) => Some((*code).to_owned()),
        _ => None,
    };
    let machine = made(&mut world, inner, name, body, &wanted, fails);
    let answer = shown(inner, name, &machine, false);
    let number = world.next();
    let operation = format!("op-{number}");
    let (has_document, looks) = (!inner.only_locations(), machine.looks);
    let about = Some((name.to_owned(), machine.unique.clone()));
    world
        .operations
        .insert(operation.clone(), Operation { machine: about, looks, makes: true, has_document, ends_with: None });
    world.machines.insert(name.to_owned(), machine);
    drop(world);
    let answer = Answer::json(201, &answer).with("retry-after", inner.retry_after().to_string());
    Ok(if has_document {
        answer.with("azure-asyncoperation", operation_url(inner, &operation, false))
    } else {
        answer.with("location", operation_url(inner, &operation, true))
    })
}

/// Makes the machine and its parts, and boots it.
fn made(world: &mut World, inner: &Inner, name: &str, body: &Value, wanted: &Wanted, fails: Option<String>) -> Machine {
    let (number, at) = (world.next(), next_address());
    let booted = format!("{name}.{number}");
    // Azure adds something to the names of what is made along.
    let interface = format!("{}-{number:08x}", wanted.interface);
    let address = wanted.address.as_ref().map(|(address, tags)| {
        let address = format!("{address}-{number:08x}");
        let part = Part { tags: tags.clone(), holder: Some(interface.clone()), address: None, at: Some(at) };
        world.addresses.insert(address.clone(), part);
        address
    });
    let tags = wanted.interface_tags.clone();
    let part = Part { tags, holder: Some(name.to_owned()), address, at: Some(at) };
    world.interfaces.insert(interface.clone(), part);
    if let (None, Some(boot)) = (&fails, &inner.boot) {
        boot.boot(&booted, at, &wanted.user_data);
    }
    // No disk where there was no room for the machine.
    let disk = fails.is_none().then(|| {
        let part = Part { tags: wanted.tags.clone(), holder: Some(name.to_owned()), address: None, at: None };
        world.disks.insert(wanted.disk.clone(), part);
        wanted.disk.clone()
    });
    let mut properties = body["properties"].clone();
    if let Some(system) = properties["osProfile"].as_object_mut() {
        system.remove("customData");
    }
    Machine {
        unique: format!("00000000-0000-4000-8000-{number:012x}"),
        booted,
        tags: wanted.tags.clone(),
        zones: wanted.zones.clone(),
        properties,
        size: wanted.size.name.to_owned(),
        stage: Stage::Creating,
        power: if fails.is_none() { "starting" } else { "" },
        looks: inner.looks(),
        fails,
        has_console: wanted.has_console,
        interface,
        disk,
        leaves: false,
        since_s: now_s(),
    }
}

/// POST validate: a template with one machine.
pub(crate) fn validate(inner: &Inner, body: &Value) -> Result<Answer, Refusal> {
    let wrapped = |inner: &Refusal| {
        let body = json!({ "error": {
            "code": "InvalidTemplateDeployment",
            "message": "The template deployment is not valid according to the validation procedure. See inner errors for details.",
            "details": [inner.error()],
        } });
        Answer::json(400, &body)
    };
    let resources = body.pointer("/properties/template/resources").and_then(Value::as_array);
    let Some([machine]) = resources.map(Vec::as_slice) else {
        return Err(Refusal::new(400, "InvalidTemplate", "the test expects one resource"));
    };
    let mut machine = machine.clone();
    let texts = ["type", "apiVersion", "name"].map(|key| machine[key].as_str().unwrap_or_default().to_owned());
    if texts[0] != MACHINES || texts[1].is_empty() || body.pointer("/properties/mode") != Some(&"Incremental".into()) {
        return Err(Refusal::new(400, "InvalidTemplate", "the resource has no type or api version"));
    }
    if let Some(object) = machine.as_object_mut() {
        object.retain(|key, _| !["type", "apiVersion", "name"].contains(&key.as_str()));
    }
    if !evaluate(&mut machine) {
        return Err(Refusal::new(400, "InvalidTemplate", "Unable to process template language expressions."));
    }
    let judged = judge(&texts[2], &machine, &lock(&inner.world), inner.limits());
    if let Err(refusal) = judged {
        return Ok(wrapped(&refusal));
    }
    if inner.only_locations() {
        return Ok(accepted(inner, (200, json!({ "properties": { "provisioningState": "Succeeded" } }))));
    }
    Ok(Answer::json(200, &json!({ "properties": { "provisioningState": "Succeeded", "mode": "Incremental" } })))
}

/// Text in brackets is a program, unless its bracket is doubled. Answers whether there is none.
fn evaluate(value: &mut Value) -> bool {
    match value {
        Value::String(text) if text.starts_with("[[") => {
            text.remove(0);
            true
        }
        Value::String(text) => !text.starts_with('['),
        Value::Array(items) => items.iter_mut().all(evaluate),
        Value::Object(fields) => fields.values_mut().all(evaluate),
        _ => true,
    }
}

/// 202, and the end where it says.
pub(crate) fn accepted(inner: &Inner, ends_with: (u16, Value)) -> Answer {
    let mut world = lock(&inner.world);
    let number = world.next();
    let operation = Operation {
        machine: None,
        looks: inner.looks(),
        makes: false,
        has_document: false,
        ends_with: Some(ends_with),
    };
    world.operations.insert(format!("op-{number}"), operation);
    let url = operation_url(inner, &format!("op-{number}"), true);
    Answer::empty(202).with("location", url).with("retry-after", inner.retry_after().to_string())
}

pub(crate) fn get(inner: &Inner, name: &str, with_view: bool) -> Result<Answer, Refusal> {
    let mut world = lock(&inner.world);
    world.look(name);
    let machine = world.machines.get(name).ok_or_else(|| missing(name))?;
    Ok(Answer::json(200, &shown(inner, name, machine, with_view)))
}

/// The list shows no state.
pub(crate) fn list(inner: &Inner) -> Vec<Value> {
    lock(&inner.world).machines.iter().map(|(name, machine)| shown(inner, name, machine, false)).collect()
}

pub(crate) fn delete(inner: &Inner, name: &str, fault: Option<&Fault>) -> Result<Answer, Refusal> {
    let mut world = lock(&inner.world);
    let number = world.next();
    let looks = inner.looks();
    let Some(machine) = world.machines.get_mut(name) else { return Ok(Answer::empty(204)) };
    if machine.stage == Stage::Deleting {
        let words = format!("The VM '{name}' is marked for deletion, and can't be changed.");
        return Err(Refusal::new(409, "OperationNotAllowed", words));
    }
    let unique = machine.unique.clone();
    let ends_with = match fault {
        Some(Fault::FailLater(code)) => {
            Some((409, json!({ "error": { "code": code, "message": "as the test has it" } })))
        }
        _ => {
            (machine.stage, machine.power, machine.looks) = (Stage::Deleting, "deallocating", looks);
            machine.leaves = matches!(fault, Some(Fault::LeaveBehind));
            if let Some(boot) = &inner.boot {
                boot.power_off(&machine.booted);
            }
            None
        }
    };
    let operation =
        Operation { machine: Some((name.to_owned(), unique)), looks, makes: false, has_document: false, ends_with };
    world.operations.insert(format!("op-{number}"), operation);
    let url = operation_url(inner, &format!("op-{number}"), true);
    Ok(Answer::empty(202).with("location", url).with("retry-after", inner.retry_after().to_string()))
}

/// How an operation stands. A look at it is a look at its machine.
pub(crate) fn operation(inner: &Inner, name: &str) -> Result<Answer, Refusal> {
    let mut world = lock(&inner.world);
    let unknown = || Refusal::new(404, "OperationNotFound", format!("The operation {name} was not found."));
    let operation = world.operations.get_mut(name).ok_or_else(unknown)?;
    let (has_document, makes, wait) = (operation.has_document, operation.makes, inner.retry_after().to_string());
    let running = |url: String| {
        if has_document {
            Answer::json(200, &json!({ "name": name, "status": "InProgress" })).with("retry-after", wait.clone())
        } else {
            Answer::empty(202).with("location", url).with("retry-after", wait.clone())
        }
    };
    if let Some((status, body)) = operation.ends_with.clone() {
        if operation.looks > 0 {
            operation.looks -= 1;
            return Ok(running(operation_url(inner, name, true)));
        }
        return Ok(if body.is_null() { Answer::empty(status) } else { Answer::json(status, &body) });
    }
    let Some((vm, unique)) = operation.machine.clone() else { return Err(unknown()) };
    world.look(&vm);
    let same = world.machines.get(&vm).filter(|machine| machine.unique == unique);
    let ended = match same {
        Some(machine) if matches!(machine.stage, Stage::Creating | Stage::Deleting) => {
            return Ok(running(operation_url(inner, name, true)));
        }
        Some(machine) => machine.fails.clone(),
        None => world.failures.get(&unique).cloned(),
    };
    let error = ended.filter(|_| makes).map(|code| json!({ "code": code, "message": "as the test has it" }));
    Ok(match (error, has_document) {
        (None, true) => Answer::json(200, &json!({ "name": name, "status": "Succeeded" })),
        (None, false) => Answer::empty(200),
        (Some(error), true) => Answer::json(200, &json!({ "name": name, "status": "Failed", "error": error })),
        (Some(error), false) => Answer::json(409, &json!({ "error": error })),
    })
}

/// Ends as if somebody had done it in the portal, at once.
pub(crate) fn vanish(inner: &Inner, name: &str) {
    let mut world = lock(&inner.world);
    if let Some(machine) = world.machines.get_mut(name) {
        (machine.stage, machine.looks) = (Stage::Deleting, 0);
    }
    world.look(name);
}

/// Kinds of things beside machines, by their path.
pub(crate) fn kind_of(path: &str) -> Option<&'static str> {
    [DISKS, INTERFACES, ADDRESSES].into_iter().find(|kind| kind.eq_ignore_ascii_case(path))
}
