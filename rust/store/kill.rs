//! Named places where a test build kills itself. Release builds contain none of this.

/// Ends the process with SIGKILL when `ENTK_KILLPOINT=name:n` names this place for the n-th time;
/// panics there for `ENTK_KILLPOINT=name:n:panic`.
///
/// # Panics
/// When told to.
#[cfg(feature = "fault")]
pub fn point(name: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static SEEN: AtomicU64 = AtomicU64::new(0);
    let Ok(wanted) = std::env::var("ENTK_KILLPOINT") else { return };
    let mut words = wanted.split(':');
    if words.next() != Some(name) {
        return;
    }
    let seen = SEEN.fetch_add(1, Ordering::SeqCst) + 1;
    if words.next().and_then(|count| count.parse().ok()) == Some(seen) {
        assert!(words.next() != Some("panic"), "a panic at {name}");
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Nothing: only builds with the feature `fault` have kill points.
#[cfg(not(feature = "fault"))]
pub const fn point(_name: &str) {}
