//! One thread owns the engine and steps all that was taken up together: a token of every answer that goes on, a stretch of
//! every prompt that is not read yet, a text of every list that is labelled or embedded. Between two steps it takes up what
//! waits, lets go of clients that left, and tells those for whom it took too long.

use super::Limits;
use super::metrics::{Metrics, Running};
use super::queue::{Event, Job, Queue, Work};
use super::wire::ApiError;
use crate::engine::Rows;
use crate::error::Error;
use crate::session::batch::{Live, Text, guarded};
use crate::session::{Answer, FinishReason, GenerateOptions, Generation, LabelScore, Piece, Search, Session, unit};
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// Prompt tokens in a step while answers go on beside them: what a token of these waits for at most.
const BESIDE: usize = 64;
/// Prompt tokens in a step, and tokens of texts, when nothing else goes on.
const ALONE: usize = 256;

/// Who waits for an answer.
struct Client<'a> {
    owner: u64,
    adapter: Option<usize>,
    asked: Instant,
    reply: UnboundedSender<Event>,
    _running: Running<'a>,
}

impl Client<'_> {
    fn send(&self, event: Event) {
        let _ = self.reply.send(event); // the client may have left
    }
}

/// One of the answers to a prompt.
struct Choice<'a> {
    client: Rc<Client<'a>>,
    index: usize,
    prompt: Rc<[u32]>,
    options: GenerateOptions,
    /// When the last token came.
    last: Option<Instant>,
    /// Log-probabilities so far, where the answer is a question's.
    written: Option<Vec<f64>>,
}

/// Texts of one client that are read one after another, beside those of others.
struct Texts<'a> {
    client: Rc<Client<'a>>,
    what: Reading,
}

enum Reading {
    Classify { inputs: Vec<Vec<u32>>, done: Vec<Vec<LabelScore>> },
    Embed { inputs: Vec<Vec<u32>>, done: Vec<Vec<f32>> },
    Search(Box<Search>),
}

/// A model that is loaded, and what goes on with it.
pub(super) struct Worker<'a> {
    session: Session,
    queue: &'a Queue,
    metrics: &'a Metrics,
    /// Answers, and lists of texts, that go on at a time.
    parallel: usize,
    /// Whether a prompt that is read once serves all answers to it.
    copies: bool,
    /// How long a request may take.
    most: Duration,
    /// Taken up, but without a sequence yet: further answers to a prompt.
    waiting: VecDeque<Choice<'a>>,
    live: Vec<(Live, Choice<'a>)>,
    texts: Vec<Texts<'a>>,
}

impl<'a> Worker<'a> {
    pub fn new(mut session: Session, queue: &'a Queue, metrics: &'a Metrics, limits: &Limits) -> Self {
        let (parallel, copies) = (limits.parallel.clamp(1, session.n_seqs()), session.copies());
        let (waiting, live, texts) = (VecDeque::new(), Vec::new(), Vec::new());
        Self { session, queue, metrics, parallel, copies, most: limits.request, waiting, live, texts }
    }

    /// How much goes on.
    pub fn busy(&self) -> usize {
        self.live.len() + self.texts.len()
    }

    /// How much may go on at a time.
    pub fn slots(&self) -> usize {
        self.parallel
    }

    /// Lets go of who left, and takes up what there is room for from `next`.
    pub fn admit(&mut self, mut next: impl FnMut() -> Option<Job>) {
        self.let_go();
        loop {
            while self.has_room() {
                let Some(at) = (0..self.waiting.len()).find(|&i| self.may_begin(&self.waiting[i])) else { break };
                let Some(choice) = self.waiting.remove(at) else { break };
                self.begin(choice);
            }
            // A choice waits only for one that goes on, so that nothing waits here when nothing goes on.
            let Some(job) = self.has_room().then(&mut next).flatten() else { return };
            self.take(job);
        }
    }

    /// One step of all that goes on.
    pub fn step(&mut self) {
        self.write();
        self.read();
    }

    fn has_room(&self) -> bool {
        self.busy() < self.parallel
    }

    /// Ends what nobody waits for any more, or waited for too long.
    fn let_go(&mut self) {
        let (queue, most) = (self.queue, self.most);
        let goes_on = |client: &Client| {
            let late = client.asked.elapsed() > most;
            if late && !client.reply.is_closed() {
                client.send(Event::Failed(ApiError::too_late(most)));
            }
            !late && !client.reply.is_closed() && !queue.is_cancelled()
        };
        self.waiting.retain(|choice| goes_on(&choice.client));
        self.texts.retain(|texts| goes_on(&texts.client));
        for (live, choice) in std::mem::take(&mut self.live) {
            if goes_on(&choice.client) {
                self.live.push((live, choice));
            } else {
                self.metrics.generated(&self.session.end(live));
            }
        }
    }

