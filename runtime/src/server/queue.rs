//! What the engine is asked, what it answers, and the bounded queue before it.
//!
//! A job is answered through a channel. The receiver's end is the client: when it is dropped, the job is dropped from the
//! queue, or ends before its next token. The channel has no bound of its own: a job sends at most as many events as the
//! context has tokens, and a client that reads slowly must not hold up the engine for the others.

use super::names::Target;
use super::wire::ApiError;
use crate::session::{Answer, GenerateOptions, Generation, LabelScore, TokenLogprobs};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// What the engine is asked.
pub(super) enum Work {
    /// Continue a prompt `n` times; each answered by [`Event::Piece`]s, then [`Event::Generated`].
    Generate { prompt: Vec<u32>, options: GenerateOptions, n: usize },
    /// Label texts; answered by [`Event::Classified`].
    Classify { inputs: Vec<Vec<u32>> },
    /// Vectors of texts; answered by [`Event::Embedded`].
    Embed { inputs: Vec<Vec<u32>> },
    /// Answer a question; answered by [`Event::Answered`].
    Answer { question: String, context: String },
}

/// What a job gives.
pub(super) enum Event {
    /// A token, its text as far as it is whole.
    Piece {
        index: usize,
        token: Option<u32>,
        text: String,
        logprobs: Option<TokenLogprobs>,
    },
    Generated {
        index: usize,
        generation: Generation,
    },
    Classified(Vec<Vec<LabelScore>>),
    Embedded(Vec<Vec<f32>>),
    Answered(Answer),
    Failed(ApiError),
}

/// Work with somebody who waits for it.
pub(super) struct Job {
    pub work: Work,
    /// Whose cache it may see; 0 is everybody's where no keys are asked for.
    pub owner: u64,
    /// What it is computed with.
    pub target: Target,
    pub asked: Instant,
    pub reply: UnboundedSender<Event>,
}

impl Job {
    pub fn new(work: Work, owner: u64, reply: UnboundedSender<Event>) -> Self {
        Self { work, owner, target: Target::default(), asked: Instant::now(), reply }
    }

    /// The same for another model, or under an adapter of one.
    pub fn to(self, target: Target) -> Self {
        Self { target, ..self }
    }
}

/// Why a job was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// So many jobs wait already.
    Full(usize),
    Closed,
}

/// Jobs that wait.
pub(super) struct Queue {
    jobs: Mutex<Waiting>,
    changed: Condvar,
    capacity: usize,
    /// Ends the running job before its next token.
    cancelled: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Waiting {
    /// Drops what nobody waits for any more.
    fn let_go(&mut self) {
        self.jobs.retain(|job| !job.reply.is_closed());
    }
}

impl Queue {
    pub fn new(capacity: usize) -> Self {
        let cancelled = AtomicBool::new(false);
        Self { jobs: Mutex::default(), changed: Condvar::new(), capacity, cancelled }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job, or refuses it at once.
    pub fn push(&self, job: Job) -> Result<(), Refused> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(Refused::Closed);
        }
        waiting.let_go(); // who left makes room
        if waiting.jobs.len() >= self.capacity {
            return Err(Refused::Full(waiting.jobs.len()));
        }
        waiting.jobs.push_back(job);
        self.changed.notify_one();
        Ok(())
    }

