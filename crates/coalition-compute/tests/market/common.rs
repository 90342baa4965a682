//! A market in memory: one machine, its log, its clock, and people who sign things.

use coalition::{AlmanacRange, AlmanacTick, ProviderId, RateQ64, RequestId, UniqueId};
use coalition_compute::sign::Signed;
use coalition_compute::*;
use coalition_log::{Context, Draft, Entry, Machine, Refusal};
use ed25519_dalek::SigningKey;

pub(crate) const CADENCE_MS: u32 = 1_000;
pub(crate) const START_MS: u64 = 1_700_000_000_000;

pub(crate) fn organism() -> UniqueId {
    UniqueId::hash(b"test compute organism")
}

pub(crate) fn params() -> ComputeParams {
    ComputeParams {
        card_max_age_ticks: 60,
        grant_grace_ticks: 10,
        max_deadline_ticks: 1_000,
        max_duration_sec: 3_600,
        max_attempts: 3,
        ..ComputeParams::standard(CADENCE_MS)
    }
}

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub(crate) fn provider_id(seed: u8) -> ProviderId {
    ProviderId::from_public_key(&key(seed).verifying_key().to_bytes())
}

pub(crate) fn rate(text: &str) -> RateQ64 {
    text.parse().unwrap()
}

pub(crate) fn offer(name: &str, region: &str, cores: u32, core_hour: &str) -> Offer {
    Offer {
        name: name.parse().unwrap(),
        capabilities: Capabilities {
            regions: vec![region.parse().unwrap()],
            tdx_capable: false,
            mrtds: vec![],
            max_cpu_millicores: cores * 1_000,
            max_ram_mib: cores * 1_024,
            max_instances: cores,
            instance_cpu_millicores: cores * 1_000,
            instance_ram_mib: cores * 1_024,
        },
        declared_rates: DeclaredRates { core_hour: rate(core_hour), gib_hour: rate("0") },
    }
}

pub(crate) fn card(seed: u8, tick: u64, offers: Vec<Offer>) -> ProviderCard {
    ProviderCard {
        provider_id: provider_id(seed),
        provider_peer: [seed; 32],
        shuffle_reply: UniqueId::hash(&[seed]),
        offers,
        attestation: None,
        refreshed_at: AlmanacTick(tick),
    }
}

pub(crate) fn sign<T: Statement>(statement: T, seed: u8) -> Signed<T> {
    Signed::sign(statement, &key(seed), &organism()).unwrap()
}

/// A one-core request under the key `seed`, good everywhere, priced to accept anything reasonable.
pub(crate) fn request(seed: u8, nonce: u8, deadline: u64) -> ComputeRequest {
    let signer = key(seed).verifying_key().to_bytes();
    let nonce = [nonce; 16];
    ComputeRequest {
        request_id: request_id(&organism(), &signer, &nonce),
        nonce,
        requester: anonymous_requester(&signer),
        workload: UniqueId::hash(b"workload"),
        pin: None,
        image_hash: UniqueId::hash(b"image"),
        cpu_millicores: 1_000,
        ram_mib: 256,
        duration_sec: 60,
        region: None,
        tdx_required: false,
        pinned_mrtd: None,
        max_rate: rate("1"),
        settlement: UniqueId::hash(b"settlement"),
        deadline: AlmanacTick(deadline),
        bearer_pointer: UniqueId::hash(b"envelope"),
    }
}

pub(crate) fn post(seed: u8, sequence: u64, card: ProviderCard) -> Command {
    Command::RegisterCard(sign(PostCard { sequence, card }, seed))
}

pub(crate) fn submit(request: ComputeRequest, seed: u8) -> Command {
    Command::SubmitRequest(sign(request, seed))
}

pub(crate) fn log(id: RequestId, seed: u8, number: u32, window: (u64, u64), ended: Option<LogEnd>) -> Command {
    let statement = ComputeLog {
        grant_id: id,
        provider: provider_id(seed),
        number,
        window: AlmanacRange { from: AlmanacTick(window.0), to: AlmanacTick(window.1) },
        usage: UsageMetrics { cpu_core_seconds: 7, ram_mib_seconds: 11, net_bytes: 13 },
        evidence: None,
        ended,
    };
    Command::AppendLog(sign(statement, seed))
}

pub(crate) fn refuse(id: RequestId, seed: u8) -> Command {
    let reason = RefusalReason::NoCapacity;
    Command::RefuseGrant(sign(RefuseGrant { grant_id: id, provider: provider_id(seed), reason }, seed))
}

pub(crate) fn serve(id: RequestId, seed: u8) -> Command {
    Command::ServeGrant(sign(ServeGrant { grant_id: id, provider: provider_id(seed) }, seed))
}

pub(crate) fn end(id: RequestId, seed: u8) -> Command {
    Command::EndGrant(sign(EndGrant { grant_id: id }, seed))
}

pub(crate) fn withdraw(id: RequestId, seed: u8) -> Command {
    Command::WithdrawRequest(sign(WithdrawRequest { request_id: id }, seed))
}

pub(crate) fn extend(id: RequestId, seed: u8, number: u32, extra_sec: u32) -> Command {
    let settlement = UniqueId::hash(b"more settlement");
    Command::ExtendGrant(sign(ExtendGrant { grant_id: id, number, extra_sec, settlement }, seed))
}

fn answer(id: RequestId, seed: u8, number: u32, answer: ExtensionAnswer) -> Command {
    let provider = provider_id(seed);
    Command::AnswerExtension(sign(AnswerExtension { grant_id: id, provider, number, answer }, seed))
}

