//! A model on a device with an optional adapter: answer logits for evaluation, loss gradients for training.

use super::forward::{DropoutStep, Entry, ForwardRequest, OutputRows};
use super::loss_question::{GroupRows, LossQuestion};
use super::{Adapter, EmbedScale, SitePlan, TextModel};
use crate::batch::{GroupName, PackOptions, PackedBatch, TokenGroup};
use crate::objective::{GroupLogits, GroupLoss, GroupStatistics, Objective, Pooling, Spellings};
use crate::ops::answer_head::HeadColumns;
use crate::ops::vocabulary::{Coefficients, Head, Statistics};
use crate::ops::{Device, TrainDevice};
use crate::tape::{Columns, Tape, Var};
use crate::trunk::TrunkCache;
use crate::weights::Checkpoint;

/// Answer tokens and truth of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Id of the yes token.
    pub yes: u32,
    /// Id of the no token.
    pub no: u32,
    /// Whether yes is right.
    pub answer_yes: bool,
}

/// Columns of the head that are computed.
pub use crate::tape::Columns as AnswerColumns;

/// Losses and adapter gradient of one leaf.
pub struct Leaf<B> {
    /// One per group.
    pub losses: Vec<GroupLoss>,
    /// ∂(Σ group losses)/∂parameters, flat.
    pub gradient: B,
}

/// A model, its adapter, and the device they live on.
pub struct Engine<D: Device> {
    /// Back end.
    pub device: D,
    /// Frozen decoder.
    pub model: TextModel<D>,
    /// LoRA parameters.
    pub adapter: Option<Adapter<D>>,
    /// Whether the phrasings of a group share their prefix.
    pub share_prefix: bool,
    /// How the spellings of an answer become one logit.
    pub pooling: Pooling,
    /// Stored hidden states below the lowest adapted layer.
    pub trunk: Option<TrunkCache>,
}

impl<D: Device> Engine<D> {
    /// Takes a checkpoint's decoder, or its first `layers` layers.
    ///
    /// # Errors
    /// See [`TextModel::load`].
    pub fn open(
        device: D,
        checkpoint: &Checkpoint,
        embed_scale: EmbedScale,
        layers: Option<usize>,
    ) -> crate::Result<Self> {
        let model = TextModel::load(&device, checkpoint, embed_scale, layers)?;
        Ok(Self { device, model, adapter: None, share_prefix: true, pooling: Pooling::default(), trunk: None })
    }

    /// Packs groups for this model; `first_ordinal` is the first group's place in the optimiser step.
    ///
    /// # Errors
    /// Prompts that the model cannot take.
    pub fn pack(&self, groups: &[TokenGroup], first_ordinal: u32) -> crate::Result<PackedBatch> {
        Ok(PackedBatch::pack(groups, &self.pack_options(first_ordinal))?)
    }

    /// Whether the model can take these prompts and answer tokens.
    ///
    /// # Errors
    /// As [`Self::pack`]; an answer token that the model does not have.
    pub fn check(&self, groups: &[TokenGroup], targets: &[Target]) -> crate::Result<()> {
        PackedBatch::check(groups, &self.pack_options(0))?;
        let vocab_size = self.model.config.vocab_size;
        for (index, target) in targets.iter().enumerate() {
            let ids = self.answer_ids(std::slice::from_ref(target));
            if let Some(id) = ids.into_iter().find(|&id| id as usize >= vocab_size) {
                let group = GroupName::Index(index);
                return Err(crate::batch::Error::UnknownAnswer { group, id, vocab_size }.into());
            }
        }
        Ok(())
    }

    fn pack_options(&self, first_ordinal: u32) -> PackOptions {
        let config = &self.model.config;
        PackOptions {
            sliding_window: config.sliding_window,
            image_token: self.model.image_token,
            vocab_size: config.vocab_size,
            max_positions: config.max_position_embeddings,
            share: self.share_prefix,
            first_ordinal,
        }
    }

