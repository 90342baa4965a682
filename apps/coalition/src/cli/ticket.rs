//! Arguments of `coalition ticket`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use crate::values::DurationArg;

/// Commands about tickets.
#[derive(Subcommand, Debug)]
pub enum TicketCommand {
    /// Print the peer that tickets for this home are issued to
    Peer(TicketPeerArgs),
    /// Make an issuer's charter: who may sign tickets, and for how long
    Charter(TicketCharterArgs),
    /// Issue a ticket
    Issue(TicketIssueArgs),
    /// Print what a ticket says
    Show(TicketShowArgs),
}

/// Arguments of `coalition ticket peer`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Makes tickets/peer.key in --home if there is none. From then on commands come to the coalition as this one peer, where they \
otherwise come as a new one each time: the members see that its requests belong together. Remove the file to end that.

Put the tickets that are issued to it into the same directory, as files that end in .ticket.

Example:
  coalition ticket peer")]
pub struct TicketPeerArgs {}

/// Arguments of `coalition ticket charter`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
The config of the coalition names the charter by the printed access rule, as the one rule of its ticket issuer; so other keys \
make another issuer, and the tickets of the old one end. Members get the charter's file, in the section [admission] of theirs.

Example:
  coalition ticket charter --key issuer.key --longest 1d --out issuer.charter")]
pub struct TicketCharterArgs {
    /// A file with a signing key, 64 hex digits, mode 600; made if there is none
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "public")]
    pub key: Vec<PathBuf>,
    /// The public key of another issuer, 64 hex digits
    #[arg(long, value_name = "HEX")]
    pub public: Vec<String>,
    /// The longest time a ticket may last
    #[arg(long, value_name = "DURATION", default_value = "1d")]
    pub longest: DurationArg,
    /// Where to write the charter [default: only printed]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub out: Option<PathBuf>,
}

/// Arguments of `coalition ticket issue`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
The ticket is good for one peer, at one door, on one network. It cannot be taken back before it ends, except with all others by \
publishing another charter: keep it short.

Example:
  coalition ticket issue --charter issuer.charter --key issuer.key --peer 3f9c… --for 1h > mine.ticket")]
pub struct TicketIssueArgs {
    /// The coalition's published config, as hex or TOML [default: coalition.hex in --home]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// The charter the config names
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub charter: PathBuf,
    /// The file of a signing key of the charter
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key: PathBuf,
    /// Who gets it: the peer's id, 64 hex digits
    #[arg(long, value_name = "ID")]
    pub peer: String,
    /// The door: an organism's id [default: the coalition's market]
    #[arg(long, value_name = "ID")]
    pub audience: Option<String>,
    /// The network, 64 hex digits [default: the shared universe]
    #[arg(long, value_name = "ID")]
    pub network: Option<String>,
    /// How long it is good
    #[arg(long = "for", value_name = "DURATION", default_value = "1h")]
    pub lifetime: DurationArg,
}

/// Arguments of `coalition ticket show`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
What a ticket says is worth nothing before a door has judged it.

Example:
  coalition ticket show mine.ticket")]
pub struct TicketShowArgs {
    /// The ticket's file
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub ticket: PathBuf,
}
