//! Kernels that are bound by memory on the CUDA device, against the f64 reference at bf16: shapes ragged and whole, one row and many, widths
//! of every model, 40 and more for each. Skipped where there is no GPU or NVRTC; `tools/with_virtual_gpu` gives both.

#[path = "support/cases.rs"]
mod cases;

use cases::{BF16, F64, forward_results, largest, upload};
use unflip::cuda::device::{Cuda, Options};
use unflip::cuda::{Buf, Element, Error};
use unflip::ops::Backend;
use unflip::ops::attention::cases::{Queries, TreeShape, plan};
use unflip::ops::attention::{Attention, AttentionShape};
use unflip::ops::case::{Case, Values, weight};
use unflip::ops::embed::Embed;
use unflip::ops::geglu::Geglu;
use unflip::ops::norm::Norm;
use unflip::ops::qk_norm_rope::QkNormRope;
use unflip::ops::{answer_head, gated_linear, lora_linear, vocabulary};
use unflip::weights::Dtype;

const EPS: f32 = 1e-6;

/// A device whose buffers are allocations of their own, so that a step beyond one is found.
fn device() -> Option<Cuda> {
    match Cuda::with(Options { recycles: false, ..Options::default() }) {
        Ok(cuda) => Some(cuda),
        Err(Error::Missing(missing)) => {
            eprintln!("skipped: {}", Error::Missing(missing));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn values(name: &str, count: usize, scale: f32) -> Vec<f32> {
    let mut values = Values::new(name);
    (0..count).map(|_| values.next(scale)).collect()
}

/// Rows and widths: every remainder that tiles and padding care about, and the models' own.
fn shapes() -> Vec<(usize, usize)> {
    let ragged =
        [1, 2, 3, 5, 40, 63, 64, 65, 127, 129, 255, 257].into_iter().flat_map(|n| [1, 3, 7].map(|rows| (rows, n)));
    let models = [640, 1152, 2048, 2560, 3840, 5376, 10_240].into_iter().flat_map(|n| [(1, n), (6, n)]);
    ragged.chain(models).collect()
}

/// f32 results differ by roundings of sums in f32; where the result is rounded to bf16, also by one unit in its last place, because a
/// value next to the middle of two goes either way.
fn compare(what: &str, found: &[f64], expected: &[f64], element: Element, roundings: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    let f32_share = roundings * 2.0_f64.powi(-24);
    let mut ties = 0;
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let unit = if element == Element::Bf16 { 2.0_f64.powi(-7) * expected.abs() } else { 0.0 };
        let off = (found - expected).abs();
        ties += usize::from(off > f32_share * largest);
        assert!(off <= f32_share * largest + unit, "{what}: element {index} is {found}, expected {expected}");
    }
    // Of bf16 results few may have gone the other way.
    assert!(ties <= 2 + expected.len() / 50, "{what}: {ties} of {} differ", expected.len());
}

#[test]
fn norms_agree_with_the_reference() {
    let Some(cuda) = device() else { return };
    for (rows, n) in shapes() {
        let name = format!("norm [{rows}, {n}]");
        let (x, h) = (values(&name, rows * n, 4.0), values(&format!("{name} h"), rows * n, 64.0));
        let w = weight("norm", "w", Dtype::Bf16, &[n], 1.0);
        let (cuda_w, reference_w) = (cuda.weight(&w).unwrap(), BF16.weight(&w).unwrap());
        let (on_cuda, on_host) = (cuda.upload(rows, n, &x), BF16.upload(rows, n, &x));
        let roundings = 8.0 + (n as f64).sqrt();

        let found = cuda.norm(&on_cuda, &cuda_w, EPS);
        assert_eq!(found.element(), Element::Bf16);
        compare(
            &name,
            &cuda.download(&found),
            &BF16.download(&BF16.norm(&on_host, &reference_w, EPS)),
            Element::Bf16,
            roundings,
        );

        let found = cuda.branch_norm(&on_cuda, &cuda_w, EPS);
        let expected = BF16.branch_norm(&on_host, &reference_w, EPS);
        compare(&format!("branch_{name}"), &cuda.download(&found), &BF16.download(&expected), Element::F32, roundings);

        let found = cuda.norm_add(&cuda.upload(rows, n, &h), &on_cuda, &cuda_w, EPS);
        let expected = BF16.norm_add(&BF16.upload(rows, n, &h), &on_host, &reference_w, EPS);
        compare(&format!("{name} added"), &cuda.download(&found), &BF16.download(&expected), Element::F32, roundings);
    }
}

#[test]
fn embeddings_agree_with_the_reference() {
    let Some(cuda) = device() else { return };
    for (rows, n) in shapes() {
        let name = format!("embed [{rows}, {n}]");
        let table = weight("embed", "table", Dtype::Bf16, &[37, n], 1.0);
        let ids: Vec<u32> = (0..rows as u32).map(|row| row * 11 % 37).collect();
        let found = cuda.embed(&cuda.weight(&table).unwrap(), &ids, 25.25);
        assert_eq!(found.element(), Element::F32);
        let expected = BF16.embed(&BF16.weight(&table).unwrap(), &ids, 25.25);
        compare(&name, &cuda.download(&found), &BF16.download(&expected), Element::F32, 2.0);
    }
}

#[test]
fn gates_agree_with_the_reference() {
    let Some(cuda) = device() else { return };
    for (rows, n) in shapes() {
        let name = format!("geglu [{rows}, {n}]");
        let (gate, up) = (values(&name, rows * n, 4.0), values(&format!("{name} up"), rows * n, 1.0));
        let found = cuda.geglu(&cuda.upload(rows, n, &gate), &cuda.upload(rows, n, &up));
        assert_eq!(found.element(), Element::Bf16);
        let expected = BF16.geglu(&BF16.upload(rows, n, &gate), &BF16.upload(rows, n, &up));
        compare(&name, &cuda.download(&found), &BF16.download(&expected), Element::Bf16, 40.0);
    }
}

#[test]
fn rotated_heads_agree_with_the_reference() {
    let Some(cuda) = device() else { return };
    let head_dims = [2, 6, 8, 12, 16, 20, 32, 64, 72, 128, 256];
    let all = head_dims
        .into_iter()
        .flat_map(|head_dim| [(1, 1), (3, 1), (5, 3), (7, 4)].map(|(rows, heads)| (rows, heads, head_dim)));
    for (rows, heads, head_dim) in all {
        let name = format!("qk_norm_rope rows={rows} heads={heads} head_dim={head_dim}");
        let x = values(&name, rows * heads * head_dim, 4.0);
        let angles = values(&format!("{name} angles"), rows * head_dim, 1.0);
        let rope: Vec<f32> = angles
            .chunks(head_dim)
            .flat_map(|row| {
                let (one, two) = row.split_at(head_dim / 2);
                one.iter().map(|angle| angle.cos()).chain(two.iter().map(|angle| angle.sin())).collect::<Vec<_>>()
            })
            .collect();
        let w = weight("qk", "w", Dtype::Bf16, &[head_dim], 1.0);
        let found = cuda.qk_norm_rope(
            &cuda.upload(rows, heads * head_dim, &x),
            &cuda.weight(&w).unwrap(),
            EPS,
            &cuda.upload(rows, head_dim, &rope),
            head_dim,
        );
        assert_eq!(found.element(), Element::Bf16);
        let expected = BF16.qk_norm_rope(
            &BF16.upload(rows, heads * head_dim, &x),
            &BF16.weight(&w).unwrap(),
            EPS,
            &BF16.upload(rows, head_dim, &rope),
            head_dim,
        );
        let roundings = 12.0 + (head_dim as f64).sqrt();
        compare(&name, &cuda.download(&found), &BF16.download(&expected), Element::Bf16, roundings);
    }
}

/// Head layouts, and trees: one row, prefix alone, five suffixes, several groups, images, longer than a block of keys or a tile of rows.
fn attentions() -> Vec<(AttentionShape, Vec<TreeShape>, Option<usize>, Queries)> {
    let tree = |prefix: usize, suffixes: &[usize], image: Option<std::ops::Range<usize>>| TreeShape {
        prefix,
        suffixes: suffixes.to_vec(),
        image,
    };
    let trees = [
        vec![tree(0, &[1], None)],
        vec![tree(45, &[], None)],
        vec![tree(40, &[5, 1, 9, 17, 6], None)],
        vec![tree(19, &[4, 7], None), tree(0, &[33], None), tree(33, &[1, 2, 16], None)],
        vec![tree(30, &[6, 9], Some(4..20)), tree(3, &[12, 14], Some(5..11))],
    ];
    let mut all = Vec::new();
    for (heads, kv_heads, head_dim) in
        [(1, 1, 16), (2, 1, 12), (4, 2, 8), (3, 1, 20), (6, 3, 64), (4, 1, 256), (8, 1, 32)]
    {
        let shape = AttentionShape { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() };
        for trees in &trees {
            all.push((shape, trees.clone(), None, Queries::All));
            all.push((shape, trees.clone(), Some(7), Queries::All));
        }
        all.push((shape, trees[2].clone(), None, Queries::Answers));
        all.push((shape, trees[3].clone(), Some(1), Queries::Answers));
    }
    all
}

#[test]
fn attention_agrees_with_the_reference() {
    let Some(cuda) = device() else { return };
    for (shape, trees, window, queries) in attentions() {
        let name = format!("{shape:?} {trees:?} window={window:?} {queries:?}");
        let plan = plan(&trees, window, queries);
        let (rows, columns) = (plan.spans.len(), shape.heads * shape.head_dim);
        if rows == 0 {
            continue;
        }
        // Rounded to bf16 on both sides before anything is computed.
        let round =
            |values: Vec<f32>| -> Vec<f32> { values.into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect() };
        let keys = plan.key_rows * shape.kv_heads * shape.head_dim;
        let q = round(values(&format!("{name} q"), rows * columns, 1.0));
        let (k, v) = (round(values(&format!("{name} k"), keys, 1.0)), round(values(&format!("{name} v"), keys, 1.0)));
        let width = shape.kv_heads * shape.head_dim;
        let found = cuda.attention(
            &shape,
            &plan,
            &cuda.upload(rows, columns, &q),
            &cuda.upload(plan.key_rows, width, &k),
            &cuda.upload(plan.key_rows, width, &v),
        );
        let expected = BF16.attention(
            &shape,
            &plan,
            &BF16.upload(rows, columns, &q),
            &BF16.upload(plan.key_rows, width, &k),
            &BF16.upload(plan.key_rows, width, &v),
        );
        let (found_o, expected_o) = (cuda.download(&found.o), BF16.download(&expected.o));
        // A probability next to the middle of two bf16 values goes either way, and moves sums of few keys by a unit of its last place, 2⁻⁸.
        let largest = largest(&expected_o);
        let mut ties = 0;
        for (index, (found, expected)) in found_o.iter().zip(&expected_o).enumerate() {
            let allowed = 2.0_f64.powi(-8) * largest + 2.0_f64.powi(-7) * expected.abs();
            let off = (found - expected).abs();
            assert!(off <= allowed, "{name}: o[{index}] is {found}, expected {expected}");
            ties += usize::from(off > 1e-5 * largest);
        }
        assert!(ties <= 2 + expected_o.len() / 50, "{name}: {ties} of {} differ", expected_o.len());
        let (found, expected) = (cuda.download(&found.softmax), BF16.download(&expected.softmax));
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(
                (found - expected).abs() <= 1e-4 * (1.0 + expected.abs()),
                "{name}: softmax[{index}] {found} for {expected}"
            );
        }
    }
}

/// Cases of the registries against the reference in bf16, by the rule of the CPU's bf16 units: at most `share` of the values beyond an f32
/// device's bound, none further from the exact value than twice the reference's worst, or a unit in the last place of the largest. What is
/// kept in bf16 here the reference rounds where it is used.
fn check<C: Case>(cases: &[C], share: f64) {
    let Some(cuda) = device() else { return };
    assert!(cases.len() >= 40, "{} shapes", cases.len());
    let (mut values, mut beyond) = (0, 0);
    for case in cases {
        let (rounded, exact) = (forward_results(&BF16, case), forward_results(&F64, case));
        let found = case.forward(&cuda, &upload(&cuda, &case.inputs()));
        assert_eq!(found.len(), rounded.len(), "{}", case.name());
        for ((found, rounded), exact) in found.iter().zip(&rounded).zip(&exact) {
            let kept = |value: f64| match found.buf.element() {
                Element::Bf16 => half::bf16::from_f64(value).to_f64(),
                Element::F32 => value,
            };
            let values_found = cuda.download(&found.buf);
            assert_eq!(values_found.len(), exact.values.len(), "{}: {}", case.name(), found.name);
            let scale = largest(&exact.values).max(case.cancelling());
            let pairs = || rounded.values.iter().map(|&value| kept(value)).zip(&exact.values);
            let worst = pairs().fold(0.0_f64, |worst, (a, b)| worst.max((a - b).abs()));
            let allowed = 2.0 * worst + scale / 256.0;
            for (i, (value, (rounded, exact))) in values_found.iter().zip(pairs()).enumerate() {
                let place = || format!("{}: {}[{i}]", case.name(), found.name);
                assert!((value - exact).abs() <= allowed, "{}: {value} for {exact} ± {allowed:e}", place());
                values += 1;
                beyond += usize::from((value - rounded).abs() > case.bound() * scale);
            }
            padding_is_zero(&cuda, &found.buf, &case.name());
        }
    }
    println!("{beyond} of {values} beyond the f32 bound");
    assert!(beyond as f64 <= share * values as f64, "{beyond} of {values} values are off");
}

/// Consumers read it.
fn padding_is_zero(cuda: &Cuda, buf: &Buf, name: &str) {
    for row in cuda.padded(buf).chunks_exact(buf.stride().max(1)) {
        assert!(row[buf.cols()..].iter().all(|&value| value == 0.0), "{name}: padding");
    }
}

#[test]
fn products_agree_with_the_reference() {
    let cases = lora_linear::cases::cases().into_iter().chain(lora_linear::cases::tiled());
    // Dropout belongs to training.
    check(&cases.filter(|case| !case.drops()).collect::<Vec<_>>(), 0.002);
}

#[test]
fn gated_products_agree_with_the_reference() {
    check(&gated_linear::cases::cases().into_iter().chain(gated_linear::cases::tiled()).collect::<Vec<_>>(), 0.002);
}

#[test]
fn answer_logits_agree_with_the_reference() {
    check(&answer_head::cases::cases().into_iter().chain(answer_head::cases::tiled()).collect::<Vec<_>>(), 0.0);
}

#[test]
fn statistics_of_the_vocabulary_agree_with_the_reference() {
    check(&vocabulary::cases::cases().into_iter().chain(vocabulary::cases::tiled()).collect::<Vec<_>>(), 0.0);
}
