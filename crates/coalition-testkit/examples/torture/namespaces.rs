//! A network of namespaces: one for each member, one for the clients, and a hub with two bridges. A member is on the side of
//! the bridge its port is attached to. Everything is removed when the run ends.

use std::process::{Command, ExitCode};

/// Set inside the clients' namespace.
pub const INSIDE: &str = "TORTURE_INSIDE";

/// Last byte of the clients' address in 10.77.0.0/24.
pub const CLIENT_HOST: usize = 100;

const HUB: &str = "ct-hub";
const CLIENTS: &str = "ct-clients";
const BRIDGES: [&str; 2] = ["ct-left", "ct-right"];

pub fn member(member: usize) -> String {
    format!("ct-m{member}")
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// Builds the network, runs this program inside, takes the network down.
pub fn run_inside(members: usize) -> ExitCode {
    remove(members);
    if let Err(reason) = build(members) {
        remove(members);
        eprintln!("the network namespaces cannot be made (root and iproute2 are needed): {reason}");
        return ExitCode::from(2);
    }
    let program = std::env::current_exe().unwrap();
    let status = Command::new("ip")
        .args(["netns", "exec", CLIENTS])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status();
    remove(members);
    match status.unwrap().code() {
        Some(0) => ExitCode::SUCCESS,
        Some(2) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

fn build(members: usize) -> Result<(), String> {
    ip(&["netns", "add", HUB])?;
    for bridge in BRIDGES {
        ip(&["-n", HUB, "link", "add", bridge, "type", "bridge"])?;
        ip(&["-n", HUB, "link", "set", bridge, "up"])?;
    }
    for position in 0..members {
        join(&member(position), &port(position), position + 1)?;
    }
    join(CLIENTS, "ct-pc", CLIENT_HOST)
}

fn join(namespace: &str, port: &str, host: usize) -> Result<(), String> {
    ip(&["netns", "add", namespace])?;
    ip(&["-n", HUB, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace])?;
    ip(&["-n", HUB, "link", "set", port, "master", BRIDGES[0], "up"])?;
    ip(&["-n", namespace, "link", "set", "lo", "up"])?;
    ip(&["-n", namespace, "address", "add", &format!("10.77.0.{host}/24"), "dev", "eth0"])?;
    ip(&["-n", namespace, "link", "set", "eth0", "up"])
}

fn remove(members: usize) {
    let names = (0..members).map(member).chain([CLIENTS.to_owned(), HUB.to_owned()]);
    for name in names {
        let _ = ip(&["netns", "delete", &name]);
    }
}

fn port(member: usize) -> String {
    format!("ct-p{member}")
}

/// Puts each member on its side; the clients stay on the first.
pub fn split(sides: &[usize]) -> Result<(), String> {
    for (position, side) in sides.iter().enumerate() {
        ip(&["-n", HUB, "link", "set", &port(position), "master", BRIDGES[*side]])?;
    }
    Ok(())
}
