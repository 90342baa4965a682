//! The command line: every command, option and help text. `docs/CLI.md` is generated from it.

mod access;
mod attest;
mod image;
mod retire;
mod successor;
mod ticket;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;

pub use self::{
    access::{ForwardArgs, LogsArgs, ScpArgs, SshArgs},
    attest::{
        AttestCommand, AttestFetchArgs, AttestLogArgs, AttestPredictArgs, AttestQuoteArgs, AttestShowArgs,
        AttestVerifyArgs,
    },
    image::{
        ImageCommand, ImageExampleArgs, ImageGcArgs, ImageInspectArgs, ImageLsArgs, ImagePeerArgs, ImagePullArgs,
        ImagePushArgs, ImageRmArgs, StoreArgs,
    },
    retire::{RetireArgs, RetireReason, RetireService},
    successor::{SuccessorCommand, SuccessorConfigArgs, SuccessorMoveArgs},
    ticket::{TicketCharterArgs, TicketCommand, TicketIssueArgs, TicketPeerArgs, TicketShowArgs},
};
use crate::{
    request::ImageChoice,
    values::{CpuMillicores, DiskMib, DurationArg, RamMib},
};
use coalition::{Mrtd, RateQ64};
use coalition_compute::Region;
use coalition_universe::PeerAddress;

const TOP_AFTER: &str = "\
Start here:
  coalition demo                              see everything once, in a throw-away directory
  coalition up                                a coalition on this machine; stays until Ctrl-C
  coalition image example hello.tar           a small image to try
  coalition request --image hello.tar --for 10m --max-rate 0.05
  coalition ssh <grant>                       the first digits of a grant are enough

Exit status:
  0    done
  1    a fault in this program or this machine (disk, process)
  2    the command line is wrong
  3    something you gave is wrong: a file, a config, a value, a grant nobody knows
  4    the coalition cannot be reached, or not enough of it
  5    refused, or nobody serves it: no offer fits, too expensive, expired, withdrawn
  6    verification failed: the evidence proves nothing
  7    in the way: already running, port in use
  8    gave up waiting; the message says what exists now and how to release it
  130  interrupted
`coalition ssh` exits with the status of the remote command (255 when SSH itself failed); `scp` and `forward` with OpenSSH's.

Data goes to stdout, progress and errors to stderr. NO_COLOR turns colour off; a pipe gets none.";

/// A market where agents get machines from operators they do not know, and neither has to trust the other.
#[derive(Parser, Debug)]
#[command(name = "coalition", version, after_help = TOP_AFTER, max_term_width = 110, propagate_version = false)]
pub struct Cli {
    /// Options every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options every command takes.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// Where this coalition's files and your grants live [default: ~/.coalition]
    #[arg(long, global = true, env = "COALITION_HOME", value_name = "DIR", value_hint = ValueHint::DirPath, hide_env_values = true)]
    pub home: Option<PathBuf>,
    /// Print JSON: one object a line for steps, one object for an answer
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more about what happens, on stderr; twice for the libraries below as well
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Every command.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start a coalition on this machine and keep it running
    Up(UpArgs),
    /// Show everything once: start, request, log in, end, verify, stop
    Demo(DemoArgs),
    /// List the providers: regions, size, posture, rate, free capacity, age
    Market(MarketArgs),
    /// Ask for a machine and wait until you can log in
    Request(RequestArgs),
    /// Wait until you can log in to what was requested with --detach, or by a process that was killed
    Wait(WaitArgs),
    /// Log in to a granted machine with OpenSSH's client
    Ssh(SshArgs),
    /// Copy files to or from a granted machine with OpenSSH's scp
    Scp(ScpArgs),
    /// Reach ports of a granted machine from here
    Forward(ForwardArgs),
    /// Show what the workload wrote, and how it ended
    Logs(LogsArgs),
    /// Show a grant's usage log and where its evidence is
    Log(LogArgs),
    /// Have a running grant last longer
    Extend(ExtendArgs),
    /// Stop a grant
    End(EndArgs),
    /// List the grants requested from here
    Grants(GrantsArgs),
    /// Check a commit offline from the coalition's published config
    Verify(VerifyArgs),
    /// Judge, print or make TDX quotes
    #[command(subcommand)]
    Attest(AttestCommand),
    /// Issue tickets, and keep those issued to you
    #[command(subcommand)]
    Ticket(TicketCommand),
    /// Make and inspect images, and keep them in stores
    #[command(subcommand)]
    Image(ImageCommand),
    /// Print every id a published config derives
    Id(IdArgs),
    /// Say whether the coalition is up, and how it is
    Status(StatusArgs),
    /// End a service's log, as a quorum of its members approves
    Retire(RetireArgs),
    /// Make the config that succeeds this one, or move to it
    #[command(subcommand)]
    Successor(SuccessorCommand),
    /// Show who certifies the coalition's commits, and change it
    Members(MembersArgs),
    /// Run one role as a process of its own, from its config
    #[command(subcommand)]
    Run(RunCommand),
    /// Print a completion script for your shell
    Completions(CompletionsArgs),
}

