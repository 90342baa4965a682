//! `coalition log`: what is committed about a grant, and the proof of it.

use coalition::{EvidencePointer, RequestId};
use coalition_compute::{
    Compared, ExtensionAnswer, GrantEnd, GrantRecord, GrantStage, InventoryEntry, MarketView, ReportUsage,
    RequestRecord, StateInventory, UsageMetrics, state::AnsweredExtension,
};
use serde_json::{Value, json};

use crate::{
    attestation::{self, labelled},
    cli::LogArgs,
    error::{CliError, Context, Kind, Result},
    grants::{self, Stage},
    home::Home,
    measure,
    output::{Output, Paint},
    request::{plan::dollars, word},
    session::{READ_WAIT, Session, unanswered},
    values,
};

/// Prints the log of a grant; writes its newest evidence if asked to.
///
/// # Errors
/// An unknown grant, an unreachable coalition, no final log in time, a file that cannot be written.
pub async fn run(home: &Home, args: &LogArgs, output: &Output) -> Result<()> {
    let id = grants::find_id(home, args.grant.as_deref())?;
    let session = Session::open(home).await?;
    let market = session.market(output).await?;
    if args.measure {
        let own = grants::find(home, args.grant.as_deref())?;
        let number = measure::report(&session, &market, &own).await?.number;
        let shown = |view: &MarketView| {
            let last = view.grant(&id)?.extras.report.as_ref()?;
            (last.report.number >= number).then_some(())
        };
        let waited = market.wait_for(READ_WAIT, shown).await;
        waited.map_err(|error| {
            CliError::new(Kind::TimedOut, "no_report", "the report is not in the log").because(error)
        })?;
    }
    if let Some(wait) = args.wait {
        let waited = market.wait_for(wait.get(), |view| final_usage(view, &id)).await;
        waited.map_err(|error| {
            CliError::new(Kind::TimedOut, "no_final_log", format!("no final usage log within {wait}")).because(error)
        })?;
    }
    let record = market.read(|view| Record::of(view, &id));
    let record = record.ok_or_else(|| {
        CliError::input("unknown_grant", format!("the market does not know request {id}"))
            .hint("it was never sent, or was forgotten long after its end")
    })?;
    let mut written = None;
    if let Some(path) = &args.evidence {
        let pointer = record.newest();
        let evidence = market.organism().evidence(pointer.index, READ_WAIT).await;
        let evidence = evidence.map_err(|error| unanswered(error, "market"))?;
        std::fs::write(path, evidence.to_string()).or_fault("disk", || format!("cannot write {}", path.display()))?;
        written = Some((path.clone(), pointer));
    }
    drop(market);
    session.close().await;
    let exit = match grants::find(home, Some(&id.to_string())) {
        Ok(mut own) => {
            let over = record.grant.as_ref().is_some_and(|grant| matches!(grant.stage, GrantStage::Ended(_)));
            if over && own.file.stage != Stage::Ended {
                own.update(|file| file.stage = Stage::Ended)?;
            }
            super::logs::learn(&mut own).await
        }
        Err(_) => None,
    };
    let mut value = record.to_json();
    value["workload_exit"] = json!(exit);
    if let Some((path, pointer)) = &written {
        value["evidence"] = json!({ "file": path, "pointer": pointer });
    }
    output.answer(&value, |output| {
        let mut text = record.shown(output);
        if let Some(exit) = exit {
            let said = super::logs::exit_words(exit.outcome);
            text += &format!("  {:<9} {:12} {}, {said}\n", "workload", "", values::utc(exit.at_ms));
        }
        if let Some((path, _)) = &written {
            text += &format!(
                "\nproof of the newest entry written to {0}; check it with\n  coalition verify {0}\n",
                path.display()
            );
        }
        text
    });
    Ok(())
}

/// What the market knows about one request and its grant.
struct Record {
    request: RequestRecord,
    grant: Option<GrantRecord>,
    /// What the provider last stated of what it holds.
    inventory: Option<InventoryEntry>,
    /// Under which root this market's providers are attested.
    posture: &'static str,
}

impl Record {
    fn of(view: &MarketView, id: &RequestId) -> Option<Self> {
        let request = view.state().requests().get(id)?.clone();
        let posture = attestation::market_posture(view.state().params());
        let grant = view.grant(id).cloned();
        let inventory = grant.as_ref().and_then(|record| view.inventory(&record.grant.provider)).cloned();
        Some(Self { request, grant, inventory, posture })
    }

