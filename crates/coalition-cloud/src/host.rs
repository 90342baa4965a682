//! What is asked of a cloud, and what it has.

use std::net::IpAddr;

/// Memory encryption and attestation of a machine by its processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Confidential {
    /// Intel TDX.
    Tdx,
    /// AMD SEV-SNP.
    SevSnp,
}

/// What everything that is made carries as tags or labels: whose it is and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The provider id, 64 hex digits. Least-privilege policies name it.
    pub bridge: String,
    /// Name of the offer it was sold as: lower-case letters, digits and `-`.
    pub offer: String,
    /// Name of the instance in the bridge's journal, 32 hex digits.
    pub instance: String,
    /// The coalition's fingerprint, 64 hex digits.
    pub coalition: String,
    /// The grant it is for, as public in the market's log.
    pub grant: String,
    /// When it switches itself off, Unix seconds.
    pub until_s: u64,
}

/// Whose things are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner<'a> {
    /// [`Marks::bridge`].
    pub bridge: &'a str,
    /// [`Marks::offer`].
    pub offer: &'a str,
}

/// A host to make. `Debug` leaves the user data out, which holds a key.
#[derive(Clone, Copy)]
pub struct NewHost<'a> {
    /// Its marks. Host names and idempotency tokens derive from `marks.instance` and `place`: asked again with both the
    /// same, a cloud makes the same host once.
    pub marks: &'a Marks,
    /// One of [`Cloud::places`](crate::Cloud::places).
    pub place: &'a str,
    /// The cloud's name of the size, e.g. `m6a.large`, `c3-standard-4`, `Standard_DC2es_v6`.
    pub size: &'a str,
    /// Asks for confidential computing of this kind.
    pub confidential: Option<Confidential>,
    /// What cloud-init reads, at most 16 KiB.
    pub user_data: &'a [u8],
    /// Size of the only disk, GiB; encrypted, and deleted with the host.
    pub disk_gib: u32,
    /// The longest it may exist, seconds, for clouds that end hosts by themselves.
    pub longest_s: u64,
}

impl std::fmt::Debug for NewHost<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { marks, place, size, disk_gib, .. } = self;
        write!(f, "NewHost({}: {size} in {place}, {disk_gib} GiB, rest redacted)", marks.instance)
    }
}

/// Where a host is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostState {
    /// Up.
    Running,
    /// Coming up.
    Coming,
    /// Being stopped or deleted; it may still be billed.
    Stopping,
    /// It does not run any more, but something of it is still there and billed.
    Stopped,
    /// It will never run again and costs nothing.
    Over,
}

impl HostState {
    /// Whether it will never run again and costs nothing.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Over)
    }
}

/// A host as the cloud describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The cloud's name of it: what [`Cloud::end`](crate::Cloud::end) takes.
    pub id: String,
    /// [`Marks::instance`].
    pub instance: String,
    /// Where it stands.
    pub state: HostState,
    /// The cloud's name of its size.
    pub size: String,
    /// Address on the internet, once it has one.
    pub public_address: Option<IpAddr>,
    /// Address inside its network.
    pub private_address: Option<IpAddr>,
    /// Since when it is there, Unix seconds, where the cloud says.
    pub since_s: Option<u64>,
    /// Why it is in this state where the cloud says so: what kind of failure, and its words.
    pub reason: Option<(crate::ErrorKind, String)>,
}

/// Something that a host left behind and that is billed: a disk, an address, a network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The cloud's name of it: what [`Cloud::remove`](crate::Cloud::remove) takes.
    pub id: String,
    /// What it is, for the operator: "disk", …
    pub what: &'static str,
    /// [`Marks::instance`] of its host.
    pub instance: String,
}

/// The image hosts are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its name, for the operator.
    pub id: String,
    /// Its architecture as Rust calls it: `x86_64`, `aarch64`.
    pub architecture: String,
    /// The smallest disk it fits on, GiB.
    pub disk_gib: u32,
    /// What keeps it from being used, in the cloud's word: "pending", "deprecated".
    pub unusable: Option<String>,
}

/// What the account may hold in this region, in virtual CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Virtual CPUs in all, those in use included; `None` when the cloud does not say.
    pub vcpus: Option<u32>,
    /// In a sentence: the number and what is in use, or why it is unknown.
    pub text: String,
}

/// What a size has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeInfo {
    /// The cloud's name for it.
    pub name: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory, MiB.
    pub ram_mib: u32,
    /// What confidential computing it can do.
    pub confidential: Vec<Confidential>,
}
