//! How many bytes this process may still use, and what says so.
//!
//! Four kinds of fences stand around a process: the memory cgroup of **every** ancestor (version 2
//! `memory.max` and `memory.high`, version 1 `memory.limit_in_bytes` and
//! `hierarchical_memory_limit`), `RLIMIT_AS`, `RLIMIT_DATA`, and the machine. [`limits`] lists them
//! all, [`tightest`] picks the one that leaves the least. Page cache that the kernel would drop
//! first is not counted as used: otherwise a job that reads its factors from disk would starve.
//!
//! Everything is read from files below a root directory, so that the tests can stand whole
//! fixture trees of other machines beside each other. A file that is missing or holds garbage
//! fences nothing: the remaining ones decide.
//!
//! **Unsafe.** None.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// One fence: so much in total, so much still free, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes the fence allows altogether.
    pub limit: u64,
    /// Bytes of it that nothing uses yet.
    pub available: u64,
    /// For people: `cgroup /user.slice memory.max`, `RLIMIT_AS`, `physical memory`.
    pub source: String,
}

/// A version 1 group without a limit holds the largest multiple of a page below 2^63.
const UNLIMITED: u64 = 1 << 60;

/// The fence that leaves the least.
pub fn tightest(limits: &[Limit]) -> Option<&Limit> {
    limits.iter().min_by_key(|limit| limit.available)
}

/// All fences below `root` (`/` except in tests): cgroups from the leaf up, then the process, then the machine.
pub fn limits(root: &Path) -> Vec<Limit> {
    let mut found = Vec::new();
    let groups = read(root, "/proc/self/cgroup");
    for mount in mounts(root) {
        if let Some(path) = group_path(&groups, mount.version) {
            found.extend(fences_of_mount(root, &mount, &path));
        }
    }
    found.extend(process(root));
    found.extend(machine(root));
    found
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where a hierarchy of memory cgroups can be seen.
#[derive(Debug)]
struct Mount {
    version: Version,
    /// The group that is visible at the mount point (`/` outside containers).
    top: PathBuf,
    at: PathBuf,
}

fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(under(root, Path::new(path))).unwrap_or_default()
}

fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// `/proc/self/mountinfo`: `36 35 98:0 /top /at opts [tags] - type source superopts`.
fn mounts(root: &Path) -> Vec<Mount> {
    read(root, "/proc/self/mountinfo").lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<Mount> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (top, at) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let version = match kind.next()? {
        "cgroup2" => Version::Two,
        "cgroup" if kind.nth(1)?.split(',').any(|option| option == "memory") => Version::One,
        _ => return None,
    };
    Some(Mount { version, top: PathBuf::from(top), at: PathBuf::from(at) })
}

/// This process's group: the line `0::/path` (version 2) or `4:memory:/path` (version 1).
fn group_path(groups: &str, version: Version) -> Option<PathBuf> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let ours = match version {
            Version::One => controllers.split(',').any(|name| name == "memory"),
            Version::Two => id == "0" && controllers.is_empty(),
        };
        ours.then(|| PathBuf::from(path))
    })
}

/// The fences of the process's group and of all its ancestors that are visible at `mount`.
///
/// In a namespace the path may not lie below the mount's top (`/../..`): then the mount point
/// itself is the group that can be seen.
fn fences_of_mount(root: &Path, mount: &Mount, path: &Path) -> Vec<Limit> {
    let inner = path.strip_prefix(&mount.top).unwrap_or(Path::new(""));
    let plain = inner.components().all(|part| matches!(part, Component::Normal(_)));
    let inner = if plain { inner } else { Path::new("") };
    inner
        .ancestors()
        .flat_map(|group| {
            let name = Path::new("/").join(group).display().to_string();
            fences_of_group(&under(root, &mount.at).join(group), mount.version, &name)
        })
        .collect()
}

fn fences_of_group(dir: &Path, version: Version, name: &str) -> Vec<Limit> {
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let file = |name: &str| number(&fs::read_to_string(dir.join(name)).unwrap_or_default());
    let (files, current, cache): (&[&str], _, [&str; 2]) = match version {
        Version::One => (
            &["memory.limit_in_bytes"],
            "memory.usage_in_bytes",
            ["total_inactive_file", "total_active_file"],
        ),
        Version::Two => {
            (&["memory.max", "memory.high"], "memory.current", ["inactive_file", "active_file"])
        }
    };
    let droppable: u64 = cache.iter().filter_map(|key| field(&stat, key)).sum();
    let used = file(current).unwrap_or(0).saturating_sub(droppable);
    let mut found: Vec<Limit> = files
        .iter()
        .filter_map(|&what| fence(file(what)?, used, format!("cgroup {name} {what}")))
        .collect();
    if version == Version::One
        && let Some(limit) = field(&stat, "hierarchical_memory_limit")
    {
        let source = format!("cgroup {name} hierarchical_memory_limit");
        found.extend(fence(limit, used, source));
    }
    found
}

