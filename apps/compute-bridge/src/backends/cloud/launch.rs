//! From nothing to a host that can be logged in to.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coalition_cloud::{CloudError, ErrorKind, Host, HostState, NewHost};

use super::ledger::Size;
use super::{CloudBackend, Launched};
use crate::backend::{Backend, BackendError, FailureKind, InstanceName};
use crate::backends::BareMetalBackend;
use crate::backends::cloud_init::{FirstBoot, user_data};

/// Times a launch of unknown outcome is asked for again, with the same token.
const ASKED: u32 = 5;
/// Part of the boot's time after which another host key than the pinned one, or a refused login, is final: until then the
/// address may still have belonged to another machine, or the host's first start is not through.
const KEY_PATIENCE: u32 = 4;
/// Console output shown to the operator, in characters.
const CONSOLE: usize = 600;

/// A host to obtain.
pub(super) struct Wanted<'a> {
    pub(super) name: &'a InstanceName,
    /// What its tag says it is for.
    pub(super) grant: String,
    pub(super) size: &'a Size,
    /// When what runs on it ends, Unix milliseconds.
    pub(super) ends_ms: u64,
    /// Disk that image and workload need, MiB.
    pub(super) disk_mib: u64,
}

impl CloudBackend {
    /// Makes the host and waits until it lets the bridge in and isolates as it should. Whatever fails, what was made
    /// is ended by `terminate` of the name.
    pub(super) async fn obtain(&self, wanted: &Wanted<'_>) -> Result<Arc<BareMetalBackend>, BackendError> {
        let left_ms = wanted.ends_ms.saturating_sub(crate::now_ms());
        let until = Instant::now() + self.setup.boot_timeout.min(Duration::from_millis(left_ms));
        self.launch(wanted, left_ms).await?;
        let address = self.until_addressed(wanted.name, until).await?;
        let machine = self.attach(wanted.name, &address.to_string(), wanted.size);
        self.until_let_in(&machine, wanted.name, until).await?;
        let offering = machine.capabilities().await;
        if offering.capabilities.max_instances == 0 {
            return Err(self.error(FailureKind::Transient, format!("the fresh host is of no use: {}", offering.detail)));
        }
        Ok(machine)
    }