const UP_AFTER: &str = "\
What starts, each as a process of its own: a relay, a committee of 4 that runs the clock (Almanac) and the market \
(Compute), an unseal committee of 3 of which any 2 open a sealed request, a store for images pushed from this home, an SSH server that \
stands for a host, and a bridge that sells that host. The first start makes keys and configs below --home; later starts find every commit, grant \
and log of before.

Ctrl-C stops everything and leaves no process behind. Running workloads end with their host.

Examples:
  coalition up
  coalition up --rate 0.02 --gib-rate 0.005
  coalition up --attested                     attestation, under a labelled development root
  coalition --home /srv/dev up";

/// Arguments of `coalition up`.
#[derive(Args, Debug, Clone)]
#[command(after_help = UP_AFTER)]
pub struct UpArgs {
    /// Name of the coalition; used at the first start only
    #[arg(long, default_value = "dev", value_name = "NAME")]
    pub name: String,
    /// What the bridge charges per core and hour, in USD; used at the first start only
    #[arg(long, default_value = "0.02", value_name = "USD")]
    pub rate: RateQ64,
    /// What the bridge charges per GiB of memory and hour, in USD; used at the first start only
    #[arg(long, default_value = "0.004", value_name = "USD")]
    pub gib_rate: RateQ64,
    /// The region the bridge offers; used at the first start only
    #[arg(long, default_value = "local", value_name = "REGION")]
    pub region: Region,
    /// Cores the bridge sells; used at the first start only [default: what this machine has]
    #[arg(long, value_name = "CORES")]
    pub cpu: Option<CpuMillicores>,
    /// Memory the bridge sells; used at the first start only [default: half of what this machine has]
    #[arg(long, value_name = "SIZE")]
    pub ram: Option<RamMib>,
    /// Choose new ports, after another program took one
    #[arg(long)]
    pub new_ports: bool,
    /// Make a market that admits only attested providers, under a development root that proves nothing about hardware; used at
    /// the first start only
    #[arg(long)]
    pub attested: bool,
}

/// Arguments of `coalition demo`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Without --home everything lives in a temporary directory that is removed at the end.

Examples:
  coalition demo
  coalition demo --home ./demo        keep the files, to look around afterwards
  coalition demo --json | jq .step")]
pub struct DemoArgs {}

/// Arguments of `coalition market`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
RATE is what you would compare with --max-rate: USD per core and hour with memory included, here for 1 core and 1 GiB \
unless --cpu and --ram say otherwise. INVENTORY is the provider's last signed statement of what it holds: whether the log had the \
same grants open, how long ago, and what it found besides. POSTURE says what vouches for the machines, as the committee verified it; `not attested` \
means that their operator can look into your workload, and so does a development root. AGE is how long ago the provider \
last confirmed its card; a stale one wins nothing.

Examples:
  coalition market
  coalition market --cpu 4 --ram 8GiB --region local
  coalition market --json | jq -r '.offers[].rate'")]
pub struct MarketArgs {
    /// Size for which to show the rate, in cores
    #[arg(long, default_value = "1", value_name = "CORES")]
    pub cpu: CpuMillicores,
    /// Memory for which to show the rate
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    pub ram: RamMib,
    /// Only offers in this region
    #[arg(long, value_name = "REGION")]
    pub region: Option<Region>,
}

const REQUEST_AFTER: &str = "\
What happens, with the time each step took:
  sealed        what to run and where to answer, encrypted to the unseal committee under an identity made for this request
  ordered       the request is in the committee's certified log
  cleared       the committee granted it: to whom, at which rate, until when
  provisioning  the bridge fetches the image: from the stores it was pushed to, else from this process, which is to be kept \
running until the receipt is here
  receipt       address, user and keys of the machine, which only this process could open

The keys stay in --home under grants/<grant>/, readable by you alone. Ctrl-C before the grant withdraws the request; after \
it, ends the grant. Nothing is left to pay for.

--max-rate is in USD per core and hour, memory included: `coalition market --cpu … --ram …` shows what it will be.

