//! Names that configs of this version use for services and roles.

/// The clock's service.
pub const ALMANAC_SERVICE: &str = "almanac.v1";
/// The market's service.
pub const COMPUTE_SERVICE: &str = "compute.v1";
/// The unseal committee's service.
pub const UNSEAL_SERVICE: &str = "unseal.v1";
/// Role under which a coalition references its unseal committee.
pub const UNSEAL_ROLE: &str = "unseal";
/// Role under which a coalition references a compute bridge.
pub const BRIDGE_ROLE: &str = "compute-bridge";
