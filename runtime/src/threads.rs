//! A small pool: as many workers as the process may really use. They spin for some microseconds between steps and then
//! sleep, so that a busy machine does not collapse.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// Turns of the spinning wait, some microseconds: the gap between two matrices of one token.
const SPINS: usize = 2_000;

/// Runs one closure over chunk numbers, on the caller and its workers.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<std::thread::JoinHandle<()>>,
    /// One job at a time.
    turn: Mutex<()>,
}

#[derive(Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    chunks: usize,
}

// SAFETY: the closure behind the pointer is Sync, and `Pool::run` does not return before every worker has left it.
unsafe impl Send for Job {}

struct Shared {
    /// Number of jobs begun; a worker that sees it grow takes part.
    epoch: AtomicUsize,
    job: Mutex<Option<Job>>,
    /// Next chunk to take.
    next: AtomicUsize,
    /// Workers that hold the current job.
    busy: AtomicUsize,
    wake: Condvar,
    sleepers: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

impl Pool {
    /// A pool of `threads`, the caller included; 1 has no workers and runs everything inline.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: Mutex::new(None),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            wake: Condvar::new(),
            sleepers: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let workers = (1..threads.max(1))
            .map(|i| {
                let shared = shared.clone();
                std::thread::Builder::new().name(format!("edgeft-{i}")).spawn(move || shared.work())
            })
            .collect::<std::io::Result<_>>()?;
        Ok(Self { shared, workers, turn: Mutex::new(()) })
    }

    /// Threads that compute, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(0)`, `f(1)`, … `f(chunks - 1)`, in any order, on all threads; returns when all are done.
    ///
    /// # Panics
    /// When `f` does.
    pub fn run(&self, chunks: usize, f: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || chunks <= 1 {
            (0..chunks).for_each(f);
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(|e| e.into_inner());
        let s = &*self.shared;
        // SAFETY: only the lifetime is erased; the wait below keeps `f` alive until no worker can touch it again.
        let run: *const (dyn Fn(usize) + Sync + 'static) =
            unsafe { std::mem::transmute(f as *const (dyn Fn(usize) + Sync)) };
        s.next.store(0, Ordering::Relaxed);
        {
            let mut job = s.job.lock().unwrap_or_else(|e| e.into_inner());
            *job = Some(Job { run, chunks });
            s.epoch.fetch_add(1, Ordering::Release);
            if s.sleepers.load(Ordering::Relaxed) > 0 {
                s.wake.notify_all();
            }
        }
        // Caught, so that the wait below happens whatever `f` does.
        let own = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| s.take(chunks, f)));
        // A worker that the system has not let run yet is not waited for: it finds no job any more.
        *s.job.lock().unwrap_or_else(|e| e.into_inner()) = None;
        let mut spins = 0;
        while s.busy.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(!s.panicked.swap(false, Ordering::Relaxed), "a worker thread panicked");
    }

    /// Calls `f(i, chunk)` for each chunk of `len` elements of `out` (the last may be shorter), on all threads.
    ///
    /// # Panics
    /// When `len` is 0, or `f` does.
    pub fn run_chunks<T: Send>(&self, out: &mut [T], len: usize, f: &(dyn Fn(usize, &mut [T]) + Sync)) {
        let (n, whole) = (out.len().div_ceil(len), out.len());
        let start = Start(out.as_mut_ptr());
        self.run(n, &|i| {
            let from = i * len;
            // SAFETY: the chunks are disjoint parts of `out`, which is borrowed until `run` returns, and each `i` runs once.
            let chunk = unsafe { std::slice::from_raw_parts_mut(start.at(from), len.min(whole - from)) };
            f(i, chunk);
        });
    }
}

/// Where a slice begins, for threads that take disjoint parts of it.
struct Start<T>(*mut T);

// SAFETY: only `run_chunks` uses it, and hands each part to one thread.
unsafe impl<T: Send> Sync for Start<T> {}

impl<T> Start<T> {
    /// The element `i`, which must lie in the slice.
    unsafe fn at(&self, i: usize) -> *mut T {
        // SAFETY: by the caller's promise.
        unsafe { self.0.add(i) }
    }
}

impl Shared {
    fn take(&self, chunks: usize, f: &(dyn Fn(usize) + Sync)) {
        loop {
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks {
                return;
            }
            f(chunk);
        }
    }

    fn work(&self) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            while self.epoch.load(Ordering::Acquire) == seen && spins < SPINS {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                spins += 1;
                std::hint::spin_loop();
            }
            let job = {
                let mut job = self.job.lock().unwrap_or_else(|e| e.into_inner());
                while self.epoch.load(Ordering::Acquire) == seen {
                    if self.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    self.sleepers.fetch_add(1, Ordering::Relaxed);
                    job = self.wake.wait(job).unwrap_or_else(|e| e.into_inner());
                    self.sleepers.fetch_sub(1, Ordering::Relaxed);
                }
                seen = self.epoch.load(Ordering::Acquire);
                if job.is_some() {
                    self.busy.fetch_add(1, Ordering::Relaxed); // under the lock: `run` takes the job away, then looks here
                }
                *job
            };
            if let Some(Job { run, chunks }) = job {
                // SAFETY: this worker counted itself in while the job was there, and counts itself out last; `run` takes the
                // job away and then waits until `busy` is zero before the closure dies.
                let f = unsafe { &*run };
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.take(chunks, f))).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
                self.busy.fetch_sub(1, Ordering::Release);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _job = self.shared.job.lock().unwrap_or_else(|e| e.into_inner());
            self.shared.stop.store(true, Ordering::Relaxed);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // a panic in it was already told by `run`
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_chunk_runs_once_over_many_jobs() {
        for threads in [1, 2, 4] {
            let pool = Pool::new(threads).unwrap();
            for n in [0usize, 1, 2, 7, 100] {
                for _ in 0..50 {
                    let hits: Vec<AtomicU64> = (0..n).map(|_| AtomicU64::new(0)).collect();
                    pool.run(n, &|i| {
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn chunks_cover_a_slice_once() {
        let pool = Pool::new(3).unwrap();
        for n in [0usize, 1, 9, 10, 11] {
            let mut out = vec![0; n];
            pool.run_chunks(&mut out, 5, &|i, chunk| chunk.iter_mut().enumerate().for_each(|(j, x)| *x += i * 5 + j));
            assert_eq!(out, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_panic_in_a_chunk_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(8, &|i| assert!(i != 5, "chunk five"));
        }));
        assert!(caught.is_err());
        let sum = AtomicU64::new(0);
        pool.run(8, &|i| {
            sum.fetch_add(i as u64, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 28);
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = Pool::new(2).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));
        let count = AtomicU64::new(0);
        pool.run(4, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 4);
    }
}
