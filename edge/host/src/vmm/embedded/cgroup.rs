//! A cgroup of its own for each VMM, where this host has cgroup v2: memory, CPU time and threads are bounded.
//!
//! Invariants: a group holds one process and its name is that process' number; it is removed once empty; a host
//! without cgroup v2 is served all the same, and `doctor` says what it lacks.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Below the hierarchy's top, beside the daemon's own group: VMMs outlive the daemon.
const NAME: &str = "cloudpal-vmm";
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// What a VMM needs beside its guest's memory: its own, page tables, the kernel's part of KVM, and the pages of the
/// files that it writes, which may lie in memory.
const OVERHEAD_MIB: u64 = 256;
/// A sleep writes all of the guest's memory to a file once more.
const COPIES: u64 = 2;
const PERIOD_US: u64 = 100_000;

#[derive(Clone, Debug)]
pub struct Cgroups {
    parent: Option<PathBuf>,
    explanation: String,
}

impl Cgroups {
    /// Looks for a hierarchy, and makes the daemon's place in it.
    pub fn find() -> Cgroups {
        match place() {
            Ok((parent, controllers)) if controllers.is_empty() => Cgroups {
                parent: None,
                explanation: format!(
                    "no cgroup: {} has no controllers (cgroup v1 has them)",
                    parent.display()
                ),
            },
            Ok((parent, controllers)) => Cgroups {
                explanation: format!("cgroup v2: {} of each VMM bounded", controllers.join(", ")),
                parent: Some(parent),
            },
            Err(why) => Cgroups { parent: None, explanation: format!("no cgroup: {why}") },
        }
    }

    pub fn explain(&self) -> &str {
        &self.explanation
    }

    /// Puts a process that was just started into a group of its own.
    pub fn hold(&self, pid: u32, memory_mib: u32, vcpus: u32) -> io::Result<Option<Group>> {
        let Some(parent) = &self.parent else { return Ok(None) };
        let group = Group(parent.join(pid.to_string()));
        match fs::create_dir(&group.0) {
            // Left by a process of that number which lives no more.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        let quota_us = u64::from(vcpus + 1) * PERIOD_US;
        let memory = (COPIES * u64::from(memory_mib) + OVERHEAD_MIB) << 20;
        group.set("cpu.max", &format!("{quota_us} {PERIOD_US}"))?;
        group.set("memory.max", &memory.to_string())?;
        group.set("memory.swap.max", "0")?;
        group.set("pids.max", &(u64::from(vcpus) + 8).to_string())?;
        fs::write(group.0.join("cgroup.procs"), pid.to_string())?;
        Ok(Some(group))
    }

    /// The group of a process that an earlier daemon started.
    pub fn group_of(&self, pid: u32) -> Option<Group> {
        let path = self.parent.as_ref()?.join(pid.to_string());
        path.is_dir().then_some(Group(path))
    }

    /// Removes the groups of processes that have ended while no daemon looked.
    pub fn sweep(&self) {
        for entry in self.parent.iter().filter_map(|parent| fs::read_dir(parent).ok()).flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                // One with a living process is refused.
                drop(fs::remove_dir(entry.path()));
            }
        }
    }
}

/// Goes when it is dropped, if its process has ended; else at the next [`Cgroups::sweep`].
#[derive(Debug)]
pub struct Group(PathBuf);

impl Group {
    /// A limit whose controller is not there is no limit.
    fn set(&self, name: &str, value: &str) -> io::Result<()> {
        match fs::write(self.0.join(name), value) {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) =>
            {
                Ok(())
            }
            result => result,
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

/// Our directory in the hierarchy, and which controllers it has.
fn place() -> Result<(PathBuf, Vec<String>), String> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    let top = hierarchy(&mounts).ok_or("this host has no cgroup v2")?;
    let place = Path::new(top).join(NAME);
    let failed = |error: io::Error| format!("{}: {error}", place.display());
    match fs::create_dir(&place) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(failed)?,
    }
    let mut held = Vec::new();
    for controller in CONTROLLERS {
        let wanted = format!("+{controller}");
        let on = |dir: &Path| fs::write(dir.join("cgroup.subtree_control"), &wanted);
        // One that the host keeps in v1, or not at all, is refused.
        if on(Path::new(top)).and_then(|()| on(&place)).is_ok() {
            held.push(controller.to_owned());
        }
    }
    Ok((place, held))
}

fn hierarchy(mounts: &str) -> Option<&str> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|fields| fields.get(2) == Some(&"cgroup2")).find_map(|fields| fields.get(1).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_among_the_mounts() {
        let mixed =
            "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(hierarchy(mixed), Some("/sys/fs/cgroup/unified"));
        assert_eq!(hierarchy("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0"), Some("/sys/fs/cgroup"));
        assert_eq!(hierarchy("tmpfs / tmpfs rw 0 0"), None);
    }

    #[test]
    fn a_process_is_held_where_the_host_can_and_explained_where_not() {
        let groups = Cgroups::find();
        if !groups.explain().starts_with("cgroup v2") {
            eprintln!("SKIPPED: {}", groups.explain());
            return;
        }
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let group = groups.hold(child.id(), 128, 1).unwrap().unwrap();
        let held = fs::read_to_string(group.0.join("cgroup.procs")).unwrap();
        assert_eq!(held.trim(), child.id().to_string());
        child.kill().unwrap();
        child.wait().unwrap();
        let path = group.0.clone();
        drop(group);
        assert!(!path.exists());
    }
}
