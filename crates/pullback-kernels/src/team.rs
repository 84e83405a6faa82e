//! Threads that stand by for many short pieces of parallel work.
//!
//! To make a token, a small model runs some two hundred products of ten to fifty microseconds each. A pool that puts
//! its threads to sleep between them, and wakes them for each, loses as much time again. Within [`standing_by`] the
//! other threads of the pool look at one number until there is work, so that work starts on all of them within a
//! fraction of a microsecond.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

/// No work is open.
const NONE: usize = 0;
/// No more work will come.
const OVER: usize = usize::MAX;
/// Looks at the number before a thread lets others have its core.
const LOOKS: usize = 2000;

thread_local! {
    /// The team whose work this thread gives out.
    static LED: Cell<*const Team> = const { Cell::new(ptr::null()) };
    /// Whether this thread leads or serves a team; such a thread never begins to serve (another) one, which could wait
    /// for the one it is in.
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

/// Work in numbered tasks.
#[derive(Clone, Copy)]
struct Job {
    work: &'static (dyn Fn(usize) + Sync),
    tasks: usize,
}

/// One leader, and the threads that stand by.
struct Team {
    /// The number of the job that is open, from 1 on; or [`NONE`], or [`OVER`].
    open: AtomicUsize,
    /// Threads that look at the job or work on it.
    inside: AtomicUsize,
    /// The next task of the job.
    next: AtomicUsize,
    /// Written by the leader alone, while no job is open and no thread inside.
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Jobs so far; the leader's.
    count: AtomicUsize,
}

// SAFETY: `job` is written only while no other thread reads it: see `Team::run` and `Team::serve`.
unsafe impl Sync for Team {}

impl Team {
    /// Works on the tasks of the open job until none is left.
    fn work(&self, job: Job) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= job.tasks {
                    return;
                }
                (job.work)(task);
            }
        }));
        if let Err(panic) = outcome {
            self.next.store(job.tasks, Ordering::Relaxed);
            let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert(panic);
        }
    }

    /// Runs a job on all threads; the leader calls it.
    fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        // SAFETY: the reference is used by threads inside only, and none is when this function returns.
        let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        let job = Job { work, tasks };
        let number = self.count.load(Ordering::Relaxed) + 1;
        self.count.store(number, Ordering::Relaxed);
        self.next.store(0, Ordering::Relaxed);
        // SAFETY: no job is open and no thread inside, so nobody reads.
        unsafe { *self.job.get() = Some(job) };
        self.open.store(number, Ordering::SeqCst);
        self.work(job);
        // A thread that enters from now on finds nothing open; one that entered before is waited for. All in one order
        // (sequential consistency), so that it cannot be overlooked and see the job as well.
        self.open.store(NONE, Ordering::SeqCst);
        let mut patience = Patience::default();
        while self.inside.load(Ordering::SeqCst) != 0 {
            patience.wait();
        }
        let panic = self
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Stands by until the leader is done.
    fn serve(&self) {
        if TAKEN.replace(true) {
            return;
        }
        let (mut served, mut patience) = (NONE, Patience::default());
        loop {
            let open = self.open.load(Ordering::Acquire);
            if open == OVER {
                break;
            }
            if open == NONE || open == served {
                patience.wait();
                continue;
            }
            self.inside.fetch_add(1, Ordering::SeqCst);
            let open = self.open.load(Ordering::SeqCst);
            if open != NONE && open != OVER {
                // SAFETY: the job is open and this thread inside, so the leader does not write.
                if let Some(job) = unsafe { *self.job.get() } {
                    self.work(job);
                }
                served = open;
            }
            self.inside.fetch_sub(1, Ordering::SeqCst);
            patience = Patience::default();
        }
        TAKEN.set(false);
    }
}

/// Waiting in small steps; after many of them, others may have the core.
#[derive(Default)]
struct Patience {
    looks: usize,
}

impl Patience {
    fn wait(&mut self) {
        if self.looks < LOOKS {
            self.looks += 1;
            spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

/// Runs `body` on one of the threads that share the work, while the others stand by for the parallel parts of the
/// kernels for few rows. For the time of `body` they keep their cores busy; use it for what takes milliseconds.
pub fn standing_by<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    struct Lead<'a>(&'a Team);
    impl Drop for Lead<'_> {
        fn drop(&mut self) {
            LED.set(ptr::null());
            TAKEN.set(false);
            self.0.open.store(OVER, Ordering::SeqCst);
        }
    }