fn fence(limit: u64, used: u64, source: String) -> Option<Limit> {
    (limit < UNLIMITED).then(|| Limit { limit, available: limit.saturating_sub(used), source })
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number after `key` in lines of `key value`.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| number(line.strip_prefix(key)?.strip_prefix(' ')?))
}

/// `RLIMIT_AS` and `RLIMIT_DATA` as `/proc` shows them, minus what the process maps already.
fn process(root: &Path) -> Vec<Limit> {
    let limits = read(root, "/proc/self/limits");
    let status = read(root, "/proc/self/status");
    [("Max address space", "VmSize:", "RLIMIT_AS"), ("Max data size", "VmData:", "RLIMIT_DATA")]
        .into_iter()
        .filter_map(|(row, used, source)| {
            let soft = limits.lines().find_map(|line| line.strip_prefix(row))?;
            let soft = number(soft.split_whitespace().next()?)?;
            fence(soft, kibibytes(&status, used).unwrap_or(0), source.to_owned())
        })
        .collect()
}

fn machine(root: &Path) -> Option<Limit> {
    let info = read(root, "/proc/meminfo");
    let limit = kibibytes(&info, "MemTotal:")?;
    let free = || Some(kibibytes(&info, "MemFree:")? + kibibytes(&info, "Cached:").unwrap_or(0));
    let available = kibibytes(&info, "MemAvailable:").or_else(free)?;
    Some(Limit { limit, available, source: "physical memory".to_owned() })
}

