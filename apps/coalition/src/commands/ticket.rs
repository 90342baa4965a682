//! `coalition ticket`: the issuer's side, and the holder's.

use std::path::Path;

use coalition::{ModuleKind, UNIVERSE, UniqueId};
use coalition_tickets::{Bearer, Charter, Issuer};
use coalition_universe::{NodeKey, PeerId};
use ed25519_dalek::SigningKey;
use serde_json::json;

use crate::{
    cli::{TicketCharterArgs, TicketCommand, TicketIssueArgs, TicketShowArgs},
    error::{CliError, Context, Result},
    home::Home,
    output::Output,
    request::now_ms,
    roles::{
        admission::read_charter,
        config::{load_key, read_published},
    },
    tickets,
};

/// Runs the command.
///
/// # Errors
/// Files and values that are none, and what the charter does not allow.
pub fn run(home: impl Fn() -> Result<Home>, command: &TicketCommand, output: &Output) -> Result<()> {
    match command {
        TicketCommand::Peer(_) => peer(&home()?, output),
        TicketCommand::Charter(args) => charter(args, output),
        TicketCommand::Issue(args) => issue(home, args, output),
        TicketCommand::Show(args) => show(args, output),
    }
}

fn peer(home: &Home, output: &Output) -> Result<()> {
    let peer = tickets::peer_key(home)?.peer_id();
    output.answer(&json!({ "peer": peer.to_string(), "tickets": tickets::directory(home) }), |_| peer.to_string());
    Ok(())
}

fn charter(args: &TicketCharterArgs, output: &Output) -> Result<()> {
    let made = |path: &Path| {
        let key = NodeKey::load_or_create(path);
        let key = key.map_err(|error| CliError::input("key_unusable", "a key file cannot be used").because(error))?;
        Ok(*key.peer_id().as_bytes())
    };
    let given = |text: &String| {
        let id = coalition::parse_id(text).or_input("bad_value", || format!("--public {text:?} is no key"))?;
        Ok(*id.as_bytes())
    };
    let keys =
        args.key.iter().map(|path| made(path)).chain(args.public.iter().map(given)).collect::<Result<Vec<_>>>()?;
    let too_long = || CliError::input("bad_value", "--longest is longer than any ticket may last");
    let longest = u32::try_from(args.longest.0).map_err(|_| too_long())?;
    let charter =
        Charter::new(longest, keys).or_input("charter_invalid", || "no charter can be made of this".into())?;
    if let Some(path) = &args.out {
        std::fs::write(path, charter.to_hex() + "\n")
            .or_fault("disk", || format!("cannot write {}", path.display()))?;
    }
    let rule = charter.digest().to_string();
    let value = json!({ "charter": charter.to_hex(), "rule": { "policy": rule }, "longest_s": longest });
    output.answer(&value, |_| format!("charter      {}\naccess rule  {{ policy = \"{rule}\" }}", charter.to_hex()));
    Ok(())
}

fn issue(home: impl Fn() -> Result<Home>, args: &TicketIssueArgs, output: &Output) -> Result<()> {
    let config = match &args.config {
        Some(path) => read_published(path)?,
        None => read_published(&home()?.config_hex())?,
    };
    let id = |name: &str, text: &str| {
        coalition::parse_id(text).or_input("bad_value", || format!("--{name} {text:?} is no id"))
    };
    let audience = match &args.audience {
        Some(text) => id("audience", text)?,
        None => market(&config)?,
    };
    let network = args.network.as_deref().map_or(Ok(UNIVERSE), |text| id("network", text))?;
    let peer: PeerId = args.peer.parse().or_input("bad_value", || format!("--peer {:?} is no peer", args.peer))?;
    let key = SigningKey::from_bytes(load_key(&args.key)?.expose());
    let refused = || "the ticket is not issued".to_owned();
    let issuer = Issuer::of(&config, &read_charter(&args.charter)?, key).or_input("not_issued", refused)?;
    let bearer = Bearer { network, audience, peer: *peer.as_bytes() };
    let now_s = now_ms() / 1_000;
    let ticket = issuer.issue(&bearer, now_s, args.lifetime.0).or_input("not_issued", refused)?;
    let value = json!({ "ticket": ticket.as_str(), "audience": audience, "expires_s": now_s + args.lifetime.0 });
    output.answer(&value, |_| ticket.as_str().to_owned());
    Ok(())
}

fn market(config: &coalition::PublishedConfig) -> Result<UniqueId> {
    let market = config.module(ModuleKind::Compute).map(|module| module.id);
    market.ok_or_else(|| CliError::input("no_market", "the coalition publishes no market; pass --audience"))
}

fn show(args: &TicketShowArgs, output: &Output) -> Result<()> {
    let ticket = tickets::read(&args.ticket)?;
    let (audience, peer, expires_s) = ticket.claimed().or_input("ticket_invalid", || "it is no ticket".into())?;
    let left_s = expires_s.saturating_sub(now_ms() / 1_000);
    let value =
        json!({ "verified": false, "audience": audience, "peer": peer, "expires_s": expires_s, "left_s": left_s });
    output.answer(&value, |_| {
        let ends = if left_s == 0 { "over".to_owned() } else { format!("{left_s} s left") };
        format!("claims only: nothing here is verified\npeer     {peer}\ndoor     {audience}\nends     {ends}")
    });
    Ok(())
}
