//! The command line of QEMU. Pure: what the machine is to have in, arguments out.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Port on the loopback of the machine's network namespace that leads to the guest's port 22.
pub const SSH_PORT: u16 = 2222;
/// The guest's address, and the mask of its network.
pub const GUEST_ADDRESS: (std::net::Ipv4Addr, std::net::Ipv4Addr) =
    (std::net::Ipv4Addr::new(10, 0, 2, 15), std::net::Ipv4Addr::new(255, 255, 255, 0));
/// Where everything leaves that network, and where names are resolved in it. The former is also a name for the loopback of the
/// namespace that QEMU runs in, where nothing listens but the port above.
pub const GUEST_GATEWAY: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 0, 2, 2);
/// See [`GUEST_GATEWAY`].
pub const GUEST_RESOLVER: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 0, 2, 3);
/// Name of the serial port the guest reports on.
pub const REPORT_PORT: &str = "coalition";

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor, by KVM.
    Kvm,
    /// QEMU's own translator: right, and ten times slower.
    Tcg,
}

/// What the guest starts from: named on the command line, and so measured in a TDX guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
}

/// Whose system runs in the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum System {
    /// Ours, which reports what happens.
    Ours(Boot),
    /// That of an image, started as its own stub would.
    Kernel(Boot, Credentials),
    /// That of an image, started by the boot loader of the first disk.
    Disk(Credentials),
}

/// What a system that is not ours is told by the machine's firmware tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Strings that anybody may see. No commas.
    pub strings: Vec<String>,
    /// Descriptor of a file that is one more string, which nobody else may.
    pub secret_fd: i32,
}

/// One disk, in QEMU's hands as an open descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// How the guest knows it, at most 20 characters.
    pub serial: &'static str,
    /// Number of the descriptor, open for reading.
    pub fd: i32,
    /// Number of another, open for writing too, when the guest may write: QEMU looks before it writes.
    pub writable: Option<i32>,
}

/// What makes a machine a TDX guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tdx {
    /// MRCONFIGID, SHA-384 of what the guest is for.
    pub mr_config_id: [u8; 48],
    /// MROWNER.
    pub mr_owner: [u8; 48],
    /// MROWNERCONFIG.
    pub mr_owner_config: [u8; 48],
    /// Port on the host's vsock of Intel's quote generation service.
    pub quote_port: u32,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// QEMU.
    pub program: PathBuf,
    /// What executes it.
    pub accelerator: Accelerator,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// What it starts from.
    pub system: System,
    /// Firmware instead of QEMU's BIOS.
    pub firmware: Option<PathBuf>,
    /// Its disks, in order.
    pub disks: Vec<Disk>,
    /// Descriptor that its console is written to.
    pub console_fd: i32,
    /// A TDX guest; else its twin that is none.
    pub tdx: Option<Tdx>,
    /// Lets the guest connect to whatever QEMU can reach where it runs.
    pub egress: bool,
}

