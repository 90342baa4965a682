//! Machines: making one, looking at them, ending them.

use std::net::IpAddr;
use std::time::Duration;

use azure_core::http::Method;
use coalition_cloud::{ErrorKind, Host, HostState, NewHost, Owner, one_line};
use futures::StreamExt;
use reqwest::Url;
use tokio::time::Instant;

use crate::action::Action;
use crate::body::{self, COMPUTE_API, name_of};
use crate::client::{Answer, Ask, Azure};
use crate::error::AzureError;
use crate::ids::{ResourceId, is_name};
use crate::machine::{Listed, Machine, read_address, read_console_place, read_interface, read_machine, read_page};
use crate::marks::{instance_of, is_for};
use crate::memory::HostAddresses;
use crate::operation::Progress;

pub(crate) const NETWORK_API: &str = "2024-05-01";
/// Most pages of any list: far beyond what a resource group may hold.
pub(crate) const MAX_PAGES: usize = 100;
/// Machines looked at at the same time.
const AT_ONCE: usize = 8;
/// Times the end of a machine that could not be made is followed.
const ENDINGS: usize = 3;
/// Of a console read, and kept, in bytes.
const CONSOLE_READ: usize = 4 << 20;
const CONSOLE_KEPT: usize = 64 << 10;
/// Where Azure keeps consoles.
const BLOBS: [&str; 4] = [
    ".blob.core.windows.net",
    ".blob.storage.azure.net",
    ".blob.core.usgovcloudapi.net",
    ".blob.core.chinacloudapi.cn",
];

impl Azure {
    pub(crate) fn machine_url(&self, name: &str, query: &str) -> Url {
        self.in_group(&format!("/providers/Microsoft.Compute/virtualMachines/{name}?{query}api-version={COMPUTE_API}"))
    }

    /// Asks for one machine; where there is one of that name already, it is looked at.
    pub(crate) async fn make(&self, new: &NewHost<'_>) -> Result<Host, AzureError> {
        let action = Action::PutMachine;
        let impossible = |problem| AzureError::Impossible { action, problem };
        let name = body::check(self.setup(), new).map_err(impossible)?;
        let body = body::machine(self.setup(), self.image_name(), new).map_err(impossible)?;
        let mut ask = Ask::with_body(action, Method::Put, self.machine_url(&name, ""), body);
        ask.only_new = true;
        let answer = match self.ask(&ask).await {
            Ok(answer) => answer,
            Err(error) if error.kind() == ErrorKind::Conflict => return self.there_already(new, &name, error).await,
            Err(error) => return Err(error),
        };
        let machine = read_machine(&answer.body).map_err(|problem| AzureError::Garbled { action, problem })?;
        if machine.name != name || !is_for(&machine.tags, new.marks) {
            let problem = format!("it tells of {}, asked was {name}", machine.name);
            return Err(AzureError::Garbled { action, problem });
        }
        if let Some(operation) = answer.operation {
            self.memory().making(&name, operation);
        }
        self.until_placed(&name, answer.retry_after).await?;
        Ok(host(machine, new.marks.instance.clone(), (None, None)))
    }

    /// Looks until there is room for the machine, for as long as operations are followed. Azure mostly says on the way that
    /// there is none; then what there is of the machine is ended, so that it can be asked for elsewhere.
    async fn until_placed(&self, name: &str, wait: Option<Duration>) -> Result<(), AzureError> {
        let until = Instant::now() + self.patience();
        let wait = self.pause_of(wait);
        while Instant::now() + wait <= until {
            tokio::time::sleep(wait).await;
            // What cannot be seen goes on.
            let Ok(Some(mut machine)) = self.machine(name).await else { continue };
            if machine.state == HostState::Stopped && !machine.is_placed {
                self.explain(&mut machine).await;
                let unknown = || (ErrorKind::Transient, "it failed without a reason".to_owned());
                let (kind, message) = machine.reason.unwrap_or_else(unknown);
                return Err(self.given_up(name, kind, message).await);
            }
            if machine.is_placed || machine.state != HostState::Coming {
                break;
            }
        }
        Ok(())
    }

    /// Ends a machine that could not be made. Only when nothing is left of it, nothing was done.
    async fn given_up(&self, name: &str, kind: ErrorKind, message: String) -> AzureError {
        let (action, code) = (Action::PutMachine, "ProvisioningFailed".to_owned());
        for _ in 0..ENDINGS {
            if let Ok(HostState::Over) = self.finish(name).await {
                return AzureError::Refused { action, kind, code, message, status: 200, retry_after: None };
            }
        }
        AzureError::Ended { action, kind, code, message }
    }

