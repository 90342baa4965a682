//! What a cloud is to a provider of machines.
//!
//! ```text
//! Cloud ── one region of one account: make a host, look at hosts, end them, find what they leave behind
//!   NewHost, Host, Marks ── what is asked and what is there
//!   Telemetry, Window ── what the cloud itself counted of a host, for whoever checks a meter
//!   CloudError, ErrorKind ── one taxonomy of failures, by what is to be done about them
//! ```
//!
//! A cloud only obtains hosts; what runs on them is nobody's business here. Everything that is made carries [`Marks`], by
//! which it is found again. Source: specification chapter 25.

mod api;
mod error;
mod host;
mod telemetry;

pub use api::Cloud;
pub use error::{CloudError, ErrorKind, one_line};
pub use host::{Confidential, Host, HostState, Image, Leftover, Marks, NewHost, Owner, Quota, SizeInfo};
pub use telemetry::{Counts, Fact, Moment, Point, Series, Telemetry, Window, rfc3339, unix_s};
