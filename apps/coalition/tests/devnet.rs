//! A development coalition on disk: the same input makes the same files, and a second start changes nothing.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, os::unix::fs::MetadataExt, path::Path};

use coalition::{ModuleKind, PublishedConfig};
use coalition_cli::{
    devnet::{
        self,
        keys::{MemberSecrets, Secrets},
        manifest::{MEMBERS, Manifest, Ports, Sale, UNSEAL_MEMBERS, role_names},
        plan,
    },
    home::Home,
    roles::config::{HostConfig, MemberConfig, RelayConfig, StoreConfig, UniverseConfig, UnsealConfig},
};
use coalition_shuffle::PublicParams;
use coalition_universe::NodeKey;

/// Public parameters of an unseal committee, 2 of 3, made once.
const UNSEAL_PARAMS: &str = include_str!("golden/unseal-params.hex");
const GOLDEN: &str = include_str!("golden/devnet.txt");

fn sale() -> Sale {
    Sale {
        region: "local".parse().unwrap(),
        core_hour: "0.02".parse().unwrap(),
        gib_hour: "0.004".parse().unwrap(),
        cpu_millicores: 2_000,
        ram_mib: 4_096,
        attested: false,
    }
}

fn manifest() -> Manifest {
    let (tcp, udp): (Vec<u16>, Vec<u16>) = ((20_001..20_007).collect(), (21_001..21_009).collect());
    Manifest::new("dev".into(), sale(), Ports::assign(&tcp, &udp).unwrap())
}

fn secrets() -> Secrets {
    let mut byte = 0;
    let mut key = || {
        byte += 1;
        NodeKey::from_bytes([byte; 32])
    };
    let mut member = || MemberSecrets { node: key(), consensus: key(), checkpoint: key() };
    let members = (0..MEMBERS).map(|_| member()).collect();
    let unseal = (0..UNSEAL_MEMBERS).map(|_| member()).collect();
    let (bridge_node, host_ssh, bridge_ssh) = (key(), key(), key());
    Secrets {
        members,
        unseal,
        bridge_node,
        host_ssh,
        bridge_ssh,
        store_node: key(),
        pusher_node: key(),
        development: None,
    }
}

fn files() -> BTreeMap<String, String> {
    let params = PublicParams::from_hex(UNSEAL_PARAMS.trim()).unwrap();
    let config = plan::published(&manifest(), &secrets(), &params).unwrap();
    let files = plan::files(&manifest(), &secrets(), &config).unwrap();
    files.into_iter().map(|(path, text)| (path.display().to_string(), text)).collect()
}

#[test]
fn the_same_input_makes_the_same_files() {
    let all: String = files().into_iter().map(|(path, text)| format!("==> {path}\n{text}\n")).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/devnet.txt");
    if std::env::var_os("COALITION_REWRITE_GOLDEN").is_some() {
        std::fs::write(path, &all).unwrap();
        return;
    }
    assert!(all == GOLDEN, "tests/golden/devnet.txt differs: identities of existing coalitions would change");
}

#[test]
fn every_file_is_what_its_role_reads() {
    let files = files();
    let text = |name: &str| files[name].as_str();
    for role in role_names() {
        assert!(files.contains_key(&format!("roles/{role}.toml")), "{role} has no config");
    }
    toml::from_str::<RelayConfig>(text("roles/relay.toml")).unwrap();
    toml::from_str::<HostConfig>(text("roles/host.toml")).unwrap();
    let member: MemberConfig = toml::from_str(text("roles/member-3.toml")).unwrap();
    assert_eq!(member.order_addresses[2], member.order_listen);
    toml::from_str::<UnsealConfig>(text("roles/unseal-1.toml")).unwrap();
    let store: StoreConfig = toml::from_str(text("roles/store.toml")).unwrap();
    assert_eq!(store.pushers.keys().collect::<Vec<_>>(), [&secrets().pusher_node.peer_id()], "this home alone");
    let universe: UniverseConfig = toml::from_str(text("universe.toml")).unwrap();
    assert_eq!(universe.peers.len(), MEMBERS + UNSEAL_MEMBERS);
    compute_bridge::config::BridgeConfig::parse(Path::new("roles/bridge.toml"), text("roles/bridge.toml")).unwrap();
}

