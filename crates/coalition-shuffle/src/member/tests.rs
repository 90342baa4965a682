//! A member alone, and a committee of them with provider and requester, including under arbitrary commands.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::cell::SealedRequest;
use crate::client::{ClientError, PendingRequest, Progress, ShareCollector};
use crate::envelope::tests::sample;
use crate::keys::DealerOutput;
use crate::receipt::tests::sample as sample_receipt;
use crate::testing::SeededRng;

const NOW: u64 = 1_000_000;
const PROVIDER: [u8; 32] = [0xbb; 32];

fn scope() -> CellScope {
    CellScope { coalition: UniqueId::from_u8(1), compute: UniqueId::from_u8(2) }
}

fn request(n: u8) -> RequestId {
    RequestId(UniqueId::from_u8(n))
}

fn peer(n: u8) -> RotatingPeer {
    RotatingPeer::from_bytes([n; 32])
}

fn limits() -> MemberLimits {
    MemberLimits {
        max_cells: 5,
        max_cells_per_peer: 2,
        cell_ttl_ms: 1_000,
        max_replies: 4,
        max_replies_per_grant: 2,
        reply_ttl_ms: 800,
        max_hold_ms: 5_000,
        window_ms: 100,
        max_submissions_per_window: 3,
        max_peers_per_window: 3,
    }
}

fn grant(n: u8, cell: CellId) -> GrantAuthorization {
    GrantAuthorization {
        request_id: request(n),
        provider: ProviderId::from_public_key(&PROVIDER),
        bearer_pointer: cell.0,
        valid_to_ms: NOW + 3_000,
        provider_peer: PROVIDER,
    }
}

struct World {
    dealt: DealerOutput,
    rng: SeededRng,
    member: Member,
}

impl World {
    fn new(seed: &str) -> Self {
        let mut rng = SeededRng::new(seed);
        let dealt = DealerOutput::deal(2, 3, &mut rng).unwrap();
        let member = Member::new(dealt.params.clone(), dealt.shares[0].clone(), scope(), limits()).unwrap();
        Self { dealt, rng, member }
    }

    fn cell(&mut self, n: u8) -> RequestCell {
        SealedRequest::build(&sample(), &self.dealt.params, &scope(), request(n), &mut self.rng).unwrap().cell
    }

    fn submit(&mut self, at: u64, from: u8, cell: &RequestCell) -> Result<Outcome, Refusal> {
        let command = Command::SubmitCell { from_peer: peer(from), cell: cell.as_bytes().to_vec() };
        self.member.apply(at, &command, &mut self.rng)
    }

    fn share(&mut self, at: u64, caller: [u8; 32], id: CellId, grant: GrantAuthorization) -> Result<Outcome, Refusal> {
        self.member.apply(at, &Command::RequestShare { caller, cell_id: id, grant }, &mut self.rng)
    }

    fn post(
        &mut self,
        at: u64,
        caller: [u8; 32],
        grant: GrantAuthorization,
        to: u8,
        fill: u8,
    ) -> Result<Outcome, Refusal> {
        let mut cell = vec![fill; CELL_BYTES];
        cell[0] = 1;
        self.member.apply(at, &Command::PostReply { caller, grant, to: peer(to), cell }, &mut self.rng)
    }

    fn fetch(&mut self, at: u64, from: u8, n: u8) -> Vec<PendingReply> {
        match self.member.apply(at, &Command::FetchReply { peer: peer(from), request_id: request(n) }, &mut self.rng) {
            Ok(Outcome::Replies(replies)) => replies,
            other => panic!("{other:?}"),
        }
    }

    fn acknowledge(&mut self, at: u64, from: u8, n: u8, reply: UniqueId) -> bool {
        let command = Command::AckReply { peer: peer(from), request_id: request(n), reply };
        self.member.apply(at, &command, &mut self.rng) == Ok(Outcome::Acknowledged(true))
    }
}