Examples:
  coalition request --image ./hello.tar --cpu 1 --ram 256MiB --region local --for 10m --max-rate 0.05
  coalition request --image ./job.tar.gz --cpu 4 --ram 8GiB --for 2h30m --max-rate 0.04 --wait 5m
  coalition image push ./job.tar.gz && coalition request --image ./job.tar.gz --for 2h --max-rate 0.04 --detach
  coalition request --image ./hello.tar --for 10m --max-rate 0.05 --json | jq -r 'select(.step==\"receipt\").grant'";

/// Arguments of `coalition request`.
#[derive(Args, Debug, Clone)]
#[command(after_help = REQUEST_AFTER)]
pub struct RequestArgs {
    /// The image to boot: a root file system as .tar or .tar.gz, where hosts run virtual machines a raw disk or unified kernel image; or
    /// the blake3 of one in a store
    #[arg(long, value_name = "FILE_OR_BLAKE3", value_hint = ValueHint::FilePath)]
    pub image: ImageChoice,
    /// A store to look for the image, beside those it was pushed to; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    pub store: Vec<PeerAddress>,
    /// End once the request is granted; `coalition wait` gets the receipt later. The image must be in a store
    #[arg(long, conflicts_with_all = ["tdx", "mrtd"])]
    pub detach: bool,
    /// Cores: 2, 0.5 or 500m
    #[arg(long, default_value = "1", value_name = "CORES")]
    pub cpu: CpuMillicores,
    /// Memory: 256MiB, 2GiB
    #[arg(long, default_value = "256MiB", value_name = "SIZE")]
    pub ram: RamMib,
    /// Disk, the unpacked image included: 4GiB [default: 1GiB, or what the image unpacks to and 512MiB, if that is more]
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<DiskMib>,
    /// Where [default: anywhere]
    #[arg(long, value_name = "REGION")]
    pub region: Option<Region>,
    /// For how long, from the grant: 90s, 10m, 1h30m, 2d
    #[arg(long = "for", value_name = "DURATION")]
    pub duration: DurationArg,
    /// The most you pay, in USD per core and hour with memory included
    #[arg(long, value_name = "USD")]
    pub max_rate: RateQ64,
    /// How long the committee may look for a provider before the request expires
    #[arg(long, default_value = "30s", value_name = "DURATION")]
    pub wait: DurationArg,
    /// Absolute form of --wait: give up at this time (RFC 3339 as in 2030-01-31T12:00:00Z, or Unix seconds)
    #[arg(long, value_name = "TIME", conflicts_with = "wait")]
    pub deadline: Option<crate::values::Instant>,
    /// How long the provider may take from grant to receipt
    #[arg(long, default_value = "3m", value_name = "DURATION")]
    pub provision_wait: DurationArg,
    /// Run this inside once the machine is up, instead of nothing (may be repeated, one argument each)
    #[arg(long = "command", value_name = "ARG", allow_hyphen_values = true)]
    pub workload: Vec<String>,
    /// Only a machine inside TDX: an attested provider, and a quote of the machine that is verified before it counts
    #[arg(long)]
    pub tdx: bool,
    /// The measurement (MRTD) the machine must show, 96 hex digits; implies --tdx
    #[arg(long, value_name = "MRTD")]
    pub mrtd: Option<Mrtd>,
    /// Send it even if no offer fits now, and wait for one
    #[arg(long)]
    pub anyway: bool,
    /// Sign with your member id visible to everybody, instead of an identity made for this request
    #[arg(long)]
    pub as_member: bool,
}

/// Arguments of `coalition wait`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Ends at once when the receipt is here already. Ctrl-C changes nothing: the request stays as it is.

Examples:
  coalition wait
  coalition wait 3f9c --for 10m && coalition ssh 3f9c")]
pub struct WaitArgs {
    /// The request, or its first digits; the newest of yours if left out
    #[arg(value_name = "GRANT")]
    pub grant: Option<String>,
    /// How long to wait for each step
    #[arg(long = "for", default_value = "3m", value_name = "DURATION")]
    pub patience: DurationArg,
}

/// Arguments of `coalition log`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Every line is a certified commit; the pointer behind it names the entry, and `coalition verify` resolves it. With \
--evidence, the newest usage log (else the grant) is written as a self-contained proof to mail to somebody. What the workload \
wrote is in `coalition logs`; how its command ended is not in the market's log, and is shown for grants of your own.

With --measure, what the machine's own counters say is committed beside what its provider logs, and both are shown with the \
difference; more than 20 ‰ is marked. `coalition end` measures by itself. A report from long before the end can only show that too \
little was logged. Memory is what was in use at that moment. Bytes are compared where the machine has an interface of its own; \
elsewhere the provider counts what passes the SSH server, which no counter inside sees.

