//! Reading `/proc`: who is alive, who descends from whom, what they used.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;

use crate::types::ProcessRef;

/// One line of `/proc/<pid>/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Process id.
    pub pid: i32,
    /// State letter; `Z` and `X` are dead.
    pub state: char,
    /// Parent.
    pub ppid: i32,
    /// User + system time, own and of reaped children, clock ticks.
    pub cpu_ticks: u64,
    /// Threads.
    pub threads: u64,
    /// Start, clock ticks since boot.
    pub start_ticks: u64,
    /// Resident pages.
    pub rss_pages: u64,
}

/// Parses a stat line; none when it is not one. The command name may contain anything, so fields count from its last
/// closing bracket.
pub fn parse_stat(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let pid = head.split_once(' ')?.0.parse().ok()?;
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok());
    // Children's times are signed in the kernel's format; a negative one counts as nothing.
    let signed = |i: usize| fields.get(i).and_then(|f| f.parse::<i64>().ok()).map(|v| v.max(0).unsigned_abs());
    Some(Stat {
        pid,
        state: fields.first()?.chars().next()?,
        ppid: fields.get(1)?.parse().ok()?,
        cpu_ticks: number(11)?.saturating_add(number(12)?).saturating_add(signed(13)?).saturating_add(signed(14)?),
        threads: number(17)?,
        start_ticks: number(19)?,
        rss_pages: number(21)?,
    })
}

/// The stat of one process, or none when it is gone. Not being able to look is an error, not a death.
pub fn look(pid: i32) -> io::Result<Option<Stat>> {
    look_in(Path::new("/proc"), pid)
}

fn look_in(proc: &Path, pid: i32) -> io::Result<Option<Stat>> {
    let text = match fs::read_to_string(proc.join(pid.to_string()).join("stat")) {
        Ok(text) => text,
        // It ended before we looked, or between opening and reading.
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
        Err(e) => return Err(e),
    };
    let odd = || io::Error::new(io::ErrorKind::InvalidData, format!("process {pid} has an unreadable stat line"));
    parse_stat(&text).map(Some).ok_or_else(odd)
}

/// The stat of one process, or none when it is gone or cannot be looked at.
pub fn stat(pid: i32) -> Option<Stat> {
    look(pid).ok().flatten()
}

/// Every process visible to us.
pub fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str().and_then(|n| n.parse::<i32>().ok()))
        .filter_map(stat)
        .collect()
}

/// Those of `processes` that descend from `root`, `root` itself first when present.
pub fn descendants(root: i32, processes: &[Stat]) -> Vec<Stat> {
    let mut children: HashMap<i32, Vec<&Stat>> = HashMap::new();
    for p in processes {
        children.entry(p.ppid).or_default().push(p);
    }
    let mut found: Vec<Stat> = processes.iter().filter(|p| p.pid == root).cloned().collect();
    let mut seen = HashSet::from([root]);
    let mut todo = vec![root];
    while let Some(parent) = todo.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            if seen.insert(child.pid) {
                found.push((*child).clone());
                todo.push(child.pid);
            }
        }
    }
    found
}

fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned())
}

/// A reference to a live process, or none.
pub fn process_ref(pid: i32) -> io::Result<Option<ProcessRef>> {
    let Some(stat) = look(pid)? else { return Ok(None) };
    Ok(Some(ProcessRef { pid, start_ticks: stat.start_ticks, boot_id: boot_id()? }))
}

/// True while that very process runs: same boot, same start time, not a zombie. An error when that cannot be seen.
pub fn is_alive(process: &ProcessRef) -> io::Result<bool> {
    is_alive_in(Path::new("/proc"), process)
}

fn is_alive_in(proc: &Path, process: &ProcessRef) -> io::Result<bool> {
    let Some(stat) = look_in(proc, process.pid)? else { return Ok(false) };
    let same = stat.start_ticks == process.start_ticks && !matches!(stat.state, 'Z' | 'X');
    Ok(same && boot_id()? == process.boot_id)
}

/// Processes of ours that carry `name=value` in their initial environment. The only trace left of a workload without
/// a pid namespace whose supervisor and init were both killed.
pub fn with_environment(name: &str, value: &str) -> Vec<i32> {
    let wanted = format!("{name}={value}");
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    all()
        .into_iter()
        .filter(|p| p.pid != own && !matches!(p.state, 'Z' | 'X'))
        .filter(|p| {
            fs::read(format!("/proc/{}/environ", p.pid))
                .is_ok_and(|env| env.split(|b| *b == 0).any(|v| v == wanted.as_bytes()))
        })
        .map(|p| p.pid)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_brackets_and_spaces_parses() {
        let line =
            "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 10 20 30 -1 20 0 1 0 12345 999 77 18446744073709551615";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.pid, stat.ppid, stat.state, stat.cpu_ticks), (42, 7, 'S', 60));
        assert_eq!((stat.start_ticks, stat.rss_pages), (12345, 77));
        assert!(parse_stat("").is_none() && parse_stat("1 (x) S").is_none());
    }

    #[test]
    fn we_find_ourselves_and_our_parent() {
        let own = i32::try_from(std::process::id()).unwrap();
        let me = process_ref(own).unwrap().unwrap();
        assert!(is_alive(&me).unwrap());
        assert!(!is_alive(&ProcessRef { start_ticks: me.start_ticks + 1, ..me }).unwrap());
        let everyone = all();
        let parent = stat(own).unwrap().ppid;
        assert!(descendants(parent, &everyone).iter().any(|p| p.pid == own));
    }

    #[test]
    fn a_process_that_cannot_be_looked_at_is_not_dead() {
        let proc = tempfile::tempdir().unwrap();
        let process = ProcessRef { pid: 7, start_ticks: 1, boot_id: "b".into() };
        assert!(!is_alive_in(proc.path(), &process).unwrap(), "no directory is no process");
        fs::create_dir_all(proc.path().join("7/stat")).unwrap();
        is_alive_in(proc.path(), &process).unwrap_err();
        fs::remove_dir(proc.path().join("7/stat")).unwrap();
        fs::write(proc.path().join("7/stat"), "").unwrap();
        is_alive_in(proc.path(), &process).unwrap_err();
    }
}
