//! The calls, each with the permissions it needs.

/// One call of the Resource Manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The subscription's name and state.
    GetSubscription,
    /// The resource group.
    GetGroup,
    /// Limits of the region, and what is in use.
    ListUsages,
    /// Sizes of the region.
    ListSizes,
    /// A version of a gallery's image.
    GetImageVersion,
    /// The image the version is of.
    GetImageDefinition,
    /// A version of an image of the marketplace.
    GetMarketplaceImage,
    /// Makes a virtual machine with its interface, address and disk.
    PutMachine,
    /// Asks whether that would be taken.
    ValidateMachine,
    /// One virtual machine and its state.
    GetMachine,
    /// Virtual machines of the resource group.
    ListMachines,
    /// Ends one, with what is deleted with it.
    DeleteMachine,
    /// Where its console is kept.
    GetConsole,
    /// One network interface.
    GetInterface,
    /// Network interfaces of the resource group.
    ListInterfaces,
    /// Deletes one.
    DeleteInterface,
    /// One public address.
    GetAddress,
    /// Public addresses of the resource group.
    ListAddresses,
    /// Deletes one.
    DeleteAddress,
    /// Disks of the resource group.
    ListDisks,
    /// Deletes one.
    DeleteDisk,
    /// How a long-running operation stands.
    ReadOperation,
    /// What Azure Monitor counted of a virtual machine.
    ReadMetrics,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::GetSubscription,
        Self::GetGroup,
        Self::ListUsages,
        Self::ListSizes,
        Self::GetImageVersion,
        Self::GetImageDefinition,
        Self::GetMarketplaceImage,
        Self::PutMachine,
        Self::ValidateMachine,
        Self::GetMachine,
        Self::ListMachines,
        Self::DeleteMachine,
        Self::GetConsole,
        Self::GetInterface,
        Self::ListInterfaces,
        Self::DeleteInterface,
        Self::GetAddress,
        Self::ListAddresses,
        Self::DeleteAddress,
        Self::ListDisks,
        Self::DeleteDisk,
        Self::ReadOperation,
        Self::ReadMetrics,
    ];

    /// For messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GetSubscription => "looking at the subscription",
            Self::GetGroup => "looking at the resource group",
            Self::ListUsages => "reading quotas",
            Self::ListSizes => "listing sizes",
            Self::GetImageVersion => "looking at the image's version",
            Self::GetImageDefinition => "looking at the image",
            Self::GetMarketplaceImage => "looking at the marketplace's image",
            Self::PutMachine => "making a virtual machine",
            Self::ValidateMachine => "validating a virtual machine",
            Self::GetMachine => "looking at a virtual machine",
            Self::ListMachines => "listing virtual machines",
            Self::DeleteMachine => "deleting a virtual machine",
            Self::GetConsole => "asking for a console",
            Self::GetInterface => "looking at a network interface",
            Self::ListInterfaces => "listing network interfaces",
            Self::DeleteInterface => "deleting a network interface",
            Self::GetAddress => "looking at a public address",
            Self::ListAddresses => "listing public addresses",
            Self::DeleteAddress => "deleting a public address",
            Self::ListDisks => "listing disks",
            Self::DeleteDisk => "deleting a disk",
            Self::ReadOperation => "following an operation",
            Self::ReadMetrics => "reading metrics",
        }
    }

    /// Permissions of Azure's role model it needs; the first is its own, the others are checked for what it joins or makes.
    #[must_use]
    pub const fn permissions(self) -> &'static [&'static str] {
        match self {
            Self::GetSubscription => &["Microsoft.Resources/subscriptions/read"],
            Self::GetGroup => &["Microsoft.Resources/subscriptions/resourceGroups/read"],
            Self::ListUsages => &["Microsoft.Compute/locations/usages/read"],
            Self::ListSizes => &["Microsoft.Compute/skus/read"],
            Self::GetImageVersion => &["Microsoft.Compute/galleries/images/versions/read"],
            Self::GetImageDefinition => &["Microsoft.Compute/galleries/images/read"],
            Self::GetMarketplaceImage => {
                &["Microsoft.Compute/locations/publishers/artifacttypes/offers/skus/versions/read"]
            }
            Self::PutMachine => &[
                "Microsoft.Compute/virtualMachines/write",
                "Microsoft.Compute/disks/write",
                "Microsoft.Compute/galleries/images/versions/read",
                "Microsoft.Network/networkInterfaces/write",
                "Microsoft.Network/networkInterfaces/join/action",
                "Microsoft.Network/publicIPAddresses/write",
                "Microsoft.Network/publicIPAddresses/join/action",
                "Microsoft.Network/virtualNetworks/subnets/join/action",
                "Microsoft.Network/networkSecurityGroups/join/action",
            ],
            Self::ValidateMachine => &["Microsoft.Resources/deployments/validate/action"],
            Self::GetMachine | Self::ListMachines => &["Microsoft.Compute/virtualMachines/read"],
            Self::DeleteMachine => &[
                "Microsoft.Compute/virtualMachines/delete",
                "Microsoft.Compute/disks/delete",
                "Microsoft.Network/networkInterfaces/delete",
                "Microsoft.Network/publicIPAddresses/delete",
            ],
            Self::GetConsole => &["Microsoft.Compute/virtualMachines/retrieveBootDiagnosticsData/action"],
            Self::GetInterface | Self::ListInterfaces => &["Microsoft.Network/networkInterfaces/read"],
            Self::DeleteInterface => &["Microsoft.Network/networkInterfaces/delete"],
            Self::GetAddress | Self::ListAddresses => &["Microsoft.Network/publicIPAddresses/read"],
            Self::DeleteAddress => &["Microsoft.Network/publicIPAddresses/delete"],
            Self::ListDisks => &["Microsoft.Compute/disks/read"],
            Self::DeleteDisk => &["Microsoft.Compute/disks/delete"],
            Self::ReadMetrics => &["Microsoft.Insights/metrics/read"],
            Self::ReadOperation => {
                &["Microsoft.Compute/locations/operations/read", "Microsoft.Network/locations/operations/read"]
            }
        }
    }

    /// Whether asking twice is as good as asking once.
    #[must_use]
    pub const fn is_repeatable(self) -> bool {
        !matches!(self, Self::PutMachine)
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