    let others = rayon::current_num_threads() - 1;
    let team = Team {
        open: AtomicUsize::new(NONE),
        inside: AtomicUsize::new(0),
        next: AtomicUsize::new(0),
        job: UnsafeCell::new(None),
        panic: Mutex::new(None),
        count: AtomicUsize::new(0),
    };
    rayon::scope(|scope| {
        if others == 0 || TAKEN.replace(true) {
            return body();
        }
        let _lead = Lead(&team);
        LED.set(&raw const team);
        let team = &team;
        for _ in 0..others {
            scope.spawn(|_| team.serve());
        }
        body()
    })
}

/// Runs `work` for `0..tasks` on all threads: those standing by, or else those of the pool.
pub(crate) fn share(tasks: usize, work: impl Fn(usize) + Sync) {
    struct Restore(*const Team);
    impl Drop for Restore {
        fn drop(&mut self) {
            LED.set(self.0);
        }
    }

    // Work within this work goes to the pool.
    let led = LED.replace(ptr::null());
    if led.is_null() {
        (0..tasks).into_par_iter().for_each(&work);
        return;
    }
    let _restore = Restore(led);
    // SAFETY: the team outlives the time in which its leader's `LED` points to it.
    unsafe { &*led }.run(tasks, &work);
}

/// The same for chunks of a slice, each with its number.
pub(crate) fn share_chunks<T: Send>(
    out: &mut [T],
    chunk: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    struct Start<T>(*mut T);
    // SAFETY: each task makes a slice of its own part.
    unsafe impl<T: Send> Sync for Start<T> {}
    impl<T> Start<T> {
        fn at(&self, offset: usize) -> *mut T {
            self.0.wrapping_add(offset)
        }
    }

    let len = out.len();
    let start = Start(out.as_mut_ptr());
    share(len.div_ceil(chunk), |task| {
        let first = task * chunk;
        // SAFETY: the parts of different tasks do not overlap, and `out` is borrowed for the whole call.
        let part =
            unsafe { std::slice::from_raw_parts_mut(start.at(first), chunk.min(len - first)) };
        work(task, part);
    });
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{share, share_chunks, standing_by};

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads can be started")
    }

    #[test]
    fn every_task_runs_once_in_each_of_many_jobs() {
        for threads in [1, 2, 5] {
            pool(threads).install(|| {
                standing_by(|| {
                    for job in 0..2000_usize {
                        let mut out = vec![0_usize; job % 37];
                        share_chunks(&mut out, 3, |task, part| {
                            for (i, x) in part.iter_mut().enumerate() {
                                *x += job + 3 * task + i;
                            }
                        });
                        assert!(out.iter().enumerate().all(|(i, &x)| x == job + i));
                    }
                });
            });
        }
    }

    #[test]
    fn teams_within_teams_and_beside_each_other_end() {
        let total = AtomicUsize::new(0);
        let count = || share(7, |_| _ = total.fetch_add(1, Ordering::Relaxed));
        pool(3).install(|| {
            rayon::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|_| {
                        standing_by(|| {
                            for _ in 0..20 {
                                count();
                                // Work of the pool, and a team, within a task of a team.
                                share(3, |_| share(2, |_| standing_by(count)));
                            }
                        });
                    });
                }
            });
        });
        assert_eq!(total.into_inner(), 8 * 20 * (7 + 3 * 2 * 7));
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_team_goes_on() {
        pool(4).install(|| {
            standing_by(|| {
                for _ in 0..50 {
                    let failed = catch_unwind(AssertUnwindSafe(|| {
                        share(20, |task| assert!(task != 11, "task 11"));
                    }));
                    assert!(failed.is_err());
                    let done = AtomicUsize::new(0);
                    share(20, |_| _ = done.fetch_add(1, Ordering::Relaxed));
                    assert_eq!(done.into_inner(), 20);
                }
            });
            let outer = catch_unwind(AssertUnwindSafe(|| standing_by(|| panic!("the body"))));
            assert!(outer.is_err());
        });
    }
}
