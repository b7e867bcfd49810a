//! Workers: threads that live as long as one phase of one call.
//!
//! Nothing outlives a call, so there is no pool to lose in a forked child, nothing starts at import, and nothing is left at exit.
//! Starting a thread costs some 20 microseconds; a phase is milliseconds to minutes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::kernel::FloatState;

/// Give every task to one of the workers, in order, until all are done or `cancel` is set.
///
/// Which worker gets a task changes no bits. A single worker runs on the calling thread.
///
/// # Panics
/// If a task panics, after the other workers have stopped.
pub fn run<W: Send, T: Send>(
    workers: &mut [W],
    tasks: Vec<T>,
    cancel: &AtomicBool,
    work: impl Fn(&mut W, T) + Sync,
) {
    let count = workers.len().min(tasks.len());
    let queue = Mutex::new(tasks.into_iter());
    let drain = |worker: &mut W| {
        let _state = FloatState::standard();
        while !cancel.load(Ordering::Relaxed) {
            let task = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some(task) = task else { return };
            work(worker, task);
        }
    };
    let Some((first, others)) = workers[..count].split_first_mut() else { return };
    if others.is_empty() {
        return drain(first);
    }
    thread::scope(|scope| {
        for worker in others {
            scope.spawn(|| drain(worker));
        }
        drain(first);
    });
}
