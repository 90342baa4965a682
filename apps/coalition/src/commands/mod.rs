//! One file for each command.

mod approvals;
pub mod attest;
pub mod completions;
pub mod demo;
pub mod end;
pub mod extend;
pub mod forward;
pub mod grants;
pub mod id;
pub mod image;
pub mod log;
pub mod logs;
pub mod market;
pub mod members;
pub mod request;
pub mod retire;
pub mod scp;
pub mod ssh;
pub mod status;
pub mod stored;
pub mod successor;
pub mod ticket;
pub mod up;
pub mod verify;

use crate::{
    cli::{Cli, Command, ImageCommand},
    error::{Context, Result},
    home::Home,
    output::Output,
    roles,
};

/// Runs the command asked for.
///
/// # Errors
/// Whatever the command fails with.
pub fn dispatch(cli: &Cli, output: &Output) -> Result<()> {
    let home = || Home::locate(cli.global.home.as_deref());
    match &cli.command {
        Command::Up(args) => asynchronously(Box::pin(up::run(&home()?, args, output))),
        Command::Demo(_) => asynchronously(Box::pin(demo::run(cli.global.home.as_deref(), output))),
        Command::Market(args) => asynchronously(Box::pin(market::run(&home()?, args, output))),
        Command::Request(args) => asynchronously(Box::pin(request::run(&home()?, args, output))),
        Command::Wait(args) => asynchronously(Box::pin(request::wait(&home()?, args, output))),
        Command::Ssh(args) => ssh::run(&home()?, args, output),
        Command::Scp(args) => scp::run(&home()?, args, output),
        Command::Forward(args) => forward::run(&home()?, args, output),
        Command::Logs(args) => asynchronously(Box::pin(logs::run(&home()?, args, output))),
        Command::Log(args) => asynchronously(Box::pin(log::run(&home()?, args, output))),
        Command::Extend(args) => asynchronously(Box::pin(extend::run(&home()?, args, output))),
        Command::End(args) => asynchronously(Box::pin(end::run(&home()?, args, output))),
        Command::Grants(_) => grants::run(&home()?, output),
        Command::Verify(args) => asynchronously(Box::pin(verify::run(&home()?, args, output))),
        Command::Attest(command) => attest::run(home, command, output),
        Command::Ticket(command) => ticket::run(home, command, output),
        Command::Image(command) => match command {
            ImageCommand::Example(_) | ImageCommand::Inspect(_) => image::run(command, output),
            _ => asynchronously(Box::pin(stored::run(&home()?, command, output))),
        },
        Command::Id(args) => id::run(&home()?, args, output),
        Command::Status(_) => asynchronously(Box::pin(status::run(&home()?, output))),
        Command::Retire(args) => asynchronously(Box::pin(retire::run(&home()?, args, output))),
        Command::Successor(command) => asynchronously(Box::pin(successor::run(&home()?, command, output))),
        Command::Members(args) => asynchronously(Box::pin(members::run(&home()?, args, output))),
        Command::Run(role) => roles::run(role),
        Command::Completions(args) => {
            completions::run(args);
            Ok(())
        }
    }
}

fn asynchronously(command: std::pin::Pin<Box<dyn Future<Output = Result<()>> + '_>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.or_fault("runtime", || "cannot start the runtime".into())?;
    let ended = runtime.block_on(command);
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    ended
}
