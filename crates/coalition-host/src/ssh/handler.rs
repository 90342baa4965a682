//! One client's connection: who may log in, and what each channel asks for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use russh::keys::PublicKey;
use russh::server::{self, Auth, ChannelOpenHandle, Msg, PublicKeyOffer, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Pty, Sig};

use super::Traffic;
use super::listener::ServerLimits;
use super::process::{Control, Launcher, Process, Request, Session};
use super::pump::{self, Ends, Held, Stalls};
use crate::isolate::proto::Terminal;
use crate::output::LogQuery;
use crate::spec::check_env;

/// Environment variables a client may set per channel.
const MAX_VARIABLES: usize = 64;
/// Longest command line.
const MAX_COMMAND: usize = 64 * 1024;

/// What every connection of a server shares.
pub(crate) struct Shared {
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) authorized: Vec<PublicKey>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) held: Arc<Held>,
    pub(crate) limits: ServerLimits,
}

/// A channel before and while something runs on it.
#[derive(Default)]
struct Slot {
    channel: Option<Channel<Msg>>,
    env: Vec<(String, String)>,
    terminal: Option<Terminal>,
    control: Option<Arc<dyn Control>>,
    /// Held by whatever runs on the channel.
    busy: Weak<()>,
}

impl Slot {
    /// A channel that this side closed first is never reported closed, so its slot is known by its work being over.
    fn is_live(&self) -> bool {
        self.channel.is_some() || self.busy.strong_count() > 0
    }
}

/// Handles one connection.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    slots: HashMap<ChannelId, Slot>,
    stalls: Stalls,
    logged_in: Arc<AtomicBool>,
}

/// Lets a process' control be used from both its pump and its connection.
struct SharedControl(Arc<dyn Control>);

impl Control for SharedControl {
    fn signal(&self, signal: i32) {
        self.0.signal(signal);
    }

    fn resize(&self, cols: u16, rows: u16, xpixel: u16, ypixel: u16) {
        self.0.resize(cols, rows, xpixel, ypixel);
    }

    fn hang_up(&self) {
        self.0.hang_up();
    }
}

fn small(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

impl Connection {
    pub(crate) fn new(shared: Arc<Shared>, logged_in: Arc<AtomicBool>) -> Self {
        Self { shared, slots: HashMap::new(), stalls: Stalls::new(), logged_in }
    }

    fn judge(&self, key: &PublicKey) -> Auth {
        let known = self.shared.authorized.iter().any(|k| k.key_data() == key.key_data());
        if known {
            Auth::Accept
        } else {
            let again = MethodSet::from(&[MethodKind::PublicKey][..]);
            Auth::Reject { proceed_with_methods: Some(again), partial_success: false }
        }
    }

    fn ends(&self, channel: Channel<Msg>, session: &server::Session) -> Ends {
        let id = channel.id();
        let (read, write) = channel.split();
        let (stalls, traffic, held) = (self.stalls.clone(), self.shared.traffic.clone(), self.shared.held.clone());
        Ends { id, read, write, handle: session.handle(), stalls, traffic, held }
    }

    /// Whether one more channel may be opened.
    fn has_room(&mut self) -> bool {
        self.slots.retain(|_, slot| slot.is_live());
        self.slots.len() < self.shared.limits.channels
    }

    /// Starts what a channel asked for and lets it run by itself.
    async fn start(
        &mut self,
        id: ChannelId,
        request: Request,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        let Some(slot) = self.slots.get_mut(&id) else { return session.channel_failure(id) };
        let Some(mut channel) = slot.channel.take() else { return session.channel_failure(id) };
        let (env, terminal) = (slot.env.clone(), slot.terminal.clone());
        let busy = Arc::new(());
        slot.busy = Arc::downgrade(&busy);
        if request == Request::Sftp {
            match self.shared.launcher.serve_sftp(channel, busy.clone()).await {
                None => return session.channel_success(id),
                Some(back) => channel = back,
            }
        }
        let with_terminal = terminal.is_some();
        match self.shared.launcher.launch(Session { request, env, terminal }).await {
            Ok(process) => {
                let control: Arc<dyn Control> = Arc::from(process.control);
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.control = Some(control.clone());
                }
                let process = Process { control: Box::new(SharedControl(control)), ..process };
                let ends = self.ends(channel, session);
                session.channel_success(id)?;
                tokio::spawn(async move {
                    pump::run_process(ends, process, with_terminal).await;
                    drop(busy);
                });
                Ok(())
            }
            Err(problem) => {
                // Accepted and then explained: a refused request would leave the user without the reason.
                session.channel_success(id)?;
                session.extended_data(id, 1, format!("{problem}\r\n").into_bytes())?;
                session.exit_status_request(id, 126)?;
                session.close(id)
            }
        }
    }
}

