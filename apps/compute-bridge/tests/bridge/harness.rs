//! What tests of the bridge share: a requester, a scripted backend, waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use coalition::{
    AlmanacTick, CommitteeContent, MicroUsd, ModuleKind, ProviderId, PublishedConfig, RateQ64, RequestId, Roster,
    UniqueId,
};
use coalition_almanac::AlmanacParams;
use coalition_cloud::{Moment, Window};
use coalition_compute::*;
use coalition_host::keys;
use coalition_host::types::IsolationLevel;
use coalition_shuffle::{
    CellId, CellScope, DealerOutput, Envelope, ReceiverKey, ReplyCell, RotatingPeer, SshAccessReceipt, SshHostKey,
    WorkloadSpec,
};
use compute_bridge::backend::*;
use compute_bridge::channel::{OpenError, ReplySender, RequestOpener};
use compute_bridge::evidence::Taken;
use compute_bridge::market::{Earnings, Market};
use compute_bridge::now_ms;
use compute_bridge::platform::Platform;
use ed25519_dalek::SigningKey;
use rand_core::OsRng;

pub(crate) use super::hosts::*;
pub(crate) use super::memory::*;
pub(crate) use super::sources::*;

pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const CADENCE_MS: u32 = 100;

/// Waits until `look` finds something; the deadline is generous, the machine may be busy.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..6_000 {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not happen within a minute");
}

pub(crate) fn organism() -> UniqueId {
    UniqueId::hash(b"bridge test compute")
}

pub(crate) fn scope() -> CellScope {
    CellScope { coalition: UniqueId::hash(b"bridge test coalition"), compute: organism() }
}

fn roster(seed: u8) -> Roster {
    let key = |purpose: u8| SigningKey::from_bytes(&[seed ^ purpose; 32]).verifying_key().to_bytes();
    let member =
        coalition::RosterMember { name: "m0".into(), checkpoint_key: key(1), consensus_key: key(2), peer_id: key(3) };
    Roster::new(vec![member]).unwrap()
}

/// A coalition with everything a bridge asks of one.
pub(crate) fn coalition_config() -> PublishedConfig {
    let content = |service: &str, seed: u8, params: Vec<u8>| CommitteeContent {
        service: service.into(),
        roster: roster(seed),
        params,
        predecessor: None,
    };
    let dealt = DealerOutput::deal(1, 1, &mut OsRng).unwrap();
    let unseal = content("unseal.v1", 0x40, dealt.params.to_bytes().to_vec());
    let almanac = content("almanac.v1", 0x20, AlmanacParams::new(1_000).unwrap().to_bytes());
    let compute = content("compute.v1", 0x10, ComputeParams::standard(1_000).to_bytes());
    PublishedConfig::builder("bridge-test")
        .organism("unseal", "unseal", &unseal)
        .module(ModuleKind::Almanac, "almanac", &almanac)
        .module(ModuleKind::Compute, "compute", &compute)
        .build()
        .unwrap()
}

/// What a backend holds: each name, and whether it runs.
pub(crate) async fn held(backend: &dyn Backend) -> Vec<(InstanceName, bool)> {
    backend.list_owned().await.unwrap().into_iter().map(|one| (one.name, one.running)).collect()
}

/// A one-core grant on this offer in region `local`.
pub(crate) fn grant(offer: &str, lasts_ms: u64) -> ComputeGrant {
    grant_number(0, offer, lasts_ms)
}

pub(crate) fn grant_number(number: u8, offer: &str, lasts_ms: u64) -> ComputeGrant {
    ComputeGrant {
        request_id: RequestId(UniqueId::hash(&[b'g', number])),
        attempt: 1,
        provider: ProviderId(UniqueId::hash(b"provider")),
        offer: offer.parse().unwrap(),
        endpoint_hint: EndpointHint { provider_peer: [1; 32], shuffle_reply: UniqueId::hash(b"channel") },
        bearer_pointer: UniqueId::hash(b"cell"),
        workload: UniqueId::hash(b"workload"),
        image_hash: UniqueId::hash(b"image"),
        region: "local".parse().unwrap(),
        tdx_required: false,
        expected_mrtd: None,
        cpu_millicores: 1_000,
        ram_mib: 128,
        duration_sec: u32::try_from(lasts_ms / 1_000).unwrap(),
        rate: "0.05".parse().unwrap(),
        valid_from: AlmanacTick(1),
        valid_to: AlmanacTick(100),
        valid_to_ms: now_ms() + lasts_ms,
    }
}

pub(crate) fn image() -> LocalImage {
    LocalImage { path: "/nonexistent".into(), hash: UniqueId::hash(b"image"), size_bytes: 5 }
}

