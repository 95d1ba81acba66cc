//! `--trunk-cache…`: where hidden states below the lowest adapted layer are kept, and how much of them.

use crate::model::Engine;
use crate::ops::Device;
use crate::trunk::{TrunkBudget, TrunkCache, TrunkIdentity};
use crate::weights::Checkpoint;
use clap::Args;
use std::path::PathBuf;

/// Flags of the trunk cache. None of them changes a result.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Trunk cache (hidden states below the lowest adapted layer; exact)")]
pub struct TrunkArgs {
    /// Most to keep in memory, e.g. 512MB; 0 keeps nothing there
    #[arg(long, value_name = "SIZE", default_value = "1GB", value_parser = size)]
    pub trunk_cache: u64,
    /// Most to keep on disk, where later runs find it; 0 keeps nothing there
    #[arg(long, value_name = "SIZE", default_value = "4GB", value_parser = size)]
    pub trunk_cache_disk: u64,
    /// Folder on disk (default: trunk/ in UNFLIP_CACHE, or in unflip/ of the user's cache folder)
    #[arg(long, value_name = "DIR")]
    pub trunk_cache_dir: Option<PathBuf>,
}

impl TrunkArgs {
    /// Gives an engine its cache if its adapter leaves layers below it frozen: `lowest` is the lowest adapted layer.
    ///
    /// # Errors
    /// A folder that cannot be made or listed; a model whose files cannot be read.
    pub fn attach<D: Device>(
        &self,
        engine: &mut Engine<D>,
        checkpoint: &Checkpoint,
        lowest: Option<usize>,
    ) -> crate::Result<()> {
        if lowest.unwrap_or(0) == 0 || (self.trunk_cache == 0 && self.trunk_cache_disk == 0) {
            return Ok(());
        }
        let identity = TrunkIdentity {
            model: checkpoint.fingerprint()?,
            embed_scale: engine.model.embed_scale.to_string(),
            unit: engine.device.unit(),
        };
        let folder = self.trunk_cache_dir.clone().or_else(default_folder);
        let (folder, disk) = match folder {
            Some(folder) => (folder, self.trunk_cache_disk),
            // Nowhere to put files: no home folder is known.
            None => (PathBuf::new(), 0),
        };
        let budget = TrunkBudget { memory: self.trunk_cache, disk, folder };
        engine.trunk = Some(TrunkCache::new(identity, &budget)?);
        Ok(())
    }
}

fn default_folder() -> Option<PathBuf> {
    Some(crate::machine::cache_folder()?.join("trunk"))
}

/// Bytes of a size with an optional unit: 0, 300kB, 512MB, 1.5GB (powers of ten).
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        _ => f64::NAN,
    };
    let bytes = digits.trim().parse::<f64>().unwrap_or(f64::NAN) * factor;
    // NaN is in no range.
    if (0.0..1e18).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err("expected a size like 0, 512MB or 1.5GB".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units_and_nonsense_is_refused() {
        for (text, bytes) in [("0", 0), ("12", 12), ("3kB", 3000), ("512MB", 512_000_000), ("1.5gb", 1_500_000_000)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "-1", "1 GB x", "nan", "inf", "1e30", "5QB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
