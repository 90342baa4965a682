//! Reading a grant's counters, from its cgroups where there are any, else process by process.

use std::time::Instant;

use nix::unistd::{SysconfVar, sysconf};

use crate::isolate::cgroup::Groups;
use crate::proc;
use crate::usage::Sample;

/// Takes samples of one grant.
pub(super) struct Sampler {
    groups: Groups,
    init: i32,
    began: Instant,
    tick_us: u64,
    page: u64,
}

fn setting(name: SysconfVar, default: u64) -> u64 {
    sysconf(name).ok().flatten().and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
}

impl Sampler {
    /// For the environment whose first process is `init`; time counts from now.
    pub(super) fn new(groups: Groups, init: i32) -> Self {
        let tick_us = 1_000_000 / setting(SysconfVar::CLK_TCK, 100);
        Self { groups, init, began: Instant::now(), tick_us, page: setting(SysconfVar::PAGE_SIZE, 4096) }
    }

    /// Reads everything now.
    pub(super) fn sample(&self, net_bytes: u64) -> Sample {
        let (cpu, ram) = (self.groups.cpu_us(), self.groups.ram_bytes());
        let (cpu_us, ram_bytes) = match (cpu, ram) {
            (Some(cpu), Some(ram)) => (cpu, ram),
            (cpu, ram) => {
                let (by_cpu, by_ram) = self.by_process();
                (cpu.unwrap_or(by_cpu), ram.unwrap_or(by_ram))
            }
        };
        let at_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        Sample { at_ms, cpu_us, ram_bytes, net_bytes }
    }

    /// A process that ended is in its parent's numbers, and orphans become the first process' children, so the sum
    /// over the living is complete up to what died unwaited since the last look.
    fn by_process(&self) -> (u64, u64) {
        let living = proc::descendants(self.init, &proc::all());
        let ticks: u64 = living.iter().map(|p| p.cpu_ticks).sum();
        let pages: u64 = living.iter().filter(|p| p.pid != self.init).map(|p| p.rss_pages).sum();
        (ticks.saturating_mul(self.tick_us), pages.saturating_mul(self.page))
    }
}
