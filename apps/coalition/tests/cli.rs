//! The command line without a coalition: help, bad input and its exit status, JSON, completions.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;

use clap::CommandFactory;
use coalition_cli::cli::Cli;
use common::Environment;

/// Rewrites golden files instead of comparing with them.
const REWRITE: &str = "COALITION_REWRITE_GOLDEN";

/// docs/CLI.md: every help text, in the order of `coalition --help`.
fn reference() -> String {
    let mut page = String::from(
        "# The `coalition` command\n\nThis page is every help text on one page. It is generated: change `apps/coalition/src/cli.rs`, then run\n\
         `COALITION_REWRITE_GOLDEN=1 cargo test --release -p coalition-cli --test cli`.\n",
    );
    let mut command = Cli::command().term_width(100);
    command.build();
    describe(&mut command, "coalition", 2, &mut page);
    page
}

fn describe(command: &mut clap::Command, name: &str, depth: usize, page: &mut String) {
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    page.push_str(&format!("\n{} `{name}`\n\n```text\n{}\n```\n", "#".repeat(depth), lines.join("\n").trim_end()));
    for sub in command.get_subcommands_mut() {
        if sub.get_name() != "help" && !sub.is_hide_set() {
            let name = format!("{name} {}", sub.get_name());
            describe(sub, &name, (depth + 1).min(4), page);
        }
    }
}

#[test]
fn the_reference_page_is_the_help_texts() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/CLI.md");
    let expected = reference();
    if std::env::var_os(REWRITE).is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == expected, "docs/CLI.md is out of date: run with {REWRITE}=1");
}

#[test]
fn the_command_tree_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_an_example_or_nothing_to_show() {
    fn check(command: &clap::Command, path: &str) {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            let path = format!("{path} {}", sub.get_name());
            let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            let has_children = sub.get_subcommands().next().is_some();
            let is_role = path.contains(" run ");
            assert!(after.contains("coalition ") || has_children || is_role, "{path} shows no example");
            assert!(sub.get_about().is_some(), "{path} says nothing about itself");
            check(sub, &path);
        }
    }
    check(&Cli::command(), "coalition");
}

