//! What leaves a grant: an operator's rules, and the user-space network that keeps to them.
//!
//! A workload with a network of its own gets one interface more, a tunnel, made by the environment's first process while it still
//! may. Its other end is a descriptor that the supervisor holds: every packet of the workload comes out of it. The supervisor ends the
//! workload's connections itself and makes new ones from the host, to where the rules allow; so what a workload sends is never
//! routed, and no address, port or option of its packets reaches anybody but the code here.
//!
//! * [`rules`], [`addresses`], [`policy`]: what may be reached. Pure.
//! * [`dns`]: names, and which of them may be asked about. Pure.
//! * [`packet`]: packets that are looked at or made by hand. Pure.
//! * [`bucket`]: bytes over time. Pure.
//! * The rest moves bytes: a thread of its own with its own runtime, so that neither SSH nor the meter waits for it, and so that what
//!   goes wrong there ends a grant's egress and nothing else.

pub mod addresses;
pub mod bucket;
mod carry;
mod datagrams;
mod device;
pub mod dns;
pub mod packet;
pub mod policy;
mod resolver;
pub mod rules;
mod stack;

pub(crate) use stack::Egressing;
