//! `coalition status`: is it up, and how is it?

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::up::{RoleStatus, status_file};
use crate::{
    attestation::{self, NOT_ATTESTED, labelled},
    devnet::manifest::role_names,
    error::{CliError, Kind, Result},
    home::Home,
    output::{Output, Paint, table},
    request::now_ms,
    session::Session,
    values,
};

/// An age of the newest clock entry above which the committee counts as standing still.
const STILL_MS: u64 = 15_000;

/// Prints roles, committee and clock.
///
/// # Errors
/// [`Kind::Unreachable`] when something does not answer; what does is printed first.
pub async fn run(home: &Home, output: &Output) -> Result<()> {
    let supervisor = home.running();
    let roles = supervisor.and_then(|_| read_roles(home)).unwrap_or_default();
    let (network, problem) = match look(home, output).await {
        Ok(network) => (Some(network), None),
        Err(error) => (None, Some(error)),
    };
    let down: Vec<&String> = roles.iter().filter(|(_, role)| role.down.is_some()).map(|(name, _)| name).collect();
    let value = json!({
        "home": home.root(), "supervisor_pid": supervisor, "roles": roles, "network": network, "healthy": problem.is_none() && down.is_empty(),
    });
    output.answer(&value, |output| shown(home, supervisor, &roles, network.as_ref(), output));
    if let Some(problem) = problem {
        return Err(problem);
    }
    if down.is_empty() {
        return Ok(());
    }
    let names = down.into_iter().cloned().collect::<Vec<_>>().join(", ");
    Err(CliError::new(Kind::Unreachable, "roles_down", format!("down: {names}")).hint(format!(
        "`coalition up` starts them again by itself; the logs are in {}",
        home.root().join("logs").display()
    )))
}

fn read_roles(home: &Home) -> Option<BTreeMap<String, RoleStatus>> {
    serde_json::from_slice(&std::fs::read(status_file(home)).ok()?).ok()
}

async fn look(home: &Home, output: &Output) -> Result<Value> {
    let session = Session::open(home).await?;
    let now = session.now().await?;
    let age_ms = now_ms().saturating_sub(now.time_ms);
    let market = session.market(output).await?;
    let (providers, open, live, waiting, posture) = market.read(|view| {
        let state = view.state();
        (
            state.providers().values().filter(|known| known.card.is_some()).count(),
            state.open_count(),
            state.live_grants().count(),
            state.live_grants().filter(|record| record.extras.waiting.is_some()).count(),
            attestation::market_posture(state.params()),
        )
    });
    let size = market.certified_size();
    let retirement = market.retirement().map(|(retirement, in_effect)| {
        json!({ "in_effect": in_effect, "how": retirement.to_string(), "successor": retirement.successor() })
    });
    drop(market);
    session.close().await;
    if age_ms > STILL_MS {
        let message =
            format!("the committee's clock has not moved for {}", values::duration(Duration::from_millis(age_ms)));
        return Err(CliError::new(Kind::Unreachable, "clock_stopped", message)
            .hint("too few members are up, or this machine's clock is ahead"));
    }
    Ok(
        json!({ "tick": now.tick, "clock_age_ms": age_ms, "market_entries": size, "providers": providers, "open_requests": open, "live_grants": live, "waiting_extensions": waiting, "posture": posture, "retirement": retirement }),
    )
}

fn shown(
    home: &Home,
    supervisor: Option<u32>,
    roles: &BTreeMap<String, RoleStatus>,
    network: Option<&Value>,
    output: &Output,
) -> String {
    let mut text = match supervisor {
        Some(pid) => format!("`coalition up` runs in {}, pid {pid}\n\n", home.root().display()),
        None => format!("no `coalition up` runs in {}\n", home.root().display()),
    };
    if !roles.is_empty() {
        let known = role_names().into_iter().filter_map(|name| Some((roles.get(&name)?, name)));
        let rows: Vec<Vec<String>> = known
            .map(|(role, name)| {
                let state = role.down.as_ref().map_or_else(|| "up".to_owned(), |how| format!("down: {how}"));
                vec![name, role.pid.to_string(), role.restarts.to_string(), role.place.clone(), state]
            })
            .collect();
        text += &table(&["ROLE", "PID", "RESTARTS", "AT", "STATE"], &rows);
        text += "\n\n";
    }
    if let Some(network) = network {
        let number = |key: &str| network[key].as_u64().unwrap_or(0);
        text += &output.paint(Paint::Good, "the committee answers");
        text += &format!(
            ": tick {}, {} ago; {} market entries, {} providers, {} requests waiting, {} grants live, {} extensions waiting\n",
            number("tick"),
            values::duration(Duration::from_millis(number("clock_age_ms"))),
            number("market_entries"),
            number("providers"),
            number("open_requests"),
            number("live_grants"),
            number("waiting_extensions"),
        );
        let posture = network["posture"].as_str().unwrap_or(NOT_ATTESTED);
        text += &labelled(&format!("providers: {posture}\n"), |paint, text| output.paint(paint, text));
        if let Some(how) = network["retirement"]["how"].as_str() {
            let state = if network["retirement"]["in_effect"] == true { "has retired" } else { "is about to retire" };
            text += &output.paint(Paint::Bad, &format!("the market {state}: {how}\n"));
        }
    }
    text
}