#[test]
fn hex_and_toml_are_the_same_coalition_and_ports_are_not_part_of_it() {
    let files = files();
    let from_hex = PublishedConfig::from_hex(files["coalition.hex"].trim()).unwrap();
    let from_toml = PublishedConfig::from_toml(&files["coalition.toml"]).unwrap();
    assert_eq!(from_hex, from_toml);
    let compute = from_hex.committee(ModuleKind::Compute).unwrap();
    assert_eq!(compute.roster.quorum(), 3);
    assert!(!files["coalition.toml"].contains("20001"));
    for secret in 1..=26u8 {
        let hex = hex::encode([secret; 32]);
        for (path, text) in &files {
            assert!(!text.contains(&hex), "{path} holds a secret key");
        }
    }
}

#[test]
fn a_second_start_finds_everything_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::locate(Some(dir.path())).unwrap();
    let first = devnet::open_or_create(&home, "dev", &sale()).unwrap();
    assert!(first.is_new);
    let before = snapshot(dir.path());
    for (path, (_, mode)) in &before {
        assert_eq!(mode & 0o077, 0, "{path} is open to others: {mode:o}");
    }
    let other = Sale { cpu_millicores: 9, ..sale() };
    let second = devnet::open_or_create(&home, "renamed", &other).unwrap();
    assert!(!second.is_new);
    assert_eq!((second.config, second.manifest), (first.config, first.manifest));
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn moving_ports_changes_no_identity() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::locate(Some(dir.path())).unwrap();
    let mut devnet = devnet::open_or_create(&home, "dev", &sale()).unwrap();
    let before = snapshot(dir.path());
    let ports = devnet.manifest.ports.clone();
    devnet::move_ports(&home, &mut devnet).unwrap();
    assert_ne!(devnet.manifest.ports, ports);
    let after = snapshot(dir.path());
    let changed: Vec<&String> =
        after.iter().filter(|(path, file)| before.get(*path) != Some(file)).map(|(path, _)| path).collect();
    assert!(
        changed.iter().all(|path| path.starts_with("roles/") || *path == "universe.toml" || *path == "devnet.toml"),
        "{changed:?}"
    );
    assert_eq!(before["coalition.hex"], after["coalition.hex"]);
    assert_eq!(devnet::open_or_create(&home, "dev", &sale()).unwrap().manifest, devnet.manifest);
}

#[test]
fn an_interrupted_first_start_is_made_again_from_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::locate(Some(dir.path())).unwrap();
    devnet::open_or_create(&home, "dev", &sale()).unwrap();
    let node_key = std::fs::read(home.keys().join("member-1.node.key")).unwrap();
    std::fs::remove_file(home.universe()).unwrap();
    let again = devnet::open_or_create(&home, "dev", &sale()).unwrap();
    assert!(again.is_new);
    assert_eq!(std::fs::read(home.keys().join("member-1.node.key")).unwrap(), node_key);
}

#[test]
fn a_port_in_use_is_named_with_its_role() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::locate(Some(dir.path())).unwrap();
    let devnet = devnet::open_or_create(&home, "dev", &sale()).unwrap();
    devnet::check_ports(&devnet.manifest.ports).unwrap();
    let port = devnet.manifest.ports.member_orders[1];
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let refused = devnet::check_ports(&devnet.manifest.ports).unwrap_err();
    assert_eq!((refused.code(), refused.status()), ("port_in_use", 7));
    let shown = refused.to_string();
    assert!(
        shown.contains("member-2") && shown.contains(&port.to_string()) && shown.contains("--new-ports"),
        "{shown}"
    );
}

#[test]
fn a_port_that_its_last_holder_is_about_to_free_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::locate(Some(dir.path())).unwrap();
    let devnet = devnet::open_or_create(&home, "dev", &sale()).unwrap();
    let ports = devnet.manifest.ports;
    let taken = std::net::TcpListener::bind(("127.0.0.1", ports.member_orders[0])).unwrap();
    let (begun, has_begun) = std::sync::mpsc::channel();
    let checking = std::thread::spawn(move || {
        begun.send(()).unwrap();
        devnet::check_ports(&ports)
    });
    has_begun.recv().unwrap();
    drop(taken);
    checking.join().unwrap().unwrap();
}

#[test]
fn a_coalition_of_another_making_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::locate(Some(dir.path())).unwrap();
    std::fs::write(home.universe(), "").unwrap();
    let refused = devnet::open_or_create(&home, "dev", &sale()).unwrap_err();
    assert_eq!(refused.code(), "not_a_devnet");
    assert_eq!(snapshot(dir.path()).len(), 1);
}

/// Every file below a directory: content and mode.
fn snapshot(root: &Path) -> BTreeMap<String, (Vec<u8>, u32)> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                found.insert(name, (std::fs::read(&path).unwrap(), meta.mode() & 0o777));
            }
        }
    }
    found
}
