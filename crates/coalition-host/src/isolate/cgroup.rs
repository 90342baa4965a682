//! cgroups: limits and counters for all processes of a grant together. Versions 1 and 2, also mixed on one host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::types::Mechanism;
use crate::units;

/// What `/proc/self/mountinfo` and `/proc/self/cgroup` say about cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    /// (controllers, mount point), version 1.
    pub(crate) v1: Vec<(Vec<String>, PathBuf)>,
    /// Mount point, version 2.
    pub(crate) v2: Option<PathBuf>,
    /// Our own group in version 2, relative to its mount.
    pub(crate) own_v2: PathBuf,
}

impl Hierarchies {
    /// Parses both files. Pure.
    pub(crate) fn parse(mountinfo: &str, own: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((head, tail)) = line.split_once(" - ") else { continue };
            let Some(mount_point) = head.split(' ').nth(4) else { continue };
            let mut tail = tail.split(' ');
            let (kind, options) = (tail.next().unwrap_or(""), tail.nth(1).unwrap_or(""));
            match kind {
                "cgroup2" => found.v2 = Some(mount_point.into()),
                "cgroup" => {
                    let controllers = options.split(',').map(str::to_owned).collect();
                    found.v1.push((controllers, mount_point.into()));
                }
                _ => {}
            }
        }
        let own_v2 = own.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or("");
        found.own_v2 = own_v2.into();
        found
    }

    /// As this process sees them.
    pub(crate) fn discover() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
    }

    fn v1_mount(&self, controller: &str) -> Option<&Path> {
        self.v1.iter().find(|(c, _)| c.iter().any(|c| c == controller)).map(|(_, path)| path.as_path())
    }

    /// Version 2 directories under which we might make a group, best first: our own unit of systemd's where we are one,
    /// else a top-level one for root, and whatever part of our own branch was delegated to a user.
    fn v2_parents(&self, root: bool) -> Vec<Parent> {
        let Some(mount) = &self.v2 else { return vec![] };
        if let Some(unit) = self.own_unit() {
            return vec![Parent::Unit(mount.join(unit))];
        }
        if root {
            return vec![Parent::Top(mount.join(TOP))];
        }
        let mut branch: Vec<PathBuf> = self.own_v2.ancestors().map(|a| mount.join(a)).collect();
        branch.retain(|path| path != mount && path.join("cgroup.procs").exists());
        branch.into_iter().map(Parent::Delegated).collect()
    }

    /// Our own unit's group, relative to the mount.
    fn own_unit(&self) -> Option<&Path> {
        let ours = |path: &&Path| path.file_name().and_then(|name| name.to_str()).is_some_and(units::is_ours);
        self.own_v2.ancestors().find(ours)
    }

    /// Moves this process into a group of its own below its unit `name`'s, so that others there can have limits.
    pub(crate) fn leave_unit_free(&self, name: &str) -> Result<(), String> {
        let unit = self.own_unit().filter(|unit| unit.ends_with(name));
        let (Some(mount), Some(unit)) = (&self.v2, unit) else {
            return Err(format!("we are in {}, not in the group of {name}", self.own_v2.display()));
        };
        let dir = mount.join(unit).join("supervisor");
        let moved = fs::create_dir_all(&dir).and_then(|()| put(&dir, "cgroup.procs", &std::process::id()));
        moved.map_err(|e| format!("cannot move to {}: {e}", dir.display()))
    }
}

/// Where version 2 groups of grants may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Parent {
    /// Our directory at the top, which is root's to make.
    Top(PathBuf),
    /// A part of our own branch.
    Delegated(PathBuf),
    /// The group of our own unit, whose controllers systemd passes on and which is there already.
    Unit(PathBuf),
}

impl Parent {
    /// Where a grant's group is.
    fn group(&self, name: &str) -> PathBuf {
        match self {
            Self::Top(dir) | Self::Unit(dir) => dir.join(name),
            Self::Delegated(dir) => dir.join(format!("{TOP}-{name}")),
        }
    }
}

/// Our directory at the top of each hierarchy.
const TOP: &str = "coalition";
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The limits to set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) cpu_millicores: u32,
    pub(crate) ram_mib: u64,
    pub(crate) pids_max: u32,
}

/// The groups of one grant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    cpu: Option<(Mechanism, PathBuf)>,
    memory: Option<(Mechanism, PathBuf)>,
    pids: Option<(Mechanism, PathBuf)>,
    cpuacct: Option<PathBuf>,
    v2: Option<PathBuf>,
    dirs: Vec<PathBuf>,
}

