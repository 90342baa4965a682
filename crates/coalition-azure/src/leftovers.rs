//! What a host left behind: disks, network interfaces and public addresses that are attached to nothing.

use std::collections::BTreeSet;

use coalition_cloud::{Leftover, Owner, one_line};
use serde::Deserialize;
use serde_json::Value;

use crate::action::Action;
use crate::body::name_of;
use crate::client::{Ask, Azure};
use crate::error::AzureError;
use crate::hosts::{MAX_PAGES, NETWORK_API};
use crate::ids::{ResourceId, is_name};
use crate::machine::Page;
use crate::marks::{Tags, instance_of};
use crate::operation::Progress;

const DISK_API: &str = "2025-01-02";

/// A type of things that cost money by themselves.
struct Kind {
    /// As in `Leftover::id`, and in the path.
    path: &'static str,
    namespace: &'static str,
    api: &'static str,
    what: &'static str,
    list: Action,
    delete: Action,
}

/// An interface before the address it holds.
const KINDS: [Kind; 3] = [
    Kind {
        path: "networkInterfaces",
        namespace: "Microsoft.Network",
        api: NETWORK_API,
        what: "network interface",
        list: Action::ListInterfaces,
        delete: Action::DeleteInterface,
    },
    Kind {
        path: "publicIPAddresses",
        namespace: "Microsoft.Network",
        api: NETWORK_API,
        what: "public address",
        list: Action::ListAddresses,
        delete: Action::DeleteAddress,
    },
    Kind {
        path: "disks",
        namespace: "Microsoft.Compute",
        api: DISK_API,
        what: "disk",
        list: Action::ListDisks,
        delete: Action::DeleteDisk,
    },
];

/// A disk, an interface or an address, as far as it says what it is attached to.
#[derive(Deserialize)]
pub(crate) struct Thing {
    name: String,
    #[serde(default)]
    tags: Option<Tags>,
    /// Of disks: the machine.
    #[serde(rename = "managedBy", default)]
    machine: Option<Value>,
    #[serde(default)]
    properties: Attached,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Attached {
    disk_state: Option<String>,
    virtual_machine: Option<Value>,
    private_endpoint: Option<Value>,
    ip_configuration: Option<Value>,
    nat_gateway: Option<Value>,
}

impl Thing {
    /// Of addresses: the interface that holds it.
    fn interface(&self) -> Option<String> {
        let id = ResourceId::parse(self.properties.ip_configuration.as_ref()?.get("id")?.as_str()?)?;
        let is_interface = id.is("Microsoft.Network", &["networkInterfaces", "ipConfigurations"]);
        id.path.first().filter(|_| is_interface).map(|(_, name)| name.clone())
    }

    fn is_attached(&self) -> bool {
        let Attached { disk_state, virtual_machine, private_endpoint, ip_configuration, nat_gateway } =
            &self.properties;
        let holders = [&self.machine, virtual_machine, private_endpoint, ip_configuration, nat_gateway];
        let held = holders.into_iter().flatten().any(|holder| !holder.is_null());
        held || disk_state.as_deref().is_some_and(|state| state != "Unattached")
    }
}

pub(crate) fn read_page(bytes: &[u8]) -> Result<(Vec<Thing>, Option<String>), String> {
    let Page { value, next } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok((value, next))
}

impl Azure {
    /// What carries the owner's marks, is attached to nothing, and whose machine is not there: a machine that is being made
    /// has parts that are not attached yet.
    pub(crate) async fn left_behind(
        &self,
        owner: Owner<'_>,
        instance: Option<&str>,
    ) -> Result<Vec<Leftover>, AzureError> {
        let machines: BTreeSet<String> = self.machines_of(owner).await?.into_iter().collect();
        let mut interfaces = BTreeSet::new();
        let mut found = Vec::new();
        for kind in &KINDS {
            for thing in self.things(kind).await? {
                let tags = thing.tags.clone().unwrap_or_default();
                let Some(of) = instance_of(&tags, owner) else { continue };
                let wanted = instance.is_none_or(|instance| instance == of);
                let has_machine = name_of(of).is_ok_and(|machine| machines.contains(&machine));
                // An address that only such an interface holds is free once that is deleted, which comes first.
                let is_free = !thing.is_attached() || thing.interface().is_some_and(|name| interfaces.contains(&name));
                if wanted && !has_machine && is_free && is_name(&thing.name) {
                    let id = format!("{}/{}", kind.path, thing.name);
                    if kind.list == Action::ListInterfaces {
                        interfaces.insert(thing.name.clone());
                    }
                    found.push(Leftover { id, what: kind.what, instance: of.to_owned() });
                }
            }
        }
        Ok(found)
    }

