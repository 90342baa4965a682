//! Options of `coalition image`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use coalition_universe::PeerAddress;

use crate::values::{DurationArg, parse_hash};
use coalition::UniqueId;

/// Commands about images.
#[derive(Subcommand, Debug, Clone)]
pub enum ImageCommand {
    /// Make a small image to try, from what this machine has
    Example(ImageExampleArgs),
    /// Show an image's size, blake3 and what is wrong with it, if anything
    Inspect(ImageInspectArgs),
    /// Put an image into a store, so that requests need not send it
    Push(ImagePushArgs),
    /// Fetch an image from a store, verified as it arrives
    Pull(ImagePullArgs),
    /// List what you hold in a store
    Ls(ImageLsArgs),
    /// Give up an image in a store
    Rm(ImageRmArgs),
    /// Give up what nobody used for a while, and uploads that were not finished
    Gc(ImageGcArgs),
    /// Print the peer id this home pushes as, for a store's operator to list
    Peer(ImagePeerArgs),
}

/// Which stores.
#[derive(Args, Debug, Clone)]
pub struct StoreArgs {
    /// The store: PEER_ID@IP:PORT; may be given several times [default: the coalition's]
    #[arg(long, value_name = "ADDRESS")]
    pub store: Vec<PeerAddress>,
}

/// Arguments of `coalition image example`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Uses a static busybox if there is one, else /bin/sh and a few tools with the libraries they need. The same machine always \
makes the same bytes.

Example:
  coalition image example hello.tar")]
pub struct ImageExampleArgs {
    /// Where to write it
    #[arg(value_name = "FILE", default_value = "hello.tar", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `coalition image inspect`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
A root file system (.tar, .tar.gz), an OCI archive, and for hosts with virtual machines a raw disk or a unified kernel image: told apart by \
content.

Example:
  coalition image inspect hello.tar")]
pub struct ImageInspectArgs {
    /// The image
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// Arguments of `coalition image push`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
The image is named by its blake3. What the store has already is not sent again, whoever pushed it. A push that was cut, by \
Ctrl-C, a crash or the network, goes on where it stopped: run it again.

You hold what you pushed for as long as the store says, and it counts against your quota there; pushing it again holds it anew. \
Whoever knows the hash can fetch the image, and the hash of a request's image is public: put no secrets into images.

Examples:
  coalition image push hello.tar
  coalition image push job.tar.gz --store 3b6a…@203.0.113.7:4001
  coalition image push job.tar.gz --json | jq -r 'select(.step==\"pushed\").blake3'")]
pub struct ImagePushArgs {
    /// The image
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Which stores.
    #[command(flatten)]
    pub stores: StoreArgs,
}

/// Arguments of `coalition image pull`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Every piece is verified against the hash as it arrives; a store that sends wrong bytes is not asked again. A pull that was cut \
goes on where it stopped.

Example:
  coalition image pull 9f2b… job.tar.gz")]
pub struct ImagePullArgs {
    /// The image's blake3, 64 hex digits
    #[arg(value_name = "BLAKE3", value_parser = parse_hash)]
    pub hash: UniqueId,
    /// Where to write it
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
    /// Which stores.
    #[command(flatten)]
    pub stores: StoreArgs,
}

/// Arguments of `coalition image ls`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Example:
  coalition image ls --json | jq -r '.stores[].images[].blake3'")]
pub struct ImageLsArgs {
    /// Which stores.
    #[command(flatten)]
    pub stores: StoreArgs,
}

/// Arguments of `coalition image rm`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
An image that others hold as well stays for them. Running workloads are not touched.

Example:
  coalition image rm 9f2b")]
pub struct ImageRmArgs {
    /// The images, by blake3 or its first digits
    #[arg(value_name = "BLAKE3", required = true)]
    pub images: Vec<String>,
    /// Which stores.
    #[command(flatten)]
    pub stores: StoreArgs,
}

/// Arguments of `coalition image gc`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Examples:
  coalition image gc
  coalition image gc --unused-for 1d")]
pub struct ImageGcArgs {
    /// Give up images that nobody pushed or fetched for so long
    #[arg(long, default_value = "7d", value_name = "DURATION")]
    pub unused_for: DurationArg,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
    /// Which stores.
    #[command(flatten)]
    pub stores: StoreArgs,
}

/// Arguments of `coalition image peer`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Example:
  coalition image peer")]
pub struct ImagePeerArgs {}
