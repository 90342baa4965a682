//! What a person reads: the story of a run, the counts of many, and a failing seed with its shortest known prefix.

use coalition_log::checkpoint::SignedCheckpoint;

use super::{
    check::Tally,
    plan::Plan,
    whole,
    world::{Outcome, Reply, Request, World},
};
use crate::wire::{self, FollowAnswer, Gossip, WriteAnswer};

/// One line about a message between members.
pub(super) fn gossip(bytes: &[u8]) -> String {
    let (what, note) = match wire::decode::<Gossip>(bytes) {
        Ok(Gossip::Cosigned { checkpoint, .. }) => ("cosigned", checkpoint),
        Ok(Gossip::Certified { checkpoint, .. }) => ("certified", checkpoint),
        Err(_) => return format!("{} bytes of nothing", bytes.len()),
    };
    match SignedCheckpoint::parse(note.as_bytes()) {
        Ok(note) => {
            let (checkpoint, lines) = (note.checkpoint, note.signatures.len());
            let root: String = checkpoint.root.to_string().chars().take(8).collect();
            format!("{what} {} {root} by {lines}", checkpoint.size)
        }
        Err(error) => format!("{what} {error}"),
    }
}

pub(super) fn request(request: &Request) -> String {
    match request {
        Request::Write(organism, write) => format!("write {:02x?} to {organism}", &write.write_id.0[..4]),
        Request::Follow(organism, ask) => format!("follow {organism} from {} head {}", ask.next, ask.head_size),
        Request::Evidence(organism, ask) => format!("evidence {organism} {}", ask.index),
        Request::State(organism, ask) => format!("state {organism} from {} head {}", ask.next, ask.head_size),
        Request::Settled(organism) => format!("settled {organism}"),
        Request::StatePart(organism, ask) => format!("state {organism} of {} at {}", ask.covers, ask.offset),
    }
}

pub(super) fn reply(reply: &Reply) -> String {
    match reply {
        Reply::Write(WriteAnswer::Committed { entries }) => {
            format!("committed {:?}", entries.iter().map(|pointer| pointer.index).collect::<Vec<_>>())
        }
        Reply::Write(WriteAnswer::Refused(refusal)) => format!("refused {}", refusal.code),
        Reply::Write(WriteAnswer::Pending) => "pending".into(),
        Reply::Follow(bytes) => match wire::decode::<FollowAnswer>(bytes) {
            Ok(answer) => format!("{} entries, {}", answer.entries.len(), answer.head.lines().nth(1).unwrap_or("?")),
            Err(_) => "nonsense".into(),
        },
        Reply::Evidence(bytes) => format!("evidence of {} bytes", bytes.len()),
        Reply::State(bytes) => format!("state offered in {} bytes", bytes.len()),
        Reply::StatePart(bytes) => format!("{} bytes of a state", bytes.len()),
        Reply::Settled(note) => format!("settled {}", note.lines().nth(1).unwrap_or("?")),
        Reply::Fault(code) => (*code).into(),
    }
}

/// Runs a plan, and says what it counted.
pub(super) fn run(plan: &Plan) -> Outcome {
    play(plan, false)
}

fn play(plan: &Plan, story: bool) -> Outcome {
    if plan.engines.is_some() { whole::run(plan, story) } else { World::new(plan.clone(), story).run() }
}

/// The same failure with faults for as few events as possible.
fn shrink(plan: &Plan, failed: &Outcome) -> Plan {
    let invariant = failed.violation.as_ref().map(|violation| violation.invariant);
    let mut best = (failed.events, plan.clone());
    let (mut low, mut high) = (0, failed.events);
    for _ in 0..16 {
        if low >= high {
            break;
        }
        let middle = low + (high - low) / 2;
        let shorter = Plan { chaos_events: middle, ..plan.clone() };
        let outcome = run(&shorter);
        if outcome.violation.map(|violation| violation.invariant) == invariant {
            high = middle;
            if outcome.events <= best.0 {
                best = (outcome.events, shorter);
            }
        } else {
            low = middle + 1;
        }
    }
    best.1
}

/// Everything needed to look into a failing run.
pub(super) fn failure(plan: &Plan, failed: &Outcome) -> String {
    let shortest = shrink(plan, failed);
    let told = play(&shortest, true);
    let violation = told.violation.as_ref().or(failed.violation.as_ref()).expect("it failed");
    let story = told.story.iter().rev().take(40).rev().map(|line| format!("  {line}\n")).collect::<String>();
    let cut = match shortest.chaos_events {
        u64::MAX => String::new(),
        events => format!("COALITION_SIM_CHAOS_EVENTS={events} "),
    };
    format!(
        "seed {seed}: invariant `{invariant}` does not hold after {events} events, at {ms} ms: {detail}\n\
         members {members}, liars {liars:?}, rolled back {rolled:?}; the seed itself failed after {first} events\n\
         the shortest known prefix ends so:\n{story}\
         replay: COALITION_SIM_FIRST_SEED={seed} COALITION_SIM_SEEDS=1 {cut}cargo test --release \
         -p coalition-organism --lib simulation::{test} -- --nocapture",
        seed = plan.seed,
        invariant = violation.invariant,
        events = told.events,
        ms = told.simulated_ms,
        detail = violation.detail,
        members = plan.members,
        liars = plan.liars,
        rolled = plan.rolled_back,
        first = failed.events,
        test = if plan.engines.is_some() { "whole::tests::a_whole_committee_holds" } else { "the_committee_holds" },
    )
}

/// What was done, by kind.
pub(super) fn counts(tally: &Tally) -> String {
    tally.iter().map(|(what, times)| format!("{times:>12}  {what}\n")).collect()
}

/// The same for programs: one line of JSON behind a word.
pub(super) fn summary(first: u64, seeds: u64, events: u64, tally: &Tally) -> String {
    let counts: Vec<String> = tally.iter().map(|(what, times)| format!("{what:?}:{times}")).collect();
    format!("summary {{\"first\":{first},\"seeds\":{seeds},\"did\":{{\"event\":{events},{}}}}}", counts.join(","))
}