    async fn things(&self, kind: &Kind) -> Result<Vec<Thing>, AzureError> {
        let Kind { path, namespace, api, list: action, .. } = kind;
        let mut url = self.in_group(&format!("/providers/{namespace}/{path}?api-version={api}"));
        let mut things = Vec::new();
        for _ in 0..MAX_PAGES {
            let answer = self.ask(&Ask::get(*action, url)).await?;
            let read = read_page(&answer.body);
            let (page, next) = read.map_err(|problem| AzureError::Garbled { action: *action, problem })?;
            things.extend(page);
            match next {
                Some(next) => url = self.next_page(*action, &next)?,
                None => return Ok(things),
            }
        }
        Err(AzureError::Garbled { action: *action, problem: format!("there is no end after {MAX_PAGES} pages") })
    }

    /// Deletes one; what is gone is no failure. One that Azure is still deleting when the setup's time is over comes up
    /// again if it stays.
    pub(crate) async fn delete(&self, leftover: &Leftover) -> Result<(), AzureError> {
        let named = leftover.id.split_once('/').filter(|(_, name)| is_name(name));
        let kind = named.and_then(|(path, name)| Some((KINDS.iter().find(|kind| kind.path == path)?, name)));
        let Some((Kind { path, namespace, api, delete: action, .. }, name)) = kind else {
            let problem = format!("{:?} is nothing that is left behind", one_line(&leftover.id, 80));
            return Err(AzureError::Impossible { action: Action::DeleteDisk, problem });
        };
        let url = self.in_group(&format!("/providers/{namespace}/{path}/{name}?api-version={api}"));
        let Some(answer) = self.there(&Ask::delete(*action, url)).await? else { return Ok(()) };
        if let (202, Some(operation)) = (answer.status, &answer.operation) {
            let (Progress::Running(_) | Progress::Done | Progress::Forgotten) = self.follow(*action, operation).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_attached_to_nothing_is_left_behind() {
        let attached = |text: &str| {
            let page = format!(r#"{{"value":[{{"name":"x",{text}}}]}}"#);
            read_page(page.as_bytes()).unwrap().0[0].is_attached()
        };
        let free =
            [r#""properties":{"diskState":"Unattached"}"#, r#""managedBy":null,"properties":{}"#, r#""tags":null"#];
        for text in free {
            assert!(!attached(text), "{text}");
        }
        for text in [
            r#""managedBy":"/subscriptions/x","properties":{"diskState":"Attached"}"#,
            r#""properties":{"diskState":"Reserved"}"#,
            r#""properties":{"diskState":"ActiveSAS"}"#,
            r#""properties":{"virtualMachine":{"id":"/x"}}"#,
            r#""properties":{"ipConfiguration":{"id":"/x"}}"#,
            r#""properties":{"natGateway":{"id":"/x"}}"#,
            r#""properties":{"privateEndpoint":{"id":"/x"}}"#,
        ] {
            assert!(attached(text), "{text}");
        }
        assert!(read_page(b"{}").is_err() && read_page(b"[]").is_err() && read_page(b"{\"value\":{}}").is_err());
    }
}
