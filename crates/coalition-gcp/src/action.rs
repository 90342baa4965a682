//! What the client can ask, in one list: the permissions an operator grants are compared with it.

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// A token for a service account's key, or from the metadata server.
    GetToken,
    /// `instances.insert`.
    InsertInstance,
    /// `instances.get`.
    GetInstance,
    /// `instances.aggregatedList`.
    ListInstances,
    /// `instances.delete`.
    DeleteInstance,
    /// `instances.getSerialPortOutput`.
    GetSerialPortOutput,
    /// `disks.aggregatedList`.
    ListDisks,
    /// `disks.delete`.
    DeleteDisk,
    /// `images.get`.
    GetImage,
    /// `images.getFromFamily`.
    GetImageFromFamily,
    /// `machineTypes.get`.
    GetMachineType,
    /// `regions.get`.
    GetRegion,
    /// `zoneOperations.get`.
    GetOperation,
    /// `zoneOperations.list`.
    ListOperations,
    /// `projects.timeSeries.list` of Cloud Monitoring.
    ListTimeSeries,
}

impl Action {
    /// Every call the client can make.
    pub const ALL: [Self; 15] = [
        Self::GetToken,
        Self::InsertInstance,
        Self::GetInstance,
        Self::ListInstances,
        Self::DeleteInstance,
        Self::GetSerialPortOutput,
        Self::ListDisks,
        Self::DeleteDisk,
        Self::GetImage,
        Self::GetImageFromFamily,
        Self::GetMachineType,
        Self::GetRegion,
        Self::GetOperation,
        Self::ListOperations,
        Self::ListTimeSeries,
    ];

    /// Its name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GetToken => "token",
            Self::InsertInstance => "instances.insert",
            Self::GetInstance => "instances.get",
            Self::ListInstances => "instances.aggregatedList",
            Self::DeleteInstance => "instances.delete",
            Self::GetSerialPortOutput => "instances.getSerialPortOutput",
            Self::ListDisks => "disks.aggregatedList",
            Self::DeleteDisk => "disks.delete",
            Self::GetImage => "images.get",
            Self::GetImageFromFamily => "images.getFromFamily",
            Self::GetMachineType => "machineTypes.get",
            Self::GetRegion => "regions.get",
            Self::GetOperation => "zoneOperations.get",
            Self::ListOperations => "zoneOperations.list",
            Self::ListTimeSeries => "timeSeries.list",
        }
    }

    /// Whether doing it twice is the same as doing it once, so that the client may repeat it by itself.
    #[must_use]
    pub const fn is_repeatable(self) -> bool {
        !matches!(self, Self::InsertInstance)
    }

    /// The permissions it needs, as IAM names them. Making a host also makes its disk, labels both, writes its metadata and
    /// uses an image and a subnetwork.
    #[must_use]
    pub const fn permissions(self) -> &'static [&'static str] {
        match self {
            Self::GetToken => &[],
            Self::InsertInstance => &[
                "compute.instances.create",
                "compute.instances.setLabels",
                "compute.instances.setMetadata",
                "compute.instances.setTags",
                "compute.disks.create",
                "compute.disks.setLabels",
                "compute.images.useReadOnly",
                "compute.subnetworks.use",
                "compute.subnetworks.useExternalIp",
            ],
            Self::GetInstance => &["compute.instances.get"],
            Self::ListInstances => &["compute.instances.list"],
            Self::DeleteInstance => &["compute.instances.delete"],
            Self::GetSerialPortOutput => &["compute.instances.getSerialPortOutput"],
            Self::ListDisks => &["compute.disks.list"],
            Self::DeleteDisk => &["compute.disks.delete"],
            Self::GetImage => &["compute.images.get"],
            Self::GetImageFromFamily => &["compute.images.getFromFamily"],
            Self::GetMachineType => &["compute.machineTypes.get"],
            Self::GetRegion => &["compute.regions.get"],
            Self::GetOperation => &["compute.zoneOperations.get"],
            Self::ListOperations => &["compute.zoneOperations.list"],
            Self::ListTimeSeries => &["monitoring.timeSeries.list"],
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