    /// Jobs that wait; the engine's thread never holds this lock while it computes.
    pub fn waiting(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Waits until there is a job that somebody waits for; `false` once the queue is closed and empty.
    pub fn wait(&self) -> bool {
        let mut waiting = self.lock();
        loop {
            waiting.let_go();
            if !waiting.jobs.is_empty() {
                return true;
            }
            if waiting.closed {
                return false;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The first job for `model`. None behind a job for a model that is not `here` is taken, so that those who ask for models
    /// that are loaded cannot hold up for ever who asks for another.
    pub fn take(&self, model: usize, here: impl Fn(usize) -> bool) -> Option<Job> {
        let mut waiting = self.lock();
        waiting.let_go();
        let at = waiting.jobs.iter().position(|job| job.target.model == model || !here(job.target.model))?;
        if waiting.jobs[at].target.model == model { waiting.jobs.remove(at) } else { None }
    }

    /// The model that the first job asks for whose model is not `here`.
    pub fn missing(&self, here: impl Fn(usize) -> bool) -> Option<usize> {
        let mut waiting = self.lock();
        waiting.let_go();
        waiting.jobs.iter().map(|job| job.target.model).find(|model| !here(*model))
    }

    /// Tells those who have waited longer than `most` that it took too long.
    pub fn expire(&self, most: Duration) {
        self.lock().jobs.retain(|job| {
            let over = job.asked.elapsed() > most;
            if over {
                let _ = job.reply.send(Event::Failed(ApiError::too_late(most))); // the client may have left
            }
            !over
        });
    }

    /// Whether what runs is to end before its next token.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Takes no more jobs; those that wait are still done.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Drops what waits, and ends what runs before its next token.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.lock().jobs.clear();
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn job(question: &str) -> (Job, UnboundedReceiver<Event>) {
        let (reply, client) = unbounded_channel();
        (Job::new(Work::Answer { question: question.into(), context: String::new() }, 0, reply), client)
    }

    /// What the next job for the first model asks, when all models are here.
    fn asked(queue: &Queue) -> Option<String> {
        queue.take(0, |_| true).map(|job| match job.work {
            Work::Answer { question, .. } => question,
            _ => unreachable!(),
        })
    }

    #[test]
    fn a_full_queue_refuses_and_a_client_that_left_makes_room() {
        let queue = Queue::new(2);
        let ((a, _a), (b, b_client), (c, _c), (d, _d)) = (job("a"), job("b"), job("c"), job("d"));
        queue.push(a).unwrap();
        queue.push(b).unwrap();
        assert_eq!(queue.push(c), Err(Refused::Full(2)));
        drop(b_client);
        queue.push(d).unwrap();
        assert_eq!(asked(&queue).as_deref(), Some("a"));
        assert_eq!(asked(&queue).as_deref(), Some("d"));
    }

    #[test]
    fn who_waits_too_long_is_told() {
        let queue = Queue::new(2);
        let (a, mut client) = job("a");
        queue.push(a).unwrap();
        queue.expire(Duration::from_secs(60));
        assert!(client.try_recv().is_err() && queue.waiting() == 1);
        queue.expire(Duration::ZERO);
        assert!(matches!(client.try_recv(), Ok(Event::Failed(e)) if e.code == Some("deadline_exceeded")));
        assert!(asked(&queue).is_none());
    }

    #[test]
    fn a_closed_queue_is_emptied_and_takes_nothing_more() {
        let queue = Queue::new(2);
        let ((a, _a), (b, _b)) = (job("a"), job("b"));
        queue.push(a).unwrap();
        queue.close();
        assert_eq!(queue.push(b), Err(Refused::Closed));
        assert_eq!(asked(&queue).as_deref(), Some("a"));
        assert!(!queue.wait());
    }

    #[test]
    fn jobs_nobody_waits_for_are_never_begun() {
        let queue = Queue::new(2);
        let ((a, a_client), (b, _b)) = (job("a"), job("b"));
        queue.push(a).unwrap();
        queue.push(b).unwrap();
        drop(a_client);
        assert_eq!(asked(&queue).as_deref(), Some("b"));
    }
    #[test]
    fn who_asks_for_a_model_that_is_not_here_is_not_overtaken() {
        let queue = Queue::new(4);
        let ((a, _a), (b, _b), (c, _c)) = (job("a"), job("b"), job("c"));
        let other = Target { model: 1, adapter: None };
        queue.push(a).unwrap();
        queue.push(b.to(other)).unwrap();
        queue.push(c).unwrap();
        let first_alone = |model| model == 0;
        assert_eq!(queue.missing(first_alone), Some(1));
        assert!(queue.take(0, first_alone).is_some() && queue.take(0, first_alone).is_none());
        assert_eq!(queue.missing(|_| true), None);
        assert!(queue.take(1, |_| true).is_some() && asked(&queue).as_deref() == Some("c"));
    }
}
