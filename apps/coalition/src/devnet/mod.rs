//! A development coalition on this machine: made once, found again by every later start.

pub mod bridge;
pub mod keys;
pub mod manifest;
pub mod plan;

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use coalition::PublishedConfig;
use manifest::{Manifest, PORTS_NEEDED, Ports, Sale, Transport};

use crate::{
    config_file,
    error::{CliError, Context, Kind, Result},
    home::{Home, private_dir, private_write},
    roles::config::read_published,
};

/// A development coalition with its files in place.
#[derive(Debug, Clone)]
pub struct Devnet {
    /// What it is made from.
    pub manifest: Manifest,
    /// Its published config.
    pub config: PublishedConfig,
    /// Whether this start made it.
    pub is_new: bool,
}

/// Opens the development coalition below `home`, making it if there is none. An interrupted first start is made again
/// from its keys; a finished one is never touched, whatever `name` and `sale` say.
///
/// # Errors
/// Unusable files, no free ports, or a coalition below `home` that `coalition up` did not make.
pub fn open_or_create(home: &Home, name: &str, sale: &Sale) -> Result<Devnet> {
    if home.universe().exists() {
        return open(home);
    }
    let manifest = Manifest::new(name.to_owned(), sale.clone(), free_ports()?);
    let mut secrets = keys::Secrets::load_or_create(&home.keys())?;
    if sale.attested {
        secrets.development = Some(keys::development_root(&home.keys())?);
    }
    let params = keys::deal(&home.keys())?;
    let planned = |error: plan::PlanError| CliError::input("devnet", "cannot describe the coalition").because(error);
    let config = plan::published(&manifest, &secrets, &params).map_err(planned)?;
    let mut files = plan::files(&manifest, &secrets, &config).map_err(planned)?;
    let universe = files.remove(&std::path::PathBuf::from("universe.toml"));
    let described = toml::to_string(&manifest).or_fault("devnet", || "cannot write the manifest".into())?;
    bridge::write_keys(home, &secrets)?;
    private_dir(&home.roles())?;
    for (path, text) in &files {
        private_write(&home.root().join(path), text.as_bytes())?;
    }
    private_write(&home.devnet(), described.as_bytes())?;
    // Last: its presence says that everything before is complete.
    private_write(&home.universe(), universe.unwrap_or_default().as_bytes())?;
    Ok(Devnet { manifest, config, is_new: true })
}

fn open(home: &Home) -> Result<Devnet> {
    if !home.devnet().exists() {
        let message = format!("{} belongs to a coalition that `coalition up` did not make", home.universe().display());
        return Err(CliError::new(Kind::Conflict, "not_a_devnet", message)
            .hint("start its roles with `coalition run …`, or use another --home"));
    }
    let manifest: Manifest = config_file::load(&home.devnet())?;
    if !manifest.is_known_version() {
        let message = format!("{} has version {}, this software reads 1", home.devnet().display(), manifest.version);
        return Err(CliError::input("config_invalid", message));
    }
    let mut devnet = Devnet { manifest, config: read_published(&home.config_hex())?, is_new: false };
    if devnet.manifest.ports.store == 0 {
        // Made by a version that had no content store.
        devnet.manifest.ports.store = free_ports()?.store;
        describe(home, &devnet)?;
    }
    Ok(devnet)
}

/// Where ports are looked for: below the range from which the system gives them to outgoing connections, so that nothing
/// takes one while the coalition is down.
const PORT_RANGE: std::ops::Range<u16> = 12_000..32_000;

/// Free loopback ports, from a random place on. Each is free for TCP and UDP.
fn free_ports() -> Result<Ports> {
    let needed = PORTS_NEEDED.0 + PORTS_NEEDED.1;
    let start = rand::random_range(PORT_RANGE);
    let candidates = (start..PORT_RANGE.end).chain(PORT_RANGE.start..start);
    let is_free = |port: &u16| {
        let address = manifest::loopback(*port);
        TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
    };
    let found: Vec<u16> = candidates.filter(is_free).take(needed).collect();
    let ports = found.split_at_checked(PORTS_NEEDED.0).and_then(|(tcp, udp)| Ports::assign(tcp, udp));
    ports.ok_or_else(|| {
        let message = format!("found {} free loopback ports in {PORT_RANGE:?}, {needed} are needed", found.len());
        CliError::new(Kind::Conflict, "no_ports", message)
    })
}

/// How long a port may stay taken: roles of a supervisor that was killed end by themselves, each once its last write is on disk.
const PORT_GRACE: Duration = Duration::from_secs(3);

/// Checks that every port of the coalition is free, or becomes so within three seconds, before anything is started.
///
/// # Errors
/// [`Kind::Conflict`] naming the port, the role that needs it and how to find who has it.
pub fn check_ports(ports: &Ports) -> Result<()> {
    let deadline = Instant::now() + PORT_GRACE;
    for (role, transport, address) in ports.all() {
        let bind = || match transport {
            Transport::Tcp => TcpListener::bind(address).map(drop),
            Transport::Udp => UdpSocket::bind(address).map(drop),
        };
        let mut bound = bind();
        while bound.is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            bound = bind();
        }
        if let Err(error) = bound {
            let (name, flag) = if transport == Transport::Tcp { ("TCP", 't') } else { ("UDP", 'u') };
            let message = format!("{role} needs {name} port {address}, and something else keeps it");
            let hint = format!(
                "see what it is with `ss -{flag}lnp 'sport = :{}'` and stop it, or move this coalition to other ports with \
                 `coalition up --new-ports`",
                address.port()
            );
            return Err(CliError::new(Kind::Conflict, "port_in_use", message).because(error).hint(hint));
        }
    }
    Ok(())
}

/// Gives an existing development coalition other ports. Its identity, keys, commits and grants stay as they are.
///
/// # Errors
/// As [`open_or_create`].
pub fn move_ports(home: &Home, devnet: &mut Devnet) -> Result<()> {
    devnet.manifest.ports = free_ports()?;
    describe(home, devnet)
}

/// Writes every file that follows from the manifest, and the manifest itself.
fn describe(home: &Home, devnet: &Devnet) -> Result<()> {
    let secrets = keys::Secrets::load_or_create(&home.keys())?;
    let planned = |error: plan::PlanError| CliError::fault("devnet", "cannot describe the coalition").because(error);
    for (path, text) in plan::files(&devnet.manifest, &secrets, &devnet.config).map_err(planned)? {
        private_write(&home.root().join(path), text.as_bytes())?;
    }
    let described = toml::to_string(&devnet.manifest).or_fault("devnet", || "cannot write the manifest".into())?;
    private_write(&home.devnet(), described.as_bytes())
}

/// What this machine can sell: its cores, and half of its memory so that the machine stays usable.
#[must_use]
pub fn machine_capacity() -> (u32, u32) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let millicores = u32::try_from(cores.saturating_mul(1_000)).unwrap_or(u32::MAX);
    let mem_kib = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    let half_mib = mem_kib.unwrap_or(2 << 20) / 2 / 1_024;
    (millicores, u32::try_from(half_mib).unwrap_or(u32::MAX).max(256))
}
