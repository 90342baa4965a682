//! `coalition up`: a development coalition on this machine, until Ctrl-C.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coalition::RateQ64;
use coalition_attest::DEVELOPMENT_LABEL;
use coalition_compute::Region;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::request::home_flag;
use crate::{
    attestation::NOT_ATTESTED,
    cli::UpArgs,
    devnet::{
        self, Devnet,
        manifest::{MEMBERS, MEMBERS_QUORUM, Sale, UNSEAL_MEMBERS, UNSEAL_THRESHOLD, role_names},
    },
    error::{CliError, Context, Result},
    home::{Home, Lock, private_write},
    output::{Output, Paint, Steps},
    request::plan::dollars,
    session::{Session, unanswered},
    signals::StopSignals,
    supervise::{Committee, Event, Role, Supervisor},
    values,
};

/// How long the bridge may take to appear in the market once every role is ready.
const MARKET_WAIT: Duration = Duration::from_secs(90);

/// Starts the coalition, says what it is, keeps it running until told to stop.
///
/// # Errors
/// What keeps it from starting. Nothing is left running then.
pub async fn run(home: &Home, args: &UpArgs, output: &Output) -> Result<()> {
    let mut stop = StopSignals::listen()?;
    let mut told_to_stop = std::pin::pin!(stop.received());
    let mut steps = output.steps();
    let mut coalition = prepare(home, args, &mut steps)?;
    let came_up = tokio::select! {
        came_up = coalition.wait_up(&mut steps) => came_up.map(Some),
        () = &mut told_to_stop => Ok(None),
    };
    match came_up {
        Ok(Some(offers)) => {
            output.answer(&coalition.to_json(offers.as_deref()), |output| coalition.screen(offers.as_deref(), output));
            tokio::select! {
                ended = coalition.watch(output) => ended?,
                () = &mut told_to_stop => (),
            }
        }
        Ok(None) => steps.pause(),
        Err(error) => {
            steps.pause();
            coalition.stop().await;
            return Err(error);
        }
    }
    let mut steps = output.steps();
    steps.begin("stopping; running grants are ended and logged");
    coalition.stop().await;
    steps.done("stopped", "nothing is left running; `coalition up` starts it again as it is now", json!({}));
    Ok(())
}

/// A development coalition whose roles this process runs.
pub struct Coalition {
    home: Home,
    devnet: Devnet,
    supervisor: Supervisor,
    roles: BTreeMap<String, RoleStatus>,
    _lock: Lock,
}

/// A role as `status.json` and the screen show it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleStatus {
    /// Its process; 0 while it has none.
    pub pid: u32,
    /// Times it was started again.
    pub restarts: u32,
    /// Where it listens, as it says itself.
    pub place: String,
    /// Why it is down, while it is.
    pub down: Option<String>,
}

/// Takes the home, makes or finds the coalition in it, and starts its roles.
///
/// # Errors
/// A home in use, a port in use, unusable files.
pub fn prepare(home: &Home, args: &UpArgs, steps: &mut Steps) -> Result<Coalition> {
    steps.begin("preparing keys and configs");
    home.ensure()?;
    let lock = home.lock()?;
    let (cpu, ram) = devnet::machine_capacity();
    let sale = Sale {
        region: args.region.clone(),
        core_hour: args.rate,
        gib_hour: args.gib_rate,
        cpu_millicores: args.cpu.map_or(cpu, |cpu| cpu.0),
        ram_mib: args.ram.map_or(ram, |ram| ram.0),
        attested: args.attested,
    };
    let mut devnet = devnet::open_or_create(home, &args.name, &sale)?;
    if args.attested && !devnet.manifest.sale.attested {
        let message = format!("the coalition in {} was made without --attested, and stays so", home.root().display());
        return Err(CliError::input("not_attested", message).hint("make another: choose another directory with --home"));
    }
    if args.new_ports && !devnet.is_new {
        devnet::move_ports(home, &mut devnet)?;
    }
    devnet::check_ports(&devnet.manifest.ports)?;
    let fingerprint = devnet.config.fingerprint().to_string();
    let what = if devnet.is_new { "made" } else { "found" };
    let text =
        format!("{what} {} in {}, fingerprint {}…", devnet.manifest.name, home.root().display(), &fingerprint[..8]);
    steps.done(
        "coalition",
        &text,
        json!({ "name": devnet.manifest.name, "fingerprint": fingerprint, "home": home.root(), "new": devnet.is_new }),
    );
    let program = std::env::current_exe().or_fault("spawn", || "this program's own file cannot be found".into())?;
    let supervisor =
        Supervisor::start(&program, roles(home)).or_fault("spawn", || "cannot start the supervisor".into())?;
    Ok(Coalition { home: home.clone(), devnet, supervisor, roles: BTreeMap::new(), _lock: lock })
}

