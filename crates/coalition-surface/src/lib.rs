//! The specification's convenience surface, as far as it is about tickets: its names, where its chapters look for them.
//!
//! Who writes `coalition = { package = "coalition-surface", … }` into a manifest, or `extern crate coalition_surface as
//! coalition;` into a crate's root, has all of the data model of the crate `coalition` and, beside it, `TicketValidator<'_>`,
//! `Tdx` and `acl`. There is no code here. What deviates from the chapters, and why, is in `docs/protocol/tickets.md`; that
//! the chapters' snippets judge peers as they say is in this crate's tests.
//!
//! ```
//! extern crate coalition_surface as coalition;
//!
//! use coalition::{TicketValidator, Tdx, Mrtd, unique_id};
//! use coalition::acl::ReputationFloor;
//!
//! fn validator() -> TicketValidator<'static> {
//!     TicketValidator::new()
//!         .require_ticket(Tdx::new().require_mrtd(Mrtd([7; 48])))
//!         .require_ticket(ReputationFloor::from(unique_id!("a reputation organism"), 0.55))
//! }
//! # fn main() {
//! assert_eq!(validator().acl_rules().len(), 2);
//! # }
//! ```

pub use coalition::*;
pub use coalition_tickets::{Tdx, acl};

/// What a door demands. The lifetime is the chapters' own and says nothing: a validator owns all it holds.
pub type TicketValidator<'a> = coalition_tickets::TicketValidator;

/// The data model's access rules, and what composes demands.
pub mod tickets {
    pub use coalition::tickets::*;
    pub use coalition_tickets::{And, Or};

    pub use crate::TicketValidator;
}

/// Attestation, under the substrate's names.
pub mod tee {
    /// Of TDX guests.
    pub mod tdx {
        pub use coalition_attest::Measurements;
        pub use coalition_tickets::AdmitsMeasurements;
    }
}
