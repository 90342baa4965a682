//! `coalition members`: who certifies, and the handover to the next roster.

use std::sync::Arc;

use coalition::{Roster, RosterMember, UniqueId};
use coalition_log::handover::{Approval, ApprovedHandover, Handover, RosterChain};
use coalition_organism::{Organism, WriteError, random_write_id};
use coalition_universe::NodeKey;
use serde_json::json;

use super::approvals::{self, RosterFile, Signer, read_roster, signers};
use crate::{
    cli::{HandOverArgs, MembersAction, MembersArgs, NewMemberArgs},
    devnet::keys::key_file,
    error::{CliError, Context, Kind, Result},
    home::{Home, private_dir},
    output::{Output, Steps},
    request::WRITE_WAIT,
    session::{READ_WAIT, Session, unanswered},
    view,
};

/// The committee of Almanac and Compute, as their logs say.
struct Committee {
    session: Session,
    services: Vec<(&'static str, Organism, u64)>,
    chain: RosterChain,
}

/// Shows the members, or does what the subcommand says.
///
/// # Errors
/// An unreachable committee, keys of nobody in the roster in force, too few approvals, a roster that may not follow.
pub async fn run(home: &Home, args: &MembersArgs, output: &Output) -> Result<()> {
    match &args.action {
        None => show(home, output).await,
        Some(MembersAction::Roster) => print_roster(home, output).await,
        Some(MembersAction::New(new)) => make_keys(new, output),
        Some(MembersAction::HandOver(args)) => hand_over(home, args, output).await,
    }
}

async fn connect(home: &Home) -> Result<Committee> {
    let session = Session::open(home).await?;
    let (almanac, compute) = (view::almanac(&session.config)?, view::compute(&session.config)?);
    let mut services = Vec::new();
    for (name, id, roster) in [("almanac", almanac.id, almanac.roster), ("compute", compute.id, compute.roster)] {
        let organism = Organism::connect(Arc::clone(&session.node), id, roster);
        let organism = organism.or_input("config_invalid", || format!("the roster of {name} cannot be used"))?;
        let size = organism.head(READ_WAIT).await.map_err(|error| unanswered(error, name))?.size();
        services.push((name, organism, size));
    }
    // A retired service is not handed over any more: the furthest one knows who certifies.
    let chains = services.iter().map(|(_, organism, _)| organism.committee());
    let chain = chains.max_by_key(RosterChain::epoch).ok_or_else(|| CliError::fault("no_service", "no service"))?;
    Ok(Committee { session, services, chain })
}

async fn show(home: &Home, output: &Output) -> Result<()> {
    let committee = connect(home).await?;
    let (chain, roster) = (&committee.chain, committee.chain.roster());
    let logs: Vec<_> = committee
        .services
        .iter()
        .map(|(name, organism, size)| json!({ "service": name, "organism": organism.id(), "size": size, "epoch": organism.committee().epoch_at(*size) }))
        .collect();
    let value = json!({
        "epoch": chain.epoch(), "quorum": roster.quorum(), "members": roster.members(), "logs": logs,
    });
    output.answer(&value, |_| {
        let mut text = format!("epoch {}, {} of {} certify\n", chain.epoch(), roster.quorum(), roster.len());
        for member in roster.members() {
            text.push_str(&format!("  {:<16} {}\n", member.name, hex::encode(member.checkpoint_key)));
        }
        for (name, _, size) in &committee.services {
            text.push_str(&format!("{name}: {size} entries certified\n"));
        }
        text
    });
    committee.session.close().await;
    Ok(())
}

async fn print_roster(home: &Home, output: &Output) -> Result<()> {
    let committee = connect(home).await?;
    let members = committee.chain.roster().members().to_vec();
    committee.session.close().await;
    print_members(members, output)
}

fn print_members(members: Vec<RosterMember>, output: &Output) -> Result<()> {
    let file = RosterFile { members };
    let text = toml::to_string(&file).or_fault("roster", || "the roster cannot be printed".into())?;
    output.answer(&json!({ "members": file.members }), |_| text.clone());
    Ok(())
}

fn make_keys(args: &NewMemberArgs, output: &Output) -> Result<()> {
    private_dir(&args.keys)?;
    let make = |purpose| {
        let (key, path) = (NodeKey::generate(), args.keys.join(key_file(&args.name, purpose)));
        let saved = key.save_new(&path).map(|()| *key.peer_id().as_bytes());
        saved.map_err(|error| CliError::input("key_unusable", "a key file cannot be written").because(error))
    };
    let member = RosterMember {
        name: args.name.clone(),
        checkpoint_key: make("checkpoint")?,
        consensus_key: make("consensus")?,
        peer_id: make("node")?,
    };
    Roster::new(vec![member.clone()]).or_input("name_invalid", || "the member cannot be in a roster".into())?;
    print_members(vec![member], output)
}

async fn hand_over(home: &Home, args: &HandOverArgs, output: &Output) -> Result<()> {
    let next = read_roster(&args.next)?;
    let mut steps = output.steps();
    if !args.approve_only {
        steps.begin("asking who certifies");
    }
    let committee = connect(home).await?;
    let chain = &committee.chain;
    let handover = Handover { epoch: chain.epoch() + 1, next };
    let ids: Vec<UniqueId> = committee.services.iter().map(|(_, organism, _)| organism.id()).collect();
    let mut approvals = sign(&signers(home, &args.approvers, chain.roster())?, chain.roster(), &ids, &handover);
    if args.approve_only {
        let lines: Vec<String> = approvals.iter().map(line).collect();
        let value = json!({ "epoch": handover.epoch, "approvals": lines });
        output.answer(&value, |_| lines.join("\n"));
        committee.session.close().await;
        return Ok(());
    }
    let form = "an organism, a position and 128 hex digits";
    approvals.extend(approvals::read(&args.approvers, form, "members hand-over", parse)?);
    let of = |id: UniqueId| approvals.iter().filter(move |(of, _)| *of == id).map(|(_, approval)| approval.clone());
    let approved: Vec<_> =
        ids.iter().map(|id| (*id, ApprovedHandover::new(handover.clone(), of(*id).collect()))).collect();
    let pointer = commit(&committee, &approved, &mut steps).await;
    committee.session.close().await;
    let pointer = pointer?;
    let fields = json!({ "epoch": handover.epoch, "evidence": pointer });
    steps.done("handed_over", &format!("epoch {} begins ({pointer})", handover.epoch), fields);
    Ok(())
}

/// Has one service that has not retired commit it, for all of them. Answers the pointer to its entry.
async fn commit(committee: &Committee, approved: &[(UniqueId, ApprovedHandover)], steps: &mut Steps) -> Result<String> {
    for (name, organism, _) in &committee.services {
        let retirement = organism.retirement(READ_WAIT).await.map_err(|error| unanswered(error, name))?;
        if retirement.is_some() {
            continue;
        }
        steps.begin("committing the handover");
        let done = organism.hand_over(random_write_id(), approved, WRITE_WAIT).await.map_err(refused)?;
        return Ok(done.entries.first().map(ToString::to_string).unwrap_or_default());
    }
    Err(CliError::new(Kind::Refused, "retired", "every service of this committee has retired: nothing is handed over"))
}

type Signed = (UniqueId, Approval);

/// Every signer's approval for every service.
fn sign(signers: &[Signer], now: &Roster, ids: &[UniqueId], handover: &Handover) -> Vec<Signed> {
    let of = |signer: &Signer, id: UniqueId| (id, handover.approve(&signer.key, signer.seat, id, now));
    signers.iter().flat_map(|signer| ids.iter().map(move |id| of(signer, *id))).collect()
}

/// `organism member signature`, in hex and decimal.
fn line((organism, approval): &Signed) -> String {
    format!("{} {} {}", hex::encode(organism.as_bytes()), approval.member, hex::encode(approval.signature))
}

fn parse(line: &str) -> Option<Signed> {
    let mut fields = line.split_whitespace();
    let organism = coalition::parse_id(fields.next()?).ok()?;
    let (member, signature) = (fields.next()?.parse().ok()?, approvals::signature(fields.next()?)?);
    fields.next().is_none().then_some((organism, Approval { member, signature }))
}

fn refused(error: WriteError) -> CliError {
    match error {
        WriteError::Refused(refusal) => CliError::new(Kind::Refused, refusal.code, refusal.message),
        other => CliError::new(Kind::TimedOut, "not_certified", "the committee did not certify it").because(other),
    }
}
