//! One thread owns the engine; a bounded queue stands before it.
//!
//! A job is answered through a channel. The receiver's end is the client: when it is dropped, the job is dropped from the
//! queue, or ends before its next token. The channel has no bound of its own: a job sends at most as many events as the
//! context has tokens, and a client that reads slowly must not hold up the engine for the others.

use super::metrics::Metrics;
use crate::error::{Error, Kind};
use crate::session::{Answer, GenerateOptions, Generation, LabelScore, Piece, Session, TokenLogprobs};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
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
    Failed(Error),
    /// The server stopped before the job was done.
    BrokenOff,
}

/// Work with somebody who waits for it.
pub(super) struct Job {
    work: Work,
    /// Whose cache it may see; 0 is everybody's where no keys are asked for.
    owner: u64,
    /// What it is computed with beside the model.
    adapter: Option<usize>,
    asked: Instant,
    reply: UnboundedSender<Event>,
}

impl Job {
    pub fn new(work: Work, owner: u64, reply: UnboundedSender<Event>) -> Self {
        Self { work, owner, adapter: None, asked: Instant::now(), reply }
    }

    /// The same under an adapter of the session, by its number.
    pub fn under(self, adapter: Option<usize>) -> Self {
        Self { adapter, ..self }
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
        waiting.jobs.retain(|job| !job.reply.is_closed()); // who left makes room
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

    /// The next job that somebody still waits for; `None` once the queue is closed and empty.
    fn pop(&self) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            match waiting.jobs.pop_front() {
                Some(job) if job.reply.is_closed() => {}
                Some(job) => return Some(job),
                None if waiting.closed => return None,
                None => waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            }
        }
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

/// Does jobs until the queue is closed and empty.
pub(super) fn work(session: &mut Session, queue: &Queue, metrics: &Metrics) {
    while let Some(job) = queue.pop() {
        metrics.queued.observe(job.asked.elapsed());
        let _running = metrics.run();
        // A bug in one request must not take the others with it; the half-done sequence is forgotten.
        let outcome = catch_unwind(AssertUnwindSafe(|| answer(session, &job, queue, metrics)));
        let event = outcome.unwrap_or_else(|_| {
            session.reset();
            Event::Failed(Error::new(Kind::Shape, "engine", "it failed on this request; please report this as a bug"))
        });
        let _ = job.reply.send(event); // the client may have left
    }
}

fn answer(session: &mut Session, job: &Job, queue: &Queue, metrics: &Metrics) -> Event {
    let gone = || job.reply.is_closed() || queue.cancelled.load(Ordering::Relaxed);
    if let Err(e) = session.use_adapter(job.adapter) {
        return Event::Failed(e);
    }
    match &job.work {
        Work::Generate { prompt, options, n } => {
            session.take_slot(job.owner, prompt);
            let mut index = 0;
            loop {
                let generation = match generate(session, prompt, options, index, job, &gone, metrics) {
                    Ok(generation) => generation,
                    Err(e) => return Event::Failed(e),
                };
                metrics.generated(&generation);
                let event = Event::Generated { index, generation };
                index += 1;
                if index == *n || gone() {
                    return event;
                }
                let _ = job.reply.send(event);
            }
        }
        Work::Classify { inputs } => each(inputs, gone, |ids| session.classify(ids), metrics, Event::Classified),
        Work::Embed { inputs } => each(inputs, gone, |ids| session.embed(ids), metrics, Event::Embedded),
        Work::Answer { question, context } => {
            session.answer(question, context).map_or_else(Event::Failed, Event::Answered)
        }
    }
}

/// Choice `index` of an answer, token by token.
fn generate(
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    index: usize,
    job: &Job,
    gone: &impl Fn() -> bool,
    metrics: &Metrics,
) -> Result<Generation, Error> {
    let mut options = options.clone();
    options.sampling.seed = options.sampling.seed.wrapping_add(index as u64);
    let mut last: Option<Instant> = None;
    let mut on_piece = |piece: &Piece| {
        if piece.token.is_some() {
            let now = Instant::now();
            match last.replace(now) {
                Some(before) => metrics.inter_token.observe(now - before),
                None if index == 0 => metrics.first_token.observe(now - job.asked),
                None => {}
            }
        }
        if piece.token.is_some() || !piece.text.is_empty() {
            let (text, logprobs) = (piece.text.to_owned(), piece.logprobs.clone());
            let _ = job.reply.send(Event::Piece { index, token: piece.token, text, logprobs });
        }
        if gone() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    session.generate(prompt, &options, &mut on_piece)
}

/// One text after another, as long as somebody waits.
fn each<T>(
    inputs: &[Vec<u32>],
    gone: impl Fn() -> bool,
    mut one: impl FnMut(&[u32]) -> Result<T, Error>,
    metrics: &Metrics,
    event: impl Fn(Vec<T>) -> Event,
) -> Event {
    let mut all = Vec::with_capacity(inputs.len());
    for ids in inputs {
        if gone() {
            return Event::BrokenOff;
        }
        match one(ids) {
            Ok(found) => all.push(found),
            Err(e) => return Event::Failed(e),
        }
        metrics.read(ids.len());
    }
    event(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn job(question: &str) -> (Job, UnboundedReceiver<Event>) {
        let (reply, client) = unbounded_channel();
        (Job::new(Work::Answer { question: question.into(), context: String::new() }, 0, reply), client)
    }

    fn asked(job: Option<Job>) -> Option<String> {
        job.map(|job| match job.work {
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
        assert_eq!(asked(queue.pop()).as_deref(), Some("a"));
        assert_eq!(asked(queue.pop()).as_deref(), Some("d"));
    }

    #[test]
    fn a_closed_queue_is_emptied_and_takes_nothing_more() {
        let queue = Queue::new(2);
        let ((a, _a), (b, _b)) = (job("a"), job("b"));
        queue.push(a).unwrap();
        queue.close();
        assert_eq!(queue.push(b), Err(Refused::Closed));
        assert_eq!(asked(queue.pop()).as_deref(), Some("a"));
        assert!(queue.pop().is_none());
    }

    #[test]
    fn jobs_nobody_waits_for_are_never_begun() {
        let queue = Queue::new(2);
        let ((a, a_client), (b, _b)) = (job("a"), job("b"));
        queue.push(a).unwrap();
        queue.push(b).unwrap();
        drop(a_client);
        assert_eq!(asked(queue.pop()).as_deref(), Some("b"));
    }
}
