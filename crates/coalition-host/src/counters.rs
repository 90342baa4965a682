//! What a machine's own counters say from inside: one line of shell that prints them, and its output read.
//!
//! Where the machine is a control group of its own, the kernel's account of that is taken; else the sum over the processes that
//! `/proc` shows, each with the children it has waited for. Both have to be the machine's own: on a host without a process
//! namespace of the workload's own they would be the host's.

use std::str::FromStr;

/// Prints every counter [`Counters::parse`] looks at. POSIX shell; needs `cat`, and `getconf` where pages are not 4 KiB.
pub const SCRIPT: &str = "echo @group; cat /proc/self/cgroup 2>/dev/null; echo @cpu; cat /sys/fs/cgroup/cpu.stat 2>/dev/null; \
     echo @ram; cat /sys/fs/cgroup/memory.current 2>/dev/null; echo @page; getconf PAGESIZE 2>/dev/null; \
     echo @stat; cat /proc/[0-9]*/stat 2>/dev/null; echo @statm; cat /proc/[0-9]*/statm 2>/dev/null; \
     echo @net; cat /proc/net/dev 2>/dev/null; echo @end";

/// Ticks of the CPU times in `/proc/<pid>/stat` per second: the kernel's interface, the same on every machine we run on.
const TICKS_PER_SEC: u64 = 100;
const MIB: u64 = 1 << 20;

/// Where the numbers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The control group the machine is.
    Cgroup,
    /// The processes `/proc` shows.
    Proc,
}

/// Totals since the machine began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// CPU time, milliseconds of one core.
    pub cpu_core_ms: u64,
    /// Memory in use now, MiB rounded up; shared pages count once per process where `/proc` is the source.
    pub ram_mib: u64,
    /// Bytes in and out over its interfaces but loopback; none when it has no other.
    pub net_bytes: Option<u64>,
    /// Where CPU and memory come from.
    pub source: Source,
}

/// Why the output is not what the script prints.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CountersError {
    /// Its end is missing.
    #[error("the output was cut off")]
    Cut,
    /// There is nothing to count.
    #[error("the machine shows no counters: neither a control group of its own nor /proc")]
    Nothing,
    /// A line is not as the kernel writes it.
    #[error("the line {line:?} is not what `{file}` holds")]
    Line {
        /// The file.
        file: &'static str,
        /// The line, cut short.
        line: String,
    },
}

impl Counters {
    /// Reads what [`SCRIPT`] printed. A machine may print anything.
    ///
    /// # Errors
    /// [`CountersError`].
    pub fn parse(text: &str) -> Result<Self, CountersError> {
        let section = |name: &str| -> Vec<&str> {
            let lines = text.lines().skip_while(|line| *line != name).skip(1);
            lines.take_while(|line| !line.starts_with('@')).collect()
        };
        if text.lines().next_back() != Some("@end") {
            return Err(CountersError::Cut);
        }
        let net_bytes = network(&section("@net"))?;
        let is_own_group = section("@group") == ["0::/"];
        let usage = section("@cpu").into_iter().find_map(|line| line.strip_prefix("usage_usec "));
        if let (true, Some(usage), [ram]) = (is_own_group, usage, section("@ram").as_slice()) {
            let cpu_core_ms = number::<u64>("cpu.stat", usage)? / 1_000;
            let ram_mib = number::<u64>("memory.current", ram)?.div_ceil(MIB);
            return Ok(Self { cpu_core_ms, ram_mib, net_bytes, source: Source::Cgroup });
        }
        let processes = section("@stat");
        if processes.is_empty() {
            return Err(CountersError::Nothing);
        }
        let mut ticks = 0_u64;
        for line in processes {
            ticks = ticks.saturating_add(cpu_ticks(line)?);
        }
        let page = section("@page").first().map_or(Ok(4_096), |page| number::<u64>("PAGESIZE", page))?;
        let mut pages = 0_u64;
        for line in section("@statm") {
            pages = pages.saturating_add(number("statm", line.split(' ').nth(1).unwrap_or_default())?);
        }
        Ok(Self {
            cpu_core_ms: ticks.saturating_mul(1_000 / TICKS_PER_SEC),
            ram_mib: pages.saturating_mul(page).div_ceil(MIB),
            net_bytes,
            source: Source::Proc,
        })
    }
}

