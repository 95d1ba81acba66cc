//! Where the time of a command went, by operation: [`Profiled`] wraps a device and clocks every call, [`Profile`] sums the
//! calls up, `report` makes tables and a Chrome trace of them. Apart from the devices, so that an engine that is not
//! profiled carries nothing of it.
//!
//! A call's cost is the contract's own count (`ops/*/mod.rs`), so that rates compare across devices.

#![forbid(unsafe_code)]

mod device;
mod report;
#[cfg(test)]
mod tests;

pub use device::{Profiled, ProfiledWeight};
pub use report::{Report, Row};

use crate::ops::{Cost, Pass};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Calls that a Chrome trace holds: a quarter of an hour of training steps of a small model, some 100 MB as a file.
const MOST_EVENTS: usize = 500_000;

/// What was called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The operation.
    pub operation: &'static str,
    /// Its direction.
    pub pass: Pass,
    /// Its shape without the rows, which differ from batch to batch.
    pub shape: String,
}

/// All calls of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Total {
    /// How many.
    pub calls: u64,
    /// How long they took.
    pub time: Duration,
    /// What they cost.
    pub cost: Cost,
}

/// One call, or a mark between calls.
#[derive(Clone, Debug)]
struct Event {
    key: Arc<Key>,
    start: Duration,
    time: Duration,
    cost: Cost,
}

/// The sums of a profile, shared by the device that is clocked and whoever reads them.
#[derive(Clone)]
pub struct Profile {
    began: Instant,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    totals: BTreeMap<Arc<Key>, Total>,
    /// Single calls, if they are kept.
    events: Option<Vec<Event>>,
    dropped: u64,
    /// Steps and other marks.
    marks: Vec<(String, Duration)>,
    /// From the start of the first call to the end of the last one.
    first: Option<Duration>,
    last: Duration,
}

impl Profile {
    /// An empty profile; with `events` it keeps single calls for a trace.
    pub fn new(events: bool) -> Self {
        let state = State { events: events.then(Vec::new), ..State::default() };
        Self { began: Instant::now(), state: Arc::new(Mutex::new(state)) }
    }

    /// Forgets everything so far, such as a warm-up.
    pub fn clear(&self) {
        let mut state = self.lock();
        let events = state.events.as_ref().map(|_| Vec::new());
        *state = State { events, ..State::default() };
    }

    /// Names this moment in the trace.
    pub fn mark(&self, name: impl Into<String>) {
        let now = self.began.elapsed();
        self.lock().marks.push((name.into(), now));
    }

    /// The sums by key.
    pub fn totals(&self) -> BTreeMap<Key, Total> {
        self.lock().totals.iter().map(|(key, total)| ((**key).clone(), *total)).collect()
    }

    /// All costs together.
    pub fn cost(&self) -> Cost {
        self.lock().totals.values().map(|total| total.cost).sum()
    }

    fn record(&self, key: Key, cost: Cost, started: Instant) {
        let (start, end) = (started.duration_since(self.began), self.began.elapsed());
        let time = end.saturating_sub(start);
        let mut state = self.lock();
        state.first.get_or_insert(start);
        state.last = end;
        let key = match state.totals.get_key_value(&key) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(key),
        };
        let total = state.totals.entry(Arc::clone(&key)).or_default();
        total.calls += 1;
        total.time += time;
        total.cost += cost;
        let State { events, dropped, .. } = &mut *state;
        match events {
            Some(events) if events.len() < MOST_EVENTS => events.push(Event { key, start, time, cost }),
            Some(_) => *dropped += 1,
            None => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