/// Acceptance of an extension by `extra_sec`, whatever was asked for.
pub(crate) fn accept(sim: &Sim, id: RequestId, seed: u8, number: u32, extra_sec: u32) -> Command {
    let longer = sim.grant(id).grant.extended(extra_sec, sim.machine.state().params());
    let accepted = ExtensionAnswer::Accepted { valid_to: longer.valid_to, valid_to_ms: longer.valid_to_ms };
    answer(id, seed, number, accepted)
}

pub(crate) fn decline(id: RequestId, seed: u8, number: u32) -> Command {
    answer(id, seed, number, ExtensionAnswer::Declined(DeclineReason::CannotExtend))
}

pub(crate) fn report(id: RequestId, seed: u8, number: u32, cpu_core_ms: u64) -> Command {
    let source = CounterSource::Proc;
    let statement =
        ReportUsage { grant_id: id, number, measured_ms: START_MS, cpu_core_ms, ram_mib: 5, net_bytes: None, source };
    Command::ReportUsage(sign(statement, seed))
}

/// An inventory of now that says these grants are open.
pub(crate) fn inventory(sim: &Sim, seed: u8, open: &[RequestId]) -> Command {
    let provider = provider_id(seed);
    let from = sim.machine.state().inventory(&provider).map_or(AlmanacTick(0), |last| last.stated.window.to);
    let statement = StateInventory {
        provider,
        as_of: sim.entries.len() as u64 - 1,
        window: AlmanacRange { from, to: AlmanacTick(sim.cx.tick) },
        open: u32::try_from(open.len()).unwrap(),
        grants: open_grants_digest(open.iter().copied()),
        owned: 1,
        adopted: 0,
        orphaned: 0,
        blind: 0,
    };
    Command::StateInventory(sign(statement, seed))
}

/// Executes batches as a committee's host does.
pub(crate) struct Sim {
    pub(crate) machine: ComputeMachine,
    pub(crate) entries: Vec<Entry>,
    pub(crate) cx: Context,
    pub(crate) view: MarketView,
}

impl Sim {
    pub(crate) fn new() -> Self {
        Self::with(params())
    }

    pub(crate) fn with(params: ComputeParams) -> Self {
        let machine = ComputeMachine::new(organism(), params.clone()).unwrap();
        let view = MarketView::new(organism(), params);
        Self { machine, entries: vec![], cx: Context { height: 1, time_ms: START_MS, tick: 100 }, view }
    }

    pub(crate) fn at(&self) -> At {
        At { tick: self.cx.tick, time_ms: self.cx.time_ms }
    }

    fn commit(&mut self, drafts: Vec<Draft>) {
        for draft in drafts {
            let entry = draft.into_entry(self.entries.len() as u64, Some(self.cx.tick), self.cx.time_ms);
            entry.check().unwrap();
            self.machine.evolve(&entry);
            self.view.apply(&entry).unwrap();
            self.entries.push(entry);
        }
    }

    /// One batch of commands; each one's outcome.
    pub(crate) fn batch(&mut self, commands: &[Command]) -> Vec<Result<(), Refusal>> {
        let bytes: Vec<_> = commands.iter().map(Command::to_bytes).collect();
        self.batch_bytes(&bytes)
    }

    pub(crate) fn batch_bytes(&mut self, commands: &[Vec<u8>]) -> Vec<Result<(), Refusal>> {
        self.cx.height += 1;
        let mut outcomes = vec![];
        for command in commands {
            outcomes.push(self.machine.decide(&self.cx, command).map(|drafts| self.commit(drafts)));
        }
        for round in 0.. {
            assert!(round < 100, "round() does not come to an end");
            let Some(drafts) = self.machine.round(&self.cx) else { break };
            assert!(!drafts.is_empty(), "round() must answer None instead of nothing");
            self.commit(drafts);
        }
        assert!(self.machine.fault().is_none(), "{:?}", self.machine.fault());
        outcomes
    }

    pub(crate) fn ok(&mut self, command: Command) {
        self.batch(&[command]).remove(0).unwrap();
    }

    /// The code with which a command is refused.
    pub(crate) fn refused(&mut self, command: &Command) -> String {
        let before = (self.entries.len(), self.machine.state().clone());
        let outcome = self.machine.decide(&self.cx, &command.to_bytes());
        assert_eq!(before, (self.entries.len(), self.machine.state().clone()));
        let refusal = outcome.expect_err("the command should be refused");
        assert!(refusal.message.len() > 10, "{refusal:?}");
        refusal.code
    }

    /// Lets time pass, ticks with it, and runs an empty batch.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.cx.time_ms += ms;
        self.cx.tick = 100 + (self.cx.time_ms - START_MS) / u64::from(CADENCE_MS);
        self.batch(&[]);
    }

    pub(crate) fn kinds(&self) -> Vec<&str> {
        self.entries.iter().map(|entry| entry.kind.as_str()).collect()
    }

    pub(crate) fn grant(&self, id: RequestId) -> &GrantRecord {
        &self.machine.state().grants()[&id]
    }

    /// Replays the whole log as an auditor, and checks that the fold of the log is the live state.
    pub(crate) fn audit(&self) -> ReplayReport {
        let mut folded = MarketState::new(organism(), self.machine.state().params().clone(), Retention::MACHINE);
        for entry in &self.entries {
            folded.apply(entry).unwrap();
        }
        assert_eq!(&folded, self.machine.state(), "the state is the fold of the log");
        replay(organism(), self.machine.state().params(), &self.entries).unwrap()
    }
}
