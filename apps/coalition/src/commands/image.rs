//! `coalition image`: make and inspect images.

use coalition_host::machine::bootable::{Bootable, Table};
use serde_json::json;

use crate::{
    cli::{ImageCommand, ImageExampleArgs, ImageInspectArgs},
    error::{CliError, Kind, Result},
    image::{self, ExampleSource},
    output::{Output, Paint},
};

/// Runs the command.
///
/// # Errors
/// Unreadable or unusable images, a full disk.
pub fn run(command: &ImageCommand, output: &Output) -> Result<()> {
    match command {
        ImageCommand::Example(args) => example(args, output),
        ImageCommand::Inspect(args) => inspect(args, output),
        _ => Err(CliError::fault("internal", "that command is about stores")),
    }
}

fn example(args: &ImageExampleArgs, output: &Output) -> Result<()> {
    let shown = args.file.display();
    if args.file.exists() && !args.force {
        return Err(CliError::new(Kind::Conflict, "file_exists", format!("{shown} is already there"))
            .hint("choose another name, or replace it with --force"));
    }
    let source = image::make_example(&args.file)?;
    let facts = image::read_facts(&args.file, u64::MAX)?;
    let made_from = match &source {
        ExampleSource::Busybox(path) => format!("static busybox {}", path.display()),
        ExampleSource::DynamicTools => "this machine's shell and tools".to_owned(),
    };
    let value = json!({ "file": args.file, "size_bytes": facts.size_bytes, "blake3": facts.hash.to_string(), "made_from": made_from });
    output.answer(&value, |_| {
        format!(
            "{shown}: {} KiB, blake3 {}, from {made_from}\n\nNext: coalition request --image {shown} --for 10m --max-rate 0.05",
            facts.size_bytes.div_ceil(1_024),
            facts.hash
        )
    });
    Ok(())
}

fn boots_json(boots: &Bootable) -> serde_json::Value {
    match boots {
        Bootable::Disk(table) => json!({ "kind": "disk", "table": if *table == Table::Gpt { "gpt" } else { "mbr" } }),
        Bootable::Uki { parts, command_line, system } => json!({
            "kind": "uki", "system": system, "command_line": command_line, "kernel_bytes": parts.linux.size,
            "initrd_bytes": parts.initrd.map(|initrd| initrd.size),
        }),
    }
}

/// What a host makes of an image that boots.
fn started(boots: &Bootable) -> String {
    let mut text = String::new();
    if let Bootable::Uki { parts, command_line, system } = boots {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let system = system.as_deref().unwrap_or("a system without a name");
        let initrd = parts.initrd.map_or(0, |initrd| initrd.size);
        text += &format!("  {system}: kernel {} MiB, initial file system {} MiB", mib(parts.linux.size), mib(initrd));
        text += &format!(", command line {command_line:?}\n");
    }
    text + "  needs a virtual machine; takes its SSH keys from cloud-init (NoCloud) or systemd's credentials\n"
}

fn inspect(args: &ImageInspectArgs, output: &Output) -> Result<()> {
    let facts = image::read_facts(&args.file, coalition_shuffle::envelope::MAX_IMAGE_BYTES)?;
    let contents = image::inspect(&args.file)?;
    let value = json!({
        "file": args.file, "size_bytes": facts.size_bytes, "blake3": facts.hash.to_string(), "gzipped": contents.gzip,
        "entries": contents.entries, "unpacked_bytes": contents.unpacked_bytes, "has_shell": contents.has_shell,
        "oci": contents.oci.as_ref().map(|oci| json!({
            "layers": oci.layers, "command": oci.config.command, "env": oci.config.env.keys().collect::<Vec<_>>(),
            "workdir": oci.config.workdir, "user": oci.config.user,
        })),
        "boots": contents.boots.as_ref().map(boots_json),
    });
    output.answer(&value, |output| {
        if let Some(boots) = &contents.boots {
            let shown = args.file.display();
            return format!(
                "{shown}\n  {}, {} bytes\n  blake3 {}\n{}",
                boots,
                facts.size_bytes,
                facts.hash,
                started(boots)
            );
        }
        let kind = match &contents.oci {
            Some(oci) => format!("OCI archive, layers: {}", oci.layers),
            None if contents.gzip => "gzipped tar".to_owned(),
            None => "tar".to_owned(),
        };
        let mut text = format!(
            "{}\n  {kind}, {} bytes, {} entries, {} bytes unpacked\n  blake3 {}\n",
            args.file.display(),
            facts.size_bytes,
            contents.entries,
            contents.unpacked_bytes,
            facts.hash
        );
        if let Some(oci) = contents.oci.as_ref().filter(|oci| !oci.config.command.is_empty()) {
            let command: Vec<String> = oci.config.command.iter().map(|word| format!("{word:?}")).collect();
            let user = oci.config.user.as_deref().unwrap_or("root");
            text += &format!("  runs {} as {user}, unless the request says what to run\n", command.join(" "));
        }
        if !contents.has_shell {
            text += &output.paint(Paint::Warn, "  no /bin/sh in it: `coalition ssh` can only run programs it has\n");
        }
        text
    });
    Ok(())
}
