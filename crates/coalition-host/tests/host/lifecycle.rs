use std::fs;
use std::time::{Duration, Instant};

use coalition_host::output::{Record, Stream};
use coalition_host::{EndReason, ExitOutcome, ListReport, Phase, RunnerState};

use super::harness::{As, Host, await_some, text};

#[test]
fn a_grant_lives_and_leaves_nothing() {
    for host in Host::each() {
        let began = Instant::now();
        let grant = host.start(|spec| {
            spec.env = [("GREETING".to_owned(), "good day".to_owned())].into();
            spec.command = vec!["/bin/sh".into(), "-c".into(), "echo working; exit 3".into()];
            if host.kind == As::Bare {
                spec.command[0] = "sh".into();
            }
        });
        let took = began.elapsed();
        eprintln!("{:?}: start to ready in {took:?}", host.kind);
        assert!(took < Duration::from_secs(5), "{took:?}");

        let seen = grant.ssh("echo out; echo err >&2; echo $GREETING; exit 7");
        assert_eq!((seen.code, seen.out.as_str(), seen.err.as_str()), (7, "out\ngood day\n", "err\n"));
        let exit = await_some("the workload's exit", Duration::from_secs(10), || match grant.status().phase {
            Phase::Ready { workload_exit, .. } => workload_exit,
            _ => None,
        });
        assert_eq!(exit, ExitOutcome::Code(3));
        let output = grant.output("");
        assert!(matches!(output.last(), Some(Record::Exited { outcome: ExitOutcome::Code(3), .. })), "{output:?}");
        assert_eq!(text(&output, Stream::Stdout), "working\n");
        assert!(
            !fs::read_to_string(grant.dir.join("spec.json")).unwrap().contains("BEGIN"),
            "the host key stays on disk"
        );

        let listed: ListReport = host.answer(&["list", "--root", host.temp.path().to_str().unwrap()]).unwrap();
        assert_eq!(listed.grants.len(), 1);
        assert!(matches!(listed.grants[0].state.as_ref().unwrap().phase, Phase::Ready { .. }));

        let ended = grant.stop();
        let Phase::Ended { reason, detail, exit, usage } = ended.phase else { panic!("{ended:?}") };
        assert_eq!((reason, detail.as_deref(), exit), (EndReason::Stopped, Some("test"), Some(ExitOutcome::Code(3))));
        assert!(usage.is_final && usage.net_bytes >= 20 && usage.samples >= 2, "{usage:?}");
        assert_eq!(usage, grant.usage());
        grant.assert_no_process();
        let again = grant.stop();
        assert!(matches!(again.phase, Phase::Ended { reason: EndReason::Stopped, .. }));
        grant.clean();
        let twice: coalition_host::CleanReport = host.answer(&["clean", "--dir", grant.dir_text()]).unwrap();
        assert!(twice.removed.is_empty());
    }
}

#[test]
fn the_end_can_be_moved_while_it_runs_and_not_after() {
    for host in Host::each() {
        let now_ms = coalition_host::state::now_unix_ms();
        let first_end = now_ms + 2_500;
        let grant = host.start(|spec| spec.valid_to_unix_ms = first_end);
        let extend = |until_ms: u64| -> Result<RunnerState, coalition_host::Failure> {
            host.answer(&["extend", "--dir", grant.dir_text(), "--until", &until_ms.to_string()])
        };
        let later = now_ms + 600_000;
        for _ in 0..2 {
            assert_eq!(extend(later).unwrap().valid_to_unix_ms, later, "asked twice it is the same");
        }
        assert_eq!(extend(now_ms).unwrap_err().code, "deadline_passed");
        assert_eq!(grant.status().valid_to_unix_ms, later, "what is refused moves nothing");
        // Neither the supervisor's first end nor the environment's own, five seconds later, counts any more.
        await_some("the first end and its grace", Duration::from_secs(20), || {
            (coalition_host::state::now_unix_ms() > first_end + 5_500).then_some(())
        });
        assert_eq!(grant.ssh("echo here").out, "here\n");
        // Back again, to where it can be waited for.
        let soon = coalition_host::state::now_unix_ms() + 2_500;
        extend(soon).unwrap();
        let reason = await_some("the end", Duration::from_secs(20), || match grant.status().phase {
            Phase::Ended { reason, .. } => Some(reason),
            _ => None,
        });
        assert_eq!(reason, EndReason::Deadline);
        assert!(coalition_host::state::now_unix_ms() >= soon);
        assert_eq!(extend(later).unwrap_err().code, "over");
        grant.clean();
    }
}

#[test]
fn the_deadline_needs_nobody() {
    for host in Host::each() {
        let valid_to = coalition_host::state::now_unix_ms() + 3_000;
        let grant = host.start(|spec| {
            spec.valid_to_unix_ms = valid_to;
            spec.command = vec!["sleep".into(), "1000".into()];
        });
        let (reason, _, usage) = grant.await_end(Duration::from_secs(20));
        assert_eq!(reason, EndReason::Deadline);
        let late = usage.updated_unix_ms - valid_to;
        assert!(late < 3_000, "{late} ms late");
        assert!(usage.is_final);
        grant.assert_no_process();
        grant.clean();
    }
}