fn put(dir: &Path, file: &str, value: &dyn std::fmt::Display) -> io::Result<()> {
    fs::write(dir.join(file), value.to_string())
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

impl Groups {
    /// Makes the groups this host allows, with their limits. A controller that cannot be had is simply absent:
    /// `mechanism_of` says so.
    pub(crate) fn create(hierarchies: &Hierarchies, root: bool, name: &str, limits: Limits) -> Self {
        let mut groups = Self::default();
        groups.create_v2(hierarchies, root, name, limits);
        if root {
            groups.create_v1(hierarchies, name, limits);
        }
        groups
    }

    fn create_v2(&mut self, hierarchies: &Hierarchies, root: bool, name: &str, limits: Limits) {
        for parent in hierarchies.v2_parents(root) {
            let Some(dir) = make_v2(&parent, name) else { continue };
            self.dirs.push(dir.clone());
            let quota = u64::from(limits.cpu_millicores) * 100;
            if put(&dir, "cpu.max", &format!("{quota} 100000")).is_ok() {
                self.cpu = Some((Mechanism::CgroupV2, dir.clone()));
            }
            if put(&dir, "memory.max", &(limits.ram_mib << 20)).is_ok() {
                let _ = put(&dir, "memory.swap.max", &0);
                self.memory = Some((Mechanism::CgroupV2, dir.clone()));
            }
            if put(&dir, "pids.max", &pids_with_init(limits)).is_ok() {
                self.pids = Some((Mechanism::CgroupV2, dir.clone()));
            }
            self.v2 = Some(dir);
            return;
        }
    }

    fn create_v1(&mut self, hierarchies: &Hierarchies, name: &str, limits: Limits) {
        if self.cpu.is_none()
            && let Some(dir) = self.make_v1(hierarchies, "cpu", name)
            && put(&dir, "cpu.cfs_period_us", &100_000).is_ok()
            && put(&dir, "cpu.cfs_quota_us", &(u64::from(limits.cpu_millicores) * 100)).is_ok()
        {
            self.cpu = Some((Mechanism::CgroupV1, dir));
        }
        if self.memory.is_none()
            && let Some(dir) = self.make_v1(hierarchies, "memory", name)
            && put(&dir, "memory.limit_in_bytes", &(limits.ram_mib << 20)).is_ok()
        {
            // Without swap accounting there is no such file; then swap, if any, comes on top.
            let _ = put(&dir, "memory.memsw.limit_in_bytes", &(limits.ram_mib << 20));
            self.memory = Some((Mechanism::CgroupV1, dir));
        }
        if self.pids.is_none()
            && let Some(dir) = self.make_v1(hierarchies, "pids", name)
            && put(&dir, "pids.max", &pids_with_init(limits)).is_ok()
        {
            self.pids = Some((Mechanism::CgroupV1, dir));
        }
        self.cpuacct = self.make_v1(hierarchies, "cpuacct", name);
    }

    fn make_v1(&mut self, hierarchies: &Hierarchies, controller: &str, name: &str) -> Option<PathBuf> {
        let dir = hierarchies.v1_mount(controller)?.join(TOP).join(name);
        if self.dirs.contains(&dir) {
            return Some(dir);
        }
        fs::create_dir_all(&dir).ok()?;
        self.dirs.push(dir.clone());
        Some(dir)
    }

    /// Groups known from an earlier process, by their directories only.
    pub(crate) fn adopt(dirs: Vec<PathBuf>) -> Self {
        Self { dirs, ..Self::default() }
    }

    /// Groups of that name that exist, however they came to be: a supervisor killed early wrote none down.
    pub(crate) fn find(hierarchies: &Hierarchies, root: bool, name: &str) -> Vec<PathBuf> {
        let v1 = hierarchies.v1.iter().map(|(_, mount)| mount.join(TOP).join(name));
        let v2 = hierarchies.v2_parents(root).into_iter().map(|parent| parent.group(name));
        let mut found: Vec<PathBuf> = v1.chain(v2).filter(|dir| dir.is_dir()).collect();
        found.sort();
        found.dedup();
        found
    }

    /// Every directory made.
    pub(crate) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// True when some directory could be made at all.
    pub(crate) fn any(&self) -> bool {
        !self.dirs.is_empty()
    }

    /// What limits "cpu", "memory" or "pids" for the grant as a whole.
    pub(crate) fn mechanism_of(&self, controller: &str) -> Option<Mechanism> {
        match controller {
            "cpu" => self.cpu.as_ref().map(|c| c.0),
            "memory" => self.memory.as_ref().map(|c| c.0),
            _ => self.pids.as_ref().map(|c| c.0),
        }
    }

    /// Moves a process in; its future children follow.
    pub(crate) fn add(&self, pid: i32) -> io::Result<()> {
        self.dirs.iter().try_for_each(|dir| put(dir, "cgroup.procs", &pid))
    }

    /// CPU time used by all processes ever in the groups, microseconds.
    pub(crate) fn cpu_us(&self) -> Option<u64> {
        let v2 = self.v2.as_ref().and_then(|d| keyed(&d.join("cpu.stat"), "usage_usec"));
        v2.or_else(|| self.cpuacct.as_ref().and_then(|d| number(&d.join("cpuacct.usage"))).map(|ns| ns / 1000))
    }

    /// Working set now, bytes: memory in use without file pages nobody has touched lately.
    pub(crate) fn ram_bytes(&self) -> Option<u64> {
        let (mechanism, dir) = self.memory.as_ref()?;
        let (usage, inactive) = if *mechanism == Mechanism::CgroupV2 {
            ("memory.current", "inactive_file")
        } else {
            ("memory.usage_in_bytes", "total_inactive_file")
        };
        let usage = number(&dir.join(usage))?;
        Some(usage.saturating_sub(keyed(&dir.join("memory.stat"), inactive).unwrap_or(0)))
    }

    /// Processes the kernel killed because the grant's memory was used up.
    pub(crate) fn oom_kills(&self) -> u64 {
        let Some((mechanism, dir)) = &self.memory else { return 0 };
        let file = if *mechanism == Mechanism::CgroupV2 { "memory.events" } else { "memory.oom_control" };
        keyed(&dir.join(file), "oom_kill").unwrap_or(0)
    }

    /// Processes inside now.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let mut found: Vec<i32> = self
            .dirs
            .iter()
            .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<i32>>())
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Removes the groups, and our top directories once nothing else is in them. Groups must be empty. Returns what
    /// is still there.
    pub(crate) fn remove(&self) -> Vec<PathBuf> {
        let mut left = Vec::new();
        for dir in &self.dirs {
            match fs::remove_dir(dir) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(_) => left.push(dir.clone()),
            }
            if let Some(parent) = dir.parent().filter(|p| p.file_name().is_some_and(|n| n == TOP)) {
                let _ = fs::remove_dir(parent);
            }
        }
        left
    }
}