/// Requester, three members of whom one is down, provider, and the way back: only public messages cross.
#[test]
fn a_request_and_its_receipt_cross_a_committee_with_one_member_down() {
    let mut rng = SeededRng::new("whole way");
    let DealerOutput { params, shares } = DealerOutput::deal(2, 3, &mut rng).unwrap();
    let mut members: Vec<Member> = shares
        .into_iter()
        .map(|key| Member::new(params.clone(), key, scope(), MemberLimits::default()).unwrap())
        .collect();
    let workload = sample().workload.clone();
    let pending = PendingRequest::build(&workload, peer(9), &params, scope(), request(3), &mut rng).unwrap();
    let pending = PendingRequest::from_secret_bytes(&pending.to_secret_bytes()).unwrap();
    for member in &mut members {
        let command = Command::SubmitCell { from_peer: peer(9), cell: pending.cell().as_bytes().to_vec() };
        member.apply(NOW, &command, &mut rng).unwrap();
    }
    members.remove(1);

    let grant = grant(3, pending.cell_id());
    let mut collector = ShareCollector::new(params, scope(), request(3), pending.cell_id());
    assert_eq!(collector.open(), Err(ClientError::Waiting { have: 0, need: 2 }));
    for member in &mut members {
        let command = Command::RequestShare { caller: PROVIDER, cell_id: pending.cell_id(), grant };
        let Outcome::Share(release) = member.apply(NOW, &command, &mut rng).unwrap() else { panic!("no share") };
        let index = member.index();
        collector.add(index, &release).unwrap();
        collector.add(index, &release).unwrap();
    }
    assert_eq!(collector.progress(), Progress::Ready);
    let envelope = collector.open().unwrap();
    assert_eq!((envelope.peer_id, &envelope.workload), (peer(9), &workload));

    let receipt = sample_receipt(request(3));
    let reply = receipt.seal_to(&envelope.peer_x25519, &scope().seal_context(request(3)), &mut rng).unwrap();
    for member in &mut members {
        let cell = reply.as_bytes().to_vec();
        let command = Command::PostReply { caller: PROVIDER, grant, to: envelope.peer_id, cell };
        member.apply(NOW, &command, &mut rng).unwrap();
        let fetch = Command::FetchReply { peer: peer(9), request_id: request(3) };
        let Outcome::Replies(replies) = member.apply(NOW, &fetch, &mut rng).unwrap() else { panic!("no reply") };
        assert_eq!(replies.len(), 1);
        assert_eq!(pending.open_reply(&replies[0].cell).unwrap(), receipt);
    }
}

#[test]
fn a_share_is_released_to_the_named_provider_only() {
    let mut world = World::new("release");
    let cell = world.cell(3);
    let id = cell.id();
    assert_eq!(world.share(NOW, PROVIDER, id, grant(3, id)), Err(Refusal::UnknownCell { cell: id }));
    world.submit(NOW, 1, &cell).unwrap();
    let refused = world.share(NOW, [1; 32], id, grant(3, id));
    assert_eq!(refused, Err(Refusal::NotTheProvider { grant: request(3) }));
    let other = CellId(UniqueId::from_u8(77));
    let refused = world.share(NOW, PROVIDER, id, grant(3, other));
    assert_eq!(refused, Err(Refusal::NotUnderGrant { grant: request(3), cell: id }));
    let over = world.share(NOW + 3_000, PROVIDER, id, grant(3, id));
    assert_eq!(over, Err(Refusal::GrantExpired { grant: request(3), ended_at_ms: NOW + 3_000 }));
}

/// Somebody copies the bearer pointer out of the public log into a request of its own, and lets its own bridge win.
#[test]
fn a_copied_bearer_pointer_opens_nothing() {
    let mut world = World::new("copied");
    let cell = world.cell(3);
    let id = cell.id();
    world.submit(NOW, 1, &cell).unwrap();
    let refused = world.share(NOW, PROVIDER, id, grant(4, id));
    assert_eq!(refused, Err(Refusal::NotUnderGrant { grant: request(4), cell: id }));
    assert!(world.share(NOW, PROVIDER, id, grant(3, id)).is_ok());
}

