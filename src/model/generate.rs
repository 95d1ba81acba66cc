//! Greedy generation: the token with the largest logit, one after the other, each pass over the new token alone.

use super::forward::{Entry, ForwardRequest, OutputRows};
use super::{Engine, Error, KvCache, SitePlan};
use crate::batch::{PackedBatch, TokenGroup};
use crate::ops::Device;
use crate::tape::Columns;

/// What was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// New tokens, without the one that ended them.
    pub tokens: Vec<u32>,
    /// The token of `stop` that ended them; `None` if the number asked for was reached.
    pub stopped_by: Option<u32>,
    /// Largest logit of each pass, the one that ended the text included.
    pub logits: Vec<f64>,
}

impl<D: Device> Engine<D> {
    /// Continues `prompt` by up to `count` tokens, until one of `stop`; `each` sees every token as it comes.
    ///
    /// # Errors
    /// A prompt that the model cannot take, or that leaves no room for `count` tokens; a logit that is not finite.
    pub fn generate(
        &self,
        prompt: &[u32],
        count: usize,
        stop: &[u32],
        mut each: impl FnMut(u32),
    ) -> crate::Result<Generated> {
        let config = &self.model.config;
        let capacity = prompt.len() + count;
        if capacity > config.max_position_embeddings {
            let (prompt, positions) = (prompt.len(), config.max_position_embeddings);
            return Err(Error::TooManyTokens { prompt, count, positions }.into());
        }
        let mut cache = KvCache::new(&self.device, config, self.model.depth(), capacity);
        let mut generated = Generated { tokens: Vec::new(), stopped_by: None, logits: Vec::new() };
        let whole = TokenGroup { prefix: Vec::new(), suffixes: vec![prompt.to_vec()] };
        let mut batch = self.pack(&[whole], 0)?;
        while generated.tokens.len() < count {
            let (next, logit) = largest(&self.next_logits(&batch, &mut cache)?)?;
            generated.logits.push(logit);
            if stop.contains(&next) {
                generated.stopped_by = Some(next);
                break;
            }
            each(next);
            generated.tokens.push(next);
            batch = PackedBatch::continuation(cache.rows(), &[next], config.sliding_window);
        }
        Ok(generated)
    }

    /// Logits after the last token of a batch of one sequence.
    fn next_logits(&self, batch: &PackedBatch, cache: &mut KvCache<D>) -> crate::Result<Vec<f64>> {
        let request = ForwardRequest {
            layers: 0..self.model.depth(),
            entry: Entry::Embeddings,
            rows: OutputRows::Answers,
            adapter: self.adapter.as_ref(),
            train: false,
            dropout: None,
            sites: &SitePlan::default(),
        };
        let forward = self.model.forward_cached(&self.device, batch, request, cache)?;
        Ok(self.head_logits(forward.tape.value(forward.hidden), &Columns::Full)?.remove(0))
    }
}

/// The first of the largest.
fn largest(logits: &[f64]) -> Result<(u32, f64), Error> {
    let mut best = (0, f64::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if !logit.is_finite() {
            return Err(Error::LogitNotFinite { id: id as u32, logit });
        }
        if logit > best.1 {
            best = (id as u32, logit);
        }
    }
    Ok(best)
}
