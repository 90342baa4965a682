//! `coalition forward`: ports of a machine, reached from here.

use super::ssh;
use crate::{cli::ForwardArgs, error::Result, home::Home, output::Output};

/// Replaces this process with OpenSSH's client, which forwards and nothing else.
///
/// # Errors
/// An unknown or ended grant, or no `ssh` on this machine. On success it does not return.
pub fn run(home: &Home, args: &ForwardArgs, output: &Output) -> Result<()> {
    let (grant, access) = ssh::enter(home, Some(&args.grant), output)?;
    for forward in &args.forward {
        let (here, there) = (format!("{} port {}", forward.bind, forward.port), forward.host_port);
        output.note(format!("{here} is port {there} of grant {}, until Ctrl-C", grant.short()));
    }
    let mut arguments = vec!["-N".into()];
    arguments.extend(ssh::arguments(&grant, &access, &args.forward, &[]));
    Err(ssh::become_program("ssh", &arguments))
}
