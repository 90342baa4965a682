//! What a guest will measure, and what it has measured: `coalition attest predict` and `coalition attest log`.

use std::path::Path;

use coalition_attest::{
    Measurements, Quote,
    predict::{DirectBoot, Event, EventLog, Firmware, KernelImage, PageOrder, Unexplained},
};
use serde_json::{Value, json};

use super::{bytes_up_to, read};
use crate::{
    cli::{AttestLogArgs, AttestPredictArgs},
    error::{CliError, Context, Kind, Result},
    output::{Output, Paint},
};

/// Largest firmware or event log read.
const MAX_SMALL: u64 = 64 << 20;
/// Largest kernel or initial file system read.
const MAX_LARGE: u64 = 4 << 30;

pub(super) fn predict(args: &AttestPredictArgs, output: &Output) -> Result<()> {
    let file = bytes_up_to(&args.firmware, "firmware", MAX_SMALL)?;
    let firmware = Firmware::parse(&file)
        .or_input("no_firmware", || format!("{} starts no TDX guest", args.firmware.display()))?;
    let mrtd = PageOrder::ALL.map(|order| firmware.mrtd(order));
    let kernel = args.kernel.as_ref().map(|kernel| booted(kernel, args)).transpose()?;
    let mut value = json!({
        "mrtd": { "page_by_page": mrtd[0], "section_by_section": mrtd[1] }, "sections": firmware.sections(),
    });
    if let (Some((rtmr1, rtmr2)), Some(fields)) = (&kernel, value.as_object_mut()) {
        fields.insert("rtmr1".into(), json!(rtmr1));
        fields.insert("rtmr2".into(), json!(rtmr2));
    }
    output.answer(&value, |_| {
        let mut lines = vec![
            format!("mrtd    {}   where pages are added one by one", mrtd[0]),
            format!("        {}   where they are added section by section", mrtd[1]),
            "rtmr0   depends on the machine: see `coalition attest log`".to_owned(),
        ];
        match &kernel {
            Some((rtmr1, rtmr2)) => lines.extend([format!("rtmr1   {rtmr1}"), format!("rtmr2   {rtmr2}")]),
            None => lines.push("rtmr1, rtmr2 depend on the kernel: give it with --kernel".into()),
        }
        lines.join("\n")
    });
    Ok(())
}

/// RTMR1 and RTMR2 of a guest that is given its kernel directly.
fn booted(kernel: &Path, args: &AttestPredictArgs) -> Result<(String, String)> {
    let initrd = args.initrd.as_deref().map(|path| bytes_up_to(path, "initial file system", MAX_LARGE)).transpose()?;
    let boot = DirectBoot {
        kernel: &bytes_up_to(kernel, "kernel", MAX_LARGE)?,
        image: args.ram_mib.map_or(KernelImage::Untouched, |ram_mib| KernelImage::Loaded { ram_mib }),
        initrd: initrd.as_deref().unwrap_or_default(),
        command_line: &args.append,
    };
    let rtmr1 = boot.rtmr1().or_input("no_kernel", || format!("{} boots no TDX guest", kernel.display()))?;
    Ok((rtmr1.to_string(), boot.rtmr2().to_string()))
}

pub(super) fn log(args: &AttestLogArgs, output: &Output) -> Result<()> {
    let file = bytes_up_to(&args.log, "event log", MAX_SMALL)?;
    let log = EventLog::parse(&file).or_input("no_log", || format!("{} is no event log", args.log.display()))?;
    let quoted = args.quote.as_deref().map(quoted).transpose()?;
    let explained = quoted.map(|quoted| log.explains(&quoted.rtmr));
    let events: Vec<Value> = log.events().iter().map(event).collect();
    let value = json!({
        "events": events, "rtmr": log.replay(), "explains_quote": explained.as_ref().map(std::result::Result::is_ok), "quote_verified": false,
    });
    output.answer(&value, |output| shown(&log, explained.as_ref(), output));
    explained.unwrap_or(Ok(())).map_err(|wrong| {
        CliError::new(Kind::Unproven, "unexplained", "the event log is not what the quoted guest measured")
            .because(wrong)
    })
}

fn quoted(path: &Path) -> Result<Measurements> {
    let evidence = read(path)?;
    let quote =
        Quote::parse(&evidence.quote).or_input("malformed", || format!("{} is no TDX quote", path.display()))?;
    Ok(quote.measurements())
}

fn event(event: &Event) -> Value {
    json!({
        "register": event.rtmr.map(|rtmr| format!("rtmr{rtmr}")), "kind": event.kind, "kind_name": event.kind_name(),
        "digest": hex::encode(event.digest), "text": event.text(), "data": hex::encode(&event.data),
    })
}

fn shown(log: &EventLog, explained: Option<&std::result::Result<(), Unexplained>>, output: &Output) -> String {
    let row = |event: &Event| {
        let register = event.rtmr.map_or_else(|| "-".into(), |rtmr| format!("rtmr{rtmr}"));
        let text = event.text().unwrap_or_else(|| format!("{} bytes", event.data.len()));
        let text: String = text.chars().take(60).collect();
        format!("{register:<6} {:<34} {}…  {text}", event.kind_name(), hex::encode(&event.digest[..8]))
    };
    let mut lines: Vec<String> = log.events().iter().map(row).collect();
    let registers = log.replay().into_iter().zip(0..);
    lines.extend(registers.map(|(value, register)| format!("rtmr{register}  {value}")));
    match explained {
        Some(Ok(())) => {
            lines.push(output.paint(Paint::Good, "explains all four run-time registers of the quote"));
            lines.push(
                output.paint(Paint::Warn, "the quote itself is not verified here: `coalition attest verify` does that"),
            );
        }
        Some(Err(wrong)) => lines.push(output.paint(Paint::Bad, &wrong.to_string())),
        None => lines.push(output.paint(Paint::Warn, "a log proves nothing without a quote: compare it with --quote")),
    }
    lines.join("\n")
}
