//! Sites: reading changes nothing, a write that does nothing changes no bit, an un-adapted model's margin gradient at a site equals
//! finite differences, and any layer range continues from a stored hidden state.

mod support;

use support::{Golden, OnEach, on_each_device};
use unflip::batch::PackedBatch;
use unflip::model::{Engine, Entry, ForwardRequest, OutputRows, Site, SiteKind, SitePlan, SiteWrite, Target};
use unflip::ops::reference::{Precision, Reference};
use unflip::ops::{Backend, TrainDevice};

const KINDS: [SiteKind; 5] =
    [SiteKind::ResidPre, SiteKind::AttnOut, SiteKind::MlpIn, SiteKind::MlpOut, SiteKind::ResidPost];

fn setup<D: TrainDevice>(device: D) -> (Engine<D>, PackedBatch, Vec<Target>) {
    let golden = Golden::open("text");
    let input = golden.groups();
    let engine = golden.engine(device, None);
    let groups: Vec<_> = input.groups.iter().map(|group| group.tokens.clone()).collect();
    let targets = input
        .groups
        .iter()
        .map(|group| Target { yes: group.yes, no: group.no, answer_yes: group.answer_yes })
        .collect();
    let batch = engine.pack(&groups, 0).unwrap();
    (engine, batch, targets)
}

/// Residual stream of the answer rows after the last layer.
fn answers<D: TrainDevice>(engine: &Engine<D>, batch: &PackedBatch, sites: &SitePlan<'_, D>) -> Vec<f64> {
    let request = ForwardRequest {
        layers: 0..engine.model.depth(),
        entry: Entry::Embeddings,
        rows: OutputRows::Answers,
        adapter: None,
        train: false,
        dropout: None,
        sites,
    };
    let forward = engine.model.forward(&engine.device, batch, request).unwrap();
    engine.device.download(forward.tape.value(forward.hidden))
}

#[test]
fn reading_or_rewriting_a_site_changes_no_bit() {
    struct Body;
    impl OnEach for Body {
        fn run<D: TrainDevice>(&mut self, device: D, name: &str) {
            let (engine, batch, _) = setup(device);
            let plain = answers(&engine, &batch, &SitePlan::default());
            for kind in KINDS {
                for layer in [0, 3, engine.model.depth() - 1] {
                    let site = Site { layer, kind };
                    let mut sites = SitePlan::default();
                    sites.read.insert(site);
                    sites.write.insert(site, SiteWrite { edit: Box::new(|_, _, _| ()), additive: false });
                    assert!(answers(&engine, &batch, &sites) == plain, "{name}: no-op write at {site}");
                }
            }
        }
    }
    on_each_device(&mut Body);
}

#[test]
fn a_stored_hidden_state_continues_to_the_same_bits() {
    struct Body;
    impl OnEach for Body {
        fn run<D: TrainDevice>(&mut self, device: D, name: &str) {
            let (engine, batch, _) = setup(device);
            let plain = answers(&engine, &batch, &SitePlan::default());
            let sites = SitePlan::default();
            for split in 1..engine.model.depth() {
                let request = |layers, entry, rows| ForwardRequest {
                    layers,
                    entry,
                    rows,
                    adapter: None,
                    train: false,
                    dropout: None,
                    sites: &sites,
                };
                let below = request(0..split, Entry::Embeddings, OutputRows::All);
                let mut below = engine.model.forward(&engine.device, &batch, below).unwrap();
                let stored = below.tape.take(below.hidden);
                let above = request(split..engine.model.depth(), Entry::Hidden(stored), OutputRows::Answers);
                let above = engine.model.forward(&engine.device, &batch, above).unwrap();
                assert!(engine.device.download(above.tape.value(above.hidden)) == plain, "{name}: split at {split}");
            }
        }
    }
    on_each_device(&mut Body);
}

#[test]
fn margin_gradients_at_sites_equal_finite_differences() {
    let (engine, batch, targets) = setup(Reference::new(Precision::F32));
    let device = &engine.device;
    let margin_sum = |sites: &SitePlan<'_, Reference>| -> f64 {
        let request = ForwardRequest {
            layers: 0..engine.model.depth(),
            entry: Entry::Embeddings,
            rows: OutputRows::Answers,
            adapter: None,
            train: false,
            dropout: None,
            sites,
        };
        let mut forward = engine.model.forward(device, &batch, request).unwrap();
        let hidden = forward.tape.take(forward.hidden);
        let ids = unflip::model::AnswerColumns::Ids(vec![targets[0].no, targets[0].yes]);
        engine.head_logits(&hidden, &ids).unwrap().iter().map(|row| row[1] - row[0]).sum()
    };
    for kind in KINDS {
        let site = Site { layer: 3, kind };
        let mut plan = SitePlan::default();
        plan.gradient.insert(site);
        let gradient = engine.margin_gradients(&batch, &targets, &plan).unwrap().remove(&site).unwrap();
        let (rows, cols) = device.shape(&gradient);
        let gradient = device.download(&gradient);
        let scale = gradient.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        assert!(scale > 0.0, "{site}: the margin depends on it");
        for probe in 0..12 {
            let (row, col) = ((probe * 7) % rows, (probe * 11 + 3) % cols);
            let step = 1.0 / 1024.0;
            let moved = |sign: f32| {
                let mut delta = vec![0.0f32; rows * cols];
                delta[row * cols + col] = sign * step;
                let mut sites = SitePlan::default();
                let edit = move |device: &Reference, _: &PackedBatch, value: &mut <Reference as Backend>::Buf| {
                    device.add_assign(value, &device.upload(rows, cols, &delta));
                };
                sites.write.insert(site, SiteWrite { edit: Box::new(edit), additive: true });
                margin_sum(&sites)
            };
            let difference = (moved(1.0) - moved(-1.0)) / (2.0 * f64::from(step));
            let found = gradient[row * cols + col];
            assert!(
                (difference - found).abs() <= 1e-4 * scale,
                "{site} [{row}, {col}]: gradient {found:.6e}, finite difference {difference:.6e}"
            );
        }
    }
}

#[test]
fn a_write_without_a_derivative_is_refused_where_a_gradient_flows() {
    let (engine, batch, targets) = setup(Reference::new(Precision::F32));
    let mut plan = SitePlan::default();
    plan.gradient.insert(Site { layer: 2, kind: SiteKind::ResidPost });
    plan.write.insert(
        Site { layer: 4, kind: SiteKind::ResidPost },
        SiteWrite { edit: Box::new(|_, _, _| ()), additive: false },
    );
    let error = engine.margin_gradients(&batch, &targets, &plan).expect_err("refused");
    assert!(error.to_string().contains("4.resid_post"), "{error}");
}

#[test]
fn nothing_below_the_lowest_leaf_is_recorded() {
    let golden = Golden::open("text");
    let file = golden.adapter("lora_l23");
    let engine = golden.engine(Reference::new(Precision::F32), Some(&file));
    let (_, batch, _) = setup(Reference::new(Precision::F32));
    let sites = SitePlan::default();
    let recorded = |end: usize| {
        let request = ForwardRequest {
            layers: 0..end,
            entry: Entry::Embeddings,
            rows: OutputRows::All,
            adapter: engine.adapter.as_ref(),
            train: true,
            dropout: None,
            sites: &sites,
        };
        engine.model.forward(&engine.device, &batch, request).unwrap().tape.recorded()
    };
    assert_eq!(recorded(2), 0, "layers 0 and 1 have no adapter and nothing below them has");
    assert!(recorded(3) > 0);
}
