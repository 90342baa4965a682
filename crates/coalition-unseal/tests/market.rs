//! The whole market over a real network: a card, a sealed request, a certified grant, a cell that only the provider
//! opens although a member is down, and a receipt that only the requester reads.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coalition::{AlmanacTick, ProviderId, PublishedConfig, RateQ64, RequestId, Roster, UniqueId};
use coalition_almanac::{AlmanacMachine, AlmanacParams, AlmanacTickBody, Observers, TICK_KIND};
use coalition_compute::{
    Capabilities, Command, ComputeGrant, ComputeMachine, ComputeParams, ComputeRequest, DeclaredRates, MarketView,
    Offer, PostCard, ProviderCard, Region, Signed, anonymous_requester, request_id,
};
use coalition_log::{Entry, Machine, state::STATE_EVERY};
use coalition_organism::{Follower, Organism, TicketSource, WriteError, random_write_id};
use coalition_shuffle::{
    CellScope, DealerOutput, Member, MemberLimits, PendingRequest, Posture, RotatingPeer, SshAccessReceipt, SshHostKey,
    WorkloadSpec,
};
use coalition_testkit::{Carried, Committee};
use coalition_tickets::{Bearer, Charter, Issuer, Nonce, Presentation, Resources, TicketValidator};
use coalition_universe::{Node, NodeKey};
use coalition_unseal::{CellStoreError, ShuffleClient, ShuffleError, UnsealMember};
use ed25519_dalek::SigningKey;
use futures::future::BoxFuture;
use rand_core::OsRng;

const SOON: Duration = Duration::from_secs(20);
const CADENCE_MS: u32 = 200;
const PEM: &[u8] = b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n";

fn compute_id() -> UniqueId {
    UniqueId::hash(b"compute")
}

fn scope() -> CellScope {
    CellScope { coalition: UniqueId::hash(b"test coalition"), compute: compute_id() }
}

fn tick_of(entry: &Entry) -> Option<u64> {
    let tick = (entry.kind == TICK_KIND).then(|| AlmanacTickBody::from_bytes(&entry.body).ok())??;
    Some(tick.seq)
}

async fn committee() -> Committee {
    committee_of(compute()).await
}

fn compute() -> Carried {
    Carried::new("compute", || ComputeMachine::new(compute_id(), ComputeParams::standard(CADENCE_MS)).unwrap())
}

async fn committee_of(compute: Carried) -> Committee {
    let id = UniqueId::hash(b"almanac");
    let almanac = move |roster: &Roster| {
        let keys = roster.members().iter().map(|member| member.checkpoint_key).collect();
        let params = AlmanacParams::new(CADENCE_MS).unwrap();
        Box::new(AlmanacMachine::new(params, id, Observers::Keys(keys))) as Box<dyn Machine>
    };
    let almanac = Carried {
        id,
        name: "almanac",
        machine: Box::new(almanac),
        clock: Some(tick_of),
        state_every: STATE_EVERY,
        predecessor: None,
        door: None,
    };
    Committee::start(4, vec![almanac, compute]).await
}

fn market() -> MarketView {
    MarketView::new(compute_id(), ComputeParams::standard(CADENCE_MS))
}

fn card(provider: &SigningKey, tick: AlmanacTick) -> ProviderCard {
    let public = provider.verifying_key().to_bytes();
    let capabilities = Capabilities {
        regions: vec!["local".parse::<Region>().unwrap()],
        tdx_capable: false,
        mrtds: vec![],
        max_cpu_millicores: 2_000,
        max_ram_mib: 1_024,
        max_instances: 4,
        instance_cpu_millicores: 2_000,
        instance_ram_mib: 1_024,
    };
    let rates = DeclaredRates { core_hour: "0.02".parse().unwrap(), gib_hour: RateQ64(0) };
    ProviderCard {
        provider_id: ProviderId(UniqueId::hash(&public)),
        provider_peer: public,
        shuffle_reply: UniqueId::hash(b"reply"),
        offers: vec![Offer { name: "baremetal".parse().unwrap(), capabilities, declared_rates: rates }],
        attestation: None,
        refreshed_at: tick,
    }
}

