//! Workers that live as long as one call of many short phases.
//!
//! [`pool`](crate::pool) starts threads for each phase. Starting one costs microseconds, but some systems let it wait for milliseconds
//! behind its parent before it gets a core of its own, which phases of a millisecond notice. Here threads start once and wait for phases.
//!
//! **Unsafe.** One site: the work of a phase is lent to threads that outlive it. [`Team::run`] comes back only when all are done with it.

use core::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::kernel::FloatState;

/// Looks at the state before a waiting thread sleeps: some tens of microseconds.
const LOOKS: usize = 4096;

type Work = &'static (dyn Fn(usize) + Sync);

#[derive(Default)]
struct State {
    work: Option<Work>,
    leave: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    phase: AtomicUsize,
    busy: AtomicUsize,
    broken: AtomicBool,
    start: Condvar,
    end: Condvar,
}

/// Workers, the calling thread among them.
pub struct Team<'t> {
    shared: &'t Shared,
    others: usize,
}

/// Lends threads to `call` while it runs.
pub fn with<R>(threads: usize, call: impl FnOnce(&Team<'_>) -> R) -> R {
    let (shared, others) = (Shared::default(), threads.saturating_sub(1));
    thread::scope(|scope| {
        for index in 1..=others {
            let shared = &shared;
            scope.spawn(move || shared.serve(index));
        }
        let _dismissed = Dismissal(&shared);
        let _state = FloatState::standard();
        call(&Team { shared: &shared, others })
    })
}

/// Sends the threads home, also when the call panics.
struct Dismissal<'t>(&'t Shared);

impl Drop for Dismissal<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.leave = true;
        self.0.phase.fetch_add(1, Ordering::Release);
        self.0.start.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, index: usize) {
        let _state = FloatState::standard();
        for seen in 0.. {
            self.wait(&self.start, || self.phase.load(Ordering::Acquire) != seen);
            let work = {
                let state = self.lock();
                if state.leave { None } else { state.work }
            };
            let Some(work) = work else { return };
            if catch_unwind(AssertUnwindSafe(|| work(index))).is_err() {
                self.broken.store(true, Ordering::Relaxed);
            }
            if self.busy.fetch_sub(1, Ordering::AcqRel) == 1 {
                // Under the lock, so that nobody goes to sleep between a look and this.
                let _state = self.lock();
                self.end.notify_all();
            }
        }
    }

    fn wait(&self, signal: &Condvar, ready: impl Fn() -> bool) {
        for _ in 0..LOOKS {
            if ready() {
                return;
            }
            spin_loop();
        }
        let mut state = self.lock();
        while !ready() {
            state = signal.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Team<'_> {
    /// Give every task to one of the workers, in order, until all are done or `cancel` is set.
    ///
    /// Which worker gets a task changes no bits.
    ///
    /// # Panics
    /// If a task panics, after the other workers have stopped.
    pub fn run<W: Send, T: Send>(
        &self,
        workers: &mut [W],
        tasks: Vec<T>,
        cancel: &AtomicBool,
        work: impl Fn(&mut W, T) + Sync,
    ) {
        let alone = self.others == 0 || tasks.len() < 2 || workers.len() < 2;
        let queue = Mutex::new(tasks.into_iter());
        let workers: Vec<Mutex<&mut W>> = workers.iter_mut().map(Mutex::new).collect();
        let drain = |index: usize| {
            let Some(worker) = workers.get(index) else { return };
            let mut worker = worker.lock().unwrap_or_else(PoisonError::into_inner);
            while !cancel.load(Ordering::Relaxed) {
                let task = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(task) = task else { return };
                work(&mut worker, task);
            }
        };
        if alone { drain(0) } else { self.lend(&drain) }
    }

    fn lend(&self, work: &(dyn Fn(usize) + Sync)) {
        let shared = self.shared;
        // SAFETY: only the lifetime changes, and this function comes back, or unwinds, after every thread has finished with `work`.
        let lent = unsafe { core::mem::transmute::<&(dyn Fn(usize) + Sync), Work>(work) };
        shared.busy.store(self.others, Ordering::Relaxed);
        {
            let mut state = shared.lock();
            state.work = Some(lent);
            shared.phase.fetch_add(1, Ordering::Release);
        }
        shared.start.notify_all();
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        shared.wait(&shared.end, || shared.busy.load(Ordering::Acquire) == 0);
        shared.lock().work = None;
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!shared.broken.load(Ordering::Relaxed), "a worker panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_of_every_phase_is_done_once() {
        with(3, |team| {
            let mut total = [0_usize; 3];
            for phase in 0..100 {
                let tasks: Vec<usize> = (0..phase).collect();
                team.run(&mut total, tasks, &AtomicBool::new(false), |sum, task| *sum += task + 1);
            }
            assert_eq!(
                total.iter().sum::<usize>(),
                (0..100).map(|n| n * (n + 1) / 2).sum::<usize>()
            );
        });
    }

    #[test]
    fn a_panic_of_a_task_comes_back_and_all_threads_go_home() {
        let tried = catch_unwind(|| {
            with(3, |team| {
                let tasks: Vec<usize> = (0..64).collect();
                team.run(&mut [(); 3], tasks, &AtomicBool::new(false), |(), task| {
                    assert!(task != 40, "a task");
                });
            });
        });
        assert!(tried.is_err());
    }

    #[test]
    fn nothing_is_begun_after_a_cancellation() {
        with(2, |team| {
            let mut done = [0, 0];
            team.run(&mut done, vec![1; 9], &AtomicBool::new(true), |sum, one| *sum += one);
            assert_eq!(done, [0, 0]);
        });
    }
}