Examples:
  coalition log 3f9c
  coalition log 3f9c --measure
  coalition log 3f9c --evidence usage.evidence
  coalition log 3f9c --json | jq .logs")]
pub struct LogArgs {
    /// The grant, or its first digits; the newest of yours if left out. A whole id need not be yours
    #[arg(value_name = "GRANT")]
    pub grant: Option<String>,
    /// Write the proof of the newest usage log (or of the grant, while there is none) to this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub evidence: Option<PathBuf>,
    /// Wait until the final usage log is there, at most this long
    #[arg(long, value_name = "DURATION")]
    pub wait: Option<DurationArg>,
    /// First read the running machine's own counters over SSH and commit them, signed, as your report
    #[arg(long)]
    pub measure: bool,
}

/// Who approves what a quorum of the members has to.
#[derive(Args, Debug, Clone)]
pub struct Approvers {
    /// A member's checkpoint key file; may be given several times
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key: Vec<PathBuf>,
    /// Approvals another member printed; may be given several times
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub approval: Vec<PathBuf>,
}

/// Arguments of `coalition members`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Without a subcommand: the roster in force, as the certified logs prove it from the published config.

To swap a member, or to bring back one that lost its disk: make its keys with `new`, put what it prints in the place of the \
old member in what `roster` prints, start it with `joins = true`, and have a quorum approve with `hand-over`. The config stays, \
no reader or writer is restarted, and evidence from before and after verifies from the same config.

Examples:
  coalition members roster > next.toml
  coalition members new member-5 --keys keys >> next.toml
  coalition members hand-over next.toml --key m1.key --approve-only > m1.approval
  coalition members hand-over next.toml --approval m1.approval --approval m2.approval --approval m3.approval")]
pub struct MembersArgs {
    /// What to do; without it the roster in force is shown
    #[command(subcommand)]
    pub action: Option<MembersAction>,
}

/// What to do about the members.
#[derive(clap::Subcommand, Debug, Clone)]
pub enum MembersAction {
    /// Print the roster in force as TOML, to be edited into the next one
    #[command(after_help = "Examples:\n  coalition members roster > next.toml")]
    Roster,
    /// Make the keys of a new member, and print its part of a roster
    New(NewMemberArgs),
    /// Hand the committee over to the next roster, as a quorum of its members approves
    HandOver(HandOverArgs),
}

/// Arguments of `coalition members new`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Writes NAME.checkpoint.key, NAME.consensus.key and NAME.node.key, readable by you alone, and prints what the roster needs.

Examples:
  coalition members new member-5 --keys keys >> next.toml")]
pub struct NewMemberArgs {
    /// The member's name
    pub name: String,
    /// Directory for its three key files
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub keys: PathBuf,
}

/// Arguments of `coalition members hand-over`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Without --key and --approval, all checkpoint keys of this home approve. An approval is for this roster, this epoch and these \
logs; it is worth nothing for any other.

Examples:
  coalition members hand-over next.toml
  coalition members hand-over next.toml --key m1.key --approve-only > m1.approval
  coalition members hand-over next.toml --approval m1.approval --approval m2.approval --approval m3.approval")]
pub struct HandOverArgs {
    /// The next roster, as TOML
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub next: PathBuf,
    /// Who approves.
    #[command(flatten)]
    pub approvers: Approvers,
    /// Print the approvals of the keys at hand and commit nothing
    #[arg(long)]
    pub approve_only: bool,
}

