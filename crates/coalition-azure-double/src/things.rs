//! Disks, interfaces and addresses.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::answer::{Answer, Refusal};
use crate::machines::accepted;
use crate::server::Inner;
use crate::world::{ADDRESSES, DISKS, INTERFACES, MACHINES, Part, World, envelope, id, lock};

fn of<'a>(world: &'a World, kind: &str) -> &'a BTreeMap<String, Part> {
    match kind {
        DISKS => &world.disks,
        INTERFACES => &world.interfaces,
        _ => &world.addresses,
    }
}

fn shown(inner: &Inner, kind: &str, name: &str, part: &Part) -> Value {
    let at = part.at.filter(|_| !inner.no_addresses()).map(|at| at.to_string());
    let held_by = |kind: &str| part.holder.as_ref().map(|holder| id(kind, holder));
    match kind {
        DISKS => {
            let state = if part.holder.is_some() { "Attached" } else { "Unattached" };
            let mut disk =
                envelope(kind, name, &part.tags, &json!({ "diskState": state, "provisioningState": "Succeeded" }));
            if let Some(machine) = held_by(MACHINES) {
                disk["managedBy"] = machine.into();
            }
            disk
        }
        INTERFACES => {
            let mut configuration = json!({ "primary": true, "privateIPAllocationMethod": "Dynamic" });
            if let Some(at) = at {
                configuration["privateIPAddress"] = at.into();
            }
            if let Some(address) = &part.address {
                configuration["publicIPAddress"] = json!({ "id": id(ADDRESSES, address) });
            }
            let mut properties = json!({ "ipConfigurations": [{ "name": "address", "properties": configuration }] });
            if let Some(machine) = held_by(MACHINES) {
                properties["virtualMachine"] = json!({ "id": machine });
            }
            envelope(kind, name, &part.tags, &properties)
        }
        _ => {
            let mut properties = json!({ "publicIPAllocationMethod": "Static" });
            if let Some(at) = at {
                properties["ipAddress"] = at.into();
            }
            if let Some(interface) = held_by(INTERFACES) {
                properties["ipConfiguration"] = json!({ "id": format!("{interface}/ipConfigurations/address") });
            }
            envelope(kind, name, &part.tags, &properties)
        }
    }
}

pub(crate) fn get(inner: &Inner, kind: &str, name: &str) -> Result<Answer, Refusal> {
    let world = lock(&inner.world);
    let missing = || Refusal::new(404, "ResourceNotFound", format!("The Resource '{kind}/{name}' was not found."));
    let part = of(&world, kind).get(name).ok_or_else(missing)?;
    Ok(Answer::json(200, &shown(inner, kind, name, part)))
}

pub(crate) fn list(inner: &Inner, kind: &str) -> Vec<Value> {
    let world = lock(&inner.world);
    of(&world, kind).iter().map(|(name, part)| shown(inner, kind, name, part)).collect()
}

pub(crate) fn delete(inner: &Inner, kind: &str, name: &str) -> Result<Answer, Refusal> {
    let mut world = lock(&inner.world);
    let Some(part) = of(&world, kind).get(name).cloned() else { return Ok(Answer::empty(204)) };
    if let Some(holder) = part.holder {
        let code = match kind {
            DISKS => "OperationNotAllowed",
            INTERFACES => "NicInUse",
            _ => "PublicIPAddressCannotBeDeleted",
        };
        return Err(Refusal::new(409, code, format!("{name} is attached to {holder}.")));
    }
    match kind {
        DISKS => drop(world.disks.remove(name)),
        INTERFACES => {
            let address = world.interfaces.remove(name).and_then(|interface| interface.address);
            if let Some(address) = address.and_then(|address| world.addresses.get_mut(&address)) {
                address.holder = None;
            }
        }
        _ => drop(world.addresses.remove(name)),
    }
    drop(world);
    Ok(accepted(inner, (200, Value::Null)))
}
