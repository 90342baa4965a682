//! `coalition image`: make and inspect images.

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
    });
    output.answer(&value, |output| {
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
