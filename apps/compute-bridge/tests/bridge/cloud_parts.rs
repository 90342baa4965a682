//! The parts of the cloud backend that touch nothing: user data, keys, the ledger, when a host counts as gone.

use std::collections::BTreeMap;
use std::process::Command;

use coalition::{ProviderId, RequestId, UniqueId};
use coalition_cloud::HostState;
use compute_bridge::backend::{FailureKind, InstanceName};
use compute_bridge::backends::cloud::Absence;
use compute_bridge::backends::cloud::ledger::{Ledger, Limits, Size, choose};
use compute_bridge::backends::cloud_init::{FirstBoot, NO_TIMER_TO_MOVE, moved_timer, poweroff_timer, user_data};
use compute_bridge::backends::machine_keys::MachineKeys;
use proptest::prelude::*;

use super::harness::eventually;

fn name(n: u8) -> InstanceName {
    InstanceName::derive(&ProviderId(UniqueId::hash(b"p")), &RequestId(UniqueId::hash(&[n])), 0)
}

fn size(cpu_millicores: u32, ram_mib: u32, price: u64) -> Size {
    let price_hour = coalition::RateQ64::from_usd_per_hour(price);
    Size { name: format!("t{cpu_millicores}"), cpu_millicores, ram_mib, price_hour, confidential: None }
}

#[test]
fn user_data_says_one_host_key_one_login_and_when_to_switch_off() {
    let keys = MachineKeys::new(&[7; 32]);
    let (host, login) = (keys.host(&name(1)), keys.login(&name(1)));
    let boot =
        FirstBoot { host: &host, login_public: &login.public_openssh, poweroff_at_s: 1_800_000_120, longest_s: 3_720 };
    let text = String::from_utf8(user_data(&boot).to_vec()).unwrap();
    // Byte for byte: the same question under the same client token must stay the same question.
    assert_eq!(text, include_str!("golden/user-data.txt"));
    let json: serde_json::Value = serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap()).unwrap();
    assert_eq!(json["ssh_authorized_keys"], serde_json::json!([login.public_openssh.trim_end()]));
    assert!(
        !text.contains(login.private_openssh.expose().lines().nth(2).unwrap()),
        "the bridge's own login stays here"
    );
}

#[test]
fn keys_derive_from_bridge_instance_and_purpose() {
    let (one, other) = (MachineKeys::new(&[7; 32]), MachineKeys::new(&[8; 32]));
    let public = |pair: coalition_host::keys::KeyPair| pair.public_openssh;
    let all = [
        public(one.host(&name(1))),
        public(one.login(&name(1))),
        public(one.host(&name(2))),
        public(other.host(&name(1))),
    ];
    assert_eq!(all[0], public(MachineKeys::new(&[7; 32]).host(&name(1))));
    assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
    assert!(!format!("{one:?}").contains('7'));
}

