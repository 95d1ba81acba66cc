//! Whole text models on the CUDA device: against the reference at bf16, against what Hugging Face computed, and layer by layer. Models of
//! three shapes, with and without adapters, prefixes shared and not, image spans, and the first layers of Gemma 3 270M. Skipped where there
//! is no GPU or NVRTC; `tools/with_virtual_gpu` gives both.

mod support;

use std::path::Path;
use support::{Golden, assert_close, engine_groups, ids, single, widen};
use unflip::batch::PackedBatch;
use unflip::cuda::device::{Cuda, Options};
use unflip::cuda::{Error, caught};
use unflip::data::TraceInput;
use unflip::model::{EmbedScale, Engine, Entry, ForwardRequest, OutputRows, Site, SiteKind, SitePlan, Target};
use unflip::ops::Device;
use unflip::ops::reference::{Precision, Reference};
use unflip::trace::{TraceTensor, trace_forward};
use unflip::train::EngineGroup;
use unflip::weights::Checkpoint;

/// Of logits and hidden states against the reference at bf16, relative to a tensor's maximum.
const WHOLE: f64 = 1e-2;
/// Of margins.
const MARGIN: f64 = 2e-2;
/// Of one layer that is fed the reference's input.
const LAYER: f64 = 2e-3;
/// Against float32 results: what bf16 costs.
const FLOAT32: f64 = 6e-2;