pub(crate) fn instance_keys() -> InstanceKeys {
    let (host, login) = (keys::generate("host"), keys::generate("login"));
    let public = russh::keys::PublicKey::from_openssh(&host.public_openssh).unwrap();
    InstanceKeys {
        host_private: host.private_openssh,
        host_public: SshHostKey(public.key_data().ed25519().unwrap().0),
        login_public: login.public_openssh,
    }
}

// ---- a backend of fables ----

/// A backend whose instances are names in a set.
pub(crate) struct FakeBackend {
    name: OfferName,
    region: Region,
    pub(crate) running: Mutex<BTreeSet<InstanceName>>,
    pub(crate) terminated: Mutex<Vec<InstanceName>>,
    /// How many instances were ever created.
    pub(crate) created: Mutex<u32>,
    pub(crate) provision_fails: Mutex<Option<(FailureKind, bool)>>,
    /// Whether the host answers.
    pub(crate) visible: Mutex<bool>,
    /// How often it was told to stop something while it did not answer.
    pub(crate) unheard: Mutex<u32>,
    /// When the instances would end by themselves, where that was moved.
    pub(crate) ends: Mutex<BTreeMap<InstanceName, u64>>,
    /// Whether ends cannot be moved.
    pub(crate) fixed: Mutex<bool>,
    /// Whether files stay behind: nothing can be removed.
    pub(crate) unremovable: Mutex<bool>,
    /// Makes every watch report this end.
    pub(crate) exits: Mutex<Option<LogEnd>>,
    /// The guest its workloads count as running in.
    pub(crate) guest: Mutex<Option<Platform>>,
    /// Whether an API beside it is to be asked what it counted, and never answers.
    pub(crate) silent_api: Mutex<bool>,
    /// What it charges.
    pub(crate) core_hour: Mutex<RateQ64>,
}

/// What is used of an instance while it runs, and what in the end.
pub(crate) const SO_FAR: UsageMetrics = UsageMetrics { cpu_core_seconds: 1, ram_mib_seconds: 100, net_bytes: 2_000 };
pub(crate) const USED: UsageMetrics = UsageMetrics { cpu_core_seconds: 3, ram_mib_seconds: 500, net_bytes: 7_000 };

impl FakeBackend {
    pub(crate) fn new(name: &str) -> Arc<Self> {
        Self::in_region(name, "local")
    }

    pub(crate) fn in_region(name: &str, region: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.parse().unwrap(),
            region: region.parse().unwrap(),
            running: Mutex::default(),
            terminated: Mutex::default(),
            created: Mutex::default(),
            provision_fails: Mutex::default(),
            visible: Mutex::new(true),
            unheard: Mutex::default(),
            ends: Mutex::default(),
            fixed: Mutex::default(),
            unremovable: Mutex::default(),
            exits: Mutex::default(),
            guest: Mutex::default(),
            silent_api: Mutex::default(),
            core_hour: Mutex::new("0.02".parse().unwrap()),
        })
    }

    fn seen(&self) -> Result<(), BackendError> {
        if *self.visible.lock().unwrap() { Ok(()) } else { Err(self.error(FailureKind::Transient, false)) }
    }

    fn error(&self, kind: FailureKind, started: bool) -> BackendError {
        BackendError {
            backend: self.name.clone(),
            kind,
            message: "as scripted".into(),
            started,
            remains: started,
            source: None,
        }
    }
}

#[async_trait]
impl Backend for FakeBackend {
    fn name(&self) -> &OfferName {
        &self.name
    }

    fn rates(&self) -> DeclaredRates {
        DeclaredRates { core_hour: *self.core_hour.lock().unwrap(), gib_hour: RateQ64::ZERO }
    }

    fn telemetry_moment(&self) -> Option<Moment> {
        self.silent_api.lock().unwrap().then_some(Moment::BeforeEnd)
    }

    async fn telemetry(&self, _: &InstanceName, _: Window) -> Result<Taken, BackendError> {
        std::future::pending().await
    }

    fn load(&self) -> u32 {
        u32::try_from(self.running.lock().unwrap().len()).unwrap()
    }

    async fn capabilities(&self) -> Offering {
        let total = if *self.visible.lock().unwrap() { 8 } else { 0 };
        Offering {
            capabilities: Capabilities {
                regions: vec![self.region.clone()],
                tdx_capable: self.guest().is_some(),
                mrtds: self.guest().and_then(|guest| guest.claimed_mrtd()).into_iter().collect(),
                max_cpu_millicores: total * 1_000,
                max_ram_mib: total * 1_024,
                max_instances: total,
                instance_cpu_millicores: 4_000,
                instance_ram_mib: 4_096,
            },
            rates: self.rates(),
            isolation: Some(IsolationLevel::RootNamespaces),
            detail: "a fable".into(),
            reachable: total > 0,
        }
    }

