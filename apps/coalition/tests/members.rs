//! A member of a running coalition is swapped for a new one by its operators' commands, with real processes.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use common::{Environment, running::*};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use toml::{Table, Value};

/// A member process that is stopped when the test ends.
struct Newcomer(Child);

impl Drop for Newcomer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read(path: &Path) -> Table {
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

fn write(path: &Path, table: &Table) {
    std::fs::write(path, toml::to_string(table).unwrap()).unwrap();
}

/// A member's file for the newcomer, from that of the member it replaces. Answers where its ordering engine will listen.
fn newcomers_file(env: &Environment, file: &Path) -> String {
    let order = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let node = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let key = |purpose: &str| env.path().join(format!("new/member-5.{purpose}.key")).display().to_string();
    let mut config = read(&env.home().join("roles/member-4.toml"));
    for (field, value) in [
        ("name", "member-5".to_owned()),
        ("data_dir", env.path().join("data-5").display().to_string()),
        ("consensus_key", key("consensus")),
        ("checkpoint_key", key("checkpoint")),
        ("order_listen", order.clone()),
    ] {
        config.insert(field.to_owned(), Value::String(value));
    }
    config.insert("joins".to_owned(), Value::Boolean(true));
    let network = config["network"].as_table_mut().unwrap();
    for (field, value) in [
        ("coalition", env.home().join("coalition.hex").display().to_string()),
        ("node_key", key("node")),
        ("listen", node),
    ] {
        network.insert(field.to_owned(), Value::String(value));
    }
    write(file, &config);
    order
}

/// The roster in force with the newcomer in the place of member 4.
fn next_roster(env: &Environment) -> PathBuf {
    let mut roster: Table = env.run(&["members", "roster"]).expect_status(0).out.parse().unwrap();
    let new: Table = env.run(&["members", "new", "member-5", "--keys", "new"]).expect_status(0).out.parse().unwrap();
    roster["members"].as_array_mut().unwrap()[3] = new["members"][0].clone();
    let file = env.path().join("next.toml");
    write(&file, &roster);
    file
}

#[test]
fn a_member_is_swapped_and_everything_goes_on() {
    let _alone = alone();
    let env = Environment::new();
    let up = Up::start(&env, &[]);
    make_image(&env);
    let members = |env: &Environment| env.run(&["--json", "members"]).expect_status(0).json();
    let before = members(&env);
    assert_eq!((before["epoch"].as_u64(), before["members"].as_array().map(Vec::len)), (Some(0), Some(4)));
    let early = granted(&env, &[]);
    env.run(&["end", "--wait", "2m"]).expect_status(0);
    env.run(&["log", &early, "--evidence", "before.evidence"]).expect_status(0);

    let next = next_roster(&env);
    let next = next.to_str().unwrap();
    let file = env.path().join("member-5.toml");
    let order = newcomers_file(&env, &file);
    for member in 1..=3 {
        let path = env.home().join(format!("roles/member-{member}.toml"));
        let mut config = read(&path);
        config.insert(
            "order_peers".to_owned(),
            Value::Table([("member-5".to_owned(), Value::String(order.clone()))].into_iter().collect()),
        );
        write(&path, &config);
    }
    let log = std::fs::File::create(env.path().join("member-5.err")).unwrap();
    let newcomer = env.command(&["run", "member", file.to_str().unwrap()]).stdout(Stdio::null()).stderr(log).spawn();
    let _newcomer = Newcomer(newcomer.unwrap());

    // Members approve by themselves; two of four are too few.
    let approvals: Vec<String> = (1..=3)
        .map(|member| {
            let key = env.home().join(format!("keys/member-{member}.checkpoint.key")).display().to_string();
            let printed = env.run(&["members", "hand-over", next, "--key", &key, "--approve-only"]).expect_status(0);
            env.file(&format!("{member}.approval"), printed.out).display().to_string()
        })
        .collect();
    let hand_over = |count: usize| {
        let given = approvals[..count].iter().flat_map(|file| ["--approval", file]);
        let arguments: Vec<&str> = ["--json", "members", "hand-over", next].into_iter().chain(given).collect();
        env.run(&arguments)
    };
    assert_eq!(hand_over(2).json()["error"]["code"], "not_approved");
    let done = hand_over(3).expect_status(0).json();
    assert_eq!((done["step"].as_str(), done["epoch"].as_u64()), (Some("handed_over"), Some(1)));
    let after = wait_for("the next roster", || {
        let now = members(&env);
        (now["epoch"] == 1).then_some(now)
    });
    assert_eq!(after["members"][3]["name"], "member-5");
    let shown = env.run(&["members"]).expect_status(0).out;
    assert!(shown.contains("epoch 1, 3 of 4 certify") && shown.contains("member-5"), "{shown}");
    assert_eq!(hand_over(3).json()["error"]["code"], "not_allowed", "nothing would change");

    // The newcomer is needed now: without member 1 the quorum is 2, 3 and 5. The market goes on, the config is the same.
    let pid = Pid::from_raw(i32::try_from(up.said["roles"]["member-1"]["pid"].as_i64().unwrap()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let late = granted(&env, &[]);
    kill(pid, Signal::SIGCONT).unwrap();
    // Who asks member 1 first is told what it had seen.
    wait_for("the grant to end", || (env.run(&["end", "--wait", "2m"]).status == 0).then_some(()));
    env.run(&["log", &late, "--evidence", "after.evidence"]).expect_status(0);
    let hex = env.home().join("coalition.hex").display().to_string();
    for (evidence, epoch) in [("before.evidence", 0), ("after.evidence", 1)] {
        let proven = env.run(&["--json", "verify", evidence, "--config", &hex]).expect_status(0).json();
        assert_eq!(proven["epoch"], epoch, "{proven}");
    }

    // The roster in force retires the services: member 4's key is still at hand, and counts no more.
    for service in ["compute", "almanac"] {
        env.run(&["retire", service]).expect_status(0);
    }
    let over = hand_over(3);
    assert_eq!((over.status, over.json()["error"]["code"].as_str()), (5, Some("retired")));
    up.stop();
}