    /// A failure without a reason is looked up where the request for it ended.
    async fn explain(&self, machine: &mut Machine) {
        if machine.state == HostState::Stopped
            && machine.reason.is_none()
            && let Some(operation) = self.memory().made_by(&machine.name)
            && let Err(AzureError::Ended { kind, code, message, .. }) = self.look(Action::PutMachine, &operation).await
        {
            machine.reason = Some((kind, one_line(&format!("{code}: {message}"), 300)));
        }
    }

    /// The machine that is there, if it is what was asked for; else what speaks against it.
    async fn there_already(&self, new: &NewHost<'_>, name: &str, refused: AzureError) -> Result<Host, AzureError> {
        let action = Action::PutMachine;
        let looked = self.machine(name).await.map_err(|error| {
            // It is not known what is there.
            AzureError::Garbled { action, problem: format!("{refused}; and looking failed: {error}") }
        })?;
        let Some(machine) = looked else {
            // 412 says that it is there; what is not shown yet may be what an earlier try has made.
            let is_there = matches!(refused, AzureError::Refused { status: 412, .. });
            let problem = || format!("{refused}; and no such machine is shown yet");
            return Err(if is_there { AzureError::Garbled { action, problem: problem() } } else { refused });
        };
        let asked_zone = (new.place != crate::setup::NO_ZONE).then_some(new.place);
        let differs = if !is_for(&machine.tags, new.marks) {
            "its tags are not those of this grant".to_owned()
        } else if machine.zone.as_deref() != asked_zone {
            let zone = |zone: Option<&str>| zone.map_or_else(|| "no zone".to_owned(), |zone| format!("zone {zone}"));
            format!("it is in {}, asked was {}", zone(machine.zone.as_deref()), zone(asked_zone))
        } else if !machine.size.eq_ignore_ascii_case(new.size) {
            format!("it is a {}, asked was a {}", machine.size, new.size)
        } else if machine.state == HostState::Stopping {
            "it is being deleted".to_owned()
        } else {
            let addresses = self.addresses_of(&machine).await.unwrap_or_default();
            return Ok(host(machine, new.marks.instance.clone(), addresses));
        };
        let (kind, code, status) = (ErrorKind::Conflict, "Conflict".to_owned(), 409);
        let message = format!("there is a machine {name} already, and {differs}; it must end first");
        Err(AzureError::Refused { action, kind, code, message, status, retry_after: None })
    }

    /// Whether Azure would take the machine: it judges a template with it, and makes nothing.
    pub(crate) async fn judge(&self, new: &NewHost<'_>) -> Result<String, AzureError> {
        let action = Action::ValidateMachine;
        let impossible = |problem| AzureError::Impossible { action, problem };
        let name = body::check(self.setup(), new).map_err(impossible)?;
        let body = body::template(self.setup(), self.image_name(), new).map_err(impossible)?;
        let path = format!("/providers/Microsoft.Resources/deployments/{name}/validate?api-version=2022-09-01");
        let answer = self.ask(&Ask::with_body(action, Method::Post, self.in_group(&path), body)).await?;
        if let (202, Some(operation)) = (answer.status, &answer.operation) {
            if let Progress::Running(_) = self.follow(action, operation).await? {
                let problem = format!("it was not judged within {} s", self.patience().as_secs());
                return Err(AzureError::Garbled { action, problem });
            }
        } else {
            // Older forms of the answer say no with a yes.
            let document: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            if document.get("error").is_some_and(|error| error.is_object()) {
                return Err(crate::error::read_refusal(action, 400, &answer.body, None));
            }
        }
        Ok("Azure validated a template with it: permissions, size, zone, image and quota; its capacity is not known"
            .into())
    }

    async fn machine(&self, name: &str) -> Result<Option<Machine>, AzureError> {
        let action = Action::GetMachine;
        let url = self.machine_url(name, "$expand=instanceView&");
        let Some(Answer { body, .. }) = self.there(&Ask::get(action, url)).await? else { return Ok(None) };
        let machine = read_machine(&body).map_err(|problem| AzureError::Garbled { action, problem })?;
        if machine.name != name {
            let problem = format!("it tells of {}, asked was {name}", machine.name);
            return Err(AzureError::Garbled { action, problem });
        }
        Ok(Some(machine))
    }

    /// The host of one instance: what is there, or what became of the request for it.
    pub(crate) async fn host_of(&self, owner: Owner<'_>, instance: &str) -> Result<Option<Host>, AzureError> {
        let action = Action::GetMachine;
        let name = name_of(instance).map_err(|problem| AzureError::Impossible { action, problem })?;
        match self.machine(&name).await? {
            Some(machine) => self.described(owner, machine).await,
            None => self.requested(instance, &name).await,
        }
    }

