//! `coalition retire`: end a service's log, as a quorum of its members approves.

use std::sync::Arc;

use coalition::{ComponentRef, ModuleKind, RetirementInstant, RetirementMarker, Roster, UniqueId};
use coalition_log::{
    checkpoint::RosterVerifier,
    retirement::{Approval, ApprovedRetirement},
    successor::Successor,
};
use coalition_organism::{Organism, WriteError, random_write_id};
use serde_json::json;

use super::{
    approvals::{self, Signer, read_roster, signers},
    successor,
};
use crate::{
    cli::{RetireArgs, RetireReason, RetireService},
    error::{CliError, Context, Kind, Result},
    home::Home,
    output::{Output, Steps},
    request::WRITE_WAIT,
    roles::config::read_published,
    session::{READ_WAIT, Session, unanswered},
    values::Effective,
    view,
};

/// Approves a retirement with the keys at hand; with `--approve-only` prints the approvals, else commits it.
///
/// # Errors
/// Keys of nobody in the roster, too few approvals, an unreachable committee, a service that has retired already.
pub async fn run(home: &Home, args: &RetireArgs, output: &Output) -> Result<()> {
    let config = read_published(&args.config.clone().unwrap_or_else(|| home.config_hex()))?;
    let service = service_of(&config, args.service)?;
    let next = args.successor.as_deref().map(read_published).transpose()?;
    let marker = marker(args, next.as_ref())?;
    let carried = match &next {
        Some(config) => successor::carried(config, (service.id, &marker), args.peers.as_deref())?,
        None => None,
    };
    if next.is_some() && carried.is_none() {
        output
            .warn("the successor's config names no predecessor: readers learn its id, and do not follow by themselves");
    }
    let retiring = Retiring { service, marker, carried };
    if args.approve_only {
        let service = &retiring.service;
        let roster = args.roster.as_deref().map(read_roster).transpose()?.unwrap_or_else(|| service.roster.clone());
        return print(&retiring.sign(&signers(home, &args.approvers, &roster)?), service, output);
    }
    let mut steps = output.steps();
    steps.begin("joining the coalition");
    let session = Session::open(home).await?;
    let done = retire(home, args, (&session, &retiring), &mut steps).await;
    session.close().await;
    done
}

/// Handovers may have changed the roster since the config: the one in force has to approve.
async fn retire(
    home: &Home,
    args: &RetireArgs,
    (session, retiring): (&Session, &Retiring<'_>),
    steps: &mut Steps,
) -> Result<()> {
    let service = &retiring.service;
    let unusable = || "the service's roster cannot be used".to_owned();
    let organism = Organism::connect(Arc::clone(&session.node), service.id, service.roster.clone());
    let organism = organism.or_input("config_invalid", unusable)?;
    organism.head(READ_WAIT).await.map_err(|error| unanswered(error, "committee"))?;
    let chain = organism.committee();
    let mut approvals = retiring.sign(&signers(home, &args.approvers, chain.roster())?);
    approvals.extend(approvals::read(&args.approvers, "a member's position and 128 hex digits", "retire", parse)?);
    let approved = ApprovedRetirement::new(&retiring.marker, approvals).with_successor(retiring.carried.clone());
    let verifier = RosterVerifier::new(service.id, chain.roster()).or_input("config_invalid", unusable)?;
    approved.verify(&verifier).or_input("not_approved", || format!("{} cannot retire like this", args.service))?;
    commit(args, &organism, &approved, steps).await
}

/// The service to retire.
struct Service {
    id: UniqueId,
    roster: Roster,
}

/// What is approved.
struct Retiring<'a> {
    service: Service,
    marker: RetirementMarker<'a>,
    /// The successor's config, for the log to carry.
    carried: Option<Successor>,
}

impl Retiring<'_> {
    fn sign(&self, signers: &[Signer]) -> Vec<Approval> {
        let (organism, next) = (self.service.id, self.carried.as_ref());
        signers
            .iter()
            .map(|by| ApprovedRetirement::approve_with(&by.key, by.seat, organism, &self.marker, next))
            .collect()
    }
}

