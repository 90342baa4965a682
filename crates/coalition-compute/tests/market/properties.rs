//! Arbitrary command sequences and clocks: invariants checked after every entry, replay equality, determinism.

use std::collections::{BTreeMap, BTreeSet};

use coalition::{ProviderId, RequestId};
use coalition_compute::*;
use coalition_log::{Context, Entry, FromState, Machine, Persist};
use proptest::prelude::*;

use crate::common::*;

/// One step of a scenario; small numbers name people and things so that steps often meet.
#[derive(Clone, Debug)]
enum Step {
    Card { provider: u8, sequence: u8, age: u8, cores: u8, price: u8, tdx: bool },
    Leave { provider: u8, sequence: u8 },
    Ask { requester: u8, nonce: u8, cores: u8, price: u8, tdx: bool, duration: u8, deadline: u8 },
    Withdraw { requester: u8, nonce: u8 },
    End { requester: u8, nonce: u8 },
    Refuse { provider: u8, requester: u8, nonce: u8 },
    Serve { provider: u8, requester: u8, nonce: u8 },
    Log { provider: u8, requester: u8, nonce: u8, number: u8, last: bool },
    Extend { requester: u8, nonce: u8, number: u8, extra: u8 },
    Answer { provider: u8, requester: u8, nonce: u8, number: u8, accept: bool },
    Report { requester: u8, nonce: u8, number: u8 },
    Inventory { provider: u8, as_of: u8, from: u8, open: bool },
    Pass { ms: u32, ticks: bool },
    Junk(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let (p, r, n) = (1..4u8, 10..12u8, 0..6u8);
    prop_oneof![
        4 => (p.clone(), 0..40u8, 0..80u8, 0..4u8, 1..5u8, any::<bool>())
            .prop_map(|(provider, sequence, age, cores, price, tdx)| Step::Card { provider, sequence, age, cores, price, tdx }),
        1 => (p.clone(), 0..40u8).prop_map(|(provider, sequence)| Step::Leave { provider, sequence }),
        8 => (r.clone(), n.clone(), 0..4u8, 0..5u8, any::<bool>(), 0..200u8, 0..40u8).prop_map(
            |(requester, nonce, cores, price, tdx, duration, deadline)| Step::Ask { requester, nonce, cores, price, tdx, duration, deadline }
        ),
        2 => (r.clone(), n.clone()).prop_map(|(requester, nonce)| Step::Withdraw { requester, nonce }),
        2 => (r.clone(), n.clone()).prop_map(|(requester, nonce)| Step::End { requester, nonce }),
        3 => (p.clone(), r.clone(), n.clone()).prop_map(|(provider, requester, nonce)| Step::Refuse { provider, requester, nonce }),
        3 => (p.clone(), r.clone(), n.clone()).prop_map(|(provider, requester, nonce)| Step::Serve { provider, requester, nonce }),
        4 => (p.clone(), r.clone(), n.clone(), 0..4u8, any::<bool>())
            .prop_map(|(provider, requester, nonce, number, last)| Step::Log { provider, requester, nonce, number, last }),
        4 => (r.clone(), n.clone(), 0..4u8, any::<u8>())
            .prop_map(|(requester, nonce, number, extra)| Step::Extend { requester, nonce, number, extra }),
        4 => (p.clone(), r.clone(), n.clone(), 0..4u8, any::<bool>())
            .prop_map(|(provider, requester, nonce, number, accept)| Step::Answer { provider, requester, nonce, number, accept }),
        2 => (r, n, 0..4u8).prop_map(|(requester, nonce, number)| Step::Report { requester, nonce, number }),
        2 => (p, any::<u8>(), 0..200u8, any::<bool>())
            .prop_map(|(provider, as_of, from, open)| Step::Inventory { provider, as_of, from, open }),
        6 => (prop_oneof![0..200u32, 0..30_000u32, 0..600_000u32], any::<bool>()).prop_map(|(ms, ticks)| Step::Pass { ms, ticks }),
        1 => proptest::collection::vec(any::<u8>(), 0..200).prop_map(Step::Junk),
    ]
}

fn id_of(requester: u8, nonce: u8) -> RequestId {
    request(requester, nonce, 1).request_id
}

/// The command a step stands for; `None` for those that are not commands or that no honest client can sign.
fn command(step: &Step, sim: &Sim) -> Option<Vec<u8>> {
    let tick = sim.cx.tick;
    Some(match step {
        Step::Card { provider, sequence, age, cores, price, tdx } => {
            let mut posted = offer("local", "home-01", u32::from(*cores), &format!("0.0{price}"));
            posted.capabilities.tdx_capable = *tdx;
            posted.capabilities.mrtds = if *tdx { vec![coalition::Mrtd([7; 48])] } else { Vec::new() };
            let tick = tick.saturating_sub(u64::from(*age));
            post(*provider, u64::from(*sequence), card(*provider, tick, vec![posted])).to_bytes()
        }
        Step::Leave { provider, sequence } => {
            let statement = Deregister { sequence: u64::from(*sequence), provider: provider_id(*provider) };
            Command::DeregisterCard(sign(statement, *provider)).to_bytes()
        }
        Step::Ask { requester, nonce, cores, price, tdx, duration, deadline } => {
            let mut asked = request(*requester, *nonce, tick + u64::from(*deadline));
            asked.cpu_millicores = u32::from(*cores) * 1_000 + 1;
            asked.max_rate = rate(&format!("0.0{price}"));
            asked.tdx_required = *tdx;
            asked.duration_sec = u32::from(*duration);
            submit_signed(asked, *requester)?
        }
        Step::Withdraw { requester, nonce } => withdraw(id_of(*requester, *nonce), *requester).to_bytes(),
        Step::End { requester, nonce } => end(id_of(*requester, *nonce), *requester).to_bytes(),
        Step::Refuse { provider, requester, nonce } => refuse(id_of(*requester, *nonce), *provider).to_bytes(),
        Step::Serve { provider, requester, nonce } => serve(id_of(*requester, *nonce), *provider).to_bytes(),
        Step::Log { provider, requester, nonce, number, last } => {
            let ended = last.then_some(LogEnd::Exited);
            log(id_of(*requester, *nonce), *provider, u32::from(*number), (tick, tick), ended).to_bytes()
        }
        Step::Extend { requester, nonce, number, extra } => {
            extend(id_of(*requester, *nonce), *requester, u32::from(*number), u32::from(*extra).max(1)).to_bytes()
        }
        Step::Answer { provider, requester, nonce, number, accept: yes } => {
            let (id, number) = (id_of(*requester, *nonce), u32::from(*number));
            let waiting = sim.machine.state().grants().get(&id).and_then(|record| record.extras.waiting);
            match waiting.filter(|_| *yes) {
                Some(waiting) => accept(sim, id, *provider, number, waiting.extra_sec).to_bytes(),
                None => decline(id, *provider, number).to_bytes(),
            }
        }
        Step::Report { requester, nonce, number } => {
            report(id_of(*requester, *nonce), *requester, u32::from(*number), 1_000).to_bytes()
        }
        Step::Inventory { provider, as_of, from, open } => {
            let live = sim.machine.state().live_grants_of(provider_id(*provider)).map(|r| r.grant.request_id);
            let open: Vec<_> = live.filter(|_| *open).collect();
            let window =
                coalition::AlmanacRange::new(coalition::AlmanacTick(u64::from(*from)), coalition::AlmanacTick(tick));
            let stated = StateInventory {
                provider: provider_id(*provider),
                as_of: (sim.entries.len() as u64).saturating_sub(u64::from(*as_of) % 4),
                window,
                open: 0,
                grants: open_grants_digest(open),
                owned: 0,
                adopted: 0,
                orphaned: 0,
                blind: 0,
            };
            Command::StateInventory(sign(stated, *provider)).to_bytes()
        }
        Step::Pass { .. } => return None,
        Step::Junk(bytes) => bytes.clone(),
    })
}

fn submit_signed(asked: ComputeRequest, requester: u8) -> Option<Vec<u8>> {
    let signed = Signed::sign(asked, &key(requester), &organism()).ok()?;
    Some(Command::SubmitRequest(signed).to_bytes())
}

/// A second, simpler bookkeeping of the market, kept from the entries alone.
#[derive(Default)]
struct Ledger {
    cards: BTreeMap<ProviderId, (ProviderCard, Entry)>,
    asked: BTreeMap<RequestId, ComputeRequest>,
    live: BTreeMap<RequestId, ComputeGrant>,
    settled: BTreeSet<RequestId>,
    refused: BTreeSet<(RequestId, ProviderId)>,
    waiting: BTreeMap<RequestId, (u32, u32)>,
}

impl Ledger {
    fn check(&mut self, entry: &Entry) {
        match MarketEntry::decode(entry).unwrap().unwrap() {
            MarketEntry::Card(signed) => {
                let card = signed.statement.card;
                self.cards.insert(card.provider_id, (card, entry.clone()));
            }
            MarketEntry::CardRemoved(body) => assert!(self.cards.remove(&body.provider).is_some()),
            MarketEntry::Request(signed) => {
                let request = signed.statement;
                assert!(self.asked.insert(request.request_id, request).is_none(), "a request id is used once");
            }
            MarketEntry::Grant(grant) => self.check_grant(&grant, entry),
            MarketEntry::RequestEnded(body) => {
                assert!(!self.live.contains_key(&body.request_id));
                assert!(self.settled.insert(body.request_id), "one outcome per request");
            }
            MarketEntry::GrantEnded(body) => {
                let grant = self.live.remove(&body.grant_id).expect("only live grants end");
                self.waiting.remove(&body.grant_id);
                if matches!(body.reason, GrantEnd::NoLog | GrantEnd::NoFinalLog) {
                    assert!(entry.time_ms >= grant.valid_to_ms + 10 * u64::from(CADENCE_MS), "given up too early");
                }
                assert_eq!((grant.provider, grant.attempt), (body.provider, body.attempt));
                match body.reason {
                    GrantEnd::Refused(_) => {
                        self.refused.insert((body.grant_id, body.provider));
                    }
                    _ => assert!(self.settled.insert(body.grant_id), "one outcome per request"),
                }
            }
            MarketEntry::Log(body) => assert_eq!(body.late, !self.live.contains_key(&body.log.statement.grant_id)),
            MarketEntry::Clearing(_) | MarketEntry::GrantServing(_) | MarketEntry::GrantEnding(_) => {}
            MarketEntry::ExtensionAsked(signed) => {
                let ExtendGrant { grant_id, number, extra_sec, .. } = signed.statement;
                assert!(entry.time_ms < self.live[&grant_id].valid_to_ms, "asked when it was over");
                assert!(self.waiting.insert(grant_id, (number, extra_sec)).is_none(), "one waits at a time");
            }
            MarketEntry::ExtensionAnswered(signed) => self.check_answer(&signed.statement, entry),
            MarketEntry::Inventory(body) => {
                let stated = &body.stated.statement;
                let own = self.live.values().filter(|grant| grant.provider == stated.provider);
                let ids: Vec<RequestId> = own.map(|grant| grant.request_id).collect();
                assert_eq!(body.open as usize, ids.len());
                assert_eq!(body.agrees, open_grants_digest(ids) == stated.grants);
            }
            MarketEntry::UsageReport(signed) => {
                assert!(self.asked.contains_key(&signed.statement.grant_id), "of a request of this key");
            }
            MarketEntry::Challenge(_) | MarketEntry::Attestation(_) => unreachable!("this market asks for none"),
        }
    }