    fn take(&mut self, job: Job) {
        self.metrics.queued.observe(job.asked.elapsed());
        let Job { work, owner, target, asked, reply } = job;
        let client = Rc::new(Client { owner, adapter: target.adapter, asked, reply, _running: self.metrics.run() });
        let what = match work {
            Work::Generate { prompt, options, n } => {
                let prompt: Rc<[u32]> = prompt.into();
                for index in 0..n {
                    let mut options = options.clone();
                    options.sampling.seed = options.sampling.seed.wrapping_add(index as u64);
                    let (client, prompt) = (client.clone(), prompt.clone());
                    self.waiting.push_back(Choice { client, index, prompt, options, last: None, written: None });
                }
                return;
            }
            Work::Classify { inputs } => Reading::Classify { inputs, done: Vec::new() },
            Work::Embed { inputs } => Reading::Embed { inputs, done: Vec::new() },
            Work::Answer { question, context } if self.session.finds_spans() => {
                match guarded(|| self.session.search(&question, context)) {
                    Ok(search) => Reading::Search(Box::new(search)),
                    Err(e) => return client.send(Event::Failed(e.into())),
                }
            }
            Work::Answer { question, context } => {
                match guarded(|| self.session.question(&question, &context)) {
                    Ok((prompt, options)) => {
                        let (prompt, written) = (prompt.into(), Some(Vec::new()));
                        self.waiting.push_back(Choice { client, index: 0, prompt, options, last: None, written });
                    }
                    Err(e) => client.send(Event::Failed(e.into())),
                }
                return;
            }
        };
        self.texts.push(Texts { client, what });
    }

    /// The first answer to a prompt begins at once; the others once its prompt is read, where that can be copied, or else
    /// once it has ended and left its cache.
    fn may_begin(&self, choice: &Choice) -> bool {
        let mut siblings = self.live.iter().filter(|(_, other)| Rc::ptr_eq(&other.client, &choice.client));
        siblings.all(|(live, _)| self.copies && live.has_begun())
    }

    fn begin(&mut self, choice: Choice<'a>) {
        let Client { owner, adapter, .. } = *choice.client;
        let begun = guarded(|| {
            self.session.use_adapter(adapter)?;
            self.session.begin(owner, &choice.prompt, &choice.options)
        });
        match begun {
            Ok(Some(live)) => self.live.push((live, choice)),
            // Not while fewer go on than there are sequences.
            Ok(None) => choice.client.send(Event::Failed(ApiError::broken_off())),
            Err(e) => choice.client.send(Event::Failed(e.into())),
        }
    }

    /// One step of all answers that go on.
    fn write(&mut self) {
        if self.live.is_empty() {
            return;
        }
        self.metrics.batch.observe(self.live.len());
        let most = if self.live.iter().any(|(live, _)| live.has_begun()) { BESIDE } else { ALONE };
        let (metrics, queue) = (self.metrics, self.queue);
        let mut live = std::mem::take(&mut self.live);
        let outcomes = self.session.advance(&mut live, most, |choice, piece| choice.piece(piece, metrics, queue));
        for ((live, choice), outcome) in live.into_iter().zip(outcomes) {
            match outcome {
                Ok(ControlFlow::Continue(())) => self.live.push((live, choice)),
                Ok(ControlFlow::Break(())) => {
                    let generation = self.session.end(live);
                    self.metrics.generated(&generation);
                    choice.end(generation);
                }
                Err(e) => {
                    let _ = self.session.end(live);
                    choice.client.send(Event::Failed(choice.failed(e)));
                }
            }
        }
    }