/// The environment's first process counts too, and is not the workload's.
fn pids_with_init(limits: Limits) -> u32 {
    limits.pids_max.saturating_add(1)
}

/// Makes a version 2 group with as many of our controllers as the parent can pass on.
fn make_v2(parent: &Parent, name: &str) -> Option<PathBuf> {
    match parent {
        Parent::Top(dir) => {
            fs::create_dir_all(dir).ok()?;
            enable(dir.parent()?);
            enable(dir);
        }
        Parent::Delegated(dir) | Parent::Unit(dir) => enable(dir),
    }
    let dir = parent.group(name);
    match fs::create_dir(&dir) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(_) => return None,
    }
    // A parent that passes nothing on is only worth having for its counters: at the top, and in a unit.
    let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let delegated = matches!(parent, Parent::Delegated(_));
    if delegated && !controllers.split_ascii_whitespace().any(|c| CONTROLLERS.contains(&c)) {
        let _ = fs::remove_dir(&dir);
        return None;
    }
    Some(dir)
}

fn enable(dir: &Path) {
    for controller in CONTROLLERS {
        let _ = put(dir, "cgroup.subtree_control", &format!("+{controller}"));
    }
}

/// Controllers of (version 1, version 2) that a grant could use, found by making and removing an empty group.
pub(crate) fn usable(root: bool) -> (Vec<String>, Vec<String>) {
    let limits = Limits { cpu_millicores: 1000, ram_mib: 64, pids_max: 16 };
    let name = format!("probe-{}", std::process::id());
    let groups = Groups::create(&Hierarchies::discover(), root, &name, limits);
    let of = |mechanism| -> Vec<String> {
        CONTROLLERS.iter().filter(|c| groups.mechanism_of(c) == Some(mechanism)).map(ToString::to_string).collect()
    };
    let found = (of(Mechanism::CgroupV1), of(Mechanism::CgroupV2));
    groups.remove();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_is_understood() {
        let mountinfo = "\
30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let own = "4:memory:/a/b\n0::/user.slice/x.scope\n";
        let found = Hierarchies::parse(mountinfo, own);
        assert_eq!(found.v1_mount("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(found.v1_mount("memory"), Some(Path::new("/sys/fs/cgroup/memory")));
        assert_eq!(found.v1_mount("pids"), None);
        assert_eq!(found.v2, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(found.own_v2, PathBuf::from("user.slice/x.scope"));
        assert_eq!(found.v2_parents(true), [Parent::Top("/sys/fs/cgroup/unified/coalition".into())]);
    }

    #[test]
    fn who_is_a_unit_makes_groups_in_it_and_touches_nothing_above() {
        let temp = tempfile::tempdir().unwrap();
        let unit = temp.path().join("coalition.slice/coalition-grant-aabb.service");
        fs::create_dir_all(&unit).unwrap();
        let own_v2 = "coalition.slice/coalition-grant-aabb.service".into();
        let before = Hierarchies { v2: Some(temp.path().into()), own_v2, ..Hierarchies::default() };
        assert!(before.leave_unit_free("coalition-grant-cc.service").unwrap_err().contains("not in the group of"));
        before.leave_unit_free("coalition-grant-aabb.service").unwrap();
        assert_eq!(fs::read_to_string(unit.join("supervisor/cgroup.procs")).unwrap(), std::process::id().to_string());
        let after = Hierarchies { own_v2: before.own_v2.join("supervisor"), ..before };
        let limits = Limits { cpu_millicores: 1500, ram_mib: 64, pids_max: 9 };
        for root in [true, false] {
            assert_eq!(after.v2_parents(root), [Parent::Unit(unit.clone())]);
            let groups = Groups::create(&after, root, "aabb", limits);
            assert_eq!(groups.dirs(), [unit.join("aabb")]);
            assert_eq!(fs::read_to_string(unit.join("aabb/memory.max")).unwrap(), "67108864");
        }
        assert_eq!(fs::read_to_string(unit.join("cgroup.subtree_control")).unwrap(), "+pids");
        assert!(!unit.parent().unwrap().join("cgroup.subtree_control").exists());
        let elsewhere = Hierarchies { own_v2: "user.slice/coalition-bridge.service".into(), ..after };
        assert_eq!(elsewhere.v2_parents(true), [Parent::Top(temp.path().join("coalition"))]);
    }

    #[test]
    fn version_two_limits_are_written_where_controllers_are_passed_on() {
        let temp = tempfile::tempdir().unwrap();
        let hierarchies = Hierarchies { v2: Some(temp.path().into()), ..Hierarchies::default() };
        let limits = Limits { cpu_millicores: 1500, ram_mib: 64, pids_max: 9 };
        let groups = Groups::create(&hierarchies, true, "aa", limits);
        let dir = temp.path().join("coalition/aa");
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap();
        assert_eq!((read("cpu.max").as_str(), read("memory.max").as_str()), ("150000 100000", "67108864"));
        assert_eq!((read("memory.swap.max").as_str(), read("pids.max").as_str()), ("0", "10"));
        for controller in CONTROLLERS {
            assert_eq!(groups.mechanism_of(controller), Some(Mechanism::CgroupV2));
        }
        groups.add(42).unwrap();
        assert_eq!((read("cgroup.procs").as_str(), groups.pids()), ("42", vec![42]));
        assert_eq!(Groups::find(&hierarchies, true, "aa"), [dir]);
        assert_eq!(Groups::find(&hierarchies, true, "bb"), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_delegated_branch_is_used_only_when_it_passes_controllers_on() {
        let temp = tempfile::tempdir().unwrap();
        let own = temp.path().join("user.slice/x.scope");
        fs::create_dir_all(&own).unwrap();
        for dir in [own.clone(), temp.path().join("user.slice")] {
            fs::write(dir.join("cgroup.procs"), "").unwrap();
        }
        let hierarchies =
            Hierarchies { v2: Some(temp.path().into()), own_v2: "user.slice/x.scope".into(), ..Hierarchies::default() };
        let parents = [own, temp.path().join("user.slice")].map(Parent::Delegated);
        assert_eq!(hierarchies.v2_parents(false), parents);
        let limits = Limits { cpu_millicores: 1500, ram_mib: 64, pids_max: 9 };
        assert!(!Groups::create(&hierarchies, false, "aa", limits).any());
    }

    #[test]
    fn counters_are_read_from_files() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("cpu.stat"), "usage_usec 1234\nuser_usec 1\n").unwrap();
        fs::write(temp.path().join("memory.current"), "1000\n").unwrap();
        fs::write(temp.path().join("memory.stat"), "anon 5\ninactive_file 400\n").unwrap();
        fs::write(temp.path().join("memory.events"), "oom 3\noom_kill 2\n").unwrap();
        let dir = temp.path().to_path_buf();
        let groups = Groups { v2: Some(dir.clone()), memory: Some((Mechanism::CgroupV2, dir)), ..Groups::default() };
        assert_eq!((groups.cpu_us(), groups.ram_bytes(), groups.oom_kills()), (Some(1234), Some(600), 2));
    }
}