async fn write(compute: &Organism, command: Command) {
    compute.write(random_write_id(), command.to_bytes(), SOON).await.unwrap();
}

fn workload() -> WorkloadSpec {
    WorkloadSpec {
        image_hash: UniqueId::hash(b"image"),
        image_size_bytes: 5,
        requested_region: Some("local".into()),
        image_pointer: b"nowhere".to_vec(),
        cpu_millicores: 1_000,
        ram_mib: 256,
        disk_mib: 0,
        command: vec![],
        env: vec![],
        ssh_authorized_key: None,
    }
}

fn request(key: &SigningKey, nonce: [u8; 16], pending: &PendingRequest, deadline: AlmanacTick) -> ComputeRequest {
    let public = key.verifying_key().to_bytes();
    ComputeRequest {
        request_id: request_id(&compute_id(), &public, &nonce),
        nonce,
        requester: anonymous_requester(&public),
        workload: UniqueId::hash(b"workload"),
        pin: None,
        image_hash: UniqueId::hash(b"image"),
        cpu_millicores: 1_000,
        ram_mib: 256,
        duration_sec: 60,
        region: Some("local".parse().unwrap()),
        tdx_required: false,
        pinned_mrtd: None,
        max_rate: "0.05".parse().unwrap(),
        settlement: UniqueId::hash(b"none"),
        deadline,
        bearer_pointer: pending.cell_id().0,
    }
}

struct Unseal {
    nodes: Vec<Arc<Node>>,
    params: coalition_shuffle::PublicParams,
}

/// What an unseal committee has on its disks: key shares, and a directory for each member.
struct Disks {
    dealt: DealerOutput,
    dir: tempfile::TempDir,
}

impl Disks {
    fn new() -> Self {
        Self { dealt: DealerOutput::deal(2, 3, &mut OsRng).unwrap(), dir: tempfile::tempdir().unwrap() }
    }

    fn of(&self, member: usize) -> std::path::PathBuf {
        self.dir.path().join(member.to_string())
    }

    /// Everything on all disks.
    fn bytes(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for member in 0..self.dealt.shares.len() {
            for file in std::fs::read_dir(self.of(member)).unwrap() {
                let path = file.unwrap().path();
                all.extend(path.to_str().unwrap().as_bytes());
                all.extend(std::fs::read(path).unwrap());
            }
        }
        all
    }
}

