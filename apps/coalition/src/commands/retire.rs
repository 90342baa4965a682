//! `coalition retire`: end a service's log, as a quorum of its members approves.

use std::{fs, path::Path, sync::Arc};

use coalition::{ComponentRef, ModuleKind, RetirementInstant, RetirementMarker, Roster, UniqueId};
use coalition_log::retirement::{Approval, ApprovedRetirement};
use coalition_organism::{Organism, WriteError, random_write_id};
use coalition_universe::NodeKey;
use ed25519_dalek::SigningKey;
use serde_json::json;

use crate::{
    cli::{RetireArgs, RetireReason, RetireService},
    devnet::keys::key_file,
    error::{CliError, Context, Kind, Result},
    home::Home,
    output::Output,
    request::WRITE_WAIT,
    roles::config::{load_key, read_published},
    session::{Session, unanswered},
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
    let successor = args.successor.as_deref().map(read_published).transpose()?;
    let marker = marker(args, successor.as_ref())?;
    let mut approvals = sign(home, args, &service, &marker)?;
    if args.approve_only {
        return print(&approvals, &service, output);
    }
    for file in &args.approval {
        approvals.extend(read_approvals(file)?);
    }
    let approved = ApprovedRetirement::new(&marker, approvals);
    let roster = coalition_log::checkpoint::RosterVerifier::new(service.id, &service.roster);
    let roster = roster.or_input("config_invalid", || "the service's roster cannot be used".into())?;
    approved.verify(&roster).or_input("not_approved", || format!("{} cannot retire like this", args.service))?;
    commit(home, args, &service, &approved, output).await
}

/// The service to retire.
struct Service {
    id: UniqueId,
    roster: Roster,
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

/// Approvals of the keys given, else of all checkpoint keys of this home.
fn sign(home: &Home, args: &RetireArgs, service: &Service, marker: &RetirementMarker<'_>) -> Result<Vec<Approval>> {
    let given: Vec<NodeKey> = args.key.iter().map(|path| load_key(path)).collect::<Result<_>>()?;
    let keys = if given.is_empty() && args.approval.is_empty() { keys_of(home, &service.roster)? } else { given };
    let sign = |key: &NodeKey| {
        let public = key.peer_id();
        let member = service.roster.members().iter().position(|member| &member.checkpoint_key == public.as_bytes());
        let member = member.and_then(|member| u8::try_from(member).ok()).ok_or_else(|| {
            CliError::input("wrong_key", format!("{public} is no checkpoint key of {}'s roster", args.service))
        })?;
        Ok(Approval::sign(&SigningKey::from_bytes(key.expose()), member, service.id, marker))
    };
    keys.iter().map(sign).collect()
}

fn keys_of(home: &Home, roster: &Roster) -> Result<Vec<NodeKey>> {
    let paths = roster.members().iter().map(|member| home.keys().join(key_file(&member.name, "checkpoint")));
    let keys: Vec<NodeKey> = paths.filter(|path| path.exists()).map(|path| load_key(&path)).collect::<Result<_>>()?;
    if keys.is_empty() {
        let message = format!("no member's checkpoint key is in {}", home.keys().display());
        return Err(CliError::input("no_key", message).hint("name key files with --key, or approvals with --approval"));
    }
    Ok(keys)
}

/// `member signature`, one a line, in hex.
fn print(approvals: &[Approval], service: &Service, output: &Output) -> Result<()> {
    let lines: Vec<String> =
        approvals.iter().map(|approval| format!("{} {}", approval.member, hex::encode(approval.signature))).collect();
    let value = json!({ "organism": service.id, "approvals": lines });
    output.answer(&value, |_| lines.join("\n"));
    Ok(())
}

fn read_approvals(path: &Path) -> Result<Vec<Approval>> {
    let shown = path.display();
    let text = fs::read_to_string(path).or_input("approval_unreadable", || format!("cannot read {shown}"))?;
    let parse = |line: &str| {
        let (member, signature) = line.split_once(' ')?;
        let mut bytes = [0; 64];
        hex::decode_to_slice(signature.trim(), &mut bytes).ok()?;
        Some(Approval { member: member.parse().ok()?, signature: bytes })
    };
    let wrong = |line: &str| {
        let message = format!("{shown}: {line:?} is no approval: write a member's position and 128 hex digits");
        CliError::input("approval_invalid", message).hint("`coalition retire … --approve-only` prints approvals")
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(|line| parse(line).ok_or_else(|| wrong(line))).collect()
}

async fn commit(
    home: &Home,
    args: &RetireArgs,
    service: &Service,
    approved: &ApprovedRetirement,
    output: &Output,
) -> Result<()> {
    let mut steps = output.steps();
    steps.begin("joining the coalition");
    let session = Session::open(home).await?;
    let organism = Organism::connect(Arc::clone(&session.node), service.id, service.roster.clone());
    let organism = organism.or_input("config_invalid", || "the service's roster cannot be used".into())?;
    steps.begin("committing the retirement");
    let announced = organism.retire(random_write_id(), approved, WRITE_WAIT).await;
    let announced = announced.map_err(|error| refused(error, args))?;
    let pointer = announced.entries.first().map(ToString::to_string).unwrap_or_default();
    steps.done("announced", &pointer, json!({ "organism": service.id, "evidence": pointer }));
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
    session.close().await;
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