impl server::Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        Ok(self.judge(offer.public_key))
    }

    async fn auth_publickey(&mut self, _user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(self.judge(key.public_key))
    }

    async fn auth_succeeded(&mut self, _session: &mut server::Session) -> Result<(), Self::Error> {
        self.logged_in.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        if !self.has_room() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        self.slots.insert(channel.id(), Slot { channel: Some(channel), ..Slot::default() });
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        let inside = matches!(host, "localhost" | "127.0.0.1" | "::1");
        let Some(port) = u16::try_from(port).ok().filter(|_| inside && self.has_room()) else {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        match self.shared.launcher.connect(port).await {
            Ok((source, sink)) => {
                let busy = Arc::new(());
                self.slots.insert(channel.id(), Slot { busy: Arc::downgrade(&busy), ..Slot::default() });
                let ends = self.ends(channel, session);
                reply.accept().await;
                tokio::spawn(async move {
                    pump::run_forward(ends, source, sink).await;
                    drop(busy);
                });
            }
            Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _session: &mut server::Session) -> Result<(), Self::Error> {
        self.slots.remove(&id);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        xpixel: u32,
        ypixel: u32,
        modes: &[(Pty, u32)],
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        let possible = self.shared.launcher.has_terminals() && check_env("TERM", term).is_ok();
        let Some(slot) = self.slots.get_mut(&id).filter(|_| possible) else { return session.channel_failure(id) };
        slot.terminal = Some(Terminal {
            name: term.to_owned(),
            cols: small(cols),
            rows: small(rows),
            xpixel: small(xpixel),
            ypixel: small(ypixel),
            modes: modes.iter().map(|(mode, value)| (*mode as u8, *value)).collect(),
        });
        session.channel_success(id)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        match self.slots.get_mut(&id) {
            Some(slot) if slot.env.len() < MAX_VARIABLES && check_env(name, value).is_ok() => {
                slot.env.push((name.to_owned(), value.to_owned()));
                session.channel_success(id)
            }
            _ => session.channel_failure(id),
        }
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut server::Session) -> Result<(), Self::Error> {
        self.start(id, Request::Shell, session).await
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        match String::from_utf8(command.to_vec()) {
            Ok(line) if line.len() <= MAX_COMMAND && !line.contains('\0') => {
                self.start(id, Request::Command(line), session).await
            }
            _ => session.channel_failure(id),
        }
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        match (name, LogQuery::parse(name)) {
            ("sftp", _) => self.start(id, Request::Sftp, session).await,
            (_, Ok(query)) => self.start(id, Request::Logs(query), session).await,
            _ => session.channel_failure(id),
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        cols: u32,
        rows: u32,
        xpixel: u32,
        ypixel: u32,
        session: &mut server::Session,
    ) -> Result<(), Self::Error> {
        if let Some(control) = self.slots.get(&id).and_then(|s| s.control.as_ref()) {
            control.resize(small(cols), small(rows), small(xpixel), small(ypixel));
        }
        session.channel_success(id)
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _session: &mut server::Session) -> Result<(), Self::Error> {
        let control = self.slots.get(&id).and_then(|s| s.control.as_ref());
        if let (Some(control), Some(number)) = (control, pump::signal_number(&signal)) {
            control.signal(number);
        }
        Ok(())
    }
}
