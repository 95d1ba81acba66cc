//! SIGINT and SIGTERM while a run trains: the first asks it to stop after the step, the second ends the process at once (the
//! last checkpoint stays whole, as after any kill).

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Signals that are caught, with their names. The exit code is 128 and the number, as of a process that one ended.
const CAUGHT: [(i32, &str); 2] = [(SIGINT, "SIGINT"), (SIGTERM, "SIGTERM")];

/// Catches signals from when it is made until the process ends.
#[derive(Clone, Debug)]
pub struct Interrupt {
    first: Arc<AtomicUsize>,
}

/// A caught signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caught {
    /// Name.
    pub name: &'static str,
    /// What the command exits with.
    pub code: u8,
}

impl Interrupt {
    /// Begins to catch.
    ///
    /// # Errors
    /// A system that refuses.
    pub fn catch() -> crate::Result<Self> {
        let io = |source| crate::Error::io("catch", "signals", source);
        let (armed, first) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for (number, _) in CAUGHT {
            // In this order: the second signal finds what the first one armed.
            flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&armed)).map_err(io)?;
            flag::register(number, Arc::clone(&armed)).map_err(io)?;
            flag::register_usize(number, Arc::clone(&first), number as usize).map_err(io)?;
        }
        let mut signals = Signals::new(CAUGHT.map(|(number, _)| number)).map_err(io)?;
        std::thread::spawn(move || {
            if signals.forever().next().is_some() {
                eprintln!("stopping after this step, with a checkpoint; once more stops at once");
            }
        });
        Ok(Self { first })
    }

    /// The signal, once one has come.
    pub fn caught(&self) -> Option<Caught> {
        let number = self.first.load(Ordering::SeqCst) as i32;
        let (number, name) = CAUGHT.into_iter().find(|(known, _)| *known == number)?;
        Some(Caught { name, code: 128 + number as u8 })
    }
}