/// The roles in the order in which they depend on each other.
fn roles(home: &Home) -> Vec<Role> {
    let role = |name: String| {
        let (kind, wave, committee) = match name.split('-').next() {
            Some("relay") => ("relay", 0, None),
            Some("host") => ("host", 1, None),
            Some("member") => ("member", 1, Some(Committee { name: "clock and market", quorum: MEMBERS_QUORUM })),
            Some("store") => ("store", 2, None),
            Some("unseal") => ("unseal", 2, Some(Committee { name: "unseal", quorum: usize::from(UNSEAL_THRESHOLD) })),
            _ => ("bridge", 3, None),
        };
        Role { kind, wave, committee, config: home.roles().join(format!("{name}.toml")), log: home.log(&name), name }
    };
    role_names().into_iter().map(role).collect()
}

/// What the market offers, for the screen: cheapest rate and where.
pub(crate) type Offered = String;

impl Coalition {
    /// Waits until every role serves and the bridge is in the market. `None` when the market shows no offer in time.
    ///
    /// # Errors
    /// When a role cannot start.
    pub async fn wait_up(&mut self, steps: &mut Steps) -> Result<Option<Offered>> {
        steps.begin("starting the relay");
        loop {
            match self.supervisor.next().await {
                Some(Event::AllReady) => break,
                Some(Event::Failed(error)) => return Err(error),
                Some(event) => self.note(event, steps),
                None => return Err(CliError::fault("role_failed", "the roles ended while starting")),
            }
        }
        steps.begin("waiting for the bridge's offer");
        let offered = self.wait_offer(steps.output()).await?;
        match &offered {
            Some(offered) => steps.done("market", offered, json!({ "offers": 1, "offer": offered })),
            None => {
                steps.pause();
                let log = self.home.log("bridge");
                steps.output().warn(format!("the bridge offers nothing yet; {} says why", log.display()));
            }
        }
        Ok(offered)
    }

    async fn wait_offer(&mut self, output: &Output) -> Result<Option<Offered>> {
        let session = Session::open(&self.home).await?;
        let market = session.market(output).await?;
        let region = self.devnet.manifest.sale.region.clone();
        let found = market.wait_for(MARKET_WAIT, |view| {
            let known = view.state().providers().values().find(|known| known.card.is_some())?;
            let vouched = known.platform.attestation.as_ref().map_or(NOT_ATTESTED, |found| found.root.label());
            known.card.clone().map(|record| (record, vouched))
        });
        let offered = match found.await {
            Ok((record, vouched)) => Some(offer_words(&record.card.offers, &region, vouched)),
            Err(coalition_organism::ReadError::Deadline { .. }) => None,
            Err(error) => return Err(unanswered(error, "market")),
        };
        drop(market);
        session.close().await;
        Ok(offered)
    }

