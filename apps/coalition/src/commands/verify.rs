//! `coalition verify`: is this commit what the coalition decided? From the published config alone.

use std::{io::Read, path::Path};

use coalition::{CommitteeContent, EvidencePointer, PublishedConfig, UniqueId};
use coalition_almanac::AlmanacTickBody;
use coalition_compute::MarketEntry;
use coalition_log::{
    Entry,
    evidence::{Evidence, MAX_EVIDENCE_BYTES, VerifiedEntry},
    predecessor::Predecessor,
    retirement::Retirement,
    successor::Successor,
};
use coalition_organism::Organism;
use serde_json::{Value, json};

use super::id::{expect, load_config};
use crate::{
    cli::VerifyArgs,
    error::{CliError, Context, Kind, Result},
    home::Home,
    output::{Output, Paint},
    session::{READ_WAIT, Session, unanswered},
    values,
};

/// First characters of a pointer.
const POINTER_PREFIX: &str = "ev1:";

/// Verifies and says what was proven.
///
/// # Errors
/// [`Kind::Unproven`] with the exact reason when it was not.
pub async fn run(home: &Home, args: &VerifyArgs, output: &Output) -> Result<()> {
    let config = load_config(home, args.config.as_deref())?;
    expect(&config, args.expect.as_deref())?;
    let proven = if args.evidence.starts_with(POINTER_PREFIX) {
        let pointer: EvidencePointer =
            args.evidence.parse().or_input("bad_pointer", || "the pointer is malformed".into())?;
        let fetched = fetch(home, &config, &pointer).await?;
        let proven = check(fetched.to_string().as_bytes(), &config)?;
        if proven.entry.pointer() != pointer {
            let message = format!("the log has {} there, the pointer says {pointer}", proven.entry.pointer());
            return Err(unproven("pointer_mismatch", &message));
        }
        proven
    } else {
        check(&read(&args.evidence)?, &config)?
    };
    output.answer(&proven.to_json(&config), |output| proven.shown(&config, output));
    Ok(())
}

/// What a piece of evidence proves.
#[derive(Debug)]
pub struct Proven {
    /// The entry, certified.
    pub entry: VerifiedEntry,
    /// What the organism is in the config.
    pub organism: String,
    /// Names of the members whose cosignatures count.
    pub signers: Vec<String>,
    /// Cosignatures needed.
    pub quorum: usize,
    /// Members of the roster.
    pub members: usize,
}

/// Verifies an evidence file against a published config. Pure.
///
/// # Errors
/// [`Kind::Unproven`] with the exact reason.
pub fn check(evidence: &[u8], config: &PublishedConfig) -> Result<Proven> {
    let rejected = |error| unproven("rejected", "this proves nothing").because(error);
    let evidence = Evidence::parse(evidence).map_err(rejected)?;
    let id = evidence.claimed_pointer().organism;
    let (organism, content) = committee(config, id)?;
    let entry = evidence.verify(id, &content.roster).map_err(rejected)?;
    let roster = entry.roster();
    let names = roster.members();
    let signers = entry.checkpoint().members().iter().filter_map(|at| names.get(*at)).map(|member| member.name.clone());
    let (signers, quorum, members) = (signers.collect(), roster.quorum(), names.len());
    Ok(Proven { organism, signers, quorum, members, entry })
}

fn committee(config: &PublishedConfig, id: UniqueId) -> Result<(String, CommitteeContent)> {
    let organism = config.by_id(id).ok_or_else(|| {
        let message =
            format!("this is about organism {id}, which the coalition {} does not publish", config.instance_name());
        unproven("other_organism", &message).hint("give the config of the coalition it belongs to with --config")
    })?;
    let content = CommitteeContent::from_bytes(&organism.content)
        .or_input("config_invalid", || format!("organism {} is run by no committee", organism.name))?;
    Ok((organism.name.clone(), content))
}

async fn fetch(home: &Home, config: &PublishedConfig, pointer: &EvidencePointer) -> Result<Evidence> {
    let (name, content) = committee(config, pointer.organism)?;
    let session = Session::open(home).await?;
    let organism = Organism::connect(std::sync::Arc::clone(&session.node), pointer.organism, content.roster)
        .or_input("config_invalid", || format!("the roster of {name} cannot be used"))?;
    let evidence = organism.evidence(pointer.index, READ_WAIT).await.map_err(|error| unanswered(error, &name));
    session.close().await;
    evidence
}

fn read(evidence: &str) -> Result<Vec<u8>> {
    let limit = MAX_EVIDENCE_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    let unreadable = || format!("cannot read evidence {evidence}");
    if evidence == "-" {
        std::io::stdin().take(limit).read_to_end(&mut bytes).or_input("evidence_unreadable", unreadable)?;
    } else {
        let file = std::fs::File::open(Path::new(evidence)).or_input("evidence_unreadable", unreadable)?;
        file.take(limit).read_to_end(&mut bytes).or_input("evidence_unreadable", unreadable)?;
    }
    Ok(bytes)
}