#[test]
fn a_released_share_is_the_same_again_and_its_cell_is_held_while_the_grant_lives() {
    let mut world = World::new("again");
    let cell = world.cell(3);
    let id = cell.id();
    world.submit(NOW, 1, &cell).unwrap();
    let first = world.share(NOW + 900, PROVIDER, id, grant(3, id)).unwrap();
    assert_eq!(world.share(NOW + 2_999, PROVIDER, id, grant(3, id)).unwrap(), first);
    world.member.sweep(NOW + 3_000);
    assert_eq!(world.member.stats().cells, 0);
}

#[test]
fn submissions_are_limited_deduplicated_and_forgotten() {
    let mut world = World::new("limits");
    let cells: Vec<RequestCell> = (0..6).map(|n| world.cell(n)).collect();
    let held =
        |already_held| Ok(Outcome::Held(Submission { cell: cells[0].id(), expires_at_ms: NOW + 1_000, already_held }));
    assert_eq!(world.submit(NOW, 1, &cells[0]), held(false));
    assert_eq!(world.submit(NOW, 2, &cells[0]), held(true));
    world.submit(NOW, 1, &cells[1]).unwrap();
    assert_eq!(world.submit(NOW, 1, &cells[2]), Err(Refusal::TooManyCells { max: 2 }));
    assert_eq!(world.submit(NOW + 1, 1, &cells[2]), Err(Refusal::TooManySubmissions { retry_ms: 99 }));
    world.submit(NOW, 3, &cells[2]).unwrap();
    assert_eq!(world.submit(NOW, 4, &cells[3]), Err(Refusal::Busy { retry_ms: 99 }));
    world.submit(NOW + 100, 4, &cells[3]).unwrap();
    world.submit(NOW + 100, 4, &cells[4]).unwrap();
    assert_eq!(world.submit(NOW + 100, 5, &cells[5]), Err(Refusal::StoreFull { max: 5 }));
    assert_eq!(world.member.next_expiry_ms(), Some(NOW + 1_000));
    world.submit(NOW + 1_000, 1, &cells[5]).unwrap();
    // The first two have expired; the third came when the clock stood at NOW + 1.
    assert_eq!(world.member.stats(), MemberStats { cells: 4, replies: 0, window_peers: 1 });
}

#[test]
fn invalid_cells_are_refused() {
    let mut world = World::new("invalid");
    let good = world.cell(3);
    let elsewhere = CellScope { coalition: UniqueId::from_u8(8), ..scope() };
    let params = world.dealt.params.clone();
    let foreign = SealedRequest::build(&sample(), &params, &elsewhere, request(3), &mut world.rng).unwrap();
    assert_eq!(world.submit(NOW, 1, &foreign.cell), Err(Refusal::InvalidCell));
    let mut changed = good.as_bytes().to_vec();
    *changed.last_mut().unwrap() ^= 1;
    for cell in [changed, vec![], vec![1; CELL_BYTES]] {
        let command = Command::SubmitCell { from_peer: peer(2), cell };
        assert_eq!(world.member.apply(NOW, &command, &mut world.rng), Err(Refusal::InvalidCell));
    }
    assert_eq!(world.member.stats().cells, 0);
}

#[test]
fn replies_reach_their_peer_only_and_once() {
    let mut world = World::new("replies");
    let grant = grant(3, CellId(UniqueId::from_u8(50)));
    let Ok(Outcome::Posted(id)) = world.post(NOW, PROVIDER, grant, 1, 7) else { panic!("not posted") };
    assert!(world.fetch(NOW, 2, 3).is_empty(), "another peer");
    assert!(world.fetch(NOW, 1, 4).is_empty(), "another request");
    assert_eq!(world.fetch(NOW, 1, 3).len(), 1);
    assert_eq!(world.fetch(NOW, 1, 3)[0].id, id, "until acknowledged, an answer lost on the way can be had again");
    assert!(!world.acknowledge(NOW, 2, 3, id), "another peer");
    assert!(world.acknowledge(NOW, 1, 3, id));
    assert!(!world.acknowledge(NOW, 1, 3, id));
    assert_eq!(world.post(NOW, PROVIDER, grant, 1, 7), Ok(Outcome::Posted(id)), "a retry of the provider");
    assert!(world.fetch(NOW, 1, 3).is_empty(), "and it does not come back");
    assert_eq!(world.member.stats().replies, 1);
    world.member.sweep(NOW + 800);
    assert_eq!(world.member.stats().replies, 0);
}