    fn note(&mut self, event: Event, steps: &mut Steps) {
        match event {
            Event::Ready { role, pid, details, .. } => {
                let place = place(&details);
                steps.done(
                    &role,
                    format!("{place}  pid {pid}").trim_start(),
                    json!({ "role": role, "pid": pid, "details": details }),
                );
                self.is_up(role, pid, place);
                if let Some(next) = role_names().into_iter().find(|name| !self.roles.contains_key(name)) {
                    steps.begin(&format!("starting {next}"));
                }
            }
            Event::Crashed { role, how, again_in } => {
                steps.pause();
                self.tell_crash(&role, how, again_in, steps.output());
            }
            Event::AllReady | Event::Failed(_) => (),
        }
    }

    /// Tells about crashes and restarts until the supervisor ends.
    ///
    /// # Errors
    /// When the roles have ended by themselves.
    pub async fn watch(&mut self, output: &Output) -> Result<()> {
        while let Some(event) = self.supervisor.next().await {
            match event {
                Event::Ready { role, pid, details, .. } => {
                    let restarts = self.roles.get(&role).map_or(0, |status| status.restarts + 1);
                    let line = json!({ "event": "ready", "role": role, "pid": pid, "restarts": restarts });
                    let told = format!("{role} is back, pid {pid}");
                    // Whoever is told finds the same in the status file.
                    self.is_up(role, pid, place(&details));
                    output.event(&line, &told);
                }
                Event::Crashed { role, how, again_in } => self.tell_crash(&role, how, again_in, output),
                Event::AllReady => (),
                Event::Failed(error) => return Err(error),
            }
        }
        Err(CliError::fault("role_failed", "the roles have ended"))
    }

    fn tell_crash(&mut self, role: &str, how: String, again_in: Duration, output: &Output) {
        let line = json!({ "event": "crashed", "role": role, "how": how });
        let told = crashed(role, &how, again_in);
        self.is_down(role, how);
        output.event(&line, &output.paint_err(Paint::Warn, &told));
    }

    /// Stops every role in order and waits until none is left.
    pub async fn stop(self) {
        let Self { supervisor, home, .. } = self;
        supervisor.stop().await;
        let _ = std::fs::remove_file(status_file(&home));
    }

    /// What the coalition was made from.
    #[must_use]
    pub const fn devnet(&self) -> &Devnet {
        &self.devnet
    }

    fn is_up(&mut self, role: String, pid: u32, place: String) {
        let status = self.roles.entry(role).or_default();
        if status.down.take().is_some() {
            status.restarts += 1;
        }
        (status.pid, status.place) = (pid, place);
        self.save_status();
    }

    fn is_down(&mut self, role: &str, how: String) {
        let status = self.roles.entry(role.to_owned()).or_default();
        (status.pid, status.down) = (0, Some(how));
        self.save_status();
    }

    fn save_status(&self) {
        if let Ok(text) = serde_json::to_vec_pretty(&self.roles)
            && let Err(error) = private_write(&status_file(&self.home), &text)
        {
            tracing::warn!(%error, "status not written");
        }
    }

