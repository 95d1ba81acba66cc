//! Where a step left the numbers: the first parameter, activation, logit or gradient that is not finite, by name. Only asked
//! once a step has failed, so it computes again what it needs, layer by layer.

use crate::Result;
use crate::batch::PackedBatch;
use crate::model::{Adapter, DropoutStep, Engine, Entry, ForwardRequest, OutputRows, Site, SiteKind, SitePlan};
use crate::ops::lora_linear::LoraSlot;
use crate::ops::{Backend, Device};
use crate::weights::{AdapterConfig, Naming, Targets};

/// Sites of a layer in the order in which they are computed, and what each is in the names of transformers.
const SITES: [(SiteKind, &str); 5] = [
    (SiteKind::ResidPre, "what enters the layer"),
    (SiteKind::AttnOut, "the input of self_attn.o_proj"),
    (SiteKind::MlpIn, "the output of pre_feedforward_layernorm"),
    (SiteKind::MlpOut, "the output of post_feedforward_layernorm"),
    (SiteKind::ResidPost, "what leaves the layer"),
];

/// Index of the first value that is not finite.
pub(super) fn first(values: impl IntoIterator<Item = f32>) -> Option<usize> {
    values.into_iter().position(|value| !value.is_finite())
}

/// PEFT's name of the tensor that holds element `index` of the flat parameters.
pub(super) fn tensor_name<D: Backend>(adapter: &Adapter<D>, config: &AdapterConfig, index: usize) -> Option<String> {
    let slot = adapter.layout.slots().iter().rev().find(|slot| slot.a <= index)?;
    Some(named(slot, config, index >= slot.b))
}

fn named(slot: &LoraSlot, config: &AdapterConfig, is_b: bool) -> String {
    let naming = match config.target_modules {
        Targets::Names(_) => Naming::CausalLm,
        Targets::Pattern(_) => Naming::ConditionalGeneration,
    };
    let (a, b) = naming.tensor_names(slot.layer, slot.module);
    format!("`{}`", if is_b { b } else { a })
}

/// The first activation, or the answer logits, of a training forward pass.
///
/// # Errors
/// As the forward pass itself.
pub(super) fn activation<D: Device>(
    engine: &Engine<D>,
    batch: &PackedBatch,
    dropout: DropoutStep,
) -> Result<Option<String>> {
    let is_finite = |buf: &D::Buf| engine.device.download(buf).into_iter().all(f64::is_finite);
    let mut entering = None;
    for layer in 0..engine.model.depth() {
        let sites =
            SitePlan { read: SITES.iter().map(|&(kind, _)| Site { layer, kind }).collect(), ..SitePlan::default() };
        let request = ForwardRequest {
            layers: layer..layer + 1,
            entry: entering.take().map_or(Entry::Embeddings, Entry::Hidden),
            rows: OutputRows::All,
            adapter: engine.adapter.as_ref(),
            train: false,
            dropout: Some(dropout),
            sites: &sites,
        };
        let mut forward = engine.model.forward(&engine.device, batch, request)?;
        for (kind, what) in SITES {
            let site = Site { layer, kind };
            if forward.reads.get(&site).is_some_and(|value| !is_finite(value)) {
                return Ok(Some(format!("the activation `{site}`, {what}")));
            }
        }
        entering = Some(forward.tape.take(forward.hidden));
    }
    let hidden = entering.map(|hidden| engine.final_norm(&hidden));
    Ok(hidden.filter(|hidden| !is_finite(hidden)).map(|_| "the output of `model.norm`".to_owned()))
}

/// The first gradient on the way back: of the highest layer, there of the last projection.
pub(super) fn gradient<D: Backend>(adapter: &Adapter<D>, config: &AdapterConfig, values: &[f32]) -> Option<String> {
    let is_bad = |range: std::ops::Range<usize>| first(values[range].iter().copied()).is_some();
    adapter.layout.slots().iter().rev().find_map(|slot| {
        let end = slot.b + slot.outputs * slot.rank;
        // dB needs no more than what comes from above; dA comes after it.
        let is_b = if is_bad(slot.b..end) { Some(true) } else { is_bad(slot.a..slot.b).then_some(false) };
        is_b.map(|is_b| format!("the gradient of {}", named(slot, config, is_b)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LoraLayout, LoraSettings};
    use crate::ops::reference::{Precision, Reference};
    use crate::weights::{Checkpoint, Module};
    use std::path::Path;

    #[test]
    fn parameters_are_named_in_order_and_gradients_from_the_last_layer_back() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/text/model");
        let model = Checkpoint::open(folder).expect("golden model").config.text;
        let (layers, modules) = ([1, 3], [Module::Q, Module::Down]);
        let lora = LoraSettings { layers: layers.into(), modules: modules.into(), rank: 2, alpha: 4.0, rslora: false };
        let layout = LoraLayout::from_settings(&model, &lora).expect("fits");
        let slots = layout.slots().to_vec();
        let config = AdapterConfig::new(Naming::CausalLm, 2, 4.0, &modules, &layers);
        let adapter = Adapter::new(&Reference::new(Precision::F32), layout, 0);
        let name = |index| tensor_name(&adapter, &config, index).expect("inside");
        assert_eq!(name(0), "`base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight`");
        assert_eq!(name(slots[0].b), "`base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight`");
        assert_eq!(name(slots[3].b - 1), "`base_model.model.model.layers.3.mlp.down_proj.lora_A.weight`");
        assert_eq!(name(adapter.layout.len() - 1), "`base_model.model.model.layers.3.mlp.down_proj.lora_B.weight`");

        let mut values = vec![0.0f32; adapter.layout.len()];
        assert_eq!(gradient(&adapter, &config, &values), None);
        for (index, expected) in [
            (slots[0].a, "layers.1.self_attn.q_proj.lora_A"),
            (slots[2].a + 1, "layers.3.self_attn.q_proj.lora_A"),
            (slots[3].a, "layers.3.mlp.down_proj.lora_A"),
            (slots[3].b, "layers.3.mlp.down_proj.lora_B"),
        ] {
            values[index] = f32::NAN;
            let found = gradient(&adapter, &config, &values).expect("one is not finite");
            assert_eq!(found, format!("the gradient of `base_model.model.model.{expected}.weight`"));
        }
        assert_eq!((first([1.0, f32::INFINITY]), first([0.0])), (Some(1), None));
    }
}
