//! From a checked command line to a machine one can log in to: seal, submit, wait for clearing, serve the image, open the
//! receipt. Whatever goes wrong on the way, nothing is left to pay for, or it is said what is.

mod flow;
pub mod plan;
pub mod resume;
pub mod serve;
mod standing;
mod wanted;

pub use flow::{Request, run};
pub(crate) use flow::{WRITE_WAIT, now_ms, word, write};
pub use wanted::ImageChoice;