    /// Logits at the answer position of each phrasing: one row `[columns]` per phrasing, in batch order.
    ///
    /// # Errors
    /// See [`TextModel::forward`].
    pub fn answer_logits(&self, batch: &PackedBatch, columns: &Columns) -> crate::Result<Vec<Vec<f64>>> {
        let sites = SitePlan::default();
        let (tape, logits) = self.answers(batch, columns, false, None, &sites)?;
        let width = self.device.shape(tape.value(logits)).1;
        Ok(self.device.download(tape.value(logits)).chunks(width).map(<[f64]>::to_vec).collect())
    }

    /// Margins z_yes − z_no of each phrasing of each group.
    ///
    /// # Errors
    /// See [`TextModel::forward`].
    pub fn margins(&self, batch: &PackedBatch, targets: &[Target]) -> crate::Result<Vec<Vec<f64>>> {
        let ids = self.answer_ids(targets);
        let logits = self.answer_logits(batch, &Columns::Ids(ids.clone()))?;
        let spellings: Vec<_> = targets.iter().map(|target| self.spellings(target, |id| column(&ids, id))).collect();
        let mut margins = vec![Vec::new(); batch.groups];
        for (phrasing, row) in batch.phrasings.iter().zip(logits) {
            margins[phrasing.group].push(spellings[phrasing.group].margin(&row));
        }
        Ok(margins)
    }

    /// Losses of a batch's groups with the adapter as it is: no dropout, no gradient.
    ///
    /// # Errors
    /// See [`TextModel::forward`].
    pub fn losses(
        &self,
        batch: &PackedBatch,
        targets: &[Target],
        objective: &Objective,
    ) -> crate::Result<Vec<GroupLoss>> {
        let question = LossQuestion::new(batch, objective, self.answer_ids(targets));
        let (tape, hidden) = self.answer_rows(batch, false, None, &SitePlan::default())?;
        let h = tape.value(hidden);
        let statistics = if objective.needs_full_vocabulary() {
            self.device.vocabulary(h, self.head(), question.borrow())
        } else {
            question.without_vocabulary(self.chosen_logits(h, &question.ids))
        };
        Ok(self.group_losses(&question, targets, objective, &statistics))
    }

    /// Logits of these ids in answer rows h `[n, hidden]`: `[n, ids]`.
    fn chosen_logits(&self, h: &D::Buf, ids: &[u32]) -> Vec<f64> {
        let Head { norm, eps, embedding } = self.head();
        self.device.download(&self.device.answer_head(h, norm, eps, embedding, HeadColumns::Ids(ids)))
    }