#[test]
fn replies_are_limited_and_need_a_grant() {
    let mut world = World::new("reply limits");
    let cell = CellId(UniqueId::from_u8(50));
    let refused = world.post(NOW, [3; 32], grant(3, cell), 1, 1);
    assert_eq!(refused, Err(Refusal::NotTheProvider { grant: request(3) }));
    let refused = world.post(NOW + 3_000, PROVIDER, grant(3, cell), 1, 1);
    assert!(matches!(refused, Err(Refusal::GrantExpired { .. })));
    let mut world = World::new("reply limits");
    for fill in [1, 2] {
        world.post(NOW, PROVIDER, grant(3, cell), 1, fill).unwrap();
    }
    assert_eq!(world.post(NOW, PROVIDER, grant(3, cell), 1, 3), Err(Refusal::TooManyReplies { max: 2 }));
    for fill in [1, 2] {
        world.post(NOW, PROVIDER, grant(4, cell), 1, fill).unwrap();
    }
    assert_eq!(world.post(NOW, PROVIDER, grant(5, cell), 1, 1), Err(Refusal::StoreFull { max: 4 }));
    let short = Command::PostReply { caller: PROVIDER, grant: grant(3, cell), to: peer(1), cell: vec![1; 10] };
    assert_eq!(world.member.apply(NOW, &short, &mut world.rng), Err(Refusal::InvalidReply));
}

#[test]
fn a_successor_takes_over_cells_without_their_senders() {
    let mut world = World::new("successor");
    let cells: Vec<RequestCell> = (1..3).map(|n| world.cell(n)).collect();
    world.submit(NOW, 1, &cells[0]).unwrap();
    world.submit(NOW + 200, 1, &cells[1]).unwrap();
    let exported: Vec<(u64, Vec<u8>)> = world.member.export_cells().map(|(at, cell)| (at, cell.to_vec())).collect();
    let mut successor = World::new("successor");
    for (at, bytes) in &exported {
        successor.member.restore_cell(NOW + 1_100, *at, bytes).unwrap();
        successor.member.restore_cell(NOW + 1_100, *at, bytes).unwrap();
    }
    assert_eq!(successor.member.stats().cells, 1, "the other one has expired meanwhile");
    assert!(successor.share(NOW + 1_150, PROVIDER, cells[1].id(), grant(2, cells[1].id())).is_ok());
    let damaged = [exported[0].1.as_slice(), b"x"].concat();
    assert_eq!(successor.member.restore_cell(NOW, NOW + 9_000, &damaged), Err(Refusal::InvalidCell));
}

#[test]
fn a_clock_that_runs_backwards_revives_nothing() {
    let mut world = World::new("clock");
    let cell = world.cell(3);
    world.submit(NOW, 1, &cell).unwrap();
    world.member.sweep(NOW + 4_000);
    let refused = world.share(NOW, PROVIDER, cell.id(), grant(3, cell.id()));
    assert!(matches!(refused, Err(Refusal::GrantExpired { .. })), "{refused:?}");
}

#[test]
fn keys_and_limits_are_checked_at_the_start() {
    let world = World::new("start");
    let other = World::new("other start");
    let params = world.dealt.params.clone();
    let foreign = Member::new(params.clone(), other.dealt.shares[0].clone(), scope(), limits());
    assert!(matches!(foreign, Err(MemberError::Key(_))));
    let none = MemberLimits { window_ms: 0, ..limits() };
    let refused = Member::new(params, world.dealt.shares[0].clone(), scope(), none);
    assert_eq!(refused.unwrap_err(), MemberError::Limits(ZeroLimit("window_ms")));
}

