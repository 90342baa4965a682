//! The supervisor: the one process that owns a grant on its host, from spec to last usage report. Nothing else has to
//! be alive for the grant to be metered and to end on time.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::environment::{Holdings, Up, Work, bring_up, remove_rootfs};
use super::machine::{Event, remove_disk};
use super::meter::Sampler;
use super::unit::{self, Own};
use super::workload::Output;
use super::{Options, fail, log, print, to_line};
use crate::error::{Result, RunnerError};
use crate::proc;
use crate::rootfs::disk_bytes;
use crate::spec::{self, CheckedSpec};
use crate::ssh::Traffic;
use crate::state::{GrantDir, now_unix_ms, phase_name};
use crate::types::{
    EndReason, ExitOutcome, FORMAT_VERSION, GuestUsage, Phase, ProcessRef, RunnerState, Supervision, UsageReport,
};
use crate::usage::Meter;

const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at the disk; a look that took long is followed by a longer pause.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Signals whose default would be to die.
const STOP_SIGNALS: [SignalKind; 2] = [SignalKind::terminate(), SignalKind::interrupt()];

/// `runner supervise --dir DIR [--unit NAME | --no-unit WHY]`: prints one line when ready or failed, then lives as long as
/// the grant.
pub(super) fn supervise_main(options: Result<Options>) -> ExitCode {
    let Options { dir, unit, no_unit, .. } = match options {
        Ok(options) => options,
        Err(error) => return fail(&error),
    };
    let Some(dir) = dir else { return fail(&RunnerError::Usage("supervise needs a directory".into())) };
    // Fails only for a process group leader, which a spawned child is not; and then there is nothing to leave.
    let _ = nix::unistd::setsid();
    let _ = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&RunnerError::io("cannot start the supervisor's runtime", e)),
    };
    // Before there is anybody else in our cgroup.
    let place = Place { unit: unit.as_deref().map(Own::enter), problem: no_unit };
    match runtime.block_on(supervise(GrantDir::new(dir), place)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&format!("supervisor: {}", error.to_failure()));
            fail(&error)
        }
    }
}

/// What this supervisor is to the host's systemd.
struct Place {
    unit: Option<Own>,
    /// Why it is no unit, where there are units.
    problem: Option<String>,
}

async fn supervise(dir: GrantDir, place: Place) -> Result<()> {
    let dir = dir.prepare()?;
    let Some(_lock) = dir.lock()? else {
        return Err(RunnerError::Occupied { dir: dir.path().into(), state: "running".into() });
    };
    if let Some(state) = dir.read_state()? {
        let state = phase_name(&state.phase).to_owned();
        return Err(RunnerError::Occupied { dir: dir.path().into(), state });
    }
    let mut stops = Stops::new()?;
    let checked = spec::parse(&dir.read_spec()?, now_unix_ms())?;
    dir.erase_host_key(&checked.spec)?;
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| RunnerError::io("cannot adopt orphans", e))?;
    let mut grant = Grant::begin(dir, checked, place)?;
    let up = match grant.bring_up(&mut stops).await {
        Ok(up) => up,
        Err(error) => {
            grant.abandon(&error).await?;
            return Err(error);
        }
    };
    print(&to_line(&grant.state)?);
    leave_standard_output();
    let end = grant.watch(up, &mut stops).await;
    grant.finish(end).await
}

/// Whoever started us waits for the end of our output.
fn leave_standard_output() {
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(&null);
    }
}

struct Stops(Vec<Signal>);