#[test]
fn bad_input_gets_its_status_and_a_paragraph() {
    let env = Environment::new();
    let tar = env.file("hello.tar", [7; 700]);
    let empty = env.file("empty.tar", "");
    let garbage = env.file("garbage.toml", "nonsense = [");
    let evidence = env.file("evidence", "coalition-evidence/v1\nrubbish\n");
    let (tar, empty) = (tar.to_str().unwrap(), empty.to_str().unwrap());
    let request = |image: &str| {
        vec!["request", "--image", image, "--for", "10m", "--max-rate", "0.05"]
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let with = |extra: &[&str]| {
        let mut all = request(tar);
        all.extend(extra.iter().map(|word| (*word).to_owned()));
        all
    };
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let cases: Vec<(Vec<String>, i32, &str)> = vec![
        (words("nonsense"), 2, "unrecognized subcommand"),
        (words("attest verify x --policy missing.toml"), 3, "missing.toml"),
        (words("attest show hello.tar"), 3, "no TDX quote"),
        (words("attest show missing.bin"), 3, "missing.bin"),
        (words("attest quote --report-data 00"), 3, "64 bytes"),
        (words(&format!("attest quote --report-data {}", "00".repeat(64))), 3, "no TDX guest"),
        (words("request"), 2, "--image"),
        (with(&["--cpu", "many"]), 2, "no number of cores"),
        (with(&["--ram", "256"]), 2, "256MiB"),
        (with(&["--region", "Mars!"]), 2, "region"),
        (with(&["--wait", "soon"]), 2, "90s"),
        (with(&["--deadline", "yesterday"]), 2, "2030-01-31T12:00:00Z"),
        (words("request --image x --for 10m --max-rate cheap"), 2, "cheap"),
        (words("request --image x --for forever --max-rate 1"), 2, "forever"),
        (request("/nonexistent.tar"), 3, "cannot read image"),
        (request(tar), 3, "no tar, no gzipped tar, no raw disk"),
        (request(empty), 3, "is empty"),
        (request("/"), 3, "is not a file"),
        (words("market"), 4, "coalition up"),
        (words("status"), 4, "coalition up"),
        (words("end"), 3, "no grant was requested"),
        (words("ssh zz"), 3, "is no grant"),
        (words("ssh abcd"), 3, "no grant requested"),
        (words("log"), 3, "no grant was requested"),
        (words("id"), 3, "there is no config"),
        (words("id /nonexistent"), 3, "/nonexistent"),
        (vec!["id".into(), garbage.display().to_string()], 3, "no valid coalition config"),
        (vec!["verify".into(), evidence.display().to_string()], 3, "there is no config"),
        (words("verify /nonexistent --config /nonexistent"), 3, "cannot read"),
        (words("run member /nonexistent.toml"), 3, "/nonexistent.toml"),
        (vec!["run".into(), "relay".into(), garbage.display().to_string()], 3, "line 1"),
        (words("image inspect /nonexistent"), 3, "cannot read image"),
        (words("completions tcsh"), 2, "tcsh"),
    ];
    for (arguments, status, said) in cases {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ran = env.run(&arguments);
        assert_eq!(ran.status, status, "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(said), "{arguments:?} should say {said:?}: {}", ran.err);
        assert!(ran.out.is_empty() || arguments == ["status"], "{arguments:?} printed data: {}", ran.out);
        assert!(!ran.err.contains("panicked") && !ran.err.contains('\x1b'), "{arguments:?}: {}", ran.err);

        let mut json = vec!["--json"];
        json.extend(&arguments);
        let ran = env.run(&json);
        assert_eq!(ran.status, status, "{json:?}");
        let error = &ran.json()["error"];
        assert_eq!(error["status"], status, "{json:?}: {error}");
        assert!(error["code"].is_string() && error["message"].is_string());
    }
    assert!(!env.home().exists(), "bad input left something behind");
}

#[test]
fn an_image_too_large_is_refused_before_it_is_read() {
    let env = Environment::new();
    let image = env.file("huge.tar", "");
    // A file with a hole: it takes no space.
    std::fs::File::options().write(true).open(&image).unwrap().set_len(65 << 30).unwrap();
    let ran =
        env.run(&["--json", "request", "--image", "huge.tar", "--for", "10m", "--max-rate", "1"]).expect_status(3);
    let error = &ran.json()["error"];
    assert_eq!(error["code"], "image_too_large");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(&(65u64 << 30).to_string()) && message.contains(&(64u64 << 30).to_string()), "{message}");
}

#[test]
fn a_mistyped_role_config_is_named_with_its_line() {
    let env = Environment::new();
    let config = env.file("relay.toml", "# a relay\nlistn = \"127.0.0.1:0\"\n");
    let ran = env.run(&["run", "relay", config.to_str().unwrap()]).expect_status(3);
    assert!(ran.err.contains("line 2") && ran.err.contains("did you mean `listen`"), "{}", ran.err);
}

#[test]
fn a_home_open_to_others_is_refused() {
    let env = Environment::new();
    std::fs::create_dir(env.home()).unwrap();
    std::fs::set_permissions(env.home(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let ran = env.run(&["up"]).expect_status(3);
    assert!(ran.err.contains("chmod 700"), "{}", ran.err);
    assert_eq!(std::fs::read_dir(env.home()).unwrap().count(), 0);
}

#[test]
fn the_example_image_can_be_made_and_inspected() {
    let env = Environment::new();
    let made = env.run(&["--json", "image", "example"]).expect_status(0).json();
    assert_eq!(made["file"], "hello.tar");
    let again = env.run(&["image", "example", "hello.tar"]).expect_status(7);
    assert!(again.err.contains("--force"), "{}", again.err);
    let seen = env.run(&["--json", "image", "inspect", "hello.tar"]).expect_status(0).json();
    assert_eq!((&seen["blake3"], &seen["has_shell"]), (&made["blake3"], &serde_json::json!(true)));
    let human = env.run(&["image", "inspect", "hello.tar"]).expect_status(0);
    assert!(human.out.contains(seen["blake3"].as_str().unwrap()), "{}", human.out);
    env.run(&["image", "example", "hello.tar", "--force"]).expect_status(0);
}

#[test]
fn images_that_boot_are_inspected_and_other_disks_refused() {
    let env = Environment::new();
    let mut kernel = vec![0; 0x400];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    let sections: [(&str, &[u8]); 3] =
        [(".osrel", b"PRETTY_NAME=\"Mine 1\"\n"), (".cmdline", b"quiet"), (".linux", &kernel)];
    env.file("own.efi", coalition_host::machine::uki::assemble(&sections));
    let seen = env.run(&["--json", "image", "inspect", "own.efi"]).expect_status(0).json();
    let wanted = serde_json::json!({
        "kind": "uki", "system": "Mine 1", "command_line": "quiet", "kernel_bytes": 0x400, "initrd_bytes": null,
    });
    assert_eq!(seen["boots"], wanted);
    let human = env.run(&["image", "inspect", "own.efi"]).expect_status(0);
    for told in ["a unified kernel image", "Mine 1", "needs a virtual machine", seen["blake3"].as_str().unwrap()] {
        assert!(human.out.contains(told), "{}", human.out);
    }
    let asked = ["--json", "request", "--image", "own.efi", "--for", "10m", "--max-rate", "1", "--command", "ls"];
    let ran = env.run(&asked).expect_status(3);
    assert_eq!(ran.json()["error"]["code"], "image_takes_no_command");
    let mut disk = vec![0; 2_048];
    disk[510..520].copy_from_slice(b"\x55\xaaEFI PART");
    env.file("own.disk", disk);
    let seen = env.run(&["--json", "image", "inspect", "own.disk"]).expect_status(0).json();
    assert_eq!(seen["boots"], serde_json::json!({ "kind": "disk", "table": "gpt" }));
    env.file("own.qcow2", b"QFI\xfb and so on");
    let ran = env.run(&["image", "inspect", "own.qcow2"]).expect_status(3);
    assert!(ran.err.contains("qcow2") && ran.err.contains("qemu-img convert -O raw"), "{}", ran.err);
}

/// One development quote judged in every way there is to ask.
#[test]
fn a_quote_is_judged_offline_and_its_root_is_named() {
    use coalition::UniqueId;
    use coalition_attest::{Binding, DevelopmentRoot, Evidence, Measurements, Mrtd, Policy, QuoteSource};
    const NOW_S: u64 = 1_800_000_000;
    let (env, root) = (Environment::new(), DevelopmentRoot::generate().unwrap());
    let id = |byte| UniqueId::from_bytes([byte; 32]);
    let binding = Binding { purpose: "test", network: id(1), key: b"key", config: id(2), nonce: id(3) };
    let quote = root.guest(Measurements::of_mrtd(Mrtd([7; 48]))).unwrap().quote(&binding.report_data()).unwrap();
    let collateral = root.collateral(NOW_S).unwrap();
    env.file("quote.hex", hex::encode(&quote));
    env.file("collateral.json", collateral.to_json());
    env.file("evidence.bin", Evidence { quote, collateral: Some(collateral) }.to_bytes().unwrap());
    let strict = Policy::strict(root.trust_root().unwrap()).require_mrtd(Mrtd([7; 48])).max_quote_age_s(60).unwrap();
    env.file("policy.toml", toml::to_string(&strict).unwrap());
    env.file("intel.toml", "root = \"intel\"\ntcb = [\"UpToDate\"]\n");
    let (data, at) = (hex::encode(binding.report_data()), NOW_S.to_string());
    let judge = |file: &str, extra: &[&str]| {
        let mut arguments = vec!["--json", "attest", "verify", file, "--at", &at];
        if !extra.contains(&"--policy") {
            arguments.extend(["--policy", "policy.toml"]);
        }
        arguments.extend(extra);
        env.run(&arguments)
    };
    let bound = ["--report-data", data.as_str(), "--issued", at.as_str()];
    let valid = judge("evidence.bin", &bound).expect_status(0).json();
    assert_eq!((&valid["outcome"], &valid["root"]["kind"]), (&"valid".into(), &"development".into()));
    let beside = [&bound[..], &["--collateral", "collateral.json"]].concat();
    judge("quote.hex", &beside).expect_status(0);
    let (network, config, nonce) = (id(1).to_string(), id(2).to_string(), id(3).to_string());
    let mut parts = vec!["--purpose", "test", "--network", &network, "--bound-config", &config, "--nonce", &nonce];
    parts.extend(["--issued", &at, "--key"]);
    judge("evidence.bin", &[&parts[..], &["6b6579"]].concat()).expect_status(0);
    let long_ago = ["--report-data", &data, "--issued", "2020-01-01T00:00:00Z"];
    let cases: [(&str, Vec<&str>, &str); 6] = [
        ("evidence.bin", [&parts[..], &["00"]].concat(), "report_data"),
        ("evidence.bin", vec![], "binding_unknown"),
        ("evidence.bin", vec!["--report-data", &data], "age_unknown"),
        ("evidence.bin", long_ago.to_vec(), "too_old"),
        ("quote.hex", bound.to_vec(), "collateral_missing"),
        ("evidence.bin", [&bound[..], &["--policy", "intel.toml"]].concat(), "wrong_root"),
    ];
    for (file, extra, code) in cases {
        let ran = judge(file, &extra).expect_status(6);
        assert_eq!((&ran.objects()[0]["reason"], &ran.json()["error"]["code"]), (&code.into(), &code.into()));
    }
    let shown = env.run(&["attest", "show", "quote.hex"]).expect_status(0).out;
    assert!(shown.contains("DEVELOPMENT ROOT") && shown.contains(&"07".repeat(48)), "{shown}");
}

#[test]
fn completions_know_the_commands() {
    let env = Environment::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = env.run(&["completions", shell]).expect_status(0).out;
        for word in ["request", "market", "--max-rate", "verify"] {
            assert!(script.contains(word.trim_start_matches('-')), "{shell} does not know {word}");
        }
        assert!(!script.contains("runner"), "{shell} offers the hidden runner");
    }
}

#[test]
fn help_and_version_are_data() {
    let env = Environment::new();
    let help = env.run(&["--help"]).expect_status(0);
    assert!(help.out.contains("Exit status") && help.err.is_empty());
    assert!(env.run(&["--version"]).expect_status(0).out.starts_with("coalition "));
    assert_eq!(env.run(&["help", "request"]).expect_status(0).out, env.run(&["request", "--help"]).out);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let env = Environment::new();
    let mut child = env.command(&["--help"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    assert!(status.code().is_some(), "killed: {status}");
}