#[test]
fn nothing_for_people_names_a_peer() {
    let mut world = World::new("log");
    let cell = world.cell(3);
    let refusals = [
        world.submit(NOW, 0xee, &cell).err(),
        world.share(NOW, [0xee; 32], cell.id(), grant(3, cell.id())).err(),
        world.post(NOW, [0xee; 32], grant(3, cell.id()), 0xee, 1).err(),
    ];
    world.post(NOW, PROVIDER, grant(3, cell.id()), 0xee, 1).unwrap();
    let submit = Command::SubmitCell { from_peer: peer(0xee), cell: vec![] };
    let text = format!("{refusals:?} {:?} {:?} {:?} {:?}", world.member, world.member.stats(), submit, peer(0xee));
    let shown = refusals.iter().flatten().map(ToString::to_string).collect::<String>() + &text;
    assert!(!shown.contains("eeee") && !shown.contains("238, 238"), "{shown}");
}

#[test]
fn a_collector_names_culprits_and_survives_them() {
    let mut world = World::new("culprits");
    let cell = world.cell(3);
    let id = cell.id();
    world.submit(NOW, 1, &cell).unwrap();
    let Ok(Outcome::Share(good)) = world.share(NOW, PROVIDER, id, grant(3, id)) else { panic!("no share") };
    let params = world.dealt.params.clone();
    let mut collector = ShareCollector::new(params.clone(), scope(), request(3), id);
    let other = ShareRelease { cell: world.cell(3).as_bytes().to_vec(), ..good.clone() };
    assert!(matches!(collector.add(2, &other), Err(ClientError::OtherCell { member: 2, .. })));
    let mut forged = good.clone();
    forged.share[0] = 3;
    assert!(matches!(collector.add(3, &forged), Err(ClientError::BadShare { member: 3, .. })));
    assert_eq!(collector.add(2, &good), Err(ClientError::OtherMember { member: 2, found: 1 }));
    let short = ShareRelease { share: vec![2], ..good.clone() };
    assert!(matches!(collector.add(2, &short), Err(ClientError::BadShare { member: 2, .. })));
    assert_eq!(collector.add(1, &good), Ok(Progress::Waiting { have: 1, need: 2 }));
    assert_eq!(collector.open(), Err(ClientError::Waiting { have: 1, need: 2 }));
    let ct = cell.verify(&params, &scope()).unwrap();
    let share = decrypt_share(&params, &world.dealt.shares[2], ct.ciphertext(), &mut world.rng).unwrap();
    let third = ShareRelease { share: share.to_bytes().to_vec(), ..good.clone() };
    assert_eq!(collector.add(3, &third), Ok(Progress::Ready));
    assert_eq!(collector.open().unwrap(), sample());
    let mut stranger = ShareCollector::new(params, scope(), request(4), id);
    assert!(matches!(stranger.add(1, &good), Err(ClientError::OtherRequest { .. })));
}

/// One step of an arbitrary history: time that passes, and a command made of small numbers so that they collide.
#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Submit { from: u8, cell: usize },
    Junk { from: u8 },
    Share { caller: u8, cell: usize, named: usize, request: u8, ends_in: u64 },
    Post { caller: u8, request: u8, to: u8, fill: u8 },
    Fetch { from: u8, request: u8 },
    Acknowledge { from: u8, request: u8, fill: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => (0u64..700).prop_map(Step::Wait),
        4 => (0u8..5, 0usize..8).prop_map(|(from, cell)| Step::Submit { from, cell }),
        1 => (0u8..5).prop_map(|from| Step::Junk { from }),
        4 => (0u8..2, 0usize..8, 0usize..16, 0u8..8, 0u64..2_000)
            .prop_map(|(caller, cell, named, request, ends_in)| {
                // Half of the grants name the cell, half of them the request it was made for.
                let named = if named < 8 { named } else { cell };
                let request = if request < 4 { request } else { u8::try_from(cell % 4).unwrap() };
                Step::Share { caller, cell, named, request, ends_in }
            }),
        3 => (0u8..2, 0u8..4, 0u8..3, 0u8..3).prop_map(|(caller, request, to, fill)| Step::Post { caller, request, to, fill }),
        3 => (0u8..3, 0u8..4).prop_map(|(from, request)| Step::Fetch { from, request }),
        2 => (0u8..3, 0u8..4, 0u8..3).prop_map(|(from, request, fill)| Step::Acknowledge { from, request, fill }),
    ];
    proptest::collection::vec(step, 0..120)
}