impl Unseal {
    async fn start(committee: &Committee, disks: &Disks) -> Self {
        let mut nodes = Vec::new();
        for (i, share) in disks.dealt.shares.iter().enumerate() {
            let node = committee.client().await;
            let open = || {
                let follower = Follower::spawn(committee.organism(&node, "compute"), market());
                let params = disks.dealt.params.clone();
                let machine = Member::new(params, share.clone(), scope(), MemberLimits::default()).unwrap();
                UnsealMember::open(machine, follower, &disks.of(i))
            };
            // A predecessor's last call may still be running down.
            let deadline = tokio::time::Instant::now() + SOON;
            let member = loop {
                match open() {
                    Ok(member) => break member,
                    Err(CellStoreError::Busy(_)) if tokio::time::Instant::now() < deadline => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            node.serve(member.service());
            nodes.push(node);
        }
        Self { nodes, params: disks.dealt.params.clone() }
    }

    /// Every member ends without a word to anybody, all at once.
    async fn crash(self) {
        futures::future::join_all(self.nodes.iter().map(|node| node.stop())).await;
    }

    fn client(&self, node: &Arc<Node>) -> ShuffleClient {
        self.nodes.iter().for_each(|member| node.introduce(member.address()));
        let members = self.nodes.iter().map(|member| member.peer_id()).collect();
        ShuffleClient::new(Arc::clone(node), self.params.clone(), scope(), members)
    }
}

fn receipt(grant: RequestId) -> SshAccessReceipt {
    SshAccessReceipt {
        instance_host: "127.0.0.1".into(),
        instance_port: 2222,
        user: "root".into(),
        ssh_key_private: PEM.to_vec(),
        ssh_host_key: SshHostKey(SigningKey::from_bytes(&[1; 32]).verifying_key().to_bytes()),
        grant_id: grant,
        valid_to: AlmanacTick(99),
        isolation: "none, this is a test".into(),
        posture: Posture::NotAttested,
    }
}

/// A provider with a card in the market.
struct Provider {
    node: Arc<Node>,
    view: Follower<MarketView>,
}

impl Provider {
    /// One key for its node and its signatures.
    async fn start(committee: &Committee) -> Self {
        let key = SigningKey::from_bytes(&[42; 32]);
        let node = committee.client_with(NodeKey::from_bytes([42; 32])).await;
        let compute = committee.organism(&node, "compute");
        let post = PostCard { sequence: 1, card: card(&key, AlmanacTick(0)) };
        write(&compute, Command::RegisterCard(Signed::sign(post, &key, &compute_id()).unwrap())).await;
        Self { node, view: Follower::spawn(compute, market()) }
    }

    async fn granted(&self, id: RequestId) -> ComputeGrant {
        self.view.wait_for(SOON, |market| market.grant(&id).map(|record| record.grant.clone())).await.unwrap()
    }
}

/// A requester with everything made for this one request.
struct Requester {
    node: Arc<Node>,
    key: SigningKey,
    pending: PendingRequest,
}

const NONCE: [u8; 16] = [3; 16];

impl Requester {
    async fn seal(committee: &Committee, unseal: &Unseal) -> Self {
        let (node, key) = (committee.client().await, SigningKey::from_bytes(&[9; 32]));
        let id = request_id(&compute_id(), &key.verifying_key().to_bytes(), &NONCE);
        let peer = RotatingPeer::from_bytes(*node.peer_id().as_bytes());
        let pending = PendingRequest::build(&workload(), peer, &unseal.params, scope(), id, &mut OsRng).unwrap();
        Self { node, key, pending }
    }

    async fn order(&self, committee: &Committee) {
        let statement = request(&self.key, NONCE, &self.pending, AlmanacTick(10_000));
        let submit = Signed::sign(statement, &self.key, &compute_id()).unwrap();
        write(&committee.organism(&self.node, "compute"), Command::SubmitRequest(submit)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_request_reaches_the_winner_and_nobody_else() {
    let committee = committee().await;
    let disks = Disks::new();
    let unseal = Unseal::start(&committee, &disks).await;
    let provider = Provider::start(&committee).await;
    let requester = Requester::seal(&committee, &unseal).await;
    let (id, cell) = (requester.pending.request(), requester.pending.cell_id());
    let shuffle = unseal.client(&requester.node);
    assert_eq!(shuffle.submit_cell(requester.pending.cell(), SOON).await.unwrap().accepted, 3);

    // Before the grant, nobody opens it.
    let provider_side = unseal.client(&provider.node);
    let early = provider_side.open_cell(id, cell, Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(early, ShuffleError::TooFew { done: 0, need: 2, .. }), "{early}");

    requester.order(&committee).await;
    let grant = provider.granted(id).await;
    assert_eq!(grant.endpoint_hint.provider_peer, *provider.node.peer_id().as_bytes());

    // One member is down: any two suffice. A stranger gets nothing even now.
    unseal.nodes[0].stop().await;
    let envelope = provider_side.open_cell(id, cell, SOON).await.unwrap();
    assert_eq!(envelope.workload.image_hash, grant.image_hash);
    let stranger = unseal.client(&committee.client().await);
    let refused = stranger.open_cell(id, cell, Duration::from_secs(2)).await.unwrap_err().to_string();
    assert!(refused.contains("not the provider"), "{refused}");

    let reply = receipt(id).seal_to(&envelope.peer_x25519, &scope().seal_context(id), &mut OsRng).unwrap();
    assert_eq!(provider_side.post_reply(envelope.peer_id, id, &reply, SOON).await.unwrap(), 2);
    let got = shuffle.fetch_receipt(&requester.pending, SOON).await.unwrap();
    assert_eq!(got.ssh_key_private, PEM);
    assert_eq!(got.grant_id, id);
    drop((provider, requester));
    committee.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_accepted_before_every_member_crashed_is_opened_after() {
    let committee = committee().await;
    let disks = Disks::new();
    let unseal = Unseal::start(&committee, &disks).await;
    let provider = Provider::start(&committee).await;
    let requester = Requester::seal(&committee, &unseal).await;
    let submitted = unseal.client(&requester.node).submit_cell(requester.pending.cell(), SOON).await.unwrap();
    assert_eq!(submitted.accepted, 3);
    unseal.crash().await;

    // Nothing on the disks says who submitted it.
    let on_disk = disks.bytes();
    let contains = |mark: &[u8]| on_disk.windows(mark.len()).any(|window| window == mark);
    let peer = requester.node.peer_id();
    assert!(!contains(peer.as_bytes()) && !contains(peer.to_string().as_bytes()));
    assert!(contains(requester.pending.cell().as_bytes()), "the cell is there");

    let unseal = Unseal::start(&committee, &disks).await;
    requester.order(&committee).await;
    let grant = provider.granted(requester.pending.request()).await;
    let open = |unseal: &Unseal| {
        let (client, pending) = (unseal.client(&provider.node), &requester.pending);
        async move { client.open_cell(pending.request(), pending.cell_id(), SOON).await.unwrap() }
    };
    assert_eq!(open(&unseal).await.workload.image_hash, grant.image_hash);
    // Once more: after the shares went out, the cell is held until the grant ends.
    unseal.crash().await;
    let unseal = Unseal::start(&committee, &disks).await;
    assert_eq!(open(&unseal).await.workload.image_hash, grant.image_hash);
    drop((provider, requester));
    committee.stop().await;
}

/// Has a ticket issued whenever one is asked for.
struct Issued(Issuer);

impl TicketSource for Issued {
    fn present(&self, bearer: Bearer, _: Nonce) -> BoxFuture<'static, Result<Presentation, String>> {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let ticket = self.0.issue(&bearer, now_s, 60).map_err(|error| error.to_string());
        Box::pin(async move { Ok(Presentation::empty().with_issued(ticket?)) })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_market_with_access_rules_takes_the_cards_of_ticket_holders_alone() {
    let key = SigningKey::from_bytes(&[5; 32]);
    let charter = Charter::new(60, vec![key.verifying_key().to_bytes()]).unwrap();
    let config = PublishedConfig::builder("ours").ticket_issuer("issuer", vec![charter.rule()]).build().unwrap();
    let validator = TicketValidator::new().recognise_issuer(config.ticket_issuer_root().unwrap());
    let resources = Resources::new().with_issuer(&config, charter.clone()).unwrap();
    let committee = committee_of(compute().with_door(validator, resources)).await;

    let provider = SigningKey::from_bytes(&[42; 32]);
    let node = committee.client_with(NodeKey::from_bytes([42; 32])).await;
    let compute = committee.organism(&node, "compute");
    let post = PostCard { sequence: 1, card: card(&provider, AlmanacTick(0)) };
    let register = Command::RegisterCard(Signed::sign(post, &provider, &compute_id()).unwrap());
    let refused = compute.write(random_write_id(), register.to_bytes(), SOON).await.unwrap_err();
    assert!(matches!(&refused, WriteError::NotAdmitted { .. }), "{refused}");
    // Whoever comes without a ticket may look: nothing of the card was ordered.
    let view = Follower::spawn(compute.clone(), market());
    view.caught_up(SOON).await.unwrap();
    assert_eq!(view.read(|market| market.state().providers().len()), 0);

    let issuer = Issuer::of(&config, &charter, key).unwrap();
    write(&compute.showing(Arc::new(Issued(issuer))), register).await;
    view.wait_for(SOON, |market| (market.state().providers().len() == 1).then_some(())).await.unwrap();
    drop(view);
    committee.stop().await;
}
