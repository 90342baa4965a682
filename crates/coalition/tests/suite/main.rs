//! Tests of the identity and data model, in one binary.
#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::type_complexity,
    reason = "test helpers: a failure here is a failed test, and `json!` values are handed over for brevity"
)]

mod forms;
mod fuzz;
mod membership;
mod model;
mod preimages;
mod stances;
mod values;
mod vectors;