    fn check_answer(&mut self, given: &AnswerExtension, entry: &Entry) {
        let (number, extra_sec) = self.waiting.remove(&given.grant_id).expect("only what waits is answered");
        let grant = self.live.get_mut(&given.grant_id).expect("only live grants are extended");
        assert_eq!((given.number, given.provider), (number, grant.provider));
        assert!(entry.time_ms < grant.valid_to_ms, "answered when it was over");
        if let ExtensionAnswer::Accepted { valid_to, valid_to_ms } = given.answer {
            grant.duration_sec += extra_sec;
            grant.valid_to_ms += u64::from(extra_sec) * 1_000;
            assert_eq!(valid_to_ms, grant.valid_to_ms);
            assert_eq!(valid_to.0, grant.valid_from.0 + u64::from(grant.duration_sec), "a tick is a second here");
            assert!(grant.duration_sec <= params().max_duration_sec, "longer than the module grants");
        }
    }

    fn check_grant(&mut self, grant: &ComputeGrant, entry: &Entry) {
        let asked = &self.asked[&grant.request_id];
        let (card, posted) = &self.cards[&grant.provider];
        let offer = card.offer(&grant.offer).unwrap();
        assert!(!self.settled.contains(&grant.request_id) && !self.live.contains_key(&grant.request_id));
        assert!(!self.refused.contains(&(grant.request_id, grant.provider)), "never back to one that refused");
        assert!(grant.rate <= asked.max_rate, "above the cap");
        assert!(!asked.tdx_required, "nobody is attested here");
        assert!(asked.cpu_millicores <= offer.capabilities.instance_cpu_millicores, "unfit size");
        let (tick, max_age) = (entry.tick.unwrap(), u64::from(params().card_max_age_ticks));
        assert!(tick <= card.refreshed_at.0 + max_age, "stale by ticks");
        assert!(entry.time_ms <= posted.time_ms + max_age * u64::from(CADENCE_MS), "stale by time");
        assert!(tick < asked.deadline.0, "past the deadline");
        self.live.insert(grant.request_id, grant.clone());
        let on_offer = || self.live.values().filter(|g| g.provider == grant.provider && g.offer == grant.offer);
        let total = &offer.capabilities;
        assert!(on_offer().map(|g| u64::from(g.cpu_millicores)).sum::<u64>() <= u64::from(total.max_cpu_millicores));
        assert!(on_offer().map(|g| u64::from(g.ram_mib)).sum::<u64>() <= u64::from(total.max_ram_mib));
        assert!(on_offer().count() as u64 <= u64::from(total.max_instances));
    }
}

/// Runs a scenario, two steps to a batch, checking every entry as it is made.
fn run(steps: &[Step]) -> Sim {
    let mut sim = Sim::new();
    let mut ledger = Ledger::default();
    let mut checked = 0;
    for pair in steps.chunks(2) {
        for step in pair {
            if let Step::Pass { ms, ticks } = step {
                sim.cx.time_ms += u64::from(*ms);
                if *ticks {
                    sim.cx.tick = sim.cx.tick.max(100 + (sim.cx.time_ms - START_MS) / u64::from(CADENCE_MS));
                }
            }
        }
        let commands: Vec<_> = pair.iter().filter_map(|step| command(step, &sim)).collect();
        let _ = sim.batch_bytes(&commands);
        while let Some(entry) = sim.entries.get(checked) {
            ledger.check(entry);
            checked += 1;
        }
        check_live_state(&sim, &ledger);
    }
    sim
}

fn check_live_state(sim: &Sim, ledger: &Ledger) {
    let state = sim.machine.state();
    let live: BTreeSet<_> = state.live_grants().map(|record| record.grant.request_id).collect();
    assert_eq!(live, ledger.live.keys().copied().collect());
    assert!(
        state.live_grants().all(|record| record.grant == ledger.live[&record.grant.request_id]),
        "as long as extended"
    );
    for id in ledger.asked.keys() {
        let open = state.open_requests().any(|record| record.request().request_id == *id);
        let outcomes = usize::from(open)
            + usize::from(live.contains(id))
            + usize::from(ledger.settled.contains(id) || (!open && !live.contains(id)));
        assert_eq!(outcomes, 1, "open, live, or over");
    }
    for (id, record) in state.providers() {
        let count = state.live_grants().filter(|g| g.grant.provider == *id).count();
        assert_eq!(record.live as usize, count);
    }
    if let Some(wake) = sim.machine.wake_at_ms(&sim.cx) {
        assert!(wake > sim.cx.time_ms, "what is due now has been done now");
    }
}

fn settle(sim: &mut Sim) {
    for _ in 0..3 {
        sim.pass(3_700_000);
    }
    assert_eq!(sim.machine.state().open_count(), 0, "no request stays open for ever");
    assert_eq!(sim.machine.state().live_grants().count(), 0, "no grant stays live for ever");
    assert_eq!(sim.machine.wake_at_ms(&sim.cx), None, "an empty market sleeps");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_after_every_entry(steps in proptest::collection::vec(step(), 1..120)) {
        let mut sim = run(&steps);
        settle(&mut sim);
        sim.audit();
    }

    #[test]
    fn the_same_input_gives_the_same_bytes(steps in proptest::collection::vec(step(), 1..60)) {
        let (one, two) = (run(&steps), run(&steps));
        let bytes = |sim: &Sim| sim.entries.iter().map(|entry| entry.encode().unwrap()).collect::<Vec<_>>();
        prop_assert_eq!(bytes(&one), bytes(&two));
    }

    #[test]
    fn a_restart_in_the_middle_changes_nothing(steps in proptest::collection::vec(step(), 1..60), cut in 0..200usize) {
        let sim = run(&steps);
        let mut machine = ComputeMachine::new(organism(), params()).unwrap();
        for (position, entry) in sim.entries.iter().enumerate() {
            if position == cut {
                let mut restarted = ComputeMachine::new(organism(), params()).unwrap();
                sim.entries[..cut].iter().for_each(|entry| restarted.evolve(entry));
                prop_assert_eq!(restarted.state(), machine.state());
                machine = restarted;
            }
            machine.evolve(entry);
        }
        prop_assert_eq!(machine.state(), sim.machine.state());
        prop_assert_eq!(machine.round(&sim.cx), None);
    }

    #[test]
    fn a_restored_machine_is_the_machine(steps in proptest::collection::vec(step(), 1..60), cut in 0..200usize) {
        let sim = run(&steps);
        let cut = cut % (sim.entries.len() + 1);
        let fresh = || ComputeMachine::new(organism(), params()).unwrap();
        let mut before = fresh();
        sim.entries[..cut].iter().for_each(|entry| before.evolve(entry));
        let (mut restored, snapshot) = (fresh(), before.snapshot());
        restored.restore(&snapshot).unwrap();
        prop_assert_eq!(restored.state(), before.state());
        prop_assert_eq!(restored.snapshot(), snapshot.clone(), "equal states, equal bytes");
        sim.entries[cut..].iter().for_each(|entry| restored.evolve(entry));
        prop_assert_eq!(restored.state(), sim.machine.state());
        prop_assert_eq!(restored.wake_at_ms(&sim.cx), sim.machine.wake_at_ms(&sim.cx));
        // Readers: from the committee's state, and from their own file.
        let mut view = MarketView::new(organism(), params());
        view.start_from(&snapshot).unwrap();
        for entry in &sim.entries[cut..] {
            view.apply(entry).unwrap();
        }
        let live = |state: &MarketState| state.live_grants().map(|record| record.grant.clone()).collect::<Vec<_>>();
        prop_assert_eq!(live(view.state()), live(sim.machine.state()));
        prop_assert_eq!(view.state().open_count(), sim.machine.state().open_count());
        let mut loaded = MarketView::new(organism(), params());
        loaded.load(&view.save()).unwrap();
        prop_assert_eq!(loaded.state(), view.state());
    }

    #[test]
    fn changed_snapshots_are_refused_or_mean_themselves(steps in proptest::collection::vec(step(), 1..20), at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let sim = run(&steps);
        let mut bytes = sim.machine.snapshot();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let mut machine = ComputeMachine::new(organism(), params()).unwrap();
        if machine.restore(&bytes).is_ok() {
            prop_assert_eq!(machine.snapshot(), bytes);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_never_change_anything(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        kind in 0..14usize,
        time_ms in any::<u64>(),
        tick in any::<u64>(),
    ) {
        let mut sim = Sim::new();
        sim.ok(post(1, 1, card(1, 100, vec![offer("local", "home-01", 1, "0.04")])));
        let before = sim.machine.state().clone();
        let cx = Context { height: 1, time_ms, tick };
        for bytes in [bytes.clone(), [&[1, u8::try_from(kind).unwrap()], bytes.as_slice()].concat()] {
            prop_assert!(sim.machine.decide(&cx, &bytes).is_err());
        }
        let _ = (sim.machine.round(&cx), sim.machine.wake_at_ms(&cx));
        prop_assert_eq!(sim.machine.state(), &before);
        // A damaged entry stops the machine, and does so without a panic.
        let kinds = ["compute.card", "compute.card_removed", "compute.request", "compute.request_ended", "compute.clearing",
            "compute.grant", "compute.grant_serving", "compute.grant_ending", "compute.grant_ended", "compute.log",
            "compute.extension_asked", "compute.extension_answered", "compute.inventory", "compute.usage_report"];
        let mut entry = sim.entries[0].clone();
        (entry.index, entry.kind, entry.body) = (1, kinds[kind].to_owned(), bytes);
        sim.machine.evolve(&entry);
        prop_assert_eq!(sim.machine.state(), &before);
        // One restored from its state says the same about it.
        let mut restored = ComputeMachine::new(organism(), params()).unwrap();
        restored.restore(&sim.machine.snapshot()).unwrap();
        let said = |machine: &ComputeMachine| machine.fault().map(ToString::to_string);
        prop_assert_eq!(said(&restored), said(&sim.machine));
        prop_assert_eq!(restored.snapshot(), sim.machine.snapshot());
    }

    #[test]
    fn flipped_bytes_of_true_commands_are_refused(at in 0..400usize, bit in 0..8u8, which in 0..9usize) {
        let mut sim = Sim::new();
        sim.ok(post(1, 1, card(1, 100, vec![offer("local", "home-01", 1, "0.04")])));
        let id = id_of(9, 1);
        sim.ok(submit(request(9, 1, 160), 9));
        let commands = [submit(request(9, 2, 160), 9), serve(id, 1), end(id, 9), log(id, 1, 1, (100, 100), None),
            post(1, 2, card(1, 100, vec![offer("local", "home-01", 1, "0.04")])),
            extend(id, 9, 1, 60), decline(id, 1, 1), inventory(&sim, 1, &[id]), report(id, 9, 1, 5)];
        if which >= 5 {
            sim.ok(serve(id, 1));
        }
        if which == 6 {
            sim.ok(extend(id, 9, 1, 60));
        }
        let mut bytes = commands[which].to_bytes();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        // The variant number of register and refresh is not signed: both post the same card.
        let twin = which == 4 && at == 1 && bit == 0;
        prop_assert_eq!(sim.machine.decide(&sim.cx, &bytes).is_ok(), twin);
    }

    #[test]
    fn effective_rates_are_monotone_and_never_understate(core in 0..=1_000_000u64, gib in 0..=1_000_000u64, cpu in 1..=u32::MAX, ram in 1..=u32::MAX) {
        let rates = |core: u64, gib: u64| DeclaredRates {
            core_hour: coalition::RateQ64::from_usd_per_hour(core),
            gib_hour: coalition::RateQ64::from_usd_per_hour(gib),
        };
        let rate = rates(core, gib).effective_core_hour(cpu, ram).expect("fits for every admissible rate and size");
        prop_assert!(rate >= rates(core, 0).core_hour);
        prop_assert!(rates(core, gib + 1).effective_core_hour(cpu, ram).unwrap() >= rate);
        // rate − core ≥ gib × ram × 1000 / (1024 × cpu), compared without rounding
        let memory = rate.0 - rates(core, 0).core_hour.0;
        let exact = (u128::from(gib) << 64) * u128::from(ram) * 1_000;
        prop_assert!(memory.checked_mul(u128::from(cpu) * 1_024).is_none_or(|scaled| scaled >= exact));
    }
}