    /// Asks for the host in one place after the other, as long as there is no room.
    async fn launch(&self, wanted: &Wanted<'_>, left_ms: u64) -> Result<(), BackendError> {
        let facts = self.facts().await?;
        let (host, login) = (self.setup.keys.host(wanted.name), self.setup.keys.login(wanted.name));
        let spare_s = self.setup.poweroff_after.as_secs();
        let poweroff_at_s = (wanted.ends_ms / 1_000).saturating_add(spare_s);
        let longest_s = (left_ms / 1_000).saturating_add(spare_s);
        let boot = FirstBoot { host: &host, login_public: &login.public_openssh, poweroff_at_s, longest_s };
        let user_data = user_data(&boot);
        let marks = self.marks(wanted.name, wanted.grant.clone(), poweroff_at_s);
        let disk_gib = u32::try_from(wanted.disk_mib.div_ceil(1_024)).unwrap_or(u32::MAX);
        let disk_gib = self.setup.root_gib.max(facts.image.disk_gib).saturating_add(disk_gib);
        let mut full = None;
        for place in self.setup.cloud.places() {
            let new = NewHost {
                marks: &marks,
                place,
                size: &wanted.size.name,
                confidential: wanted.size.confidential,
                user_data: &user_data,
                disk_gib,
                longest_s,
            };
            match self.ask(wanted.name, &new).await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind == ErrorKind::Capacity => {
                    tracing::info!(backend = %self.offer(), place, size = %wanted.size.name, "no room there");
                    full = Some(error);
                }
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Err(match full {
            Some(error) => self.failed(&error),
            None => self.error(FailureKind::Fatal, "no place to make hosts in is configured".into()),
        })
    }

    /// Asks until it is known whether the host was made. Asked for again it is made once, however often.
    async fn ask(&self, name: &InstanceName, new: &NewHost<'_>) -> Result<(), CloudError> {
        let mut pause = self.setup.pause;
        for tries_left in (0..ASKED).rev() {
            let error = match self.setup.cloud.create(new).await {
                Ok(made) => {
                    self.remember(name, Launched { at: Instant::now(), id: Some(made.id) });
                    return Ok(());
                }
                Err(error) => error,
            };
            if error.may_have_acted {
                self.remember(name, Launched { at: Instant::now(), id: None });
            }
            let again = error.may_have_acted || matches!(error.kind, ErrorKind::Throttled | ErrorKind::Transient);
            if !again || tries_left == 0 {
                return Err(error);
            }
            tracing::warn!(backend = %self.offer(), %error, "it is not known whether the host was made; asking for the same again");
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        unreachable!("the last try returns")
    }

    /// Waits for the address. What the cloud does not show yet is waited for; what it ended by itself is a failure.
    async fn until_addressed(&self, name: &InstanceName, until: Instant) -> Result<IpAddr, BackendError> {
        loop {
            let (problem, kind) = match self.named(name).await {
                Ok(found) => match self.look_at(&found)? {
                    Some(address) => return Ok(address),
                    None => ("the host got no address".to_owned(), FailureKind::Transient),
                },
                Err(error) => (error.message, error.kind),
            };
            if Instant::now() >= until {
                return Err(self.error(kind, format!("{problem} within {} s", self.setup.boot_timeout.as_secs())));
            }
            tokio::time::sleep(self.setup.host.watch_interval).await;
        }
    }

    fn look_at(&self, found: &[Host]) -> Result<Option<IpAddr>, BackendError> {
        // What was made and failed may still be billed, parts and all; it will not run.
        let has_failed = |host: &Host| host.state == HostState::Stopped && host.reason.is_some();
        if let Some(live) = found.iter().find(|host| !host.state.is_over() && !has_failed(host)) {
            return Ok(self.address_of(live).filter(|_| live.state == HostState::Running));
        }
        let Some(over) = found.first() else { return Ok(None) };
        let (kind, words) = over.reason.clone().unwrap_or((ErrorKind::Transient, "(no reason given)".into()));
        // Asked for elsewhere or again it may work.
        let kind = if kind == ErrorKind::Fatal { ErrorKind::Transient } else { kind };
        let problem = format!("{} ended the host while it came up: {words}", self.setup.cloud.name());
        Err(self.error(kind.into(), problem))
    }

    /// The address the bridge and requesters use.
    pub(super) fn address_of(&self, host: &Host) -> Option<IpAddr> {
        if self.setup.private_addresses { host.private_address } else { host.public_address }
    }

    async fn until_let_in(
        &self,
        machine: &BareMetalBackend,
        name: &InstanceName,
        until: Instant,
    ) -> Result<(), BackendError> {
        let started = Instant::now();
        let patience = self.setup.boot_timeout / KEY_PATIENCE;
        let mut refused_since = None;
        loop {
            let error = match machine.connect().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let is_refused = error.kind == FailureKind::Auth;
            let since = is_refused.then(|| *refused_since.get_or_insert_with(Instant::now));
            if !is_refused {
                refused_since = None;
            }
            let is_final = since.is_some_and(|since| since.elapsed() >= patience);
            if is_final || Instant::now() >= until {
                let waited_s = started.elapsed().as_secs();
                let said = self.console_tail(name).await;
                return Err(self.error(error.kind, format!("no login after {waited_s} s: {}{said}", error.message)));
            }
            if let Ok(found) = self.named(name).await {
                self.look_at(&found)?;
            }
            tokio::time::sleep(self.setup.host.watch_interval).await;
        }
    }

    /// What the host wrote to its console, for the operator; nothing when the cloud has none yet.
    async fn console_tail(&self, name: &InstanceName) -> String {
        let Some(id) = self.launched(name).and_then(|launched| launched.id) else { return String::new() };
        let Ok(console) = self.setup.cloud.console(&id).await else { return String::new() };
        let line: String = console.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let skip = line.chars().count().saturating_sub(CONSOLE);
        let tail: String = line.chars().skip(skip).collect();
        if tail.trim().is_empty() { String::new() } else { format!("; its console ends with: {}", tail.trim()) }
    }
}
