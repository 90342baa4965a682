//! What there is: machines, their parts, and operations that are not at their end.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::{GROUP, SUBSCRIPTION};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The id of a thing in the resource group.
pub(crate) fn id(kind: &str, name: &str) -> String {
    format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/{kind}/{name}")
}

pub(crate) const MACHINES: &str = "Microsoft.Compute/virtualMachines";
pub(crate) const DISKS: &str = "Microsoft.Compute/disks";
pub(crate) const INTERFACES: &str = "Microsoft.Network/networkInterfaces";
pub(crate) const ADDRESSES: &str = "Microsoft.Network/publicIPAddresses";

pub(crate) type Tags = Map<String, Value>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Creating,
    Made,
    Failed,
    Deleting,
}

#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) unique: String,
    /// What it is booted as: its name may be another machine's later.
    pub(crate) booted: String,
    pub(crate) tags: Tags,
    pub(crate) zones: Vec<String>,
    /// As asked for, without what is never shown again.
    pub(crate) properties: Value,
    pub(crate) size: String,
    pub(crate) stage: Stage,
    pub(crate) power: &'static str,
    /// Looks until its stage is over.
    pub(crate) looks: u32,
    /// What its making ends with.
    pub(crate) fails: Option<String>,
    pub(crate) has_console: bool,
    pub(crate) interface: String,
    pub(crate) disk: Option<String>,
    /// At its end, its parts stay.
    pub(crate) leaves: bool,
    /// When it was asked for, Unix seconds.
    pub(crate) since_s: u64,
}

/// Unix seconds.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs()
}

/// A disk, an interface or an address.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) tags: Tags,
    /// Of a disk or an interface the machine, of an address the interface.
    pub(crate) holder: Option<String>,
    /// Of an interface, the public address.
    pub(crate) address: Option<String>,
    pub(crate) at: Option<Ipv4Addr>,
}

#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// The machine, or nothing when it is about something else.
    pub(crate) machine: Option<(String, String)>,
    pub(crate) looks: u32,
    /// It makes the machine, else it ends it.
    pub(crate) makes: bool,
    /// It has a document, else its status says it.
    pub(crate) has_document: bool,
    /// Known from the start, when it is not about a machine.
    pub(crate) ends_with: Option<(u16, Value)>,
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) machines: BTreeMap<String, Machine>,
    pub(crate) interfaces: BTreeMap<String, Part>,
    pub(crate) addresses: BTreeMap<String, Part>,
    pub(crate) disks: BTreeMap<String, Part>,
    pub(crate) operations: BTreeMap<String, Operation>,
    pub(crate) made: u64,
    /// What became of machines that are no more, by their own id.
    pub(crate) failures: BTreeMap<String, String>,
}

impl World {
    /// A number no other thing has.
    pub(crate) fn next(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// One look at a machine brings it nearer to the end of its stage. Answers whether it is gone now.
    pub(crate) fn look(&mut self, name: &str) -> bool {
        let Some(machine) = self.machines.get_mut(name) else { return false };
        if machine.looks > 0 {
            machine.looks -= 1;
            return false;
        }
        match machine.stage {
            Stage::Creating => {
                machine.stage = if machine.fails.is_some() { Stage::Failed } else { Stage::Made };
                machine.power = if machine.fails.is_some() { "" } else { "running" };
                if let Some(code) = &machine.fails {
                    self.failures.insert(machine.unique.clone(), code.clone());
                }
                false
            }
            Stage::Deleting => {
                self.remove(name);
                true
            }
            Stage::Made | Stage::Failed => false,
        }
    }

    /// The machine, and with it what is deleted with it.
    fn remove(&mut self, name: &str) {
        let Some(machine) = self.machines.remove(name) else { return };
        if machine.leaves {
            // The interface goes on holding its address.
            let parts =
                [self.interfaces.get_mut(&machine.interface), machine.disk.and_then(|disk| self.disks.get_mut(&disk))];
            for part in parts.into_iter().flatten() {
                part.holder = None;
            }
            return;
        }
        let address = self.interfaces.get(&machine.interface).and_then(|interface| interface.address.clone());
        self.interfaces.remove(&machine.interface);
        address.and_then(|address| self.addresses.remove(&address));
        machine.disk.and_then(|disk| self.disks.remove(&disk));
    }

    /// Virtual CPUs of all machines, of one family or of all.
    pub(crate) fn vcpus(&self, family: Option<&str>) -> u32 {
        let counts = |machine: &&Machine| machine.fails.is_none();
        let size = |machine: &Machine| crate::SIZES.iter().find(|size| size.name == machine.size);
        let sizes = self.machines.values().filter(counts).filter_map(size);
        sizes.filter(|size| family.is_none_or(|family| family == size.family)).map(|size| size.vcpus).sum()
    }
}

/// A thing as Azure lists it.
pub(crate) fn envelope(kind: &str, name: &str, tags: &Tags, properties: &Value) -> Value {
    json!({ "id": id(kind, name), "name": name, "type": kind, "location": crate::REGION, "tags": tags, "properties": properties })
}