    /// Final norm and tied head.
    fn head(&self) -> Head<'_, D> {
        let eps = self.model.config.rms_norm_eps as f32;
        Head { norm: &self.model.final_norm, eps, embedding: &self.model.head }
    }

    /// Losses of the groups of a batch from what their answer rows say.
    fn group_losses(
        &self,
        question: &LossQuestion,
        targets: &[Target],
        objective: &Objective,
        statistics: &Statistics,
    ) -> Vec<GroupLoss> {
        let columns = question.ids.len();
        let place = |id: u32| column(&question.ids, id);
        let of = |(group, target): (&GroupRows, &Target)| {
            let logits = GroupLogits {
                logits: &statistics.logits[group.rows.start * columns..group.rows.end * columns],
                columns,
                vocabulary: objective.needs_full_vocabulary().then(|| GroupStatistics {
                    log_sum: &statistics.log_sum[group.rows.clone()],
                    cross: &statistics.cross[group.pairs.clone()],
                }),
                yes: place(target.yes),
                no: place(target.no),
                answer_yes: target.answer_yes,
            };
            objective.evaluate_pooled(&logits, &self.spellings(target, place))
        };
        question.groups.iter().zip(targets).map(of).collect()
    }

    /// Ids of every spelling of the targets' answers, ascending, each once.
    fn answer_ids(&self, targets: &[Target]) -> Vec<u32> {
        let of = |target: &Target| [self.pooling.yes_ids(target.yes), self.pooling.no_ids(target.no)].concat();
        let mut ids: Vec<u32> = targets.iter().flat_map(of).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Spellings of a target's answers in rows where `place` says the column of an id.
    pub fn spellings(&self, target: &Target, place: impl Fn(u32) -> usize) -> Spellings {
        let columns = |ids: Vec<u32>| ids.into_iter().map(&place).collect();
        Spellings {
            pool: self.pooling.pool,
            yes: columns(self.pooling.yes_ids(target.yes)),
            no: columns(self.pooling.no_ids(target.no)),
        }
    }

    fn answers<'a>(
        &'a self,
        batch: &PackedBatch,
        columns: &Columns,
        train: bool,
        dropout: Option<DropoutStep>,
        sites: &SitePlan<'_, D>,
    ) -> crate::Result<(Tape<'a, D>, Var)> {
        let (mut tape, hidden) = self.answer_rows(batch, train, dropout, sites)?;
        let logits = tape.answer_head(hidden, &self.model.final_norm, &self.model.head, columns);
        Ok((tape, logits))
    }

    /// The residual stream after the last layer at the answer position of each phrasing.
    fn answer_rows<'a>(
        &'a self,
        batch: &PackedBatch,
        train: bool,
        dropout: Option<DropoutStep>,
        sites: &SitePlan<'_, D>,
    ) -> crate::Result<(Tape<'a, D>, Var)> {
        let (start, entry) = self.entry(batch, sites)?;
        let request = ForwardRequest {
            layers: start..self.model.depth(),
            entry,
            rows: OutputRows::Answers,
            adapter: self.adapter.as_ref(),
            train,
            dropout,
            sites,
        };
        let forward = self.model.forward(&self.device, batch, request)?;
        Ok((forward.tape, forward.hidden))
    }

    /// Where the forward pass starts: at the lowest adapted layer with what the trunk cache holds (computed and stored first if
    /// need be), or at the embeddings where there is no cache, nothing frozen below the adapter, or a site down there.
    fn entry(&self, batch: &PackedBatch, sites: &SitePlan<'_, D>) -> crate::Result<(usize, Entry<D::Buf>)> {
        let lowest = self.adapter.as_ref().and_then(|adapter| adapter.layout.lowest_layer()).unwrap_or(0);
        let Some(trunk) = self.trunk.as_ref().filter(|_| lowest > 0 && sites.all().all(|site| site.layer >= lowest))
        else {
            return Ok((0, Entry::Embeddings));
        };
        let width = self.model.config.hidden_size;
        let keys = trunk.keys(batch, lowest);
        if let Some(values) = trunk.get(&keys, width) {
            return Ok((lowest, Entry::Hidden(self.device.upload(batch.rows(), width, &values))));
        }
        let request = ForwardRequest {
            layers: 0..lowest,
            entry: Entry::Embeddings,
            rows: OutputRows::All,
            adapter: None,
            train: false,
            dropout: None,
            sites: &SitePlan::default(),
        };
        let mut forward = self.model.forward(&self.device, batch, request)?;
        let hidden = forward.tape.take(forward.hidden);
        let values = self.device.download(&hidden);
        let stored: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        // A back end that computes in more than f32 would not get its own values back.
        if values.iter().zip(&stored).all(|(&value, &stored)| value == f64::from(stored)) {
            trunk.put(&keys, width, &stored);
        }
        Ok((lowest, Entry::Hidden(hidden)))
    }

    /// Head logits of answer rows `[n, hidden]` of the residual stream after the last layer.
    ///
    /// # Errors
    /// None today; a back end may refuse columns.
    pub fn head_logits(&self, answers: &D::Buf, columns: &Columns) -> crate::Result<Vec<Vec<f64>>> {
        let eps = self.model.config.rms_norm_eps as f32;
        let columns = match columns {
            Columns::Ids(ids) => HeadColumns::Ids(ids),
            Columns::Full => HeadColumns::Full,
        };
        let logits = self.device.answer_head(answers, &self.model.final_norm, eps, &self.model.head, columns);
        let width = self.device.shape(&logits).1;
        Ok(self.device.download(&logits).chunks(width).map(<[f64]>::to_vec).collect())
    }

    /// Residual stream after the last layer through the final norm: `[rows, hidden]`.
    pub fn final_norm(&self, hidden: &D::Buf) -> D::Buf {
        self.device.norm(hidden, &self.model.final_norm, self.model.config.rms_norm_eps as f32)
    }
}