impl Stops {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|e| RunnerError::io("cannot listen for signals", e));
        // Whoever started us may be a login session that ends; that is not our concern.
        drop(listen(SignalKind::hangup())?);
        Ok(Self(STOP_SIGNALS.into_iter().map(listen).collect::<Result<_>>()?))
    }

    async fn wait(&mut self) {
        let [terminate, interrupt] = self.0.as_mut_slice() else { return std::future::pending().await };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

/// The environment being told of another end, which it answers with.
type Moving = std::pin::Pin<Box<dyn Future<Output = std::result::Result<u64, String>>>>;

/// Why watching ended.
struct End {
    reason: EndReason,
    detail: Option<String>,
}

struct Grant {
    dir: GrantDir,
    checked: CheckedSpec,
    place: Place,
    state: RunnerState,
    holdings: Holdings,
    traffic: Arc<Traffic>,
    output: Arc<Output>,
    meter: Option<(Meter, Sampler)>,
    /// What a virtual machine last said of itself.
    guest: Option<GuestUsage>,
    /// The deadline by a clock nobody can set.
    deadline: Instant,
}

impl Grant {
    fn begin(dir: GrantDir, checked: CheckedSpec, place: Place) -> Result<Self> {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let supervisor = process_ref(own)?
            .ok_or_else(|| RunnerError::Environment(format!("there is no process {own}, which is this one")))?;
        let state = RunnerState {
            version: FORMAT_VERSION,
            grant_id: checked.spec.grant_id.clone(),
            valid_to_unix_ms: checked.spec.valid_to_unix_ms,
            supervisor,
            init: None,
            cgroups: Vec::new(),
            unit: place.unit.as_ref().map(|unit| unit.name.clone()),
            usage_so_far: None,
            phase: Phase::Starting,
        };
        dir.write_state(None, &state)?;
        let left = Duration::from_millis(checked.spec.valid_to_unix_ms.saturating_sub(now_unix_ms()));
        let deadline = Instant::now() + left;
        let output = Output::new(dir.path().to_owned());
        let (holdings, traffic) = (Holdings::default(), Arc::new(Traffic::limited(checked.spec.network_mbit)));
        Ok(Self { dir, checked, place, state, holdings, traffic, output, meter: None, guest: None, deadline })
    }

    fn advance(&mut self, phase: Phase) -> Result<()> {
        let next = RunnerState { phase, ..self.state.clone() };
        self.dir.write_state(Some(&self.state), &next)?;
        self.state = next;
        Ok(())
    }

    async fn bring_up(&mut self, stops: &mut Stops) -> Result<Up> {
        let mut up = tokio::select! {
            up = bring_up(&self.checked, &self.dir, (&self.traffic, &self.output), &mut self.holdings) => up?,
            () = stops.wait() => return Err(RunnerError::Environment("told to stop before it was ready".into())),
            () = sleep_until(self.deadline) => return Err(RunnerError::Environment("the grant ended before it was ready".into())),
        };
        let supervision = Supervision { manager: None, problem: self.place.problem.clone() };
        up.isolation.losses.extend(unit::loss(&supervision));
        if let Some(unit) = &self.place.unit {
            unit.says(&format!("SSH on {}", up.address));
        }
        let meter = Meter::new(&self.checked.spec.grant_id, now_unix_ms());
        self.meter = Some((meter, Sampler::new(self.holdings.groups.clone(), up.init)));
        self.state.init = process_ref(up.init)?;
        self.state.cgroups = self.holdings.groups.dirs().to_vec();
        self.sample()?;
        self.advance(Phase::Ready {
            ssh_address: up.address,
            port: up.address.port(),
            pid: up.init,
            isolation: up.isolation.clone(),
            workload_exit: None,
        })?;
        Ok(up)
    }

    fn sample(&mut self) -> Result<()> {
        let net_bytes = self.traffic.total();
        let Some((meter, sampler)) = &mut self.meter else { return Ok(()) };
        meter.add(sampler.sample(net_bytes), now_unix_ms());
        let egress_refused = self.traffic.refused();
        self.dir.write_usage(&UsageReport { guest: self.guest, egress_refused, ..meter.report().clone() })
    }

    /// Runs the workload and waits for whatever ends the grant.
    async fn watch(&mut self, up: Up, stops: &mut Stops) -> End {
        let mut environment = up.environment;
        let mut events = events(up.work, Arc::clone(&self.output));
        let sweep = sweep(self.dir.rootfs(), self.checked.spec.disk_mib, self.checked.spec.machine.is_some());
        tokio::pin!(sweep);
        let mut ticks = tokio::time::interval(SAMPLE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut moving: Option<Moving> = None;
        loop {
            tokio::select! {
                () = sleep_until(self.deadline) => return End { reason: EndReason::Deadline, detail: None },
                () = stops.wait() => return self.stopped(),
                _ = &mut environment => {
                    let detail = (self.holdings.groups.oom_kills() > 0).then(|| "it was out of memory".to_owned());
                    return End { reason: EndReason::EnvironmentDied, detail };
                }
                used_mib = &mut sweep => {
                    let detail = format!("{used_mib} MiB used, {} granted", self.checked.spec.disk_mib);
                    return End { reason: EndReason::DiskExceeded, detail: Some(detail) };
                }
                moved = async { moving.as_mut().expect("it is polled only while there is one").await }, if moving.is_some() => {
                    moving = None;
                    let taken = moved.map_err(RunnerError::Environment).and_then(|until| self.take_end(until));
                    if let Err(error) = taken {
                        log(&format!("new end: {}", error.to_failure()));
                    }
                }
                Some(event) = events.recv() => match event {
                    Event::Exited(outcome) => self.workload_ended(outcome),
                    Event::Usage(usage) => self.guest = Some(usage),
                    Event::Gone(detail) => {
                        let detail = Some(detail);
                        return End { reason: EndReason::EnvironmentDied, detail };
                    }
                },
                _ = ticks.tick() => {
                    if let Some(until) = self.wanted_end().filter(|_| moving.is_none()) {
                        moving = self.move_end(until);
                    }
                    if now_unix_ms() >= self.checked.spec.valid_to_unix_ms {
                        return End { reason: EndReason::Deadline, detail: None };
                    }
                    if let Err(error) = self.sample() {
                        log(&format!("usage: {}", error.to_failure()));
                    }
                }
            }
        }
    }

    /// Why we were told to stop: by somebody, or because the host is, which is no wish of anybody's for this grant.
    fn stopped(&self) -> End {
        let detail = self.dir.read_stop_reason();
        if detail.is_none() && self.place.unit.is_some() && Own::is_shutting_down() {
            return End {
                reason: EndReason::Lost,
                detail: Some("the host, or its user's manager, is shutting down".into()),
            };
        }
        End { reason: EndReason::Stopped, detail }
    }

    /// Tells everything else that would end the grant of another end: a virtual machine's guest, then the environment.
    fn move_end(&self, until: u64) -> Option<Moving> {
        let (control, orders) = (self.holdings.control.clone()?, self.holdings.orders.clone());
        Some(Box::pin(async move {
            if let Some(orders) = orders {
                orders.until(until).await?;
            }
            control.until(until).await.map(|()| until)
        }))
    }

    /// The end somebody left word of, if it is another one than now.
    fn wanted_end(&self) -> Option<u64> {
        let now_ms = now_unix_ms();
        self.dir.read_until().filter(|until| *until != self.state.valid_to_unix_ms && *until > now_ms)
    }

    /// Takes up a new end that the environment has taken up already, once it is on disk.
    fn take_end(&mut self, until: u64) -> Result<()> {
        let left = Duration::from_millis(until.saturating_sub(now_unix_ms()));
        if let Some(unit) = &self.place.unit {
            unit.lasts(left)?;
        }
        let next = RunnerState { valid_to_unix_ms: until, ..self.state.clone() };
        self.dir.write_state(Some(&self.state), &next)?;
        let before = std::mem::replace(&mut self.state, next).valid_to_unix_ms;
        self.checked.spec.valid_to_unix_ms = until;
        self.deadline = Instant::now() + left;
        log(&format!("the grant ends at {until} instead of {before}"));
        Ok(())
    }

    fn workload_ended(&mut self, outcome: Option<ExitOutcome>) {
        let Phase::Ready { workload_exit, .. } = &mut self.state.phase else { return };
        *workload_exit = outcome;
        let phase = self.state.phase.clone();
        if let Err(error) = self.advance(phase) {
            log(&format!("state: {}", error.to_failure()));
        }
    }

    /// Takes everything down and writes the last word.
    async fn finish(&mut self, end: End) -> Result<()> {
        if let Err(error) = self.sample() {
            log(&format!("usage: {}", error.to_failure()));
        }
        self.holdings.kill(&self.checked.spec.grant_id).await?;
        // CPU spent until the very end is in the counters of the now empty groups.
        if let Err(error) = self.sample() {
            log(&format!("usage: {}", error.to_failure()));
        }
        let usage = self.meter.take().map_or_else(UsageReport::default, |(meter, _)| meter.finish());
        let usage = UsageReport { guest: self.guest, egress_refused: self.traffic.refused(), ..usage };
        self.holdings.release()?;
        // The state below holds the same; whichever of the two the disk takes is enough.
        if let Err(error) = self.dir.write_usage(&usage) {
            log(&format!("usage: {}", error.to_failure()));
        }
        let exit = match &self.state.phase {
            Phase::Ready { workload_exit, .. } => *workload_exit,
            _ => None,
        };
        self.advance(Phase::Ended { reason: end.reason, detail: end.detail, exit, usage })
    }

    /// A start that failed leaves a word and nothing else.
    async fn abandon(&mut self, error: &RunnerError) -> Result<()> {
        self.holdings.kill(&self.checked.spec.grant_id).await?;
        self.holdings.release()?;
        remove_disk(&self.dir);
        if let Err(error) = remove_rootfs(&self.dir) {
            log(&format!("files: {}", error.to_failure()));
        }
        let usage = Meter::new(&self.checked.spec.grant_id, now_unix_ms()).finish();
        let detail = Some(error.to_failure().to_string());
        self.advance(Phase::Ended { reason: EndReason::FailedToStart, detail, exit: None, usage })
    }
}

fn process_ref(pid: i32) -> Result<Option<ProcessRef>> {
    proc::process_ref(pid).map_err(|e| RunnerError::io(format!("cannot look at process {pid}"), e))
}

async fn sleep_until(deadline: Instant) {
    tokio::time::sleep_until(deadline.into()).await;
}

/// What happens inside, wherever the workload runs.
fn events(work: Work, output: Arc<Output>) -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        match work {
            Work::Inside(control, workload, env) => {
                if let Some(outcome) = output.run(&control, workload, env).await {
                    let _ = sender.send(Event::Exited(outcome)).await;
                }
                // The channel stays open: nothing more happens, which is not the end.
                sender.closed().await;
            }
            Work::Machine(machine) => machine.watch(sender).await,
        }
    });
    receiver
}

/// Looks at the disk every now and then; returns the MiB used once they are too many.
///
/// A virtual machine's disk has a size of its own.
async fn sweep(rootfs: PathBuf, disk_mib: u64, machine: bool) -> u64 {
    if machine {
        return std::future::pending().await;
    }
    let mut pause = SWEEP_EVERY;
    loop {
        tokio::time::sleep(pause).await;
        let (path, began) = (rootfs.clone(), Instant::now());
        let used = tokio::task::spawn_blocking(move || disk_bytes(&path)).await.unwrap_or(0);
        if used > disk_mib << 20 {
            return used.div_ceil(1 << 20);
        }
        pause = SWEEP_EVERY.max(began.elapsed() * 20);
    }
}