    /// The entry that says most: the newest usage log, else the grant, else the request.
    fn newest(&self) -> EvidencePointer {
        let logged = self.grant.as_ref().and_then(|grant| grant.logs.last()).map(|log| log.pointer);
        logged.or(self.grant.as_ref().map(|grant| grant.pointer)).unwrap_or(self.request.pointer)
    }

    fn to_json(&self) -> Value {
        let request = self.request.request();
        let grant = self.grant.as_ref().map(|record| {
            json!({
                "provider": record.grant.provider, "offer": record.grant.offer, "region": record.grant.region,
                "rate_usd_core_hour": dollars(record.grant.rate).trim_start_matches('$'), "attempt": record.grant.attempt,
                "granted_ms": record.granted_ms, "valid_to_ms": record.grant.valid_to_ms, "pointer": record.pointer,
                "stage": stage_words(&record.stage), "usage": record.usage, "extended_sec": record.extras.extended_sec,
                "extensions": record.extras.answered, "waiting_extension": record.extras.waiting,
                "report": record.extras.report, "compared": compared(record).map(|both| both.to_json()),
            })
        });
        let logs: Vec<Value> = self.grant.iter().flat_map(|grant| &grant.logs).map(|entry| {
            json!({
                "number": entry.log.number, "window": entry.log.window, "usage": entry.log.usage, "late": entry.late,
                "ended": entry.log.ended, "pointer": entry.pointer,
            })
        }).collect();
        json!({
            "grant": request.request_id, "request": { "pointer": self.request.pointer, "admitted_ms": self.request.admitted_ms },
            "granted": grant, "logs": logs, "inventory": self.inventory, "newest": self.newest(), "posture": self.posture,
        })
    }

    fn shown(&self, output: &Output) -> String {
        let request = self.request.request();
        let stage = self.grant.as_ref().map_or_else(|| "no grant".to_owned(), |grant| stage_words(&grant.stage));
        let mut text = format!("{}  {stage}\n", output.paint(Paint::Bold, &request.request_id.to_string()));
        let mut line = |what: &str, pointer: &EvidencePointer, said: String| {
            text += &format!("  {what:<9} entry {:<6} {said}\n", pointer.index);
            text += &output.paint(Paint::Dim, &format!("  {:9} {pointer}\n", ""));
        };
        line("requested", &self.request.pointer, values::utc(self.request.admitted_ms));
        if let Some(record) = &self.grant {
            let grant = &record.grant;
            let said = format!(
                "{}, provider {} ({}, {}), {} per core-hour, until {}",
                values::utc(record.granted_ms),
                &grant.provider.to_string()[..8],
                grant.offer,
                grant.region,
                dollars(grant.rate),
                values::utc(grant.valid_to_ms)
            );
            line("granted", &record.pointer, said);
            for entry in &record.logs {
                let late = if entry.late { ", late" } else { "" };
                let end = entry.log.ended.map_or_else(String::new, |end| format!("; {}", word(&end)));
                let said = format!("ticks {}: {}{end}{late}", entry.log.window, usage_words(&entry.log.usage));
                line(&format!("usage {}", entry.log.number), &entry.pointer, said);
            }
            for answered in &record.extras.answered {
                let (what, said) = extension_words(answered);
                line(what, &answered.pointer, said);
            }
            if let Some(waiting) = &record.extras.waiting {
                line("asked", &waiting.pointer, format!("{} more, not answered yet", seconds(waiting.extra_sec)));
            }
            if let Some(last) = &record.extras.report {
                line(
                    "measured",
                    &last.pointer,
                    format!("{}, {}", values::utc(last.time_ms), report_words(&last.report)),
                );
            }
            if let Some(last) = &self.inventory {
                line("inventory", &last.pointer, format!("{}: {}", values::utc(last.time_ms), inventory_words(last)));
            }
            text += &format!("  {:<9} {:12} {}\n", "total", "", usage_words(&record.usage));
            if let Some(both) = compared(record) {
                text += &format!("  {:<9} {:12} {}\n", "compared", "", both.shown(output));
            }
            let posture = labelled(self.posture, |paint, text| output.paint(paint, text));
            text += &format!("  {:<9} {:12} {posture}\n", "providers", "");
        }
        text
    }
}

/// The provider's total beside the requester's report.
struct Both {
    cpu: Compared,
    net: Option<Compared>,
}

/// How long before its end a report still counts as one of the whole grant, milliseconds.
const NEAR_END_MS: u64 = 60_000;

