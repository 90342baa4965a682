//! What a requester reaches of its machine beside a shell: its workload's output, and files in both directions.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use coalition_host::output::{Record, Stream};
use coalition_host::state::now_unix_ms;
use coalition_host::{ExitOutcome, Phase, WorkloadSpec};

use super::harness::{As, Host, await_some, records, text};

fn runs(line: &str) -> impl FnOnce(&mut WorkloadSpec) {
    let command = ["/bin/sh", "-c", line].map(str::to_owned).to_vec();
    move |spec| spec.command = command
}

#[test]
fn output_is_read_followed_and_read_again_after_the_workload_ended() {
    for host in Host::each() {
        let grant = host.start(runs("echo out; echo err >&2; until [ -e go ]; do sleep 0.1; done; echo more; exit 3"));
        let seen = await_some("output", Duration::from_secs(20), || {
            Some(grant.output("")).filter(|seen| text(seen, Stream::Stderr) == "err\n")
        });
        assert_eq!((text(&seen, Stream::Stdout).as_str(), seen.last()), ("out\n", Some(&Record::Running)));

        let mut follow = grant.ssh_command(&["-s"]);
        follow.args(["coalition-logs", "--follow"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let follow = follow.spawn().unwrap();
        assert_eq!(grant.ssh("touch go").code, 0);
        let followed = records(&follow.wait_with_output().unwrap().stdout);
        let Some(Record::Exited { at_unix_ms, outcome }) = followed.last() else { panic!("{followed:?}") };
        assert_eq!((text(&followed, Stream::Stdout).as_str(), *outcome), ("out\nmore\n", ExitOutcome::Code(3)));
        assert!(now_unix_ms().abs_diff(*at_unix_ms) < 60_000);

        assert_eq!(grant.output(""), followed, "read again after the end");
        let later = grant.output(&format!("--since {}", now_unix_ms() + 1));
        assert_eq!(later, followed[followed.len() - 1..], "nothing is that new");
        // A subsystem or option there is not is refused, and nothing is run.
        for words in [&["coalition-logs", "--colour"][..], &["coalition-logz"]] {
            let refused = grant.ssh_command(&["-s"]).args(words).stdin(Stdio::null()).output().unwrap();
            assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
        }
        grant.clean();
    }
}

#[test]
fn endless_output_costs_a_fixed_room_and_what_is_gone_is_counted() {
    let Some(host) = Host::each().into_iter().next() else { return };
    let grant = host.start(runs("dd if=/dev/zero bs=64k count=640 2>/dev/null; echo end"));
    let seen = grant.output("--follow");
    let (mut kept, mut gone) = (0, 0);
    for record in &seen {
        match record {
            Record::Output { bytes, .. } => kept += bytes.len() as u64,
            Record::Gone { bytes } => gone += bytes,
            _ => {}
        }
    }
    assert_eq!(kept + gone, (640 << 16) + 4, "{kept} bytes kept, {gone} gone");
    let again = grant.output("");
    assert!(matches!(again[0], Record::Gone { bytes } if bytes >= 20 << 20), "{:?}", again[0]);
    assert!(text(&again, Stream::Stdout).ends_with("end\n"));
    let on_disk: u64 = (0..2).map(|n| fs::metadata(grant.dir.join(format!("output.{n}"))).unwrap().len()).sum();
    assert!(((7 << 20)..=(16 << 20)).contains(&on_disk), "{on_disk} bytes on disk");
    grant.clean();
}

#[test]
fn a_machine_without_a_command_has_no_output_and_one_that_cannot_start_says_so() {
    let Some(host) = Host::each().into_iter().next() else { return };
    let idle = host.start(|_| {});
    assert_eq!(idle.output("--follow"), [Record::NoCommand]);
    idle.clean();
    let broken = host.start(|spec| spec.command = vec!["/no/such/program".into()]);
    let seen = broken.output("--follow");
    assert!(text(&seen, Stream::Stderr).contains("/no/such/program"), "{seen:?}");
    assert!(matches!(seen.last(), Some(Record::Exited { outcome: ExitOutcome::Code(127), .. })), "{seen:?}");
    broken.clean();
}

/// The example image has no file server of its own.
#[test]
fn files_go_in_and_out_whatever_the_image_has() {
    for host in Host::each() {
        let grant = host.start(|_| {});
        let here = grant.client.path().join("tree");
        fs::create_dir_all(here.join("deep/er")).unwrap();
        let big: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.to_le_bytes()).collect();
        fs::write(here.join("big"), &big).unwrap();
        fs::write(here.join("deep/er/small"), "small").unwrap();
        fs::write(here.join("empty"), "").unwrap();
        let back = grant.client.path().join("back");
        let (here, there) = (here.to_str().unwrap(), back.to_str().unwrap());
        let seen = grant.scp(&["-rp"], here, "inside:tree");
        assert_eq!(seen.code, 0, "{:?}: {seen:?}", host.kind);
        assert_eq!(grant.ssh("cat tree/deep/er/small").out, "small");
        let seen = grant.scp(&["-r"], "inside:tree", there);
        assert_eq!(seen.code, 0, "{:?}: {seen:?}", host.kind);
        assert!(fs::read(back.join("big")).unwrap() == big, "other bytes came back");
        assert_eq!(fs::read(back.join("empty")).unwrap(), b"");
        assert_eq!(fs::read(back.join("deep/er/small")).unwrap(), b"small");
        let seen = grant.scp(&[], "inside:no/such", there);
        assert!(seen.code != 0 && seen.err.contains("No such file"), "{seen:?}");
        grant.clean();
    }
}

#[test]
fn the_file_server_is_confined_limited_and_ends_with_the_grant() {
    for host in Host::each().into_iter().filter(|h| h.kind != As::Bare) {
        let secret = host.temp.path().join("secret");
        fs::write(&secret, "the host's secret").unwrap();
        let grant = host.start(|spec| spec.disk_mib = 8);
        let at = grant.client.path().join("got");
        let seen = grant.scp(&[], &format!("inside:{}", secret.display()), at.to_str().unwrap());
        assert!(seen.code != 0 && !at.exists(), "{seen:?}");
        let mut session = grant.ssh_command(&["-s"]);
        let mut session = session.arg("sftp").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        // SSH_FXP_INIT: the server answers, so it is there.
        session.stdin.as_mut().unwrap().write_all(&[0, 0, 0, 5, 1, 0, 0, 0, 3]).unwrap();
        await_some("the file server", Duration::from_secs(20), || {
            // Ours are called `exe`; what they are is closed to the workload, as is all else of them.
            let seen = grant.ssh(
                "for p in /proc/[0-9]*; do \
                   [ \"$(cat $p/comm)\" = exe ] && echo ours && head -c 4 $p/exe && cat $p/environ $p/maps && ls $p/fd; \
                 done 2>/dev/null; true",
            );
            assert!(!seen.out.contains("ELF"), "the host's program is readable inside: {seen:?}");
            let lines: Vec<&str> = seen.out.lines().collect();
            assert!(lines.iter().all(|line| *line == "ours"), "{seen:?}");
            let inits = lines.len();
            (inits == 2).then_some(())
        });
        assert!(matches!(grant.stop().phase, Phase::Ended { .. }));
        grant.assert_no_process();
        drop(session.stdin.take());
        session.wait().unwrap();
        grant.clean();
    }
}
