//! `coalition attest`: judge a quote, print one, make one.

mod fetch;
mod measured;

use std::{io::Read, path::Path};

use coalition_attest::{
    Binding, Collateral, CollateralError, CollateralKey, CollateralSource, ConfigfsTsm, Directory, Evidence, Expect,
    GuestError, Nonce, Origin, Policy, Quote, QuoteSource, Register, Verdict, Verifier, evidence::Nowhere, quote,
};
use serde_json::{Value, json};

use crate::{
    attestation::{labelled, shown_verdict},
    cli::{AttestCommand, AttestQuoteArgs, AttestShowArgs, AttestVerifyArgs},
    config_file,
    error::{CliError, Context, Kind, Result},
    home::Home,
    output::{Output, Paint},
    request::now_ms,
};

/// Largest file looked at: evidence with the longest quote and collateral, in hexadecimal.
const MAX_FILE_BYTES: u64 = 256 << 10;

/// Runs the command.
///
/// # Errors
/// [`Kind::Unproven`] when a quote is not valid, [`Kind::Input`] for files and values that are none.
pub fn run(home: impl Fn() -> Result<Home>, command: &AttestCommand, output: &Output) -> Result<()> {
    match command {
        AttestCommand::Verify(args) => verify(args, output),
        AttestCommand::Show(args) => show(args, output),
        AttestCommand::Quote(args) => make(args, output),
        AttestCommand::Predict(args) => measured::predict(args, output),
        AttestCommand::Log(args) => measured::log(args, output),
        AttestCommand::Fetch(args) => super::asynchronously(Box::pin(fetch::fetch(&home()?, args, output))),
    }
}

fn verify(args: &AttestVerifyArgs, output: &Output) -> Result<()> {
    let policy: Policy = config_file::load(&args.policy)?;
    let expect = expected(args)?;
    let evidence = read(&args.quote)?;
    let now_s = args.at.map_or_else(now_ms, |at| at.0) / 1_000;
    let verifier = Verifier::new(policy);
    let verdict = match (&args.collateral, &evidence.collateral) {
        (Some(path), _) => verifier.verify(&evidence.quote, source(path)?.as_ref(), &expect, now_s),
        (None, Some(beside)) => verifier.verify(&evidence.quote, beside, &expect, now_s),
        (None, None) => verifier.verify(&evidence.quote, &Nowhere, &expect, now_s),
    };
    let value = serde_json::to_value(&verdict).or_fault("internal", || "the verdict cannot be written".into())?;
    output.answer(&value, |output| shown_verdict(&verdict, |paint, text| output.paint(paint, text)));
    unproven(&verdict)
}

/// The failure that a verdict other than `valid` is.
fn unproven(verdict: &Verdict) -> Result<()> {
    let Some(message) = verdict.outcome.message() else { return Ok(()) };
    let code = verdict.outcome.code().unwrap_or("not_valid");
    Err(CliError::new(Kind::Unproven, code, format!("the quote is not valid: {message}")))
}

fn source(path: &Path) -> Result<Box<dyn CollateralSource>> {
    if path.is_dir() {
        return Ok(Box::new(Directory::new(path)));
    }
    let json = bytes(path, "collateral")?;
    Ok(Box::new(OneFile(json)))
}

/// A file that is read as collateral when it is needed: what is wrong with it is part of the verdict.
struct OneFile(Vec<u8>);

impl CollateralSource for OneFile {
    fn collateral(&self, _: CollateralKey) -> std::result::Result<Collateral, CollateralError> {
        Collateral::from_json(&self.0, Origin::Directory)
    }
}

fn expected(args: &AttestVerifyArgs) -> Result<Expect> {
    let issued_s = args.issued.map(|issued| issued.0 / 1_000);
    if let Some(text) = &args.report_data {
        return Ok(Expect::Exact { report_data: report_data(text)?, issued_s });
    }
    let Some(nonce) = &args.nonce else { return Ok(Expect::Unbound) };
    let id = |name: &str, text: &Option<String>| {
        let text = text.as_deref().unwrap_or_default();
        coalition::parse_id(text).or_input("bad_value", || format!("--{name} {text:?} is no id"))
    };
    let (network, config) = (id("network", &args.network)?, id("bound-config", &args.bound_config)?);
    let nonce = id("nonce", &Some(nonce.clone()))?;
    let key = args.key.as_deref().unwrap_or_default();
    let key = hex::decode(key).or_input("bad_value", || format!("--key {key:?} is no hexadecimal"))?;
    let purpose = args.purpose.as_deref().unwrap_or_default();
    Ok(match issued_s {
        Some(issued_s) => Expect::bound(purpose, network, &key, config, Nonce { value: nonce, issued_s }),
        None => {
            let report_data = Binding { purpose, network, key: &key, config, nonce }.report_data();
            Expect::Exact { report_data, issued_s }
        }
    })
}