impl Machine {
    /// The arguments, QEMU's own path first. No default devices, no monitor, no display; one network card that reaches
    /// nothing but the forwarded port, unless it is to; QEMU's system call filter on.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let mut line = Line(vec![self.program.display().to_string()]);
        line.add(["-name", "coalition", "-no-user-config", "-nodefaults", "-no-reboot", "-display", "none"]);
        line.add(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        match self.accelerator {
            Accelerator::Kvm => line.add(["-accel", "kvm", "-cpu", "host"]),
            Accelerator::Tcg => line.add(["-accel", "tcg,tb-size=64", "-cpu", "max"]),
        }
        self.machine(&mut line);
        line.add(["-smp", &self.cpus.to_string(), "-m", &format!("{}M", self.memory_mib), "-rtc", "base=utc"]);
        self.boot(&mut line);
        line.file(self.console_fd, self.console_fd);
        line.add(["-chardev", &format!("file,id=console,append=on,path=/dev/fdset/{}", self.console_fd)]);
        line.add(["-serial", "chardev:console"]);
        if matches!(self.system, System::Ours(_)) {
            line.add(["-chardev", "stdio,id=report,signal=off", "-device", "virtio-serial-pci"]);
            line.add(["-device", &format!("virtserialport,chardev=report,name={REPORT_PORT}")]);
        }
        line.add(["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]);
        let from_disk = matches!(self.system, System::Disk(_));
        self.disks.iter().enumerate().for_each(|(at, disk)| line.disk(at, disk, from_disk && at == 0));
        let forward = format!("hostfwd=tcp:127.0.0.1:{SSH_PORT}-{}:22", GUEST_ADDRESS.0);
        let restrict = if self.egress { "off" } else { "on" };
        line.add(["-netdev", &format!("user,id=net,restrict={restrict},ipv6=off,{forward}")]);
        line.add(["-device", "virtio-net-pci,netdev=net,romfile="]);
        line.0
    }

    fn machine(&self, line: &mut Line) {
        let Some(tdx) = &self.tdx else { return line.add(["-machine", "q35,kernel-irqchip=split,hpet=off"]) };
        line.add(["-machine", "q35,kernel-irqchip=split,hpet=off,confidential-guest-support=tdx"]);
        let values = [tdx.mr_config_id, tdx.mr_owner, tdx.mr_owner_config].map(|value| STANDARD.encode(value));
        let [config, owner, owner_config] = values;
        let object = format!(
            r#"{{"qom-type":"tdx-guest","id":"tdx","mrconfigid":"{config}","mrowner":"{owner}","mrownerconfig":"{owner_config}","quote-generation-socket":{{"type":"vsock","cid":"2","port":"{}"}}}}"#,
            tdx.quote_port
        );
        line.add(["-object", &object]);
    }

    fn boot(&self, line: &mut Line) {
        if let Some(firmware) = &self.firmware {
            line.add(["-bios", &firmware.display().to_string()]);
        }
        let (boot, credentials) = match &self.system {
            System::Ours(boot) => (Some(boot), None),
            System::Kernel(boot, credentials) => (Some(boot), Some(credentials)),
            System::Disk(credentials) => (None, Some(credentials)),
        };
        if let Some(Boot { kernel, initrd, command_line }) = boot {
            line.add(["-kernel", &kernel.display().to_string()]);
            initrd.iter().for_each(|initrd| line.add(["-initrd", &initrd.display().to_string()]));
            line.add(["-append", command_line]);
        }
        if let Some(Credentials { strings, secret_fd }) = credentials {
            strings.iter().for_each(|text| line.add(["-smbios", &format!("type=11,value={text}")]));
            // Not from a set of descriptors: this option is read before there are any.
            line.add(["-smbios", &format!("type=11,path=/proc/self/fd/{secret_fd}")]);
        }
    }
}

struct Line(Vec<String>);

impl Line {
    fn add<const N: usize>(&mut self, words: [&str; N]) {
        self.0.extend(words.map(str::to_owned));
    }

    /// Makes an inherited descriptor known, as one of those of the same file.
    fn file(&mut self, fd: i32, set: i32) {
        self.add(["-add-fd", &format!("fd={fd},set={set}")]);
    }

    fn disk(&mut self, at: usize, disk: &Disk, boots: bool) {
        self.file(disk.fd, disk.fd);
        disk.writable.iter().for_each(|fd| self.file(*fd, disk.fd));
        // A grant's disk is worth nothing after a crash of its host, so nothing waits for the host's own.
        let access = if disk.writable.is_some() { "readonly=off,cache=unsafe,discard=unmap" } else { "readonly=on" };
        let file = format!("format=raw,file=/dev/fdset/{},file.locking=off", disk.fd);
        self.add(["-drive", &format!("if=none,id=disk{at},{file},{access}")]);
        let order = if boots { ",bootindex=0" } else { "" };
        self.add(["-device", &format!("virtio-blk-pci,drive=disk{at},serial={}{order}", disk.serial)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(command_line: &str) -> Boot {
        let (kernel, initrd) = ("/machine/kernel".into(), Some("/machine/initrd".into()));
        Boot { kernel, initrd, command_line: command_line.into() }
    }

    fn machine() -> Machine {
        Machine {
            program: "/usr/bin/qemu-system-x86_64".into(),
            accelerator: Accelerator::Kvm,
            cpus: 2,
            memory_mib: 608,
            system: System::Ours(boot(crate::machine::boot::COMMAND_LINE)),
            firmware: None,
            disks: vec![
                Disk { serial: "root", fd: 100, writable: Some(104) },
                Disk { serial: "image", fd: 101, writable: None },
            ],
            console_fd: 103,
            tdx: None,
            egress: false,
        }
    }

    fn tdx() -> Machine {
        let tdx = Tdx { mr_config_id: [1; 48], mr_owner: [0; 48], mr_owner_config: [0; 48], quote_port: 4050 };
        Machine { tdx: Some(tdx), firmware: Some("/usr/share/ovmf/OVMF.fd".into()), ..machine() }
    }

    #[test]
    fn golden_plain() {
        assert_eq!(machine().arguments().join("\n"), include_str!("golden/plain.txt").trim_end());
    }

    #[test]
    fn egress_changes_one_word() {
        let (closed, open) = (machine().arguments(), Machine { egress: true, ..machine() }.arguments());
        let differ: Vec<_> = closed.iter().zip(&open).filter(|(closed, open)| closed != open).collect();
        let [(closed, open)] = differ[..] else { panic!("{differ:?}") };
        assert_eq!(closed.replace("restrict=on", "restrict=off"), *open);
    }

    /// A system of the requester's own: the same machine, which reports nothing and is told who may log in.
    fn own(system: impl FnOnce(Credentials) -> System) -> Machine {
        let credentials = Credentials {
            strings: vec!["io.systemd.credential.binary:ssh.authorized_keys.root=QQ==".into()],
            secret_fd: 102,
        };
        let disks = vec![
            Disk { serial: "root", fd: 100, writable: Some(104) },
            Disk { serial: "seed", fd: 101, writable: None },
        ];
        Machine { system: system(credentials), disks, ..machine() }
    }

    #[test]
    fn golden_disk() {
        assert_eq!(own(System::Disk).arguments().join("\n"), include_str!("golden/disk.txt").trim_end());
        let firmware = Machine { firmware: Some("/usr/share/ovmf/OVMF.fd".into()), ..own(System::Disk) }.arguments();
        let plain = own(System::Disk).arguments();
        let only: Vec<&str> = firmware.iter().filter(|word| !plain.contains(word)).map(String::as_str).collect();
        assert_eq!(only, ["-bios", "/usr/share/ovmf/OVMF.fd"]);
    }

    #[test]
    fn golden_uki() {
        let arguments = own(|told| System::Kernel(boot("quiet root=/dev/vda, and a comma"), told)).arguments();
        assert_eq!(arguments.join("\n"), include_str!("golden/uki.txt").trim_end());
    }

    #[test]
    fn golden_tdx() {
        assert_eq!(tdx().arguments().join("\n"), include_str!("golden/tdx.txt").trim_end());
    }

    /// The twin that can be booted anywhere differs in nothing but what makes the other confidential.
    #[test]
    fn a_tdx_guest_and_its_twin_differ_in_the_object_and_the_firmware_only() {
        let (tdx, plain) = (tdx().arguments(), machine().arguments());
        let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
        let only: Vec<&str> = tdx.iter().map(String::as_str).filter(|word| !plain.contains(word)).collect();
        assert_eq!(only.len(), 4, "{only:?}");
        assert_eq!(only[0], "q35,kernel-irqchip=split,hpet=off,confidential-guest-support=tdx");
        assert!(
            only[1..].iter().all(|w| w.starts_with('{') || ["-object", "-bios", "/usr/share/ovmf/OVMF.fd"].contains(w)),
            "{only:?}"
        );
    }
}