fn number<T: FromStr>(file: &'static str, text: &str) -> Result<T, CountersError> {
    text.trim().parse().map_err(|_| CountersError::Line { file, line: text.chars().take(80).collect() })
}

/// Own CPU time of a process and that of the children it has waited for: fields 14 to 17.
fn cpu_ticks(line: &str) -> Result<u64, CountersError> {
    // The name, field 2, is in brackets and may hold anything.
    let after = line.rsplit_once(") ").map(|(_, after)| after).unwrap_or_default();
    let mut fields = after.split(' ').skip(11).take(4).peekable();
    if fields.peek().is_none() {
        return Err(CountersError::Line { file: "stat", line: line.chars().take(80).collect() });
    }
    fields.try_fold(0_u64, |sum, field| Ok(sum.saturating_add(number::<i64>("stat", field)?.max(0).unsigned_abs())))
}

fn network(lines: &[&str]) -> Result<Option<u64>, CountersError> {
    let mut sum = None;
    for line in lines {
        let Some((name, counters)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let mut counters = counters.split_whitespace();
        let (received, sent) = (counters.next().unwrap_or_default(), counters.nth(7).unwrap_or_default());
        let bytes = number::<u64>("net/dev", received)?.saturating_add(number("net/dev", sent)?);
        sum = Some(sum.unwrap_or(0_u64).saturating_add(bytes));
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: &str = "Inter-|   Receive  |  Transmit\n face |bytes packets |bytes packets\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n";

    fn output(group: &str, cpu: &str, stat: &str, net: &str) -> String {
        format!(
            "@group\n{group}@cpu\n{cpu}@ram\n3145729\n@page\n@stat\n{stat}@statm\n900 512 3 4 5 6 7\n@net\n{NET}{net}@end\n"
        )
    }

    const INIT: &str = "1 (init) S 0 1 1 0 -1 4194560 1 2 3 4 10 20 300 -1 20 0 1 0 77 8 9\n";
    const ODD: &str = "7 (a) b (c) R 1 7 7 0 -1 0 1 2 3 4 100 5 0 0 20 0 1 0 99 8 9\n";

    #[test]
    fn a_group_of_its_own_is_believed_and_a_foreign_one_is_not() {
        let own = Counters::parse(&output("0::/\n", "usage_usec 1234567\nuser_usec 1\n", INIT, "")).unwrap();
        assert_eq!(own, Counters { cpu_core_ms: 1_234, ram_mib: 4, net_bytes: None, source: Source::Cgroup });
        let foreign = output(
            "0::/system.slice/x\n",
            "usage_usec 1234567\n",
            &format!("{INIT}{ODD}"),
            "  eth0: 5 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n",
        );
        let summed = Counters { cpu_core_ms: 4_350, ram_mib: 2, net_bytes: Some(12), source: Source::Proc };
        assert_eq!(Counters::parse(&foreign).unwrap(), summed);
    }

    #[test]
    fn what_no_kernel_writes_is_named() {
        let cut = output("", "", INIT, "").replace("@end\n", "");
        assert_eq!(Counters::parse(&cut), Err(CountersError::Cut));
        assert_eq!(Counters::parse(&output("", "", "", "")), Err(CountersError::Nothing));
        for bad in ["1 init S 0\n", "1 (x) S 0 1 1 0 -1 0 1 2 3 4 ten 0 0 0\n"] {
            assert!(matches!(Counters::parse(&output("", "", bad, "")), Err(CountersError::Line { file: "stat", .. })));
        }
        let odd = output("", "", INIT, "  eth0: many\n");
        assert!(matches!(Counters::parse(&odd), Err(CountersError::Line { file: "net/dev", .. })));
    }

    #[test]
    fn this_machine_prints_what_is_read() {
        let ran = std::process::Command::new("sh").args(["-c", SCRIPT]).output().unwrap();
        let counters = Counters::parse(&String::from_utf8_lossy(&ran.stdout)).unwrap();
        assert!(counters.cpu_core_ms > 0 && counters.ram_mib > 0, "{counters:?}");
    }
}