fn device(recycles: bool) -> Option<Cuda> {
    match Cuda::with(Options { recycles, ..Options::default() }) {
        Ok(cuda) => Some(cuda),
        Err(Error::Missing(missing)) => {
            eprintln!("skipped: {}", Error::Missing(missing));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

const fn reference() -> Reference {
    Reference::new(Precision::Bf16)
}

/// Golden models, and adapters of theirs.
const MODELS: [(&str, [Option<&str>; 3]); 3] = [
    ("text", [None, Some("lora_all"), Some("lora_l23")]),
    ("vlm", [None, Some("lora_all"), Some("lora_l23")]),
    ("wide/vlm", [None, Some("lora_all"), Some("lora_l23")]),
];

fn engine<D: Device>(golden: &Golden, device: D, adapter: Option<&str>) -> Engine<D> {
    golden.engine(device, adapter.map(|name| golden.adapter(name)).as_ref())
}

/// Image tokens keep their places, and with them who sees whom; their embeddings are the table's.
fn input(golden: &Golden) -> TraceInput {
    let mut input = golden.groups();
    input.groups.iter_mut().for_each(|group| group.image = None);
    input
}

fn check(name: &str, found: &[TraceTensor], expected: &[TraceTensor]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!((&found.name, &found.shape), (&expected.name, &expected.shape), "{name}");
        let tolerance = if found.name.ends_with("margin") { MARGIN } else { WHOLE };
        assert_close(&format!("{name} {}", found.name), &widen(&found.values), &expected.values, tolerance);
    }
}

#[test]
fn whole_models_agree_with_the_reference_in_bf16() {
    let Some(mut cuda) = device(true) else { return };
    for (model, adapters) in MODELS {
        let golden = Golden::open(model);
        let input = input(&golden);
        for adapter in adapters {
            let mut on_host = engine(&golden, reference(), adapter);
            let mut on_cuda = engine(&golden, cuda, adapter);
            for share in [true, false] {
                (on_host.share_prefix, on_cuda.share_prefix) = (share, share);
                for hidden in [true, false] {
                    let found = caught(|| trace_forward(&on_cuda, &input, hidden)).unwrap().unwrap();
                    let expected = trace_forward(&on_host, &input, hidden).unwrap();
                    check(&format!("{model} {adapter:?} share={share}"), &found, &expected);
                }
            }
            cuda = on_cuda.device;
        }
    }
}

#[test]
fn logits_hidden_states_and_margins_agree_with_hugging_face() {
    let Some(cuda) = device(true) else { return };
    let golden = Golden::open("text");
    let forward = golden.file("forward.safetensors");
    let mut on_cuda = engine(&golden, cuda, None);
    let find = |tensors: &[TraceTensor], name: &str| {
        widen(&tensors.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("no tensor {name}")).values)
    };
    for sequence in ["seq0", "seq1"] {
        let group = single(ids(&forward, &format!("{sequence}.input_ids")));
        let tensors =
            trace_forward(&on_cuda, &TraceInput { groups: vec![group], ..TraceInput::default() }, true).unwrap();
        let layers = (0..on_cuda.model.depth()).map(|layer| format!("hidden.layer_{layer:02}"));
        for state in layers.chain(["hidden.embed".into(), "hidden.final_norm".into()]) {
            let expected = forward.tensor(&format!("{sequence}.{state}")).unwrap().to_f32();
            let found = find(&tensors, &format!("group0.phrasing0.{state}"));
            assert_close(&format!("{sequence} {state}"), &found, &expected, FLOAT32);
        }
    }
    let recorded = golden.file("group_logits.safetensors");
    let input = golden.groups();
    for adapter in [None, Some("lora_all"), Some("lora_l23")] {
        on_cuda = engine(&golden, on_cuda.device, adapter);
        let tensors = trace_forward(&on_cuda, &input, false).unwrap();
        for group in 0..input.groups.len() {
            for what in ["last_logits", "margin"] {
                let name = format!("group{group}.{what}");
                let Ok(expected) = recorded.tensor(&format!("{}.{name}", adapter.unwrap_or("base"))) else { continue };
                assert_close(&format!("{adapter:?} {name}"), &find(&tensors, &name), &expected.to_f32(), FLOAT32);
            }
        }
    }
}

/// Residual streams that enter and leave the layers.
fn streams<D: Device>(engine: &Engine<D>, batch: &PackedBatch) -> Vec<D::Buf> {
    let depth = engine.model.depth();
    let mut sites = SitePlan::default();
    sites.read.insert(Site { layer: 0, kind: SiteKind::ResidPre });
    sites.read.extend((0..depth).map(|layer| Site { layer, kind: SiteKind::ResidPost }));
    let request = request(engine, 0..depth, Entry::Embeddings, &sites);
    engine.model.forward(&engine.device, batch, request).unwrap().reads.into_values().collect()
}

fn request<'a, 'm, D: Device>(
    engine: &'m Engine<D>,
    layers: std::ops::Range<usize>,
    entry: Entry<D::Buf>,
    sites: &'a SitePlan<'a, D>,
) -> ForwardRequest<'a, 'm, D> {
    ForwardRequest {
        layers,
        entry,
        rows: OutputRows::All,
        adapter: engine.adapter.as_ref(),
        train: false,
        dropout: None,
        sites,
    }
}

/// One layer's residual stream for an entering one.
fn layer<D: Device>(engine: &Engine<D>, batch: &PackedBatch, layer: usize, entering: &[f32]) -> Vec<f64> {
    let rows = entering.len() / engine.model.config.hidden_size;
    let entry = Entry::Hidden(engine.device.upload(rows, entering.len() / rows, entering));
    let sites = SitePlan::default();
    let forward =
        engine.model.forward(&engine.device, batch, request(engine, layer..layer + 1, entry, &sites)).unwrap();
    engine.device.download(forward.tape.value(forward.hidden))
}

/// Every layer, fed what enters it on the reference, in the f32 that both can hold.
fn check_layers(name: &str, on_cuda: &Engine<Cuda>, on_host: &Engine<Reference>, batch: &PackedBatch) {
    let streams = streams(on_host, batch);
    for (index, entering) in streams[..streams.len() - 1].iter().enumerate() {
        let entering: Vec<f32> = entering.data.iter().map(|&value| value as f32).collect();
        let found = layer(on_cuda, batch, index, &entering);
        let expected: Vec<f32> =
            layer(on_host, batch, index, &entering).into_iter().map(|value| value as f32).collect();
        assert_close(&format!("{name} layer {index}"), &found, &expected, LAYER);
    }
}

#[test]
fn each_layer_fed_the_references_input_agrees_with_it() {
    let Some(mut cuda) = device(true) else { return };
    for (model, adapters) in MODELS {
        let golden = Golden::open(model);
        let groups: Vec<_> = input(&golden).groups.into_iter().map(|group| group.tokens).collect();
        for adapter in adapters {
            let on_host = engine(&golden, reference(), adapter);
            let on_cuda = engine(&golden, cuda, adapter);
            let batch = on_host.pack(&groups, 0).unwrap();
            check_layers(&format!("{model} {adapter:?}"), &on_cuda, &on_host, &batch);
            cuda = on_cuda.device;
        }
    }
}

#[test]
fn margins_do_not_depend_on_what_is_packed_together() {
    let Some(cuda) = device(true) else { return };
    let golden = Golden::open("text");
    let engine = engine(&golden, cuda, Some("lora_all"));
    let groups = engine_groups(&golden, 6);
    let margins = |groups: &[EngineGroup]| {
        let tokens: Vec<_> = groups.iter().map(|group| group.tokens.clone()).collect();
        let targets: Vec<_> = groups.iter().map(Target::from).collect();
        engine.margins(&engine.pack(&tokens, 0).unwrap(), &targets).unwrap()
    };
    let together = margins(&groups);
    assert!(together.iter().flatten().any(|margin| *margin != 0.0));
    for (index, group) in groups.iter().enumerate() {
        assert_eq!(margins(std::slice::from_ref(group))[0], together[index], "{}", group.id);
    }
}

#[test]
fn buffers_that_are_lent_again_change_nothing() {
    let (Some(fresh), Some(lent)) = (device(false), device(true)) else { return };
    let golden = Golden::open("text");
    let input = golden.groups();
    let trace = |cuda: Cuda| trace_forward(&engine(&golden, cuda, Some("lora_all")), &input, true).unwrap();
    assert_eq!(trace(fresh), trace(lent));
}

/// One group of report questions through the first three layers of the real model.
#[test]
fn the_first_layers_of_gemma_270m_agree_with_the_reference() {
    let Some(folder) = std::env::var_os("UNFLIP_TEST_MODEL").filter(|value| !value.is_empty()) else {
        eprintln!("skipped: UNFLIP_TEST_MODEL names no Gemma 3 270M folder");
        return;
    };
    let Some(cuda) = device(true) else { return };
    let checkpoint = Checkpoint::open(Path::new(&folder)).unwrap();
    let peer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/peer/groups_270m.json");
    let mut input = TraceInput::read(peer).unwrap();
    input.groups.truncate(1);
    let on_host = Engine::open(reference(), &checkpoint, EmbedScale::Auto, Some(3)).unwrap();
    let on_cuda = Engine::open(cuda, &checkpoint, EmbedScale::Auto, Some(3)).unwrap();
    let batch = on_host.pack(std::slice::from_ref(&input.groups[0].tokens), 0).unwrap();
    check_layers("270m", &on_cuda, &on_host, &batch);
    let found = trace_forward(&on_cuda, &input, true).unwrap();
    check("270m", &found, &trace_forward(&on_host, &input, true).unwrap());
}