/// Arguments of `coalition extend`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
The same machine at the same rate, for longer: the provider first moves everything that would have ended it, then says so, and only \
then the grant is longer. Providers that cannot (some clouds fix a machine's end when they make it) decline with the reason. \
What is not answered before the grant ends lapses. Run it again to go on waiting for an answer.

Examples:
  coalition extend 3f9c --for 30m
  coalition extend 3f9c --for 2h --json | jq -r 'select(.step==\"extended\").valid_to_ms'")]
pub struct ExtendArgs {
    /// The grant, or its first digits; the newest of yours if left out
    #[arg(value_name = "GRANT")]
    pub grant: Option<String>,
    /// How much longer: 90s, 10m, 1h30m
    #[arg(long = "for", value_name = "DURATION")]
    pub extra: DurationArg,
    /// How long to wait for the provider's answer
    #[arg(long, default_value = "2m", value_name = "DURATION")]
    pub wait: DurationArg,
}

/// Arguments of `coalition end`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Says how the workload's command ended, if it has, what was used, and what it costs. The machine and everything on it are gone \
then; copy what you need first. The key to it is dead, and deleted here.

Examples:
  coalition scp 3f9c:results.csv . && coalition end 3f9c
  coalition end 3f9c --json | jq '.workload_exit, .cost_usd'")]
pub struct EndArgs {
    /// The grant, or its first digits; the newest of yours if left out
    #[arg(value_name = "GRANT")]
    pub grant: Option<String>,
    /// Do not read the machine's own counters and commit them before it ends
    #[arg(long)]
    pub no_measure: bool,
    /// How long to wait for the final usage log
    #[arg(long, default_value = "30s", value_name = "DURATION")]
    pub wait: DurationArg,
}

/// Arguments of `coalition grants`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
EXIT is how the workload's command ended, as far as `logs`, `log` or `end` have asked its machine: a status, a signal, or `-`. KEY \
says whether the key to log in with still opens anything; a dead one is deleted.

Examples:
  coalition grants
  coalition grants --json | jq -r '.grants[] | select(.key == \"live\").grant'")]
pub struct GrantsArgs {}

/// Arguments of `coalition verify`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Offline: nothing is contacted when EVIDENCE is a file. It is accepted only if the entry hashes to the leaf its proof leads \
from, the proof leads to a checkpoint, and a quorum of the roster that the config pins signed that checkpoint. A pointer \
(ev1:…) is first fetched from the running coalition and then checked the same way.

Examples:
  coalition verify usage.evidence --config coalition.hex
  coalition verify usage.evidence --config 434f414c…                the hex itself works too
  coalition verify usage.evidence --config coalition.hex --expect 9b1d…   compare with a fingerprint you know")]
pub struct VerifyArgs {
    /// An evidence file, `-` for stdin, or a pointer ev1:<organism>:<index>:<digest>
    #[arg(value_name = "EVIDENCE", value_hint = ValueHint::FilePath)]
    pub evidence: String,
    /// The published config: a hex or TOML file, or the hex itself [default: the one below --home]
    #[arg(long, value_name = "CONFIG", value_hint = ValueHint::FilePath)]
    pub config: Option<String>,
    /// The fingerprint the config must have
    #[arg(long, value_name = "FINGERPRINT")]
    pub expect: Option<String>,
}

/// Arguments of `coalition id`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Examples:
  coalition id coalition.toml
  coalition id coalition.hex --expect 9b1d…         exit status 6 when it is another coalition
  coalition id coalition.toml --hex > coalition.hex")]
pub struct IdArgs {
    /// The published config: a TOML or hex file, or the hex itself [default: the one below --home]
    #[arg(value_name = "CONFIG", value_hint = ValueHint::FilePath)]
    pub config: Option<String>,
    /// Compare with a fingerprint published elsewhere
    #[arg(long, value_name = "FINGERPRINT")]
    pub expect: Option<String>,
    /// Print the config as one hex string instead
    #[arg(long, conflicts_with = "toml")]
    pub hex: bool,
    /// Print the config as TOML instead
    #[arg(long)]
    pub toml: bool,
}

/// Arguments of `coalition status`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Exit status 0 when everything answers, 4 otherwise.

Example:
  coalition status --json")]
pub struct StatusArgs {}

/// Roles that run as processes of their own.
#[derive(Subcommand, Debug, Clone)]
#[command(after_help = "\
Each prints one JSON line on stdout when it is ready, logs to stderr, and stops on Ctrl-C or SIGTERM. `coalition up` starts \
exactly these; its configs below --home/roles are the examples to copy.

Examples:
  coalition run member ~/.coalition/roles/member-1.toml
  coalition run bridge /etc/coalition/bridge.toml")]
pub enum RunCommand {
    /// The rendezvous point nodes keep a connection to
    Relay(RoleArgs),
    /// An SSH server without root that stands for a bare-metal host
    Host(RoleArgs),
    /// A member of the committee that runs Almanac and Compute
    Member(RoleArgs),
    /// A member of the unseal committee
    Unseal(RoleArgs),
    /// A content store: keeps images for those who may push them
    Store(RoleArgs),
    /// A provider: sells capacity and serves grants
    Bridge(RoleArgs),
}

/// The config of a role.
#[derive(Args, Debug, Clone)]
pub struct RoleArgs {
    /// Its TOML file; relative paths inside are relative to it
    #[arg(value_name = "CONFIG", value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
}

/// Arguments of `coalition completions`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Examples:
  coalition completions bash > ~/.local/share/bash-completion/completions/coalition
  coalition completions zsh > ~/.zfunc/_coalition
  coalition completions fish > ~/.config/fish/completions/coalition.fish")]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}
