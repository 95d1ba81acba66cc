//! `--profile [FILE]`: where the time of a verb went, by operation.

use super::device::{DeviceArgs, DeviceName, OnDevice, OnTrainDevice};
use crate::cpu::peak::Peaks;
use crate::cpu::threads;
use crate::ops::{Device, Error, TrainDevice};
use crate::profile::{Profile, Profiled};
use crate::weights::check_place;
use clap::Args;
use std::path::{Path, PathBuf};

/// The flag.
#[derive(Args, Clone, Debug)]
pub struct ProfileArgs {
    /// Say on stderr where the time went, by operation; with FILE.json a Chrome trace as well, with another FILE the tables there
    #[arg(long, value_name = "FILE", num_args = 0..=1, help_heading = "Device")]
    profile: Option<Option<PathBuf>>,
}

/// A profile that is being made, or none.
#[derive(Clone)]
pub struct Profiling {
    profile: Option<Profile>,
    file: Option<PathBuf>,
}

impl ProfileArgs {
    /// Starts a profile if one was asked for.
    ///
    /// # Errors
    /// A FILE whose folder does not exist.
    pub fn begin(&self) -> crate::Result<Profiling> {
        let file = self.profile.clone().flatten();
        if let Some(file) = &file {
            check_place(file)?;
        }
        let trace = file.as_deref().is_some_and(is_trace);
        Ok(Profiling { profile: self.profile.is_some().then(|| Profile::new(trace)), file })
    }
}

fn is_trace(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

/// Work on a device that is clocked.
struct Clocked<W> {
    work: W,
    profile: Profile,
}

impl<W: OnDevice> OnDevice for Clocked<W> {
    type Output = W::Output;

    fn run<D: Device + 'static>(self, device: D) -> crate::Result<W::Output> {
        self.work.run(Profiled::new(device, self.profile))
    }
}

impl<W: OnTrainDevice> OnTrainDevice for Clocked<W> {
    type Output = W::Output;

    fn run<D: TrainDevice + 'static>(self, device: D) -> crate::Result<W::Output> {
        self.work.run(Profiled::new(device, self.profile))
    }
}

impl Profiling {
    /// Names this moment in the trace.
    pub fn mark(&self, name: impl FnOnce() -> String) {
        if let Some(profile) = &self.profile {
            profile.mark(name());
        }
    }

    /// Forgets what came so far, such as a warm-up.
    pub fn clear(&self) {
        if let Some(profile) = &self.profile {
            profile.clear();
        }
    }

    /// Runs `work` on the chosen device, clocked if a profile was asked for, and says where the time went, also where the work
    /// failed halfway.
    ///
    /// # Errors
    /// The device's and the work's; a FILE that cannot be written.
    pub fn run<W: OnDevice>(&self, device: &DeviceArgs, work: W) -> crate::Result<W::Output> {
        let Some(profile) = &self.profile else { return device.run(work) };
        if device.device == DeviceName::Cuda {
            // Calls return before the GPU has done the work: a clock around them would tell nothing.
            return Err(Error::Unavailable {
                message: "--profile clocks operations of the CPU, and --device cuda was given".into(),
                hint: "leave --profile out; NVIDIA's nsys shows kernels by name".into(),
            }
            .into());
        }
        self.tell(profile, device, device.run(Clocked { work, profile: profile.clone() }))
    }

    /// As [`Profiling::run`] for work that needs gradients.
    ///
    /// # Errors
    /// As there.
    pub fn run_training<W: OnTrainDevice>(&self, device: &DeviceArgs, work: W) -> crate::Result<W::Output> {
        let Some(profile) = &self.profile else { return device.run_training(work) };
        self.tell(profile, device, device.run_training(Clocked { work, profile: profile.clone() }))
    }

    fn tell<T>(&self, profile: &Profile, device: &DeviceArgs, result: crate::Result<T>) -> crate::Result<T> {
        if !profile.totals().is_empty() {
            let written = self.write(profile, &device.peaks()?);
            // What failed first is what to tell.
            if result.is_ok() {
                written?;
            }
        }
        result
    }

    fn write(&self, profile: &Profile, peaks: &Peaks) -> crate::Result<()> {
        let write = |file: &Path, text: String| {
            std::fs::write(file, text).map_err(|source| crate::Error::io("write", file, source))
        };
        let [operations, shapes] = profile.report().tables(peaks);
        let peaks_line = format!(
            "peaks measured afterwards: {:.1} GFLOP/s, {:.1} GB/s; of roofline: least time by either over the time taken",
            peaks.flops / 1e9,
            peaks.bandwidth / 1e9
        );
        match &self.file {
            Some(file) if !is_trace(file) => {
                let markdown = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("md"));
                let [operations, shapes] =
                    [operations, shapes].map(|table| if markdown { table.markdown() } else { table.plain() });
                write(file, format!("{operations}\n{shapes}\n{peaks_line}\n"))
            }
            file => {
                eprintln!("\n{}\n{}\n{peaks_line}", operations.plain(), shapes.plain());
                let Some(file) = file else { return Ok(()) };
                write(file, profile.trace(peaks).to_string())
            }
        }
    }
}

impl DeviceArgs {
    /// Peaks of the unit and threads that serve.
    ///
    /// # Errors
    /// An instruction set or number of threads that cannot be had.
    pub fn peaks(&self) -> crate::Result<Peaks> {
        let (unit, isa) = self.unit()?;
        let count = threads::thread_count(self.threads)?;
        let pool = threads::pool(count).map_err(|source| Error::Unavailable {
            message: format!("cannot start {count} threads: {source}"),
            hint: "ask for fewer with --threads".into(),
        })?;
        Ok(pool.install(|| Peaks::measure(unit, isa)))
    }
}
