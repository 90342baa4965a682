//! The client: Google's own, call by call, with what Google's answers must have looked at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coalition_cloud::{ErrorKind, Host, Leftover, NewHost, Owner, one_line};
use google_cloud_compute_v1::client::{Disks, Images, Instances, MachineTypes, Regions, ZoneOperations};
use google_cloud_compute_v1::model::{Disk, DiskAggregatedList, Image, Instance, MachineType, Region, disk};

use crate::action::Action;
use crate::error::GcpError;
use crate::host::{self, Common, coming, last};
use crate::http::Http;
use crate::listing;
use crate::names::{Placed, described, filter, host_name, mark, request_id};
use crate::operations::{Operations, Progress, Running, judge};
use crate::setup::{Checked, Setup, SetupError};
use crate::transport::{Shared, Transport};

/// Things on one page: with 16 KiB of user data each, about 4 MiB.
const PAGE: u32 = 200;
/// Most pages read.
const MAX_PAGES: usize = 100;
/// Longest console output kept, in bytes.
const MAX_CONSOLE: usize = 64 << 10;
/// Most operations remembered, and for how long.
const MAX_REMEMBERED: usize = 1_024;
const REMEMBERED: Duration = Duration::from_secs(3_600);

/// A host that this process asked for and whose making was not over when last looked at.
#[derive(Clone, Debug)]
struct Making {
    at: Instant,
    running: Running,
    bridge: String,
    offer: String,
    host: Host,
}

/// Compute Engine in one region of one project.
pub struct ComputeEngine {
    pub(crate) setup: Setup,
    pub(crate) names: Checked,
    common: Common,
    pub(crate) transport: Arc<Transport>,
    instances: Instances,
    disks: Disks,
    images: Images,
    machine_types: MachineTypes,
    regions: Regions,
    pub(crate) operations: Operations,
    /// By id.
    making: Mutex<BTreeMap<String, Making>>,
    /// Ends that were asked for, by id; without an operation once they are over.
    ending: Mutex<BTreeMap<String, (Instant, Option<Running>)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ComputeEngine {
    /// A client; nothing is contacted yet.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(setup: Setup) -> Result<Self, SetupError> {
        let names = setup.check()?;
        let transport = Arc::new(Transport {
            http: Http::new(setup.endpoint.as_deref(), setup.timeout)?,
            endpoint: setup.endpoint.clone(),
            credentials: Arc::clone(&setup.credentials),
            tokens: crate::token::Tokens::default(),
            pause: setup.pause,
        });
        let shared = || Shared(Arc::clone(&transport));
        let client = ZoneOperations::from_stub(shared());
        let operations = Operations { client, project: setup.project.clone(), poll: setup.poll };
        let common = Common {
            image: setup.image.clone(),
            subnetwork: names.subnetwork.clone(),
            network_tags: setup.network_tags.clone(),
            public_address: setup.public_address,
            disk_type: setup.disk_type.clone(),
            secure_boot: setup.secure_boot,
        };
        Ok(Self {
            instances: Instances::from_stub(shared()),
            disks: Disks::from_stub(shared()),
            images: Images::from_stub(shared()),
            machine_types: MachineTypes::from_stub(shared()),
            regions: Regions::from_stub(shared()),
            operations,
            common,
            transport,
            names,
            setup,
            making: Mutex::default(),
            ending: Mutex::default(),
        })
    }

    /// Who the credentials belong to, as they say themselves.
    pub(crate) async fn email(&self) -> Result<String, GcpError> {
        self.transport.email().await
    }

    pub(crate) async fn region_facts(&self) -> Result<Region, GcpError> {
        let (action, setup) = (Action::GetRegion, &self.setup);
        let asked = self.regions.get().set_project(&setup.project).set_region(&setup.region);
        let region = asked.send().await.map_err(|error| GcpError::unwrapped(action, &error))?;
        if region.name.as_deref() == Some(setup.region.as_str()) {
            return Ok(region);
        }
        Err(GcpError::Garbled { action, problem: "it is of another region".into() })
    }

    /// The image, as Google describes it.
    pub(crate) async fn image_facts(&self) -> Result<Image, GcpError> {
        let name = &self.names.image;
        let (action, asked) = if name.is_family {
            let asked = self.images.get_from_family().set_project(&name.project).set_family(&name.name);
            (Action::GetImageFromFamily, asked.send().await)
        } else {
            let asked = self.images.get().set_project(&name.project).set_image(&name.name);
            (Action::GetImage, asked.send().await)
        };
        let missing = || format!("there is no image {}, or these credentials may not see it", self.setup.image);
        match found(asked.map_err(|error| GcpError::unwrapped(action, &error)))? {
            Some(image) => Ok(image),
            None => Err(crate::error::failed(action, "notFound", &missing(), 404)),
        }
    }

