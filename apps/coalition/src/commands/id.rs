//! `coalition id`: every id a published config derives.

use std::path::Path;

use coalition::{PublishedConfig, derived_ids, parse_id};
use serde_json::json;

use crate::{
    attestation::labelled,
    cli::IdArgs,
    error::{CliError, Context, Kind, Result},
    home::Home,
    output::{Output, Paint},
    roles::config::{parse_published, read_published},
    view,
};

/// Shortest hex string taken for a config itself rather than for the name of a file.
const MIN_HEX_DIGITS: usize = 64;

/// Prints ids, or the config in another form.
///
/// # Errors
/// [`Kind::Input`] for a config that is none, [`Kind::Unproven`] when the fingerprint is not the expected one.
pub fn run(home: &Home, args: &IdArgs, output: &Output) -> Result<()> {
    let config = load_config(home, args.config.as_deref())?;
    expect(&config, args.expect.as_deref())?;
    if args.hex {
        output.answer(&json!({ "hex": config.to_hex() }), |_| config.to_hex());
        return Ok(());
    }
    if args.toml {
        output.answer(&json!({ "toml": config.to_toml() }), |_| config.to_toml());
        return Ok(());
    }
    let ids = derived_ids(&config);
    let listed: Vec<_> = ids
        .iter()
        .map(|id| json!({ "label": id.label, "id": id.id.to_string(), "member": id.member.map(|member| member.to_string()) }))
        .collect();
    let asked = view::compute(&config).ok().and_then(|market| market.params.attestation);
    let attestation = asked.as_ref().map(|rule| {
        json!({ "required": rule.required, "policy": rule.policy.fingerprint(), "root": rule.policy.root().label() })
    });
    let value = json!({
        "name": config.instance_name(), "fingerprint": config.fingerprint().to_string(), "ids": listed,
        "attestation": attestation, "matches": args.expect.is_some(),
    });
    output.answer(&value, |output| {
        let width = ids.iter().map(|id| id.label.len()).max().unwrap_or(0);
        let mut text = format!("{}\n", output.paint(Paint::Bold, config.instance_name()));
        for id in &ids {
            text += &format!("{:width$}  {}\n", id.label, id.id);
            if let Some(member) = id.member {
                text += &output.paint(Paint::Dim, &format!("{:width$}  member {member}\n", ""));
            }
        }
        if let Some(rule) = &asked {
            let whose = if rule.required { "every provider" } else { "providers that claim TDX" };
            let root = labelled(rule.policy.root().label(), |paint, text| output.paint(paint, text));
            text += &format!("attestation of {whose}: policy {}, root {root}\n", rule.policy.fingerprint());
        }
        if args.expect.is_some() {
            text += &output.paint(Paint::Good, "the fingerprint is the expected one\n");
        }
        text
    });
    Ok(())
}

/// The config a person means: a file, the hex itself, or the one below the home.
///
/// # Errors
/// [`Kind::Input`] when it is none of these.
pub fn load_config(home: &Home, given: Option<&str>) -> Result<PublishedConfig> {
    let Some(given) = given else {
        let path = home.config_hex();
        if !path.exists() {
            return Err(CliError::input("no_config", format!("there is no config in {}", home.root().display()))
                .hint("name the coalition's hex or TOML file, or paste its hex"));
        }
        return read_published(&path);
    };
    let is_hex = given.len() >= MIN_HEX_DIGITS && given.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hex && !Path::new(given).exists() {
        return parse_published(given)
            .or_input("config_invalid", || "the hex given is no valid coalition config".into());
    }
    read_published(Path::new(given))
}

/// Compares with a fingerprint published elsewhere.
///
/// # Errors
/// [`Kind::Unproven`] with both when they differ.
pub fn expect(config: &PublishedConfig, fingerprint: Option<&str>) -> Result<()> {
    let Some(fingerprint) = fingerprint else { return Ok(()) };
    let expected =
        parse_id(fingerprint).or_input("bad_fingerprint", || format!("{fingerprint:?} is no fingerprint"))?;
    config.expect_fingerprint(expected).map_err(|error| {
        let message = "this is not the coalition you expect";
        CliError::new(Kind::Unproven, "wrong_fingerprint", message)
            .because(error)
            .hint("get the config again from a source you trust")
    })
}