    /// A text of each list in turn, then a second of each and so on: as many as have idle sequences and are not too long
    /// together.
    fn read(&mut self) {
        let (idle, room) = (self.session.idle(), ALONE.min(self.session.capacity()));
        let mut tokens = 0;
        let mut next: Vec<(usize, Text)> = Vec::new(); // which list, and its text
        let rounds = (0..idle).flat_map(|round| (0..self.texts.len()).map(move |list| (round, list)));
        for (round, list) in rounds {
            let Texts { client, what } = &self.texts[list];
            let Some(text) = what.text(round, client.adapter) else { continue };
            tokens += text.ids.len();
            if next.len() == idle || (tokens > room && !next.is_empty()) {
                break;
            }
            next.push((list, text));
        }
        if next.is_empty() {
            return;
        }
        self.metrics.batch.observe(next.len());
        let (lists, texts): (Vec<usize>, Vec<Text>) = next.into_iter().unzip();
        let mut rows: Vec<Option<Result<Vec<f32>, Error>>> = texts.iter().map(|_| None).collect();
        self.session.read(&texts, |i, found| rows[i] = Some(found.map(|row| row.to_vec())));
        let mut over = Vec::new();
        for (list, rows) in lists.into_iter().zip(rows) {
            let texts = &mut self.texts[list];
            let Some(rows) = rows.filter(|_| !over.contains(&list)) else { continue };
            let event = match rows.and_then(|rows| guarded(|| texts.what.take(&self.session, self.metrics, rows))) {
                Ok(None) => continue,
                Ok(Some(event)) => event,
                Err(e) => Event::Failed(e.into()),
            };
            texts.client.send(event);
            over.push(list);
        }
        let mut list = 0..;
        self.texts.retain(|_| list.next().is_some_and(|i| !over.contains(&i)));
        // Lists that found no room come first in the next step.
        let last = self.texts.len().min(1);
        self.texts.rotate_left(last);
    }
}

impl Choice<'_> {
    /// A token, or a stretch of the prompt, is done.
    fn piece(&mut self, piece: &Piece, metrics: &Metrics, queue: &Queue) -> ControlFlow<()> {
        let client = &self.client;
        if piece.token.is_some() {
            let now = Instant::now();
            match self.last.replace(now) {
                Some(before) => metrics.inter_token.observe(now - before),
                None if self.index == 0 => metrics.first_token.observe(now - client.asked),
                None => {}
            }
        }
        match &mut self.written {
            Some(logprobs) => logprobs.extend(piece.logprobs.as_ref().map(|l| l.logprob)),
            None if piece.token.is_some() || !piece.text.is_empty() => {
                let (text, logprobs) = (piece.text.to_owned(), piece.logprobs.clone());
                client.send(Event::Piece { index: self.index, token: piece.token, text, logprobs });
            }
            None => {}
        }
        let gone = client.reply.is_closed() || queue.is_cancelled();
        if gone { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// The error that the client gets; what its grammar could not tell is its field's.
    fn failed(&self, e: Error) -> ApiError {
        #[cfg(feature = "constrain")]
        if self.options.grammar.as_ref().is_some_and(|grammar| grammar.place() == e.place()) {
            let param = Some(e.place().to_owned());
            return ApiError { param, ..e.into() };
        }
        e.into()
    }

    fn end(self, generation: Generation) {
        self.client.send(match &self.written {
            Some(_) if generation.finish_reason == FinishReason::Cancelled => Event::Failed(ApiError::broken_off()),
            Some(logprobs) => Event::Answered(Answer::written(&generation, logprobs)),
            None => Event::Generated { index: self.index, generation },
        });
    }
}

impl Reading {
    /// What is to be read next, or after `ahead` others; `None` when nothing is left, or when that is not known yet.
    fn text(&self, ahead: usize, adapter: Option<usize>) -> Option<Text<'_>> {
        let one = |ids| Text { ids, types: None, rows: Rows::Last, adapter };
        match self {
            Self::Classify { inputs, done } => inputs.get(done.len() + ahead).map(|ids| one(ids)),
            Self::Embed { inputs, done } => inputs.get(done.len() + ahead).map(|ids| one(ids)),
            Self::Search(search) if ahead == 0 => {
                Some(Text { ids: search.ids(), types: Some(search.types()), rows: Rows::All, adapter })
            }
            Self::Search(_) => None,
        }
    }

    /// Takes the rows of what was read; gives the answer once nothing is left to read.
    fn take(&mut self, session: &Session, metrics: &Metrics, mut rows: Vec<f32>) -> Result<Option<Event>, Error> {
        match self {
            Self::Classify { inputs, done } => {
                metrics.read(inputs[done.len()].len());
                done.push(session.labelled(&rows));
                Ok((done.len() == inputs.len()).then(|| Event::Classified(std::mem::take(done))))
            }
            Self::Embed { inputs, done } => {
                metrics.read(inputs[done.len()].len());
                unit(&mut rows);
                done.push(rows);
                Ok((done.len() == inputs.len()).then(|| Event::Embedded(std::mem::take(done))))
            }
            Self::Search(search) => match search.take(&rows) {
                ControlFlow::Continue(()) => Ok(None),
                ControlFlow::Break(()) => search.finish().map(|answer| Some(Event::Answered(answer))),
            },
        }
    }
}