    fn guest(&self) -> Option<Platform> {
        self.guest.lock().unwrap().clone()
    }

    fn can_satisfy(&self, grant: &ComputeGrant) -> Result<(), Unfit> {
        if grant.region == self.region {
            return Ok(());
        }
        Err(Unfit::Region { serves: self.region.to_string(), wanted: grant.region.to_string() })
    }

    async fn provision(&self, name: &InstanceName, _order: Order<'_>) -> Result<ProvisionedInstance, BackendError> {
        self.seen()?;
        *self.created.lock().unwrap() += 1;
        if let Some((kind, started)) = *self.provision_fails.lock().unwrap() {
            if started {
                self.running.lock().unwrap().insert(name.clone());
            }
            return Err(self.error(kind, started));
        }
        self.running.lock().unwrap().insert(name.clone());
        Ok(ProvisionedInstance {
            backend: self.name.clone(),
            name: name.clone(),
            host: "127.0.0.1".into(),
            port: 2_222,
            user: "root".into(),
            isolation: IsolationLevel::RootNamespaces,
            isolation_text: "a fable".into(),
        })
    }

    async fn watch_until_exit(
        &self,
        instance: &ProvisionedInstance,
        valid_to_ms: u64,
        seen: &UsageSeen<'_>,
    ) -> Result<Exit, BackendError> {
        loop {
            if self.seen().is_ok() {
                seen(SO_FAR);
                if let Some(end) = *self.exits.lock().unwrap() {
                    return Ok(Exit { end, usage: USED });
                }
                if now_ms() >= valid_to_ms {
                    return Ok(Exit { end: LogEnd::Deadline, usage: USED });
                }
                if !self.running.lock().unwrap().contains(&instance.name) {
                    return Err(self.error(FailureKind::NotFound, true));
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn move_end(&self, name: &InstanceName, valid_to_ms: u64) -> Result<(), MoveError> {
        self.seen()?;
        if *self.fixed.lock().unwrap() {
            return Err(MoveError::Fixed { backend: self.name.clone(), why: "as scripted".into() });
        }
        self.ends.lock().unwrap().insert(name.clone(), valid_to_ms);
        Ok(())
    }

    async fn stop(&self, name: &InstanceName) -> Result<Option<Exit>, BackendError> {
        self.seen().inspect_err(|_| *self.unheard.lock().unwrap() += 1)?;
        let there = self.running.lock().unwrap().contains(name);
        Ok(there.then_some(Exit { end: LogEnd::Exited, usage: USED }))
    }

    async fn terminate(&self, name: &InstanceName) -> Result<(), BackendError> {
        self.seen()?;
        if *self.unremovable.lock().unwrap() {
            return Err(self.error(FailureKind::Fatal, true));
        }
        self.running.lock().unwrap().remove(name);
        self.terminated.lock().unwrap().push(name.clone());
        Ok(())
    }

    async fn list_owned(&self) -> Result<Vec<OwnedInstance>, BackendError> {
        self.seen()?;
        let running = self.running.lock().unwrap();
        Ok(running
            .iter()
            .map(|name| OwnedInstance { name: name.clone(), running: true, since_ms: None, size: None })
            .collect())
    }
}

// ---- a requester ----

/// Everything a requester keeps, and what of it may never be found at the bridge.
pub(crate) struct Requester {
    pub(crate) signer: SigningKey,
    pub(crate) receiver: ReceiverKey,
    pub(crate) peer: [u8; 32],
    pub(crate) request: ComputeRequest,
    pub(crate) envelope: Envelope,
}

pub(crate) fn requester(
    market: &MemoryMarket,
    seed: u8,
    image: &[u8],
    seconds: u32,
    change: impl FnOnce(&mut WorkloadSpec),
) -> Requester {
    requester_in("local", market, seed, image, seconds, change)
}

/// One who asks for a machine in this region; `change` only changes what the envelope says.
pub(crate) fn requester_in(
    region: &str,
    market: &MemoryMarket,
    seed: u8,
    image: &[u8],
    seconds: u32,
    change: impl FnOnce(&mut WorkloadSpec),
) -> Requester {
    let signer = SigningKey::from_bytes(&[seed; 32]);
    let receiver = ReceiverKey::generate(&mut OsRng);
    let peer = SigningKey::from_bytes(&[seed ^ 0xa5; 32]).verifying_key().to_bytes();
    let hash = UniqueId::from_bytes(*blake3::hash(image).as_bytes());
    let public = signer.verifying_key().to_bytes();
    let nonce = [seed; 16];
    let request = ComputeRequest {
        request_id: request_id(&organism(), &public, &nonce),
        nonce,
        requester: anonymous_requester(&public),
        workload: UniqueId::hash(b"workload"),
        pin: None,
        image_hash: hash,
        cpu_millicores: 500,
        ram_mib: 64,
        duration_sec: seconds,
        region: Some(region.parse().unwrap()),
        tdx_required: false,
        pinned_mrtd: None,
        max_rate: "1".parse().unwrap(),
        settlement: UniqueId::hash(b"settlement"),
        deadline: AlmanacTick(market.at().tick + 600),
        bearer_pointer: UniqueId::hash(&[b'c', seed]),
    };
    let mut workload = WorkloadSpec {
        image_hash: hash,
        image_size_bytes: image.len() as u64,
        requested_region: Some(region.into()),
        image_pointer: format!("{}@127.0.0.1:9", hex::encode(peer)).into_bytes(),
        cpu_millicores: 500,
        ram_mib: 64,
        disk_mib: 64,
        command: vec![],
        env: vec![("SECRET_OF_REQUESTER".into(), "a-requester-private-value".into())],
        ssh_authorized_key: None,
    };
    change(&mut workload);
    let envelope = Envelope { peer_id: RotatingPeer::from_bytes(peer), peer_x25519: receiver.public(), workload };
    Requester { signer, receiver, peer, request, envelope }
}

impl Requester {
    pub(crate) fn id(&self) -> RequestId {
        self.request.request_id
    }

    pub(crate) fn submit(&self, market: &MemoryMarket, channel: &MemoryChannel) {
        channel.envelopes.lock().unwrap().insert(self.id(), self.envelope.clone());
        let signed = Signed::sign(self.request.clone(), &self.signer, &organism()).unwrap();
        market.execute(Some(&Command::SubmitRequest(signed))).unwrap();
    }

    pub(crate) fn end(&self, market: &MemoryMarket) {
        let signed = Signed::sign(EndGrant { grant_id: self.id() }, &self.signer, &organism()).unwrap();
        market.execute(Some(&Command::EndGrant(signed))).unwrap();
    }

    pub(crate) fn extend(&self, market: &MemoryMarket, number: u32, extra_sec: u32) {
        let statement = ExtendGrant { grant_id: self.id(), number, extra_sec, settlement: UniqueId::hash(b"more") };
        let signed = Signed::sign(statement, &self.signer, &organism()).unwrap();
        market.execute(Some(&Command::ExtendGrant(signed))).unwrap();
    }

    pub(crate) fn receipt(&self, channel: &MemoryChannel) -> Option<SshAccessReceipt> {
        let replies = channel.replies.lock().unwrap();
        let (peer, cell) = replies.get(&self.id())?.last()?;
        assert_eq!(peer.as_bytes(), &self.peer, "the reply went to the rotating peer");
        Some(SshAccessReceipt::unseal_with(cell, &self.receiver, &scope().seal_context(self.id())).unwrap())
    }

    /// Byte strings that identify this requester.
    pub(crate) fn marks(&self) -> Vec<Vec<u8>> {
        let raw = [self.peer, *self.receiver.public().as_bytes()];
        let hex = raw.iter().map(|bytes| hex::encode(bytes).into_bytes());
        let pointer = self.envelope.workload.image_pointer.clone();
        raw.iter()
            .map(|bytes| bytes.to_vec())
            .chain(hex)
            .chain([pointer, b"a-requester-private-value".to_vec()])
            .collect()
    }
}

/// The way to requesters and back, in memory.
#[derive(Default)]
pub(crate) struct MemoryChannel {
    pub(crate) envelopes: Mutex<BTreeMap<RequestId, Envelope>>,
    pub(crate) replies: Mutex<BTreeMap<RequestId, Vec<(RotatingPeer, ReplyCell)>>>,
    pub(crate) broken: Mutex<bool>,
}

#[async_trait]
impl RequestOpener for MemoryChannel {
    fn scope(&self) -> CellScope {
        scope()
    }

    async fn open(&self, request: RequestId, _cell: CellId, _deadline: Duration) -> Result<Envelope, OpenError> {
        let found = self.envelopes.lock().unwrap().get(&request).cloned();
        found.ok_or_else(|| OpenError::Unavailable("0 of 2 members needed helped".into()))
    }
}

#[async_trait]
impl ReplySender for MemoryChannel {
    async fn send(
        &self,
        to: RotatingPeer,
        request: RequestId,
        reply: &ReplyCell,
        _deadline: Duration,
    ) -> Result<(), String> {
        if *self.broken.lock().unwrap() {
            return Err("no member helped".into());
        }
        self.replies.lock().unwrap().entry(request).or_default().push((to, reply.clone()));
        Ok(())
    }
}

pub(crate) fn nothing_earned() -> Earnings {
    Earnings { grants_logged: 0, usage: UsageMetrics::default(), revenue: MicroUsd::ZERO }
}