fn service_of(config: &coalition::PublishedConfig, service: RetireService) -> Result<Service> {
    match service {
        RetireService::Almanac => view::almanac(config).map(|part| Service { id: part.id, roster: part.roster }),
        RetireService::Compute => view::compute(config).map(|part| Service { id: part.id, roster: part.roster }),
    }
}

fn marker<'a>(args: &RetireArgs, successor: Option<&'a coalition::PublishedConfig>) -> Result<RetirementMarker<'a>> {
    let kind = match args.service {
        RetireService::Almanac => ModuleKind::Almanac,
        RetireService::Compute => ModuleKind::Compute,
    };
    let replacement = match successor {
        None => None,
        Some(config) => {
            let reference = config.module_ref(kind).ok_or_else(|| {
                CliError::input("no_successor", format!("the successor's config ships no {}", args.service))
            })?;
            Some(ComponentRef::Module(kind, reference.as_ref()))
        }
    };
    let effective_at = match args.at {
        Effective::Now => RetirementInstant::AtSequence(0),
        Effective::Tick(tick) => RetirementInstant::AtTick(tick),
        Effective::Time(ms) => RetirementInstant::AtTimestamp(ms),
    };
    match (args.reason, replacement) {
        (Some(RetireReason::Emergency), replacement) => Ok(RetirementMarker::emergency(effective_at, replacement)),
        (None, Some(successor)) => Ok(RetirementMarker::rotation(effective_at, successor)),
        (None | Some(RetireReason::Retired), None) => Ok(RetirementMarker::retired(effective_at)),
        (Some(RetireReason::OperatorExit), None) => Ok(RetirementMarker::operator_exit(effective_at)),
        (Some(reason), Some(_)) => {
            let message = format!("a retirement for the reason {reason} has no successor");
            Err(CliError::input("reason_and_successor", message).hint("leave out --reason or --successor"))
        }
    }
}

/// `member signature`, one a line, in hex.
fn print(approvals: &[Approval], service: &Service, output: &Output) -> Result<()> {
    let lines: Vec<String> =
        approvals.iter().map(|approval| format!("{} {}", approval.member, hex::encode(approval.signature))).collect();
    let value = json!({ "organism": service.id, "approvals": lines });
    output.answer(&value, |_| lines.join("\n"));
    Ok(())
}

fn parse(line: &str) -> Option<Approval> {
    let (member, signature) = line.split_once(' ')?;
    Some(Approval { member: member.parse().ok()?, signature: approvals::signature(signature.trim())? })
}

async fn commit(
    args: &RetireArgs,
    organism: &Organism,
    approved: &ApprovedRetirement,
    steps: &mut Steps,
) -> Result<()> {
    steps.begin("committing the retirement");
    let announced = organism.retire(random_write_id(), approved, WRITE_WAIT).await;
    let announced = announced.map_err(|error| refused(error, args))?;
    let pointer = announced.entries.first().map(ToString::to_string).unwrap_or_default();
    steps.done("announced", &pointer, json!({ "organism": organism.id(), "evidence": pointer }));
    match organism.retirement(WRITE_WAIT).await.map_err(|error| unanswered(error, "committee"))? {
        Some(retirement) => {
            let text = format!("{} has its last entry ({retirement})", args.service);
            let fields = json!({ "successor": retirement.successor(), "in_effect": true });
            steps.done("retired", &text, fields);
        }
        None => {
            let text = format!("{} works until then; its log ends at {}", args.service, args.at);
            steps.done("pending", &text, json!({ "in_effect": false }));
        }
    }
    Ok(())
}

fn refused(error: WriteError, args: &RetireArgs) -> CliError {
    match error {
        WriteError::Refused(refusal) => CliError::new(Kind::Refused, refusal.code, refusal.message),
        WriteError::Retired(retirement) => {
            CliError::new(Kind::Refused, "retired", format!("{} has retired already ({retirement})", args.service))
        }
        other => CliError::new(Kind::TimedOut, "not_certified", "the committee did not certify it").because(other),
    }
}
