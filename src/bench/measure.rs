//! How long a call takes, cold and hot, sampled until the times can be believed or patience ends.

use super::Samples;
use crate::machine;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Seconds that one hot sample lasts at least, so that the clock's own grain is no part of it.
const HOT_SAMPLE: f64 = 2e-4;

/// When to stop sampling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// Samples at least, cold and hot each.
    pub min_samples: usize,
    /// Spread to get down to, as a share of the median.
    pub max_noise: f64,
    /// Time to have measured at least.
    pub min_time: Duration,
    /// Time after which to stop in any case, of cold and hot sampling each.
    pub timeout: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            min_samples: 10,
            max_noise: 0.05,
            min_time: Duration::from_millis(100),
            timeout: Duration::from_secs(10),
        }
    }
}

/// Times of one call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// After other data went through the caches.
    pub cold: Samples,
    /// Right after itself.
    pub hot: Samples,
}

/// Memory that pushes everything else out of the caches.
pub struct Flush(Vec<u64>);

impl Flush {
    /// Twice the caches of the machine, 32 MiB at least.
    pub fn new() -> Self {
        let caches = machine::caches().iter().map(|cache| cache.bytes).sum::<u64>();
        let bytes = (2 * caches).clamp(32 << 20, 1 << 30) as usize;
        Self(vec![1; bytes / size_of::<u64>()])
    }

    /// Writes all of it, on all threads of the current pool.
    pub fn run(&mut self) {
        let part = self.0.len().div_ceil(rayon::current_num_threads()).max(1);
        self.0.par_chunks_mut(part).for_each(|part| {
            for value in part.iter_mut().step_by(8) {
                *value = value.wrapping_add(1);
            }
            black_box(part);
        });
    }
}

impl Default for Flush {
    fn default() -> Self {
        Self::new()
    }
}

/// Samples `call`, `flush` before every cold sample.
pub fn measure(patience: &Patience, flush: &mut dyn FnMut(), call: &mut dyn FnMut()) -> Times {
    // Pages, packing space and the free lists of buffers.
    call();
    let cold = sample(patience, || {
        flush();
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    });
    let repeats = (HOT_SAMPLE / cold.median().max(1e-9)).ceil().clamp(1.0, 1e6) as usize;
    let hot = sample(patience, || {
        let start = Instant::now();
        for _ in 0..repeats {
            call();
        }
        start.elapsed().as_secs_f64() / repeats as f64
    });
    Times { cold, hot }
}

fn sample(patience: &Patience, mut once: impl FnMut() -> f64) -> Samples {
    let began = Instant::now();
    let mut samples = Samples::default();
    loop {
        samples.push(once());
        let enough = samples.len() >= patience.min_samples.max(1) && began.elapsed() >= patience.min_time;
        if (enough && samples.noise() <= patience.max_noise) || began.elapsed() >= patience.timeout {
            return samples;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_stops_when_it_can_be_believed_or_when_patience_ends() {
        let patience =
            Patience { min_samples: 5, max_noise: 0.5, min_time: Duration::ZERO, timeout: Duration::from_secs(60) };
        assert_eq!(sample(&patience, || 1.0).len(), 5);
        let mut cycle = [1.0, 10.0, 100.0].into_iter().cycle();
        let noisy = || cycle.next().unwrap();
        let impatient = Patience { timeout: Duration::from_millis(20), ..patience };
        assert!(sample(&impatient, noisy).len() > 5);
        let once = Patience { timeout: Duration::ZERO, ..patience };
        assert_eq!(sample(&once, || 1.0).len(), 1);
    }

    #[test]
    fn every_cold_sample_comes_after_a_flush() {
        let patience = Patience {
            min_samples: 3,
            max_noise: f64::INFINITY,
            min_time: Duration::ZERO,
            timeout: Duration::from_secs(60),
        };
        let log = std::cell::RefCell::new(String::new());
        let times = measure(&patience, &mut || log.borrow_mut().push('f'), &mut || {
            std::thread::sleep(Duration::from_micros(300));
            log.borrow_mut().push('c');
        });
        assert_eq!((times.cold.len(), times.hot.len()), (3, 3));
        assert_eq!(*log.borrow(), "cfcfcfcccc");
        let mut flush = Flush(vec![1; 128]);
        flush.run();
        assert!(flush.0.chunks(16).all(|line| line.contains(&2)), "every part is written");
    }
}