    /// A machine type of a zone; `None` when the zone has none of this name.
    pub(crate) async fn machine_type(&self, zone: &str, name: &str) -> Result<Option<MachineType>, GcpError> {
        let asked = self.machine_types.get().set_project(&self.setup.project).set_zone(zone).set_machine_type(name);
        found(asked.send().await.map_err(|error| GcpError::unwrapped(Action::GetMachineType, &error)))
    }

    /// Asks for the host and follows the operation: what keeps it from being made mostly shows there.
    pub(crate) async fn make(&self, new: &NewHost<'_>) -> Result<Host, GcpError> {
        let action = Action::InsertInstance;
        let unaskable = |problem: String| GcpError::Unaskable { action, problem };
        if !self.setup.zones.iter().any(|zone| zone == new.place) {
            let problem = format!("{:?} is none of {}", one_line(new.place, 80), self.setup.zones.join(", "));
            return Err(unaskable(problem));
        }
        let body = host::body(&self.common, new).map_err(unaskable)?;
        let asked = self.instances.insert().set_project(&self.setup.project).set_zone(new.place).set_body(body);
        let asked = asked.set_request_id(request_id(&new.marks.instance, new.place)).send().await;
        let operation = match asked.map_err(|error| GcpError::unwrapped(action, &error)) {
            Err(error) if error.kind() == ErrorKind::Conflict => return self.existing(new, error).await,
            answered => answered?,
        };
        match self.operations.follow(judge(action, new.place, &operation)?, self.setup.create_patience).await {
            // Made before, under the same name, by a request whose id Google has forgotten.
            Progress::Failed(error) if error.kind() == ErrorKind::Conflict => self.existing(new, error).await,
            Progress::Failed(error) => Err(error),
            Progress::Done => match self.existing(new, conflict(new)).await {
                Err(error) if error.kind() != ErrorKind::Conflict => Ok(coming(new)),
                found => found,
            },
            Progress::Running(running) => {
                let marks = new.marks;
                let (bridge, offer, host) = (marks.bridge.clone(), marks.offer.clone(), coming(new));
                let making = Making { at: Instant::now(), running, bridge, offer, host: host.clone() };
                remember(&mut lock(&self.making), host.id.clone(), making, |making| making.at);
                Ok(host)
            }
        }
    }

    /// The host that has this one's name, if it has its marks, too; otherwise the failure that told of it.
    async fn existing(&self, new: &NewHost<'_>, error: GcpError) -> Result<Host, GcpError> {
        let at = Placed { zone: new.place.to_owned(), name: host_name(&new.marks.instance) };
        let Some(instance) = self.instance(&at).await? else { return Err(error) };
        let owner = Owner { bridge: &new.marks.bridge, offer: &new.marks.offer };
        let action = Action::GetInstance;
        let host = host::read(&self.setup.region, owner, &instance);
        let host = host.map_err(|problem| GcpError::Garbled { action, problem })?;
        host.filter(|host| host.size == new.size).ok_or(error)
    }

    async fn instance(&self, at: &Placed) -> Result<Option<Instance>, GcpError> {
        let asked = self.instances.get().set_project(&self.setup.project).set_zone(&at.zone).set_instance(&at.name);
        found(asked.send().await.map_err(|error| GcpError::unwrapped(Action::GetInstance, &error)))
    }

    /// Everything of this owner that is listed, and what is being made without being listed yet.
    pub(crate) async fn list(&self, owner: Owner<'_>, instance: Option<&str>) -> Result<Vec<Host>, GcpError> {
        let action = Action::ListInstances;
        let mut hosts = Vec::new();
        let mut page = None;
        for _ in 0..MAX_PAGES {
            let asked = self.instances.aggregated_list().set_project(&self.setup.project).set_max_results(PAGE);
            let asked = asked.set_filter(filter(owner, instance)).set_or_clear_page_token(page);
            let listed = asked.send().await.map_err(|error| GcpError::unwrapped(action, &error))?;
            let (instances, next) = listing::instances(&self.setup.region, listed)?;
            for one in &instances {
                let host = host::read(&self.setup.region, owner, one);
                let host = host.map_err(|problem| GcpError::Garbled { action, problem })?;
                hosts.extend(host.filter(|host| instance.is_none_or(|wanted| host.instance == wanted)));
            }
            if next.is_none() {
                hosts.extend(self.unlisted(owner, instance, &hosts).await?);
                return Ok(hosts);
            }
            page = next;
        }
        Err(GcpError::Garbled { action, problem: format!("there is no end after {MAX_PAGES} pages") })
    }