impl<D: TrainDevice> Engine<D> {
    /// Losses of a leaf's groups and the gradient of their sum in the adapter's parameters.
    ///
    /// # Panics
    /// Without an adapter: callers attach one first.
    ///
    /// # Errors
    /// See [`TextModel::forward`].
    pub fn leaf_gradient(
        &self,
        batch: &PackedBatch,
        targets: &[Target],
        objective: &Objective,
        dropout: Option<DropoutStep>,
    ) -> crate::Result<Leaf<D::Buf>> {
        let adapter = self.adapter.as_ref().expect("training attaches an adapter first");
        let question = LossQuestion::new(batch, objective, self.answer_ids(targets));
        let (mut tape, hidden) = self.answer_rows(batch, true, dropout, &SitePlan::default())?;
        let mut gradient = self.device.zeros(1, adapter.layout.len());
        let rows = batch.phrasings.len();
        if objective.needs_full_vocabulary() {
            let h = tape.value(hidden);
            let (statistics, means) = self.device.vocabulary_means(h, self.head(), question.borrow());
            let losses = self.group_losses(&question, targets, objective, &statistics);
            let (of_means, of_logits) = (question.of_means(&losses), question.of_logits(&losses));
            let coefficients = Coefficients { means: &of_means, logits: &of_logits };
            let dh = self.device.vocabulary_backward(coefficients, &means, h, self.head(), &question.ids);
            tape.backward(hidden, dh, Some(&mut gradient));
            return Ok(Leaf { losses, gradient });
        }
        let columns = Columns::Ids(question.ids.clone());
        let logits = tape.answer_head(hidden, &self.model.final_norm, &self.model.head, &columns);
        let statistics = question.without_vocabulary(self.device.download(tape.value(logits)));
        let losses = self.group_losses(&question, targets, objective, &statistics);
        let seed = self.device.upload(rows, question.ids.len(), &question.of_logits(&losses));
        tape.backward(logits, seed, Some(&mut gradient));
        Ok(Leaf { losses, gradient })
    }

    /// ∂(Σ over phrasings of the margin)/∂site for the sites of `plan.gradient`, without training anything: `[rows, width]` each.
    ///
    /// # Errors
    /// See [`TextModel::forward`].
    pub fn margin_gradients(
        &self,
        batch: &PackedBatch,
        targets: &[Target],
        plan: &SitePlan<'_, D>,
    ) -> crate::Result<std::collections::BTreeMap<super::Site, D::Buf>> {
        let request = ForwardRequest {
            layers: 0..self.model.depth(),
            entry: Entry::Embeddings,
            rows: OutputRows::Answers,
            adapter: self.adapter.as_ref(),
            train: false,
            dropout: None,
            sites: plan,
        };
        let mut forward = self.model.forward(&self.device, batch, request)?;
        let ids = self.answer_ids(targets);
        let columns = Columns::Ids(ids.clone());
        let logits = forward.tape.answer_head(forward.hidden, &self.model.final_norm, &self.model.head, &columns);
        let values = self.device.download(forward.tape.value(logits));
        let mut seed = vec![0.0; values.len()];
        for ((values, seed), phrasing) in values.chunks(ids.len()).zip(seed.chunks_mut(ids.len())).zip(&batch.phrasings)
        {
            let spellings = self.spellings(&targets[phrasing.group], |id| column(&ids, id));
            spellings.add_margin_gradient(values, 1.0, seed);
        }
        let seed: Vec<f32> = seed.into_iter().map(|value| value as f32).collect();
        let seed = self.device.upload(batch.phrasings.len(), ids.len(), &seed);
        let gradients = forward.tape.backward(logits, seed, None);
        Ok(forward
            .leaves
            .iter()
            .filter_map(|(&site, &leaf)| Some((site, self.device.duplicate(gradients.get(leaf)?))))
            .collect())
    }
}

fn column(ids: &[u32], id: u32) -> usize {
    ids.binary_search(&id).expect("answer ids were collected from the same targets")
}