/// Runs the timer's script with programs that only write down that they were called.
fn run_timer(script: &str, dir: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    for program in ["systemd-run", "poweroff", "systemctl"] {
        let path = dir.join(program);
        std::fs::write(&path, format!("#!/bin/sh\necho \"$@\" > {}/{program}.called\n", dir.display())).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:/usr/bin:/bin", dir.display());
    let status = Command::new("sh").args(["-c", script]).env("PATH", path).status().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn the_dead_mans_timer_is_armed_with_what_is_left() {
    let now_s = compute_bridge::now_ms() / 1_000;
    let seconds_asked = |at_s: u64, longest_s: u64| {
        let dir = tempfile::tempdir().unwrap();
        run_timer(&poweroff_timer(at_s, longest_s).replace("/run/systemd/system", "/"), dir.path());
        let called = std::fs::read_to_string(dir.path().join("systemd-run.called")).unwrap();
        assert!(called.contains("--no-block") && called.trim_end().ends_with("systemctl poweroff"), "{called}");
        let left = called.split("--on-active=").nth(1).unwrap().split(' ').next().unwrap();
        left.parse::<u64>().unwrap()
    };
    assert!((590..=600).contains(&seconds_asked(now_s + 600, 3_600)));
    // A clock that is far behind does not keep it running; one that is ahead ends it at once.
    assert_eq!(seconds_asked(now_s + 1_000_000, 3_600), 3_600);
    assert_eq!(seconds_asked(now_s - 50, 3_600), 1);
    let dir = tempfile::tempdir().unwrap();
    run_timer(&poweroff_timer(now_s, 3_600).replace("/run/systemd/system", "/nonexistent"), dir.path());
    eventually("the power to go off", || dir.path().join("poweroff.called").exists().then_some(())).await;
}

#[test]
fn the_timer_is_armed_anew_before_the_old_one_is_disarmed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let program = |name: &str, body: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho {name} \"$@\" >> {}/calls\n{body}\n", dir.path().display()))
            .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("systemd-run", "exit 0");
    let listing = "case $1 in is-active) exit 3;; list-units) printf 'coalition-deadline.timer loaded\\ncoalition-deadline-77.timer loaded\\n';; esac";
    program("systemctl", listing);
    let run = |script: &str| {
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        let status = Command::new("sh").args(["-c", script]).env("PATH", path).status().unwrap();
        (status.code().unwrap(), std::fs::read_to_string(dir.path().join("calls")).unwrap_or_default())
    };
    let at_s = compute_bridge::now_ms() / 1_000 + 600;
    let script = |at_s: u64, most_s: u64| moved_timer(at_s, most_s).replace("/run/systemd/system", "/");
    let (status, calls) = run(&script(at_s, 3_600));
    let calls: Vec<&str> = calls.lines().collect();
    assert_eq!((status, calls.len()), (0, 6), "{calls:?}");
    assert!(
        calls[2].starts_with(&format!("systemd-run --quiet --unit=coalition-deadline-{at_s} --on-active=")),
        "{calls:?}"
    );
    assert_eq!(calls[4..], ["systemctl stop coalition-deadline.timer", "systemctl stop coalition-deadline-77.timer"]);
    // One that is armed already stays, and so does nothing else.
    program("systemctl", &listing.replace("exit 3", "exit 0").replace("-77", &format!("-{at_s}")));
    std::fs::remove_file(dir.path().join("calls")).unwrap();
    let (status, calls) = run(&script(at_s, 3_600));
    assert!(
        status == 0 && !calls.contains("systemd-run") && !calls.contains(&format!("stop coalition-deadline-{at_s}")),
        "{calls}"
    );
    // When the new one is not armed, the old one stays; and without systemd there is none to move.
    program("systemctl", listing);
    program("systemd-run", "exit 1");
    std::fs::remove_file(dir.path().join("calls")).unwrap();
    let (status, calls) = run(&script(at_s, 3_600));
    assert!(status == 5 && !calls.contains("systemctl stop"), "{calls}");
    let elsewhere = moved_timer(at_s, 3_600).replace("/run/systemd/system", "/nonexistent");
    assert_eq!(u32::try_from(run(&elsewhere).0).unwrap(), NO_TIMER_TO_MOVE);
    // Nor is one armed on a machine that has none: it may be no host of a cloud at all.
    program("systemd-run", "exit 0");
    program("systemctl", "exit 0");
    std::fs::remove_file(dir.path().join("calls")).unwrap();
    let (status, calls) = run(&script(at_s, 3_600));
    assert_eq!(u32::try_from(status).unwrap(), NO_TIMER_TO_MOVE);
    assert!(!calls.contains("systemd-run"), "{calls}");
}

#[test]
fn a_host_is_gone_when_its_cloud_says_so_or_misses_it_again_and_again() {
    for over in [HostState::Over, HostState::Stopped] {
        assert!(Absence::default().look(Some(over)));
    }
    let mut absence = Absence::default();
    for state in [None, None, Some(HostState::Running), None, None] {
        assert!(!absence.look(state));
    }
    assert!(absence.look(None));
}

proptest! {
    #[test]
    fn the_cheapest_size_that_fits_is_chosen(
        sizes in proptest::collection::vec((1_u32..40, 1_u32..40, 0_u64..5), 0..8),
        cpu in 1_u32..40,
        ram in 1_u32..40,
    ) {
        let sizes: Vec<Size> = sizes.iter().map(|(c, r, p)| size(c * 1_000, r * 1_024, *p)).collect();
        let (cpu, ram) = (cpu * 1_000, ram * 1_024);
        let fits = |size: &&Size| size.cpu_millicores >= cpu && size.ram_mib >= ram;
        match choose(&sizes, cpu, ram) {
            None => prop_assert!(!sizes.iter().any(|size| fits(&size))),
            Some(chosen) => {
                prop_assert!(fits(&chosen));
                prop_assert!(sizes.iter().filter(fits).all(|size| size.price_hour >= chosen.price_hour));
            }
        }
    }

    #[test]
    fn no_limit_is_ever_passed(
        steps in proptest::collection::vec((any::<bool>(), 0_u8..12, 1_u32..9), 0..80),
        max_instances in 1_u32..6,
        quota in proptest::option::of(0_u32..30),
    ) {
        let limits = Limits { max_instances, quota_vcpus: quota };
        let (mut ledger, mut model) = (Ledger::default(), BTreeMap::new());
        for (book, n, cores) in steps {
            if !book {
                ledger.free(&name(n));
                model.remove(&n);
            } else if !model.contains_key(&n) {
                let used: u32 = model.values().sum();
                let full_quota = quota.is_some_and(|quota| used + cores > quota);
                let full = u32::try_from(model.len()).unwrap() >= max_instances;
                match ledger.book(&name(n), &size(cores * 1_000, 1_024, 1), &limits, false) {
                    Ok(()) => {
                        prop_assert!(!full && !full_quota);
                        model.insert(n, cores);
                    }
                    Err(refused) => {
                        prop_assert!(full || full_quota);
                        let expected = if full { FailureKind::Capacity } else { FailureKind::Quota };
                        prop_assert_eq!(refused.kind, expected);
                    }
                }
            }
            prop_assert_eq!(ledger.vcpus(), model.values().sum::<u32>());
            prop_assert_eq!(ledger.count() as usize, model.len());
        }
    }
}