/// Both totals, once both are there: a report from long before the end only where it is above what was logged.
fn compared(record: &GrantRecord) -> Option<Both> {
    let last = record.extras.report.as_ref().filter(|_| record.final_log)?;
    let end_ms = record.ending_ms.unwrap_or(record.grant.valid_to_ms);
    let is_whole = last.time_ms.saturating_add(NEAR_END_MS) >= end_ms;
    let counts = |both: &Compared| is_whole || both.reported > both.logged;
    let cpu = Some(Compared::cpu(&record.usage, &last.report)).filter(counts)?;
    Some(Both { cpu, net: Compared::net(&record.usage, &last.report).filter(counts) })
}

impl Both {
    fn to_json(&self) -> Value {
        json!({ "cpu_core_ms": self.cpu, "net_bytes": self.net })
    }

    fn shown(&self, output: &Output) -> String {
        let one = |what: &str, both: &Compared| {
            let words = format!("{what} {} ‰ apart", both.permille);
            if both.suspicious { output.paint(Paint::Bad, &format!("{words}: more than 20 ‰")) } else { words }
        };
        let cpu = one("CPU", &self.cpu);
        self.net.as_ref().map_or_else(|| cpu.clone(), |net| format!("{cpu}, {}", one("bytes", net)))
    }
}

fn seconds(seconds: u32) -> String {
    values::duration(std::time::Duration::from_secs(u64::from(seconds)))
}

fn extension_words(answered: &AnsweredExtension) -> (&'static str, String) {
    let extra = seconds(answered.asked.extra_sec);
    match answered.answer {
        ExtensionAnswer::Accepted { valid_to_ms, .. } => {
            ("extended", format!("by {extra}, until {}", values::utc(valid_to_ms)))
        }
        ExtensionAnswer::Declined(reason) => ("declined", format!("{extra} more: {}", word(&reason))),
    }
}

/// A report as a person reads it.
pub(crate) fn report_words(report: &ReportUsage) -> String {
    let net = report.net_bytes.map_or_else(|| "no interface of its own".to_owned(), |bytes| format!("{bytes} bytes"));
    format!(
        "{}.{:03} core-seconds, {} MiB in use, {net} (from inside, {})",
        report.cpu_core_ms / 1_000,
        report.cpu_core_ms % 1_000,
        report.ram_mib,
        word(&report.source)
    )
}

/// A provider's statement of what it holds, and what the log says to it.
pub(crate) fn inventory_words(last: &InventoryEntry) -> String {
    let stated = &last.stated;
    let verdict = match last.agrees {
        true => "the log agrees".to_owned(),
        false => format!("the log DIFFERS: it has {} open", last.open),
    };
    let StateInventory { open, owned, adopted, orphaned, blind, .. } = stated;
    format!(
        "{open} grants open, {verdict}; {owned} instances ({adopted} adopted), {orphaned} orphaned, {blind} backends blind"
    )
}

/// The total of a grant whose final log is there.
pub(crate) struct FinalUsage {
    /// For people.
    pub(crate) text: String,
    /// Why it ended.
    pub(crate) how: String,
    /// All logs together.
    pub(crate) usage: UsageMetrics,
}

/// The total usage of a grant, once its final log is there or it has ended without one.
pub(crate) fn final_usage(view: &MarketView, id: &RequestId) -> Option<FinalUsage> {
    let record = view.grant(id)?;
    let GrantStage::Ended(end) = &record.stage else { return None };
    let how = end_words(end);
    Some(FinalUsage { text: format!("{how}; used {}", usage_words(&record.usage)), how, usage: record.usage })
}

fn stage_words(stage: &GrantStage) -> String {
    match stage {
        GrantStage::Granted => "granted, not served yet".into(),
        GrantStage::Serving => "running".into(),
        GrantStage::Ended(end) => format!("ended: {}", end_words(end)),
    }
}

/// How a grant ended, in words.
pub(crate) fn end_words(end: &GrantEnd) -> String {
    match end {
        GrantEnd::Logged(end) => word(end),
        GrantEnd::Refused(signed) => format!("the provider gave it back: {}", word(&signed.statement.reason)),
        GrantEnd::NoLog => "the provider never logged it".into(),
        GrantEnd::NoFinalLog => "the provider never logged its end".into(),
    }
}

/// Usage as a person reads it.
pub(crate) fn usage_words(usage: &UsageMetrics) -> String {
    format!(
        "{} core-seconds, {} MiB-seconds, {} bytes over the network",
        usage.cpu_core_seconds, usage.ram_mib_seconds, usage.net_bytes
    )
}