fn unproven(code: &str, message: &str) -> CliError {
    CliError::new(Kind::Unproven, code, message)
}

impl Proven {
    fn to_json(&self, config: &PublishedConfig) -> Value {
        let entry = self.entry.entry();
        json!({
            "proven": true,
            "coalition": { "name": config.instance_name(), "fingerprint": config.fingerprint().to_string() },
            "organism": { "name": self.organism, "id": self.entry.pointer().organism.to_string() },
            "signed_by": self.signers, "quorum": self.quorum, "members": self.members, "epoch": self.entry.epoch(),
            "log_size": self.entry.checkpoint().size(), "root": self.entry.checkpoint().root().to_string(),
            "pointer": self.entry.pointer(),
            "entry": {
                "index": entry.index, "tick": entry.tick, "time_ms": entry.time_ms, "kind": entry.kind,
                "evidence": entry.evidence, "body": decode(entry),
            },
        })
    }

    fn shown(&self, config: &PublishedConfig, output: &Output) -> String {
        let entry = self.entry.entry();
        let tick = entry.tick.map_or_else(String::new, |tick| format!(", tick {tick}"));
        let epoch = match self.entry.epoch() {
            0 => String::new(),
            epoch => format!(", epoch {epoch}"),
        };
        let body = serde_json::to_string_pretty(&decode(entry)).unwrap_or_default();
        format!(
            "{}\n  coalition  {} {}\n  organism   {} {}\n  entry      {} of {} certified, {}, {}{tick}\n  signed by  {} ({} of {}, quorum {}{epoch})\n  pointer    {}\n\n{body}\n",
            output.paint(Paint::Good, "proven"),
            config.instance_name(),
            config.fingerprint(),
            self.organism,
            self.entry.pointer().organism,
            entry.index,
            self.entry.checkpoint().size(),
            entry.kind,
            values::utc(entry.time_ms),
            self.signers.join(", "),
            self.signers.len(),
            self.members,
            self.quorum,
            self.entry.pointer(),
        )
    }
}

/// The entry's body as this software understands it; its length and hex where it does not.
fn decode(entry: &Entry) -> Value {
    let opaque = || json!({ "bytes": entry.body.len() });
    if let Ok(Some(market)) = MarketEntry::decode(entry) {
        let value = match &market {
            MarketEntry::Card(body) => serde_json::to_value(body),
            MarketEntry::CardRemoved(body) => serde_json::to_value(body),
            MarketEntry::Request(body) => serde_json::to_value(body),
            MarketEntry::RequestEnded(body) => serde_json::to_value(body),
            MarketEntry::Clearing(body) => serde_json::to_value(body),
            MarketEntry::Grant(body) => serde_json::to_value(body),
            MarketEntry::GrantServing(body) => serde_json::to_value(body),
            MarketEntry::GrantEnding(body) => serde_json::to_value(body),
            MarketEntry::GrantEnded(body) => serde_json::to_value(body),
            MarketEntry::Log(body) => serde_json::to_value(body),
            MarketEntry::Challenge(body) => serde_json::to_value(body),
            MarketEntry::Attestation(body) => serde_json::to_value(body),
            MarketEntry::ExtensionAsked(body) => serde_json::to_value(body),
            MarketEntry::ExtensionAnswered(body) => serde_json::to_value(body),
            MarketEntry::Inventory(body) => serde_json::to_value(body),
            MarketEntry::UsageReport(body) => serde_json::to_value(body),
        };
        return value.unwrap_or_else(|_| opaque());
    }
    if let Some(predecessor) = Predecessor::of(entry) {
        let head = predecessor.head().checkpoint;
        return json!({
            "predecessor": head.organism, "coalition": predecessor.config().instance_name(),
            "fingerprint": predecessor.config().fingerprint(), "head_size": head.size, "head_root": head.root.to_string(),
            "head_certified": predecessor.verify(head.organism).is_ok(),
        });
    }
    if let Some(retirement) = Retirement::of(entry) {
        let next = retirement.config().map(Successor::config);
        return json!({
            "retirement": retirement.to_string(), "successor": retirement.successor(),
            "coalition": next.map(PublishedConfig::instance_name), "fingerprint": next.map(PublishedConfig::fingerprint),
        });
    }
    if entry.kind == coalition_almanac::TICK_KIND
        && let Ok(tick) = AlmanacTickBody::from_bytes(&entry.body)
    {
        return serde_json::to_value(tick).unwrap_or_else(|_| opaque());
    }
    opaque()
}