fn report_data(text: &str) -> Result<[u8; 64]> {
    coalition::serde_hex::parse(text).or_input("bad_value", || "--report-data is not 64 bytes in hex".into())
}

fn bytes(path: &Path, what: &str) -> Result<Vec<u8>> {
    bytes_up_to(path, what, MAX_FILE_BYTES)
}

fn bytes_up_to(path: &Path, what: &str, most: u64) -> Result<Vec<u8>> {
    let unreadable = || format!("cannot read {what} {}", path.display());
    let file = std::fs::File::open(path).or_input("unreadable", unreadable)?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).or_input("unreadable", unreadable)?;
    if bytes.len() as u64 > most {
        let message = format!("{} is longer than any {what}: over {most} bytes", path.display());
        return Err(CliError::input("too_long", message));
    }
    Ok(bytes)
}

/// A quote in any of its forms, or evidence.
fn read(path: &Path) -> Result<Evidence> {
    let bytes = bytes(path, "quote")?;
    if let Ok(evidence) = Evidence::from_bytes(&bytes) {
        return Ok(evidence);
    }
    // What does not parse is judged as it is: the verdict says what is wrong with it.
    let quote = Quote::from_file_bytes(&bytes).map_or(bytes, |quote| quote.bytes().to_vec());
    Ok(Evidence { quote, collateral: None })
}

fn show(args: &AttestShowArgs, output: &Output) -> Result<()> {
    let evidence = read(&args.quote)?;
    let malformed = || format!("{} is no TDX quote", args.quote.display());
    let quote = Quote::parse(&evidence.quote).or_input("malformed", malformed)?;
    let (subject, label) = quote.claimed_root();
    let collateral = quote.collateral_key().ok().map(|key| key.to_string());
    let value = json!({
        "verified": false, "version": quote.version(), "report": kind(quote.kind()), "digest": quote.digest(),
        "claimed_root": { "label": label, "subject": subject }, "platform": collateral,
        "measurements": quote.measurements(), "fingerprint": quote.measurements().fingerprint(),
        "report_data": hex::encode(quote.report_data()), "attributes": format!("{:016x}", quote.td_attributes()),
        "debug": quote.is_debug(), "collateral_beside": evidence.collateral.is_some(),
    });
    output.answer(&value, |output| shown(&quote, &value, output));
    Ok(())
}

const fn kind(kind: quote::ReportKind) -> &'static str {
    match kind {
        quote::ReportKind::Td10 => "TD 1.0",
        quote::ReportKind::Td15 => "TD 1.5",
        quote::ReportKind::Td15Ex => "TD 1.5ex",
    }
}

fn shown(quote: &Quote, value: &Value, output: &Output) -> String {
    let text = |key: &str| value[key].as_str().unwrap_or("unknown").to_owned();
    let (subject, label) = quote.claimed_root();
    let paint = |paint, text: &str| output.paint(paint, text);
    let mut lines = vec![
        paint(Paint::Bold, &format!("TDX quote version {}, report {}", quote.version(), text("report"))),
        paint(Paint::Warn, "claims only: nothing here is verified"),
        format!("claimed root    {} ({subject})", labelled(label, paint)),
        format!("platform        {}", text("platform")),
    ];
    for register in Register::ALL {
        lines.push(format!("{:<15} {}", register.name(), quote.measurements().get(register)));
    }
    lines.push(format!("report data     {}", text("report_data")));
    let debug = if quote.is_debug() { paint(Paint::Bad, " (debug: its host can read it)") } else { String::new() };
    lines.push(format!("attributes      {}{debug}", text("attributes")));
    lines.push(format!("digest          {}", quote.digest()));
    lines.join("\n")
}

fn make(args: &AttestQuoteArgs, output: &Output) -> Result<()> {
    let report_data = report_data(&args.report_data)?;
    let quote = ConfigfsTsm::default().quote(&report_data).map_err(|error| match error {
        GuestError::NoInterface { .. } | GuestError::Provider { .. } => {
            CliError::input("no_tdx_guest", "this machine cannot make TDX quotes").because(error)
        }
        _ => CliError::fault("quote_failed", "the guest made no quote").because(error),
    })?;
    if let Some(path) = &args.out {
        std::fs::write(path, &quote).or_fault("disk", || format!("cannot write {}", path.display()))?;
    }
    let value =
        json!({ "bytes": quote.len(), "file": args.out, "quote": args.out.is_none().then(|| hex::encode(&quote)) });
    output.answer(&value, |_| match &args.out {
        Some(path) => format!("{}: {} bytes", path.display(), quote.len()),
        None => hex::encode(&quote),
    });
    Ok(())
}
