//! The boot file of a development coalition's bridge, and the SSH key it logs in to its host with.

use coalition_shuffle::SshHostKey;
use toml::{Table, Value};

use super::{
    keys::{DEVELOPMENT_ROOT_FILE, Secrets},
    plan::{BRIDGE_MRTD, Plan, WORKLOAD_MRTD},
};
use crate::{
    error::Result,
    home::{Home, private_write},
};

/// The bridge's login key in OpenSSH's format, below the directory of keys.
const SSH_KEY_FILE: &str = "bridge.ssh.pem";
/// Seconds between two confirmations of the card: often enough to be young in `coalition market`.
const CAPACITY_REFRESH_S: i64 = 15;

/// Writes the keys the bridge reads in a format of its own.
///
/// # Errors
/// When the disk refuses.
pub(super) fn write_keys(home: &Home, secrets: &Secrets) -> Result<()> {
    let pair = coalition_host::keys::from_seed(secrets.bridge_ssh.expose(), "bridge");
    private_write(&home.keys().join(SSH_KEY_FILE), pair.private_openssh.expose().as_bytes())
}

/// `roles/bridge.toml`: what `compute-bridge` boots from.
pub(super) fn boot_toml(plan: &Plan<'_>) -> String {
    let sale = &plan.manifest.sale;
    let mut rates = Table::new();
    rates.insert("core_hour".into(), sale.core_hour.to_string().into());
    rates.insert("gib_hour".into(), sale.gib_hour.to_string().into());
    let mut machine = Table::new();
    machine.insert("name".into(), "baremetal".into());
    machine.insert("host".into(), "127.0.0.1".into());
    machine.insert("port".into(), i64::from(plan.manifest.ports.host).into());
    machine.insert("user".into(), crate::roles::host::LOGIN.into());
    machine.insert("ssh_key_path".into(), format!("../keys/{SSH_KEY_FILE}").into());
    let host_key = SshHostKey(*plan.secrets.host_ssh.peer_id().as_bytes()).to_openssh();
    machine.insert("host_key".into(), host_key.into());
    machine.insert("region".into(), sale.region.to_string().into());
    machine.insert("cpu_millicores".into(), i64::from(sale.cpu_millicores).into());
    machine.insert("ram_mib".into(), i64::from(sale.ram_mib).into());
    // Workloads of a development coalition are reachable from this machine only.
    machine.insert("listen".into(), "127.0.0.1".into());
    machine.insert("rates".into(), Value::Table(rates));
    if sale.attested {
        machine.insert("tdx_capable".into(), true.into());
        machine.insert("guest_mrtd".into(), WORKLOAD_MRTD.to_string().into());
    }
    let mut baremetal = Table::new();
    baremetal.insert("machines".into(), Value::Array(vec![Value::Table(machine)]));
    let mut provider = Table::new();
    provider.insert("capacity_refresh_sec".into(), CAPACITY_REFRESH_S.into());
    // Ctrl-C on `coalition up` leaves nothing behind, workloads included.
    provider.insert("on_shutdown".into(), "drain".into());
    let mut boot = Table::new();
    if sale.attested {
        let mut attestation = Table::new();
        attestation.insert("source".into(), "development".into());
        attestation.insert("development_root".into(), format!("../keys/{DEVELOPMENT_ROOT_FILE}").into());
        attestation.insert("development_mrtd".into(), BRIDGE_MRTD.to_string().into());
        boot.insert("attestation".into(), Value::Table(attestation));
    }
    boot.insert("coalition".into(), "../coalition.hex".into());
    boot.insert("fingerprint".into(), plan.config.fingerprint().to_string().into());
    boot.insert("relay".into(), plan.relay().into());
    let peers = plan.member_peers().into_values().chain(plan.unseal_peers().into_values());
    boot.insert("bootstrap".into(), Value::Array(peers.map(|peer| peer.to_string().into()).collect()));
    boot.insert("key_file".into(), "../keys/bridge.node.key".into());
    boot.insert("data_dir".into(), "../data/bridge".into());
    boot.insert("provider".into(), Value::Table(provider));
    boot.insert("baremetal".into(), Value::Table(baremetal));
    format!("# Made by `coalition up`. Paths are relative to this file.\n\n{boot}")
}