/// What the history must obey, kept apart from the machine: one reply from being posted until it expires.
#[derive(Default)]
struct Model {
    replies: BTreeMap<(u8, u8, Vec<u8>), Life>,
}

struct Life {
    posted_at: u64,
    acknowledged: bool,
}

impl Life {
    fn is_over(&self, now: u64) -> bool {
        now >= self.posted_at + limits().reply_ttl_ms
    }
}

fn reply_bytes(fill: u8) -> Vec<u8> {
    let mut bytes = vec![fill; CELL_BYTES];
    bytes[0] = 1;
    bytes
}

fn check_step(
    world: &mut World,
    cells: &[RequestCell],
    model: &mut Model,
    now: u64,
    step: &Step,
) -> Result<(), TestCaseError> {
    match *step {
        Step::Wait(_) => {}
        Step::Submit { from, cell } => {
            let _ = world.submit(now, from, &cells[cell]);
        }
        Step::Junk { from } => {
            let command = Command::SubmitCell { from_peer: peer(from), cell: vec![1; CELL_BYTES] };
            prop_assert!(world.member.apply(now, &command, &mut world.rng).is_err());
        }
        Step::Share { caller, cell, named, request: n, ends_in } => {
            let caller = if caller == 0 { PROVIDER } else { [caller; 32] };
            let shown = GrantAuthorization { valid_to_ms: now + ends_in, ..grant(n, cells[named].id()) };
            world.member.sweep(now);
            let held = world.member.cells.get(&cells[cell].id()).is_some();
            let released = world.share(now, caller, cells[cell].id(), shown);
            let entitled = caller == PROVIDER && cell == named && cells[cell].request() == request(n) && ends_in > 0;
            prop_assert_eq!(released.is_ok(), entitled && held, "{:?}", released);
        }
        Step::Post { caller, request: n, to, fill } => {
            let caller = if caller == 0 { PROVIDER } else { [caller; 32] };
            let shown = GrantAuthorization { valid_to_ms: now + 1_000, ..grant(n, cells[0].id()) };
            let posted = world.post(now, caller, shown, to, fill);
            prop_assert!(caller == PROVIDER || posted.is_err());
            if posted.is_ok() {
                let key = (to, n, reply_bytes(fill));
                if model.replies.get(&key).is_none_or(|life| life.is_over(now)) {
                    model.replies.insert(key, Life { posted_at: now, acknowledged: false });
                }
            }
        }
        Step::Fetch { from, request } => {
            for reply in world.fetch(now, from, request) {
                let life = model.replies.get(&(from, request, reply.cell));
                prop_assert!(life.is_some(), "a reply that was posted to somebody else");
                prop_assert!(life.is_some_and(|life| !life.acknowledged && !life.is_over(now)), "a reply came again");
            }
        }
        Step::Acknowledge { from, request, fill } => {
            let bytes = reply_bytes(fill);
            let was_waiting = world.acknowledge(now, from, request, UniqueId::hash(&bytes));
            let life = model.replies.get_mut(&(from, request, bytes)).filter(|life| !life.is_over(now));
            prop_assert_eq!(was_waiting, life.as_ref().is_some_and(|life| !life.acknowledged));
            if let Some(life) = life {
                life.acknowledged = true;
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn arbitrary_histories_release_nothing_wrong_and_stay_within_limits(steps in steps()) {
        let mut world = World::new("history");
        let cells: Vec<RequestCell> = (0..8).map(|n| world.cell(n % 4)).collect();
        let mut model = Model::default();
        let mut now = NOW;
        for step in &steps {
            if let Step::Wait(ms) = step {
                now += ms;
            }
            check_step(&mut world, &cells, &mut model, now, step)?;
            let MemberStats { cells, replies, window_peers } = world.member.stats();
            let max = limits();
            prop_assert!(cells <= max.max_cells && replies <= max.max_replies);
            prop_assert!(window_peers <= max.max_peers_per_window);
        }
        world.member.sweep(now + 10_000);
        prop_assert_eq!(world.member.stats().cells + world.member.stats().replies, 0);
        prop_assert_eq!(world.member.next_expiry_ms(), None);
    }
}
