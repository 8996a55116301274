//! The models of a server: as many are loaded at a time as memory has room for. One that is asked for while it is not is
//! loaded then, and those that nobody has asked for the longest make room.
//!
//! All of them share one thread, which steps those that have work in turn: two engines at a time would only take the cores
//! from each other.

use super::names::Target;
use super::queue::Event;
use super::wire::ApiError;
use super::worker::Worker;
use super::{Loaded, Serving, Shared};
use crate::error::{Error, Kind, Result};
use crate::session::batch::guarded;
use axum::http::StatusCode;

/// A model that can be loaded, let go of, and loaded again.
pub struct Hosted {
    /// Bytes that it takes while it is loaded.
    bytes: u64,
    /// Bytes that it takes even while it is not: of weights that lie in no file.
    kept: u64,
    load: Box<dyn FnMut() -> Result<Loaded>>,
}

impl Hosted {
    /// What `load` gives takes `bytes`, and `kept` more whether it is loaded or not.
    pub fn new(bytes: u64, kept: u64, load: impl FnMut() -> Result<Loaded> + 'static) -> Self {
        Self { bytes, kept, load: Box::new(load) }
    }

    /// Tells `hear` of each time that it is loaded.
    #[must_use]
    pub fn on_load(mut self, hear: impl Fn(&Loaded) + 'static) -> Self {
        self.load = Box::new(move || (self.load)().inspect(&hear));
        self
    }
}

impl From<Loaded> for Hosted {
    /// One that stays.
    fn from(loaded: Loaded) -> Self {
        let mut loaded = Some(loaded);
        let gone = || Error::new(Kind::Input, "", "it was loaded once, and cannot be again");
        Self::new(0, 0, move || loaded.take().ok_or_else(gone))
    }
}

struct Host<'a> {
    hosted: Hosted,
    worker: Option<Worker<'a>>,
    /// When it last had work, in steps of the server.
    used: u64,
}

/// All models of a server.
pub(super) struct Hosts<'a> {
    shared: &'a Shared,
    all: Vec<Host<'a>>,
    step: u64,
}

impl<'a> Hosts<'a> {
    /// Loads each once, the first last, so that what is wrong with one is told before anybody asks.
    pub fn open(shared: &'a Shared, hosted: Vec<Hosted>) -> Result<Self> {
        assert_eq!(hosted.len(), shared.serving.len(), "models and their names");
        let kept: u64 = hosted.iter().map(|h| h.kept).sum();
        let cap = shared.config.memory.unwrap_or(u64::MAX);
        for (served, hosted) in shared.config.models.iter().zip(&hosted) {
            let needs = hosted.bytes.saturating_add(kept);
            if needs > cap {
                let message = format!(
                    "{} MiB are needed and there are {} MiB for models; serve fewer, or give more --max-memory",
                    needs.div_ceil(1 << 20),
                    cap >> 20
                );
                return Err(Error::new(Kind::Limit, served.name.as_str(), message));
            }
        }
        let all = hosted.into_iter().map(|hosted| Host { hosted, worker: None, used: 0 }).collect();
        let mut hosts = Self { shared, all, step: 0 };
        for model in (0..hosts.all.len()).rev() {
            hosts.load(model)?;
        }
        Ok(hosts)
    }

    /// Does jobs until the queue is closed and empty.
    pub fn work(&mut self) {
        let Shared { queue, metrics, config, .. } = self.shared;
        loop {
            self.step += 1;
            self.admit();
            // One at a time: who asked for it is taken up before another may want its room.
            while self.bring_in() {
                self.admit();
            }
            let busy = self.all.iter().filter_map(|host| host.worker.as_ref()).map(Worker::busy).sum();
            metrics.busy(busy);
            if busy == 0 && !queue.wait() {
                return;
            }
            self.all.iter_mut().filter_map(|host| host.worker.as_mut()).for_each(Worker::step);
            queue.expire(config.limits.request);
        }
    }

    /// Every model that is here takes up what there is room for.
    fn admit(&mut self) {
        let here: Vec<bool> = self.all.iter().map(|host| host.worker.is_some()).collect();
        for (model, host) in self.all.iter_mut().enumerate() {
            let Some(worker) = &mut host.worker else { continue };
            worker.admit(|| self.shared.queue.take(model, |m| here[m]));
            if worker.busy() > 0 {
                host.used = self.step;
            }
        }
    }

    /// Loads the first model that is asked for and not here; `false` where there is none, or no room. Where what goes on leaves
    /// no room, that ends first: nothing behind the job that waits for room is taken up.
    fn bring_in(&mut self) -> bool {
        let queue = &self.shared.queue;
        let Some(model) = queue.missing(|model| self.all[model].worker.is_some()) else { return false };
        self.load(model).unwrap_or_else(|e| {
            if let Some(job) = queue.take(model, |_| true) {
                let e = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "model_unavailable", e.to_string());
                let _ = job.reply.send(Event::Failed(e)); // the client may have left
            }
            true
        })
    }

    /// Loads a model, or says that there is no room for it while others are busy.
    fn load(&mut self, model: usize) -> Result<bool> {
        if !self.make_room(model) {
            return Ok(false);
        }
        let host = &mut self.all[model];
        let loaded = guarded(|| {
            let mut loaded = (host.hosted.load)()?;
            loaded.warm_up()?;
            Ok(loaded)
        });
        let Shared { queue, metrics, config, serving, .. } = self.shared;
        let loaded = loaded.map_err(|e| {
            let name = self.shared.names.of(Target { model, adapter: None });
            if serving.len() > 1 { e.at(&format!("{name}, loading")) } else { e }
        })?;
        let _ = serving[model].set(Serving::of(&loaded)); // it is the same each time
        host.used = self.step;
        host.worker = Some(Worker::new(loaded.session, queue, metrics, &config.limits));
        metrics.model_loaded();
        self.count();
        Ok(true)
    }

    /// Lets go of idle models, those first that had no work for the longest, until there is room for this one.
    fn make_room(&mut self, model: usize) -> bool {
        let cap = self.shared.config.memory.unwrap_or(u64::MAX);
        let kept = |host: &Host| host.hosted.kept;
        let loaded = |host: &Host| if host.worker.is_some() { host.hosted.bytes } else { 0 };
        loop {
            let taken: u64 = self.all.iter().map(|host| kept(host) + loaded(host)).sum();
            if taken.saturating_add(self.all[model].hosted.bytes) <= cap {
                return true;
            }
            let idle = |host: &&mut Host| host.worker.as_ref().is_some_and(|worker| worker.busy() == 0);
            let Some(host) = self.all.iter_mut().filter(idle).min_by_key(|host| host.used) else { return false };
            host.worker = None;
            self.shared.metrics.model_unloaded();
            self.count();
        }
    }

    fn count(&self) {
        let workers = || self.all.iter().filter_map(|host| host.worker.as_ref());
        self.shared.metrics.set_models(workers().count(), workers().map(Worker::slots).sum());
    }
}