#[test]
fn a_killed_supervisor_takes_its_grant_along_and_stop_settles_it() {
    for host in Host::each() {
        let grant = host.start(|spec| spec.command = vec!["sleep".into(), "1000".into()]);
        await_some("the workload", Duration::from_secs(10), || {
            (grant.processes().len() > 1 || !grant.processes().is_empty()).then_some(())
        });
        let supervisor = grant.state.as_ref().unwrap().supervisor.pid;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), nix::sys::signal::Signal::SIGKILL).unwrap();
        let lost = await_some("lost", Duration::from_secs(10), || match grant.status() {
            state @ RunnerState { phase: Phase::Lost { .. }, .. } => Some(state),
            _ => None,
        });
        assert_eq!(lost.grant_id, grant.spec.grant_id);
        await_some("the end of its processes", Duration::from_secs(10), || grant.processes().is_empty().then_some(()));
        let ended = grant.stop();
        assert!(matches!(ended.phase, Phase::Ended { reason: EndReason::Lost, .. }), "{ended:?}");
        for group in &grant.state.as_ref().unwrap().cgroups {
            assert!(!group.exists());
        }
        grant.clean();
    }
}

#[test]
fn a_killed_supervisor_and_init_are_cleaned_without_stop() {
    // Our bare host is a user namespace of its own for every command, which hides one command's processes from the next.
    for host in Host::each().into_iter().filter(|h| h.kind != As::Bare) {
        let grant = host.start(|spec| spec.command = vec!["sleep".into(), "1000".into()]);
        await_some("the workload", Duration::from_secs(10), || (!grant.processes().is_empty()).then_some(()));
        let state = grant.state.as_ref().unwrap();
        let kill = |pid| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        kill(state.supervisor.pid).unwrap();
        let _ = kill(state.init.as_ref().unwrap().pid);
        grant.clean();
    }
}

#[test]
fn a_directory_holds_one_grant() {
    for host in Host::each().into_iter().take(1) {
        let grant = host.start(|_| {});
        let failure = host.answer::<RunnerState>(&["start", "--dir", grant.dir_text()]).unwrap_err();
        assert_eq!(failure.code, "occupied");
        assert_eq!(grant.ssh("echo alive").out, "alive\n");
        grant.stop();
        let failure = host.answer::<RunnerState>(&["start", "--dir", grant.dir_text()]).unwrap_err();
        assert!(failure.code == "occupied" && failure.message.contains("ended"), "{failure}");
        grant.clean();
    }
}

#[test]
fn what_a_host_cannot_promise_it_refuses() {
    for host in Host::each().into_iter().filter(|h| h.kind != As::Root) {
        let grant = host.prepare(|spec| spec.minimum_isolation = coalition_host::IsolationLevel::RootNamespaces);
        let failure = host.answer::<RunnerState>(&["start", "--dir", grant.dir_text()]).unwrap_err();
        assert_eq!(failure.code, "isolation_too_weak");
        assert!(failure.hint.is_some());
        grant.clean();
    }
}

#[test]
fn a_port_in_use_and_a_deadline_in_the_past_are_told_apart() {
    let Some(host) = Host::each().into_iter().next() else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let grant = host.prepare(|spec| spec.ssh_listen = taken.local_addr().unwrap());
    let output = host.run(&["start", "--dir", grant.dir_text()]);
    assert_eq!(output.status.code(), Some(19));
    assert!(matches!(grant.status().phase, Phase::Ended { reason: EndReason::FailedToStart, .. }));
    assert!(!grant.dir.join("rootfs").exists());
    grant.clean();

    let grant = host.prepare(|spec| spec.valid_to_unix_ms = 1_000);
    let failure = host.answer::<RunnerState>(&["start", "--dir", grant.dir_text()]).unwrap_err();
    assert!(failure.code == "deadline_passed" && failure.hint.unwrap().contains("date -u"));
    grant.clean();
}

/// Makes every write of these files fail, also for root, as a full disk does.
fn refuse_writes(grant: &super::harness::Grant<'_>) {
    for file in [".stop.json.new", ".usage.json.new", ".state.json.new"] {
        await_some("a moment without a write", Duration::from_secs(10), || fs::create_dir(grant.dir.join(file)).ok());
    }
}

#[test]
fn a_disk_that_takes_no_word_keeps_nothing_alive_and_no_directory() {
    for host in Host::each() {
        let grant = host.start(|spec| spec.command = vec!["sleep".into(), "1000".into()]);
        refuse_writes(&grant);
        let ended = grant.stop();
        let Phase::Ended { usage, .. } = &ended.phase else { panic!("{ended:?}") };
        assert!(usage.is_final && usage.samples > 0, "{usage:?}");
        grant.assert_no_process();
        assert!(matches!(grant.stop().phase, Phase::Ended { .. }), "it can be asked again");
        grant.clean();

        let grant = host.start(|_| {});
        refuse_writes(&grant);
        grant.clean();
    }
}

#[test]
fn a_directory_that_is_not_there_holds_no_grant_and_one_that_cannot_be_read_is_no_loss() {
    for host in Host::each().into_iter().take(1) {
        let missing = host.temp.path().join("missing");
        let failure = host.answer::<RunnerState>(&["status", "--dir", missing.to_str().unwrap()]).unwrap_err();
        assert_eq!(failure.code, "no_grant");
        let grant = host.start(|_| {});
        let (state, aside) = (grant.dir.join("state.json"), grant.dir.join("aside"));
        fs::rename(&state, &aside).unwrap();
        fs::create_dir(&state).unwrap();
        let failure = host.answer::<RunnerState>(&["status", "--dir", grant.dir_text()]).unwrap_err();
        assert_eq!(failure.code, "io");
        fs::remove_dir(&state).unwrap();
        fs::rename(&aside, &state).unwrap();
        assert!(matches!(grant.status().phase, Phase::Ready { .. }));
        grant.clean();
    }
}