/// The value of a line `key   123 kB`, in bytes.
fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    number(line.trim().strip_suffix("kB")?)?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static NEXT: AtomicUsize = AtomicUsize::new(0);

    /// A directory tree of another machine, removed when dropped.
    struct Tree(PathBuf);

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Self {
            let id = NEXT.fetch_add(1, Ordering::Relaxed);
            let root =
                std::env::temp_dir().join(format!("entk-limits-{}-{id}", std::process::id()));
            for (path, text) in files {
                let path = under(&root, Path::new(path));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(root)
        }

        fn tightest(&self) -> (u64, u64, String) {
            let found = limits(&self.0);
            let found = tightest(&found).unwrap();
            (found.limit, found.available, found.source.clone())
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const MEMINFO: (&str, &str) =
        ("/proc/meminfo", "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 900 kB\n");
    const V2: (&str, &str) = (
        "/proc/self/mountinfo",
        "25 1 0:22 / /proc rw - proc proc rw\n30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    );
    const V1: (&str, &str) = (
        "/proc/self/mountinfo",
        "33 30 0:29 / /sys/fs/cgroup/cpu rw shared:12 - cgroup cgroup rw,cpu\n\
         34 30 0:30 / /sys/fs/cgroup/memory rw shared:14 - cgroup cgroup rw,memory\n",
    );

    #[test]
    fn without_any_group_the_machine_decides() {
        let tree = Tree::new(&[MEMINFO]);
        assert_eq!(tree.tightest(), (1_024_000, 921_600, "physical memory".into()));
    }

    #[test]
    fn an_old_machine_without_memavailable_counts_its_cache_as_free() {
        let tree =
            Tree::new(&[("/proc/meminfo", "MemTotal: 100 kB\nMemFree: 10 kB\nCached: 5 kB\n")]);
        assert_eq!(tree.tightest().1, 15 * 1024);
    }

    #[test]
    fn an_empty_tree_says_nothing() {
        assert_eq!(limits(&Tree::new(&[("/proc/empty", "")]).0), []);
    }

    #[test]
    fn version_2_takes_the_tightest_ancestor() {
        let tree = Tree::new(&[
            MEMINFO,
            V2,
            ("/proc/self/cgroup", "0::/user.slice/job.scope\n"),
            ("/sys/fs/cgroup/user.slice/job.scope/memory.max", "max\n"),
            ("/sys/fs/cgroup/user.slice/job.scope/memory.current", "10\n"),
            ("/sys/fs/cgroup/user.slice/memory.max", "5000\n"),
            ("/sys/fs/cgroup/user.slice/memory.current", "3000\n"),
            (
                "/sys/fs/cgroup/user.slice/memory.stat",
                "anon 1\ninactive_file 500\nactive_file 700\n",
            ),
        ]);
        let want = (5000, 3200, "cgroup /user.slice memory.max".to_owned());
        assert_eq!(tree.tightest(), want);
    }

    #[test]
    fn version_2_respects_memory_high() {
        let tree = Tree::new(&[
            MEMINFO,
            V2,
            ("/proc/self/cgroup", "0::/a\n"),
            ("/sys/fs/cgroup/a/memory.max", "9000\n"),
            ("/sys/fs/cgroup/a/memory.high", "4000\n"),
            ("/sys/fs/cgroup/a/memory.current", "1000\n"),
        ]);
        assert_eq!(tree.tightest(), (4000, 3000, "cgroup /a memory.high".into()));
    }

    #[test]
    fn a_namespaced_path_falls_back_to_the_mount_point() {
        for path in ["0::/../../elsewhere\n", "0::/\n"] {
            let tree = Tree::new(&[
                MEMINFO,
                V2,
                ("/proc/self/cgroup", path),
                ("/sys/fs/cgroup/memory.max", "2048\n"),
            ]);
            assert_eq!(tree.tightest(), (2048, 2048, "cgroup / memory.max".into()));
        }
    }

    #[test]
    fn a_mount_of_an_inner_group_strips_its_top() {
        let tree = Tree::new(&[
            MEMINFO,
            (
                "/proc/self/mountinfo",
                "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
            ),
            ("/proc/self/cgroup", "0::/docker/abc/inner\n"),
            ("/sys/fs/cgroup/inner/memory.max", "777\n"),
        ]);
        assert_eq!(tree.tightest(), (777, 777, "cgroup /inner memory.max".into()));
    }

    #[test]
    fn version_1_respects_ancestors_and_the_hierarchical_limit() {
        let base = "/sys/fs/cgroup/memory";
        let tree = Tree::new(&[
            MEMINFO,
            V1,
            ("/proc/self/cgroup", "4:memory:/a/b\n1:cpu:/x\n0::/\n"),
            (&format!("{base}/a/b/memory.limit_in_bytes"), "9223372036854771712\n"),
            (&format!("{base}/a/b/memory.usage_in_bytes"), "100\n"),
            (&format!("{base}/a/b/memory.stat"), "hierarchical_memory_limit 8000\n"),
            (&format!("{base}/a/memory.limit_in_bytes"), "6000\n"),
            (&format!("{base}/a/memory.usage_in_bytes"), "1500\n"),
            (&format!("{base}/a/memory.stat"), "total_inactive_file 500\n"),
        ]);
        assert_eq!(tree.tightest(), (6000, 5000, "cgroup /a memory.limit_in_bytes".into()));
        let all = limits(&tree.0);
        assert!(all.iter().any(|l| l.source == "cgroup /a/b hierarchical_memory_limit"));
    }

    #[test]
    fn rlimits_count_what_is_mapped_already() {
        let tree = Tree::new(&[
            MEMINFO,
            (
                "/proc/self/limits",
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max data size             500000               unlimited            bytes\n\
                 Max address space         400000               unlimited            bytes\n",
            ),
            ("/proc/self/status", "Name: x\nVmSize:     100 kB\nVmData:     400 kB\n"),
        ]);
        assert_eq!(tree.tightest(), (500_000, 90_400, "RLIMIT_DATA".into()));
        let all = limits(&tree.0);
        assert!(all.iter().any(|l| l.source == "RLIMIT_AS" && l.available == 297_600));
    }

    #[test]
    fn garbage_fences_nothing() {
        let tree = Tree::new(&[
            MEMINFO,
            ("/proc/self/mountinfo", "\0\nnonsense - \n1 2 3 - cgroup\n - cgroup2 x y\n"),
            ("/proc/self/cgroup", "::::\n0\nmemory\n"),
            ("/proc/self/limits", "Max address space   unlimited unlimited bytes\nMax data size\n"),
            ("/proc/self/status", "VmSize: many kB\n"),
            ("/sys/fs/cgroup/memory.max", "-5\n"),
        ]);
        assert_eq!(tree.tightest().2, "physical memory");
    }

    #[test]
    fn this_machine_has_a_limit() {
        if cfg!(target_os = "linux") {
            let found = limits(Path::new("/"));
            let found = tightest(&found).unwrap();
            assert!(found.available > 0);
            assert!(found.available <= found.limit);
        }
    }
}
