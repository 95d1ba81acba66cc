//! `unflip merge`.

use crate::model::merge;
use crate::report::progress_bar;
use crate::weights::{AdapterFile, Checkpoint, resolve_model};
use clap::Args;
use std::path::PathBuf;

/// Arguments of `merge`.
#[derive(Args)]
#[command(
    after_help = "Example:\n  unflip merge --model models/gemma-3-270m --adapter runs/start/best --out models/start\n\n\
    Merging into bf16 weights rounds the update: keep an adapter unmerged to compare margins."
)]
pub struct Merge {
    /// Model folder, or org/name in the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    model: String,
    /// PEFT LoRA adapter folder
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// New model folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Merge {
    /// Runs the verb.
    ///
    /// # Errors
    /// Anything wrong with model, adapter or output.
    pub fn run(self) -> crate::Result<()> {
        let checkpoint = Checkpoint::open(&resolve_model(&self.model)?)?;
        let adapter = AdapterFile::open(&self.adapter)?;
        let bar = progress_bar(0, "merging {bar:30} {pos}/{len} tensors");
        merge(&checkpoint, &adapter, &self.out, |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        eprintln!("{} projections merged; wrote {}", adapter.tensors.len(), self.out.display());
        Ok(())
    }
}