    async fn requested(&self, instance: &str, name: &str) -> Result<Option<Host>, AzureError> {
        let Some(operation) = self.memory().made_by(name) else { return Ok(None) };
        let (state, reason) = match self.look(Action::PutMachine, &operation).await {
            Ok(Progress::Running(_)) => (HostState::Coming, None),
            Err(AzureError::Ended { kind, code, message, .. }) => {
                (HostState::Over, Some((kind, one_line(&format!("{code}: {message}"), 300))))
            }
            Ok(Progress::Done | Progress::Forgotten) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (id, size) = (name.to_owned(), String::new());
        let (instance, public_address, private_address) = (instance.to_owned(), None, None);
        Ok(Some(Host { id, instance, state, size, public_address, private_address, since_s: None, reason }))
    }

    /// As a host, when it is the owner's.
    async fn described(&self, owner: Owner<'_>, mut machine: Machine) -> Result<Option<Host>, AzureError> {
        let Some(instance) = instance_of(&machine.tags, owner).map(ToOwned::to_owned) else { return Ok(None) };
        self.explain(&mut machine).await;
        let is_up = matches!(machine.state, HostState::Running | HostState::Coming);
        let addresses = if is_up { self.addresses_of(&machine).await? } else { (None, None) };
        Ok(Some(host(machine, instance, addresses)))
    }

    /// Every host of the owner: one list, then one look at each for its state.
    pub(crate) async fn hosts_of(&self, owner: Owner<'_>) -> Result<Vec<Host>, AzureError> {
        let names = self.machines_of(owner).await?;
        let look = |name: String| async move {
            match self.machine(&name).await? {
                Some(machine) => self.described(owner, machine).await,
                // Gone since it was listed.
                None => Ok(None),
            }
        };
        let mut looks = futures::stream::iter(names.into_iter().map(look)).buffer_unordered(AT_ONCE);
        let mut hosts = Vec::new();
        while let Some(looked) = looks.next().await {
            hosts.extend(looked?);
        }
        hosts.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(hosts)
    }

    /// Names of the owner's machines, all pages.
    pub(crate) async fn machines_of(&self, owner: Owner<'_>) -> Result<Vec<String>, AzureError> {
        let action = Action::ListMachines;
        let mut url = self.in_group(&format!("/providers/Microsoft.Compute/virtualMachines?api-version={COMPUTE_API}"));
        let mut names = Vec::new();
        for _ in 0..MAX_PAGES {
            let answer = self.ask(&Ask::get(action, url)).await?;
            let (page, next) = read_page(&answer.body).map_err(|problem| AzureError::Garbled { action, problem })?;
            let own = |listed: &Listed| {
                is_name(&listed.name) && listed.tags.as_ref().is_some_and(|tags| instance_of(tags, owner).is_some())
            };
            names.extend(page.into_iter().filter(own).map(|listed| listed.name));
            match next {
                Some(next) => url = self.next_page(action, &next)?,
                None => return Ok(names),
            }
        }
        Err(AzureError::Garbled { action, problem: format!("there is no end after {MAX_PAGES} pages") })
    }

    /// Addresses of a machine, asked for until it has those it is to have.
    async fn addresses_of(&self, machine: &Machine) -> Result<HostAddresses, AzureError> {
        if let Some(known) = machine.unique.as_ref().and_then(|unique| self.memory().addresses(unique)) {
            return Ok(known);
        }
        let Some(interface) = machine.interface.as_deref().and_then(|id| self.own_name(id, "networkInterfaces")) else {
            return Ok((None, None));
        };
        let url = |kind: &str, name: &str| {
            self.in_group(&format!("/providers/Microsoft.Network/{kind}/{name}?api-version={NETWORK_API}"))
        };
        let action = Action::GetInterface;
        let Some(answer) = self.there(&Ask::get(action, url("networkInterfaces", &interface))).await? else {
            return Ok((None, None));
        };
        let (private, id) = read_interface(&answer.body).map_err(|problem| AzureError::Garbled { action, problem })?;
        let mut public = None;
        if let Some(name) = id.as_deref().and_then(|id| self.own_name(id, "publicIPAddresses")) {
            let action = Action::GetAddress;
            if let Some(answer) = self.there(&Ask::get(action, url("publicIPAddresses", &name))).await? {
                public = read_address(&answer.body).map_err(|problem| AzureError::Garbled { action, problem })?;
            }
        }
        let is_complete = private.is_some() && (public.is_some() || self.setup().private_addresses);
        if let Some(unique) = machine.unique.as_ref().filter(|_| is_complete) {
            self.memory().remember_addresses(unique, (public, private));
        }
        Ok((public, private))
    }

    /// The name in an id an answer gave, if it is of this type and in the setup's resource group.
    fn own_name(&self, id: &str, kind: &str) -> Option<String> {
        let id = ResourceId::parse(id).filter(|id| id.is("Microsoft.Network", &[kind]))?;
        let own = id.subscription.eq_ignore_ascii_case(&self.setup().subscription)
            && id.group.eq_ignore_ascii_case(&self.setup().resource_group);
        own.then(|| id.name().to_owned())
    }

    /// Ends a machine with all that is deleted with it. The operation is followed for a while, and taken up again when asked
    /// once more.
    pub(crate) async fn finish(&self, name: &str) -> Result<HostState, AzureError> {
        let action = Action::DeleteMachine;
        if !is_name(name) {
            let problem = format!("{:?} is no machine's name", one_line(name, 40));
            return Err(AzureError::Impossible { action, problem });
        }
        let progress = match self.memory().ended_by(name) {
            Some(operation) => self.take_up(action, &operation).await,
            None => match self.delete_machine(name).await? {
                Ok(operation) => self.follow(action, &operation).await,
                Err(state) => return Ok(state),
            },
        };
        match progress {
            Ok(Progress::Running(_)) => Ok(HostState::Stopping),
            Ok(Progress::Done) => {
                self.memory().ended(name);
                Ok(HostState::Over)
            }
            Ok(Progress::Forgotten) => {
                self.memory().not_ending(name);
                self.look_whether_ended(name).await
            }
            Err(error) => {
                if matches!(error, AzureError::Ended { .. }) {
                    self.memory().not_ending(name);
                }
                Err(error)
            }
        }
    }

    /// Asks for the end; answers where it is said how that goes, or what is known at once.
    async fn delete_machine(&self, name: &str) -> Result<Result<crate::operation::Operation, HostState>, AzureError> {
        let action = Action::DeleteMachine;
        let answer = match self.ask(&Ask::delete(action, self.machine_url(name, "forceDeletion=true&"))).await {
            Ok(answer) => answer,
            // It is being deleted already, or something is being done to it that must end first.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                let state = match self.machine(name).await? {
                    Some(machine) if machine.state == HostState::Stopping => HostState::Stopping,
                    Some(_) => return Err(error),
                    None => HostState::Over,
                };
                self.memory().ended(name);
                return Ok(Err(state));
            }
            Err(error) => return Err(error),
        };
        match (answer.status, answer.operation) {
            (204, _) if self.memory().has_ended(name) => Ok(Err(HostState::Over)),
            (204, _) => {
                // What is not shown yet is not gone.
                if let Some(operation) = self.memory().made_by(name)
                    && let Ok(Progress::Running(_)) = self.look(Action::PutMachine, &operation).await
                {
                    return Ok(Err(HostState::Coming));
                }
                let (kind, code, status) = (ErrorKind::NotFound, "NotFound".to_owned(), 204);
                let message = format!("there is no machine {name}");
                Err(AzureError::Refused { action, kind, code, message, status, retry_after: None })
            }
            (_, Some(operation)) => {
                self.memory().ending(name, operation.clone());
                Ok(Ok(operation))
            }
            _ => self.look_whether_ended(name).await.map(Err),
        }
    }

    async fn look_whether_ended(&self, name: &str) -> Result<HostState, AzureError> {
        match self.machine(name).await? {
            Some(_) => Ok(HostState::Stopping),
            None => {
                self.memory().ended(name);
                Ok(HostState::Over)
            }
        }
    }

    /// The newest part of a machine's console.
    pub(crate) async fn console_of(&self, name: &str) -> Result<String, AzureError> {
        let action = Action::GetConsole;
        let garbled = |problem: String| AzureError::Garbled { action, problem };
        if !self.setup().boot_diagnostics || !is_name(name) {
            return Ok(String::new());
        }
        let path = format!("/providers/Microsoft.Compute/virtualMachines/{name}/retrieveBootDiagnosticsData");
        let url = self.in_group(&format!("{path}?api-version={COMPUTE_API}"));
        let empty = zeroize::Zeroizing::new(Vec::new());
        let answer = self.ask(&Ask::with_body(action, Method::Post, url, empty)).await?;
        let Some(place) = read_console_place(&answer.body).map_err(garbled)? else { return Ok(String::new()) };
        let host = place.host_str().unwrap_or_default();
        let is_blob = BLOBS.iter().any(|suffix| host.ends_with(suffix));
        let is_test = self.is_loopback() && host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if place.scheme() != "https" || !(is_blob || is_test) {
            return Err(garbled(format!("the console is said to be at {:?}", one_line(host, 80))));
        }
        let host = host.to_owned();
        let tail = self
            .transport()
            .tail(place, CONSOLE_READ, CONSOLE_KEPT)
            .await
            .map_err(|error| AzureError::Unanswered { action, host, source: Some(Box::new(error.without_url())) })?;
        Ok(String::from_utf8_lossy(&tail).into_owned())
    }
}

fn host(machine: Machine, instance: String, (public_address, private_address): HostAddresses) -> Host {
    let Machine { name, size, state, since_s, reason, .. } = machine;
    Host { id: name, instance, state, size, public_address, private_address, since_s, reason }
}