    /// What this process asked for and the listing does not have: still being made, or why it was not.
    async fn unlisted(&self, owner: Owner<'_>, instance: Option<&str>, listed: &[Host]) -> Result<Vec<Host>, GcpError> {
        let is_asked = |making: &Making| {
            making.bridge == owner.bridge
                && making.offer == owner.offer
                && instance.is_none_or(|wanted| making.host.instance == wanted)
                && listed.iter().all(|host| host.id != making.host.id)
        };
        lock(&self.making).retain(|_, making| making.at.elapsed() < REMEMBERED);
        let asked: Vec<Making> = lock(&self.making).values().filter(|making| is_asked(making)).cloned().collect();
        let mut hosts = Vec::new();
        for mut making in asked {
            if making.host.reason.is_none() {
                match self.operations.look(&making.running).await {
                    Ok(Progress::Running(_)) => {}
                    Ok(Progress::Failed(error)) => {
                        making.host.state = coalition_cloud::HostState::Over;
                        making.host.reason = Some((error.kind(), error.to_string()));
                        lock(&self.making).insert(making.host.id.clone(), making.clone());
                    }
                    // Made, and not listed: late, or ended meanwhile. Google forgets operations after some days.
                    Ok(Progress::Done) => {
                        lock(&self.making).remove(&making.host.id);
                        continue;
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        lock(&self.making).remove(&making.host.id);
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            hosts.push(making.host);
        }
        Ok(hosts)
    }

    /// Ends one host; answers whether it is over. An end that was asked for before is looked at, not asked for again.
    pub(crate) async fn end_one(&self, id: &str) -> Result<bool, GcpError> {
        let action = Action::DeleteInstance;
        let unaskable = |error: crate::NameError| GcpError::Unaskable { action, problem: error.to_string() };
        let at = Placed::parse(&self.setup.region, id).map_err(unaskable)?;
        lock(&self.ending).retain(|_, (asked_at, _)| asked_at.elapsed() < REMEMBERED);
        let before = lock(&self.ending).get(id).map(|(_, running)| running.clone());
        let was_asked = before.is_some();
        let looked = match before.flatten() {
            Some(running) => match self.operations.look(&running).await {
                // Google has forgotten the operation.
                Err(error) if error.kind() == ErrorKind::NotFound => self.delete(&at).await,
                looked => looked,
            },
            None => self.delete(&at).await,
        };
        let progress = match looked {
            // It is being ended already: it exists, or did a moment ago.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                self.remember_end(id, None);
                return Ok(self.instance(&at).await?.is_none());
            }
            // Of what this process ended before, it knows that it existed.
            Err(error) if error.kind() == ErrorKind::NotFound && was_asked => return Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let known = self.not_made(id).await?;
                return if matches!(error, GcpError::Gone { .. }) {
                    Ok(known.unwrap_or(true))
                } else {
                    known.ok_or(error)
                };
            }
            looked => looked?,
        };
        let (is_over, running) = match progress {
            Progress::Running(running) => (false, Some(running)),
            Progress::Done => (true, None),
            Progress::Failed(error) if error.kind() == ErrorKind::NotFound => (true, None),
            Progress::Failed(error) => {
                lock(&self.ending).remove(id);
                return Err(error);
            }
        };
        if is_over {
            lock(&self.making).remove(id);
        }
        self.remember_end(id, running);
        Ok(is_over)
    }

    fn remember_end(&self, id: &str, running: Option<Running>) {
        remember(&mut lock(&self.ending), id.to_owned(), (Instant::now(), running), |(asked_at, _)| *asked_at);
    }

    /// What is not there, and is perhaps still being made for this process: whether it never will be; `None` when there is
    /// nothing of the sort.
    async fn not_made(&self, id: &str) -> Result<Option<bool>, GcpError> {
        let Some(making) = lock(&self.making).get(id).cloned() else { return Ok(None) };
        match self.operations.look(&making.running).await {
            Ok(Progress::Running(_)) => Ok(Some(false)),
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            // It failed: there never was one.
            Ok(Progress::Failed(_)) => {
                lock(&self.making).remove(id);
                Ok(Some(true))
            }
            // Made a moment ago, or ended meanwhile: asking for its end once more tells.
            Ok(Progress::Done) | Err(_) => {
                lock(&self.making).remove(id);
                Ok(Some(false))
            }
        }
    }

    async fn delete(&self, at: &Placed) -> Result<Progress, GcpError> {
        let action = Action::DeleteInstance;
        let asked = self.instances.delete().set_project(&self.setup.project).set_zone(&at.zone).set_instance(&at.name);
        let operation = asked.send().await.map_err(|error| GcpError::unwrapped(action, &error))?;
        judge(action, &at.zone, &operation)
    }

    /// Disks of this owner that nothing is attached to.
    pub(crate) async fn detached(&self, owner: Owner<'_>, instance: Option<&str>) -> Result<Vec<Leftover>, GcpError> {
        let action = Action::ListDisks;
        let mut found = Vec::new();
        let mut page = None;
        for _ in 0..MAX_PAGES {
            let asked = self.disks.aggregated_list().set_project(&self.setup.project).set_max_results(PAGE);
            let asked = asked.set_filter(filter(owner, instance)).set_or_clear_page_token(page);
            let listed = asked.send().await.map_err(|error| GcpError::unwrapped(action, &error))?;
            // Asked for, and looked at again: what is deleted afterwards cannot be had back.
            let (own, next) = read_disks(&self.setup.region, owner, listed)?;
            found.extend(own.into_iter().filter(|left| instance.is_none_or(|wanted| left.instance == wanted)));
            if next.is_none() {
                return Ok(found);
            }
            page = next;
        }
        Err(GcpError::Garbled { action, problem: format!("there is no end after {MAX_PAGES} pages") })
    }

    /// Deletes a disk and waits until that is done.
    pub(crate) async fn delete_disk(&self, id: &str) -> Result<(), GcpError> {
        let action = Action::DeleteDisk;
        let unaskable = |error: crate::NameError| GcpError::Unaskable { action, problem: error.to_string() };
        let at = Placed::parse(&self.setup.region, id).map_err(unaskable)?;
        let asked = self.disks.delete().set_project(&self.setup.project).set_zone(&at.zone).set_disk(&at.name);
        let Some(operation) = found(asked.send().await.map_err(|error| GcpError::unwrapped(action, &error)))? else {
            return Ok(());
        };
        let patience = self.setup.create_patience;
        match self.operations.follow(judge(action, &at.zone, &operation)?, patience).await {
            Progress::Done => Ok(()),
            Progress::Failed(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Progress::Failed(error) => Err(error),
            Progress::Running(_) => Err(GcpError::Unconfirmed { action, waited_s: patience.as_secs() }),
        }
    }

    /// The newest part of what the host wrote to its first serial port.
    pub(crate) async fn serial(&self, id: &str) -> Result<String, GcpError> {
        let action = Action::GetSerialPortOutput;
        let unaskable = |error: crate::NameError| GcpError::Unaskable { action, problem: error.to_string() };
        let at = Placed::parse(&self.setup.region, id).map_err(unaskable)?;
        let asked = self.instances.get_serial_port_output().set_project(&self.setup.project);
        let asked = asked.set_zone(&at.zone).set_instance(&at.name).set_port(1);
        let output = asked.send().await.map_err(|error| GcpError::unwrapped(action, &error))?;
        let text = output.contents.unwrap_or_default();
        let skip = text.len().saturating_sub(MAX_CONSOLE);
        let start = (skip..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        Ok(text.get(start..).unwrap_or_default().to_owned())
    }
}

/// Keeps one more, and the newest only.
fn remember<T>(kept: &mut BTreeMap<String, T>, id: String, one: T, at: impl Fn(&T) -> Instant) {
    kept.insert(id, one);
    while kept.len() > MAX_REMEMBERED {
        let oldest = kept.iter().min_by_key(|(_, one)| at(one)).map(|(id, _)| id.clone());
        oldest.map(|id| kept.remove(&id));
    }
}

fn found<T>(answered: Result<T, GcpError>) -> Result<Option<T>, GcpError> {
    match answered {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        answered => answered.map(Some),
    }
}

fn conflict(new: &NewHost<'_>) -> GcpError {
    let code = "alreadyExists";
    let words = format!("{} in {} exists with other marks or another size", host_name(&new.marks.instance), new.place);
    crate::error::failed(Action::InsertInstance, code, &words, 409)
}

/// What a page of disks has of this owner's leftovers, and the token of the next.
pub(crate) fn read_disks(
    region: &str,
    owner: Owner<'_>,
    page: DiskAggregatedList,
) -> Result<(Vec<Leftover>, Option<String>), GcpError> {
    let (disks, next) = listing::disks(region, page)?;
    Ok((disks.iter().filter_map(|disk| left_behind(region, owner, disk)).collect(), next))
}

/// A disk that is this owner's, whole, and attached to nothing.
fn left_behind(region: &str, owner: Owner<'_>, disk: &Disk) -> Option<Leftover> {
    let is_whole = matches!(disk.status, Some(disk::Status::Ready | disk::Status::Failed));
    let instance = described(disk.description.as_deref()?, owner)?;
    let is_labelled = [mark::BRIDGE, mark::OFFER, mark::INSTANCE].iter().all(|key| disk.labels.contains_key(*key));
    if !is_whole || !disk.users.is_empty() || !is_labelled {
        return None;
    }
    let id = format!("{}/{}", last(disk.zone.as_ref()), disk.name.as_deref()?);
    let id = Placed::parse(region, &id).ok()?;
    Some(Leftover { id: id.to_string(), what: "disk", instance })
}

impl std::fmt::Debug for ComputeEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ComputeEngine({:?})", self.setup)
    }
}