    fn to_json(&self, offered: Option<&str>) -> serde_json::Value {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "up": true, "name": self.devnet.manifest.name, "fingerprint": self.devnet.config.fingerprint().to_string(),
            "home": self.home.root(), "posture": self.posture(), "roles": self.roles, "offered": offered.is_some(), "unix_s": since.as_secs(),
        })
    }

    /// What vouches for the providers of this market.
    const fn posture(&self) -> &'static str {
        if self.devnet.manifest.sale.attested { DEVELOPMENT_LABEL } else { NOT_ATTESTED }
    }

    fn screen(&self, offered: Option<&str>, output: &Output) -> String {
        let bold = |text: &str| output.paint(Paint::Bold, text);
        let pids = |kind: &str| {
            let all = self.roles.iter().filter(|(name, status)| name.starts_with(kind) && status.down.is_none());
            all.map(|(_, status)| status.pid.to_string()).collect::<Vec<_>>().join(" ")
        };
        let place = |role: &str| self.roles.get(role).map_or_else(String::new, |status| status.place.clone());
        let dealer = output.paint(Paint::Bad, "key from a trusted dealer: for development only");
        let flag = home_flag(&self.home);
        let next = |command: &str| format!("  coalition{flag} {command}\n");
        let mut text = format!("\n{} is up\n\n", bold(&format!("coalition {}", self.devnet.manifest.name)));
        for (what, said, pids) in [
            ("relay", place("relay"), pids("relay")),
            ("committee", format!("clock and market, {MEMBERS} members, 1 of them may be down or lie"), pids("member")),
            (
                "unseal",
                format!("{UNSEAL_MEMBERS} members, any {UNSEAL_THRESHOLD} open a request; {dealer}"),
                pids("unseal"),
            ),
            ("store", "images pushed from this home, until they are fetched".to_owned(), pids("store")),
            ("host", format!("this machine, by SSH at {}", place("host")), pids("host")),
            ("bridge", offered.unwrap_or("no offer yet").to_owned(), pids("bridge")),
        ] {
            text += &format!("  {what:<10} {said}\n{}", output.paint(Paint::Dim, &format!("  {:10} pid {pids}\n", "")));
        }
        if self.devnet.manifest.sale.attested {
            let label = output.paint(Paint::Bad, DEVELOPMENT_LABEL);
            text += &format!("  {:<10} providers must be attested; root: {label}\n", "posture");
        }
        for (name, how) in self.roles.iter().filter_map(|(name, status)| Some((name, status.down.as_ref()?))) {
            let down = output.paint(Paint::Warn, &format!("{name} is down and is started again by itself"));
            text += &format!("  {:<10} {down}: {how}\n", "");
        }
        text += &format!("  {:<10} {}\n", "identity", self.devnet.config.fingerprint());
        text += &format!("  {:<10} {} (logs/ says what each role does)\n", "files", self.home.root().display());
        text += &format!("\n{}\n", bold("Next, in another terminal:"));
        text += &next("market");
        text += &next("image example hello.tar");
        let rate = self.asking_rate();
        text += &next(&format!(
            "request --image ./hello.tar --cpu 1 --ram 256MiB --region {} --for 10m --max-rate {rate}",
            self.devnet.manifest.sale.region
        ));
        text += &next("ssh");
        text + "\nCtrl-C stops everything.\n"
    }

    /// A rate that the bridge's offer surely meets, for examples.
    fn asking_rate(&self) -> String {
        let sale = &self.devnet.manifest.sale;
        let twice = sale.core_hour.checked_add(sale.gib_hour).and_then(|sum| sum.checked_add(sum));
        let usual: RateQ64 = "0.05".parse().unwrap_or(RateQ64::MAX);
        let rate = if sale.core_hour.checked_add(sale.gib_hour).is_some_and(|sum| sum <= usual) {
            usual
        } else {
            twice.unwrap_or(RateQ64::MAX)
        };
        dollars(rate).trim_start_matches('$').to_owned()
    }
}

/// Where `up` says how its roles are.
#[must_use]
pub fn status_file(home: &Home) -> PathBuf {
    home.root().join("status.json")
}

fn crashed(role: &str, how: &str, again_in: Duration) -> String {
    format!("{role} {how}; starting it again in {}", values::duration(again_in))
}

/// The part of a ready line that says where a role is.
fn place(details: &serde_json::Value) -> String {
    let text = |key: &str| details.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
    let node = || text("node").and_then(|address| Some(address.split_once('@')?.1.split(',').next()?.to_owned()));
    text("url").or_else(|| text("listen")).or_else(node).unwrap_or_default()
}

fn offer_words(offers: &[coalition_compute::Offer], region: &Region, vouched: &str) -> Offered {
    let Some(offer) = offers.first() else { return "a card without offers".into() };
    let capabilities = &offer.capabilities;
    let rate = offer.declared_rates.effective_core_hour(1_000, 1_024).map_or_else(|| "?".to_owned(), dollars);
    format!(
        "sells {} cores and {} in {region}, {rate} per core-hour with 1 GiB; {vouched}",
        values::cores(u64::from(capabilities.max_cpu_millicores)),
        values::mib(u64::from(capabilities.max_ram_mib)),
    )
}
