//! Asking the system for a model's pages in the order in which a first pass will touch them, so that the disk reads while the
//! tokenizer is parsed and while the first layers compute.

use super::{Checkpoint, TensorView};
use std::thread::JoinHandle;

impl Checkpoint {
    /// Asks for the decoder's layers, from the first on, on a thread of its own; at most `most` bytes, so that a model larger than
    /// memory does not push out what it has just read. Pages come into the system's cache: none counts as this process's memory
    /// before it is used. The embedding table is left to the passes that read it: most touch a few of its rows.
    ///
    /// A wish, not a need: what goes wrong here goes wrong again, with a message, where the pages are used.
    pub fn read_ahead(&self, most: u64) -> Option<JoinHandle<()>> {
        let views = self.first_pass(most);
        let advise = move || views.iter().for_each(TensorView::will_need);
        std::thread::Builder::new().name("unflip-read-ahead".into()).spawn(advise).ok()
    }

    /// Tensors of the decoder's layers in order, as many as fit into `most` bytes.
    fn first_pass(&self, most: u64) -> Vec<TensorView> {
        let mut layers: Vec<(usize, &str)> = self.names().filter_map(|name| Some((layer_of(name)?, name))).collect();
        layers.sort_unstable();
        let views = layers.into_iter().map_while(|(_, name)| self.tensor(name).ok());
        let mut total = 0;
        let fits = |view: &TensorView| {
            total += view.bytes().len() as u64;
            total <= most
        };
        views.take_while(fits).collect()
    }
}

/// The layer that a tensor of the decoder belongs to.
fn layer_of(name: &str) -> Option<usize> {
    let (number, _) = name.strip_prefix("language_model.layers.")?.split_once('.')?;
    number.parse().ok()
}

impl TensorView {
    /// Tells the system that these bytes will be read soon. Does nothing where it cannot be told.
    pub fn will_need(&self) {
        #[cfg(unix)]
        if let Err(error) = self.map.advise_range(memmap2::Advice::WillNeed, self.start, self.length) {
            tracing::debug!("no read-ahead for {}: {error}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn layers_are_asked_for_in_the_order_of_the_pass_and_within_the_budget() {
        assert_eq!(layer_of("language_model.layers.10.mlp.up_proj.weight"), Some(10));
        assert_eq!(layer_of("language_model.embed_tokens.weight"), None);
        assert_eq!(layer_of("vision_tower.vision_model.encoder.layers.1.layer_norm1.bias"), None);

        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/text/model");
        let checkpoint = Checkpoint::open(folder).unwrap();
        let all = checkpoint.first_pass(u64::MAX);
        let layers: Vec<usize> =
            all.iter().filter_map(|view| layer_of(&crate::weights::canonical(&view.name))).collect();
        assert_eq!(layers.len(), all.len());
        assert!(layers.is_sorted() && layers.last() == Some(&(checkpoint.config.text.num_hidden_layers - 1)));
        let half: u64 = all[..all.len() / 2].iter().map(|view| view.bytes().len() as u64).sum();
        assert_eq!(checkpoint.first_pass(half).len(), all.len() / 2);
        assert!(checkpoint.first_pass(0).is_empty());
        checkpoint.read_ahead(u64::MAX).expect("a thread").join().expect("no panic");
    }
}
