//! A running coalition is succeeded by another one by its operators' commands, with real processes: docs/ROTATION.md.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    net::{TcpListener, UdpSocket},
    path::Path,
    process::{Child, Stdio},
};

use common::{Environment, running::*};
use toml::{Table, Value};

const MEMBERS: usize = 4;

/// A member process that is stopped when the test ends.
struct Running(Child);

impl Drop for Running {
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

fn name(member: usize) -> String {
    format!("next-{member}")
}

/// Keys and roster of the new members, and where they will be: ordering engines, nodes.
struct Plan {
    orders: Vec<Value>,
    nodes: Vec<String>,
    peers: Table,
}

fn plan(env: &Environment) -> Plan {
    let listen: Vec<_> = (0..MEMBERS).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let sockets: Vec<_> = (0..MEMBERS).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let nodes: Vec<String> = sockets.iter().map(|socket| socket.local_addr().unwrap().to_string()).collect();
    let relay = read(&env.home().join("universe.toml"))["relay"].as_str().unwrap().to_owned();
    let mut roster = String::new();
    for member in 0..MEMBERS {
        roster += &env.run(&["members", "new", &name(member), "--keys", "new"]).expect_status(0).out;
    }
    env.file("roster.toml", &roster);
    let members = roster.parse::<Table>().unwrap()["members"].as_array().unwrap().clone();
    let place = |(member, node): (&Value, &String)| {
        let at = format!("{}@{node},{relay}", member["peer_id"].as_str().unwrap());
        (member["name"].as_str().unwrap().to_owned(), Value::String(at))
    };
    let orders = listen.iter().map(|listener| Value::String(listener.local_addr().unwrap().to_string())).collect();
    Plan { orders, peers: members.iter().zip(&nodes).map(place).collect(), nodes }
}

/// The file of one new member, from that of an old one.
fn members_file(env: &Environment, plan: &Plan, member: usize) -> String {
    let own = name(member);
    let path = |file: String| env.path().join(file).display().to_string();
    let key = |purpose: &str| Value::String(path(format!("new/{own}.{purpose}.key")));
    let mut config = read(&env.home().join("roles/member-1.toml"));
    let old = config["peers"].clone();
    config.insert("name".into(), Value::String(own.clone()));
    config.insert("data_dir".into(), Value::String(path(format!("data-{own}"))));
    config.insert("consensus_key".into(), key("consensus"));
    config.insert("checkpoint_key".into(), key("checkpoint"));
    config.insert("order_listen".into(), plan.orders[member].clone());
    config.insert("order_addresses".into(), Value::Array(plan.orders.clone()));
    config.insert("peers".into(), Value::Table(plan.peers.clone()));
    let network = config["network"].as_table_mut().unwrap();
    network.insert("coalition".into(), Value::String(path("next.hex".into())));
    network.insert("node_key".into(), key("node"));
    network.insert("listen".into(), Value::String(plan.nodes[member].clone()));
    let hex = env.home().join("coalition.hex").display().to_string();
    let predecessor = [("coalition".to_owned(), Value::String(hex)), ("peers".to_owned(), old)];
    config.insert("predecessor".into(), Value::Table(predecessor.into_iter().collect()));
    let file = env.path().join(format!("{own}.toml"));
    write(&file, &config);
    file.display().to_string()
}

#[test]
fn a_coalition_is_succeeded_and_its_readers_move() {
    let _alone = alone();
    let env = Environment::new();
    let up = Up::start(&env, &[]);
    make_image(&env);

    // A requester elsewhere, who knows the old coalition and nothing else.
    let theirs = env.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::fs::set_permissions(&theirs, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for file in ["coalition.hex", "universe.toml"] {
        std::fs::copy(env.home().join(file), theirs.join(file)).unwrap();
    }
    let theirs = theirs.display().to_string();
    let requester = |arguments: &[&str]| env.run(&[&["--json", "--home", &theirs], arguments].concat());
    assert_eq!(requester(&["successor", "move"]).expect_status(0).json()["moved"], false);

    // The new deployment beside the old one: config, members, beginning.
    let plan = plan(&env);
    let made = env.run(&["successor", "config", "--name", "dev-2", "--roster", "roster.toml"]).expect_status(0);
    let next = made.out.trim().to_owned();
    env.file("next.hex", &next);
    let members: Vec<Running> = (0..MEMBERS)
        .map(|member| {
            let file = members_file(&env, &plan, member);
            let log = std::fs::File::create(env.path().join(format!("{}.err", name(member)))).unwrap();
            Running(env.command(&["run", "member", &file]).stdout(Stdio::null()).stderr(log).spawn().unwrap())
        })
        .collect();
    let begun = |member: usize| {
        let log = std::fs::read_to_string(env.path().join(format!("{}.err", name(member)))).unwrap();
        log.lines().filter(|line| line.contains("has begun with its predecessor's head")).count()
    };
    wait_for("both logs to begin", || ((0..MEMBERS).map(begun).sum::<usize>() >= 2).then_some(()));

    // The old logs name it; one after the other, and only both together move anybody.
    let mut universe = read(&env.home().join("universe.toml"));
    universe.insert("peers".into(), Value::Table(plan.peers));
    write(&env.path().join("next-universe.toml"), &universe);
    let retire = |service: &str| {
        let named = ["--successor", "next.hex", "--peers", "next-universe.toml"];
        env.run(&[&["--json", "retire", service], &named[..]].concat()).expect_status(0)
    };
    let retired = retire("compute");
    assert_eq!(retired.json()["step"], "retired");
    let announced = retired.objects().iter().find_map(|step| step["evidence"].as_str().map(str::to_owned)).unwrap();
    let proven = env.run(&["--json", "verify", &announced]).expect_status(0).json();
    assert_eq!(proven["entry"]["body"]["coalition"], "dev-2", "{proven}");
    assert_eq!(requester(&["successor", "move"]).json()["error"]["code"], "half_moved");
    retire("almanac");

    // Who pins the old config is told what to run, and that needs nobody but the old log.
    let pinned = requester(&[&["request", "--for", "10m"], &SMALL[..]].concat());
    let error = &pinned.json()["error"];
    assert_eq!((pinned.status, error["code"].as_str()), (5, Some("retired")), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("coalition successor move"), "{error}");
    let own = env.run(&["--json", "successor", "move"]);
    assert_eq!(own.json()["error"]["code"], "own_coalition", "a coalition's own home is not changed");
    let found = requester(&["successor", "move", "--dry-run"]).expect_status(0).json();
    assert_eq!((found["step"].as_str(), found["hex"].as_str()), (Some("found"), Some(next.as_str())));
    let moved = requester(&["successor", "move"]).expect_status(0).json();
    assert_eq!((moved["moved"].as_bool(), moved["name"].as_str()), (Some(true), Some("dev-2")));
    let now = requester(&["members"]).expect_status(0).json();
    assert_eq!(now["members"][0]["name"], name(0));
    assert!(now["logs"].as_array().unwrap().iter().all(|log| log["size"].as_u64().unwrap() > 0), "{now}");
    assert_eq!(requester(&["market"]).expect_status(0).status, 0);
    assert_eq!(requester(&["successor", "move"]).expect_status(0).json()["moved"], false);
    drop(members);
    up.stop();
}
