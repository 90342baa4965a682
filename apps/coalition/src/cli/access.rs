//! Getting into a machine: `ssh`, `scp`, `forward`, `logs`.

use clap::Args;

use crate::forward::Forward;
use crate::values::Since;

/// Arguments of `coalition ssh`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
The host key is pinned from the receipt: a machine that shows another one is refused. What vouches for the machine is said \
first: a quote that binds this host key is verified again, or it is `not attested`. Needs OpenSSH's client.

Examples:
  coalition ssh 3f9c
  coalition ssh 3f9c -- uname -a
  coalition ssh 3f9c -L 8080:localhost:80
  tar c data | coalition ssh 3f9c -- tar x -C /tmp")]
pub struct SshArgs {
    /// The grant, or its first digits; the newest of yours if left out
    #[arg(value_name = "GRANT")]
    pub grant: Option<String>,
    /// Also reach a port of the machine from here, as `coalition forward` does (may be repeated)
    #[arg(short = 'L', long = "forward", value_name = "[BIND:]PORT:HOST:PORT")]
    pub forward: Vec<Forward>,
    /// A command to run instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Arguments of `coalition scp`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
A path on the machine is written GRANT:PATH, or :PATH for the newest grant; a relative one begins at its user's home. All of one \
side are on one machine, the other side is here. A path here that has a colon before any slash is written with ./ in front. The \
image needs no file server. Host key and verdict as with `coalition ssh`. Needs OpenSSH's client.

Examples:
  coalition scp data.csv 3f9c:
  coalition scp -r src Makefile 3f9c:/root/job
  coalition scp 3f9c:out/result.json .
  coalition scp -rp :/var/log ./logs")]
pub struct ScpArgs {
    /// Copy directories with everything in them
    #[arg(long, short)]
    pub recursive: bool,
    /// Keep times and modes
    #[arg(long, short)]
    pub preserve: bool,
    /// What to copy, then where to
    #[arg(value_name = "PATH", num_args = 2.., required = true)]
    pub paths: Vec<String>,
}

/// Arguments of `coalition forward`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Whoever connects to PORT here reaches the port behind it on the machine's own loopback: HOST is localhost, 127.0.0.1 or ::1, because \
a machine is a way to nowhere else. BIND is 127.0.0.1 unless you say otherwise; 0.0.0.0 lets others in, too. Stays until Ctrl-C \
or the end of the grant. Host key and verdict as with `coalition ssh`. Needs OpenSSH's client.

Examples:
  coalition forward 3f9c 8080:localhost:80
  coalition forward 3f9c 8888:localhost:8888 5432:localhost:5432
  coalition forward 3f9c 0.0.0.0:8080:localhost:80")]
pub struct ForwardArgs {
    /// The grant, or its first digits
    #[arg(value_name = "GRANT")]
    pub grant: String,
    /// Which ports
    #[arg(value_name = "[BIND:]PORT:HOST:PORT", required = true)]
    pub forward: Vec<Forward>,
}

/// Arguments of `coalition logs`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
What the grant's own command (`coalition request --command`) writes to its standard output and error goes to yours, then how it \
ended. Read from the machine itself, over its pinned SSH key: no committee and no log of the market sees any of it. The machine \
keeps the newest 8 to 16 MiB, also after the command has ended, until the grant ends; then it is gone. How the command ended is \
remembered here.

Examples:
  coalition logs 3f9c
  coalition logs 3f9c --follow
  coalition logs 3f9c --since 10m
  coalition logs 3f9c --json | jq -r 'select(.stream == \"stderr\").text'")]
pub struct LogsArgs {
    /// The grant, or its first digits; the newest of yours if left out
    #[arg(value_name = "GRANT")]
    pub grant: Option<String>,
    /// Go on until the command has ended
    #[arg(long, short)]
    pub follow: bool,
    /// Nothing older than this: 90s, 10m, 2h, or a time (RFC 3339 or Unix seconds), by the machine's clock
    #[arg(long, value_name = "WHEN")]
    pub since: Option<Since>,
}
