//! Losses against recorded values, against formulas written out, and gradients against finite differences.

use super::*;
use proptest::prelude::*;
use safetensors::SafeTensors;
use std::path::Path;

/// KL(p‖q) by its definition.
fn kl(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum()
}

fn softmax(z: &[f64]) -> Vec<f64> {
    let total: f64 = z.iter().map(|z| z.exp()).sum();
    z.iter().map(|z| z.exp() / total).collect()
}

fn group<'a>(logits: &'a [f64], columns: usize, answer_yes: bool) -> GroupLogits<'a> {
    GroupLogits { logits, columns, vocabulary: None, yes: 1, no: columns - 1, answer_yes }
}

/// Every objective that a name or a config can ask for.
fn objectives() -> Vec<(String, Objective)> {
    let mut all = Vec::new();
    for pairs in [Pairs::Original, Pairs::All] {
        for name in LOSSES {
            let weighted = default_lambda(name).map_or(vec![], |_| vec![Some(0.0), Some(0.7), Some(f64::INFINITY)]);
            for lambda in [vec![None], weighted].concat() {
                all.push((format!("{name} {pairs:?} {lambda:?}"), Objective::new(name, pairs, lambda).unwrap()));
            }
        }
        for consistency in [Consistency::Margin, Consistency::SymklBinary, Consistency::SymklFull] {
            for accuracy in [Accuracy::CeBinary, Accuracy::CeFull] {
                let objective = Objective::custom(Some(consistency), Some(accuracy), pairs, Some(0.3)).unwrap();
                all.push((format!("{consistency:?} {accuracy:?} {pairs:?}"), objective));
            }
        }
    }
    all
}

#[test]
fn losses_equal_the_recorded_ones() {
    for name in ["text", "vlm", "wide/vlm"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
        let bytes = std::fs::read(folder.join("group_logits.safetensors")).expect("golden file opens");
        let file = SafeTensors::deserialize(&bytes).expect("golden file parses");
        for adapter in ["lora_all", "lora_l23"] {
            let recorded: serde_json::Value =
                serde_json::from_slice(&std::fs::read(folder.join(adapter).join("losses.json")).expect("losses open"))
                    .expect("losses parse");
            for (key, loss, pairs, lambda) in [
                ("L_margin", "margin", Pairs::All, None),
                ("L_symkl_binary", "symkl-binary", Pairs::All, None),
                ("L_symkl_full", "symkl-full", Pairs::All, None),
                ("L_ce_full", "ce-full", Pairs::All, None),
                ("L_ce_binary", "ce-binary", Pairs::All, None),
                ("L_paper", "paper", Pairs::Original, None),
                ("combined", "combined", Pairs::All, Some(0.5)),
            ] {
                let objective = Objective::new(loss, pairs, lambda).unwrap();
                let mut mean = 0.0;
                for (index, answer_yes) in [true, false].into_iter().enumerate() {
                    let tensor = file.tensor(&format!("{adapter}.group{index}.last_logits")).expect("logits");
                    let logits: Vec<f64> = tensor
                        .data()
                        .chunks_exact(4)
                        .map(|c| f64::from(f32::from_le_bytes(c.try_into().expect("four bytes"))))
                        .collect();
                    let found = objective.evaluate(&GroupLogits {
                        logits: &logits,
                        columns: tensor.shape()[1],
                        vocabulary: None,
                        yes: 111,
                        no: 222,
                        answer_yes,
                    });
                    mean += found.loss / 2.0;
                }
                let expected = recorded["float64"][key].as_f64().expect("a loss");
                assert!((mean - expected).abs() <= 1e-5 * expected, "{name} {adapter} {key}: {mean} for {expected}");
            }
        }
    }
}

#[test]
fn the_paper_loss_is_its_formula() {
    let logits = [0.3, 1.1, -0.4, 0.2, -2.0, 1.3, 0.0, 0.5, 0.1];
    let group = group(&logits, 3, false);
    let p: Vec<[f64; 2]> = logits
        .chunks(3)
        .map(|row| {
            let p = softmax(&row[1..]);
            [p[0], p[1]]
        })
        .collect();
    let symkl = |i: usize, j: usize| 0.5 * (kl(&p[i], &p[j]) + kl(&p[j], &p[i]));
    let ce = |i: usize| -p[i][1].ln();
    let loss = |pairs, lambda| Objective::new("paper", pairs, Some(lambda)).unwrap().evaluate(&group);
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} for {expected}");
    let consistency = (symkl(0, 1) + symkl(0, 2)) / 2.0;
    let accuracy = ce(0) + (ce(1) + ce(2)) / 2.0;
    for lambda in [0.0, 0.5, 1.0] {
        let found = loss(Pairs::Original, lambda);
        close(found.loss, consistency + lambda * accuracy);
        close(found.consistency, consistency);
        close(found.accuracy, accuracy);
        for (m, row) in found.margins.iter().zip(logits.chunks(3)) {
            close(*m, row[1] - row[2]);
        }
    }
    close(loss(Pairs::Original, f64::INFINITY).loss, accuracy);
    let all = (symkl(0, 1) + symkl(0, 2) + symkl(1, 2)) / 3.0 + 2.0 * (ce(0) + ce(1) + ce(2)) / 3.0;
    close(loss(Pairs::All, 1.0).loss, all);
    assert_eq!(Objective::new("paper", Pairs::Original, None), Objective::new("paper", Pairs::Original, Some(1.0)));
    assert_eq!(
        Objective::new("combined", Pairs::Original, None),
        Objective::new("combined", Pairs::Original, Some(0.1))
    );
}

#[test]
fn full_terms_are_their_formulas() {
    let logits = [0.3, 1.1, -0.4, 0.9, 0.2, -2.0, 1.3, -0.1, 0.0, 0.5, 0.1, 2.0];
    let group = group(&logits, 4, true);
    let p: Vec<Vec<f64>> = logits.chunks(4).map(softmax).collect();
    let symkl = |i: usize, j: usize| 0.5 * (kl(&p[i], &p[j]) + kl(&p[j], &p[i]));
    let value = |name: &str| Objective::new(name, Pairs::All, None).unwrap().evaluate(&group).loss;
    assert!((value("symkl-full") - (symkl(0, 1) + symkl(0, 2) + symkl(1, 2)) / 3.0).abs() < 1e-12);
    assert!((value("ce-full") + p.iter().map(|p| p[1].ln()).sum::<f64>() / 3.0).abs() < 1e-12);
    let custom =
        Objective::custom(Some(Consistency::SymklFull), Some(Accuracy::CeFull), Pairs::All, Some(0.25)).unwrap();
    assert!((custom.evaluate(&group).loss - value("symkl-full") - 0.25 * value("ce-full")).abs() < 1e-12);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gradients_equal_finite_differences(
        (columns, logits) in (2usize..7, 1usize..5).prop_flat_map(|(columns, phrasings)| {
            (Just(columns), prop::collection::vec(-4.0f64..4.0, columns * phrasings))
        }),
        answer_yes: bool,
    ) {
        let evaluate = |objective: &Objective, logits: &[f64]| {
            objective.evaluate(&GroupLogits { logits, columns, vocabulary: None, yes: 0, no: columns - 1, answer_yes })
        };
        for (name, objective) in objectives() {
            let found = evaluate(&objective, &logits);
            let step = 1e-5;
            for v in 0..logits.len() {
                let at = |offset: f64| {
                    let mut moved = logits.clone();
                    moved[v] += offset;
                    evaluate(&objective, &moved).loss
                };
                let expected = (at(step) - at(-step)) / (2.0 * step);
                prop_assert!(
                    (found.dlogits[v] - expected).abs() <= 1e-7 * (1.0 + found.loss.abs()),
                    "{}: d[{}] is {}, finite difference {}", name, v, found.dlogits[v], expected
                );
            }
        }
    }

    #[test]
    fn two_columns_are_enough_unless_the_vocabulary_is_asked_for(
        logits in prop::collection::vec(-4.0f64..4.0, 15),
        answer_yes: bool,
    ) {
        let narrow: Vec<f64> = logits.chunks(5).flat_map(|row| [row[1], row[4]]).collect();
        for (name, objective) in objectives() {
            let wide = objective.evaluate(&group(&logits, 5, answer_yes));
            let two = GroupLogits { logits: &narrow, columns: 2, vocabulary: None, yes: 0, no: 1, answer_yes };
            if objective.needs_full_vocabulary() {
                continue;
            }
            let found = objective.evaluate(&two);
            prop_assert_eq!((found.loss, found.consistency, found.accuracy), (wide.loss, wide.consistency, wide.accuracy), "{}", name);
            for (narrow, wide) in found.dlogits.chunks(2).zip(wide.dlogits.chunks(5)) {
                prop_assert_eq!((narrow[0], narrow[1]), (wide[1], wide[4]));
                prop_assert_eq!((wide[0], wide[2], wide[3]), (0.0, 0.0, 0.0));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pooled_gradients_equal_finite_differences(
        logits in (1usize..4).prop_flat_map(|phrasings| prop::collection::vec(-4.0f64..4.0, 6 * phrasings)),
        answer_yes: bool,
    ) {
        let step = 1e-5;
        for pool in [Pool::Single, Pool::Max, Pool::Logsumexp] {
            let spellings = Spellings { pool, yes: vec![4, 0, 2], no: vec![1, 5] };
            // The largest spelling must stay the largest while a logit moves.
            let tied = |row: &[f64], columns: &[usize]| {
                let mut values: Vec<f64> = columns.iter().map(|&column| row[column]).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() - 1] - values[values.len() - 2] < 4.0 * step
            };
            if logits.chunks(6).any(|row| tied(row, &spellings.yes) || tied(row, &spellings.no)) {
                continue;
            }
            let evaluate = |objective: &Objective, logits: &[f64]| {
                let group = GroupLogits { logits, columns: 6, vocabulary: None, yes: 4, no: 1, answer_yes };
                objective.evaluate_pooled(&group, &spellings)
            };
            for (name, objective) in objectives() {
                let found = evaluate(&objective, &logits);
                for v in 0..logits.len() {
                    let at = |offset: f64| {
                        let mut moved = logits.clone();
                        moved[v] += offset;
                        evaluate(&objective, &moved).loss
                    };
                    let expected = (at(step) - at(-step)) / (2.0 * step);
                    prop_assert!(
                        (found.dlogits[v] - expected).abs() <= 1e-7 * (1.0 + found.loss.abs()),
                        "{} {:?}: d[{}] is {}, finite difference {}", name, pool, v, found.dlogits[v], expected
                    );
                }
                for (row, margin) in logits.chunks(6).zip(&found.margins) {
                    let mut gradient = vec![0.0; 6];
                    spellings.add_margin_gradient(row, 2.0, &mut gradient);
                    prop_assert_eq!(*margin, spellings.margin(row));
                    prop_assert!((gradient.iter().map(|g| g.abs()).sum::<f64>() - 4.0).abs() < 1e-12);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Statistics and two columns stand for rows of the whole vocabulary: same loss, same gradient in every logit.
    #[test]
    fn statistics_of_the_vocabulary_are_as_good_as_its_logits(
        logits in (1usize..5).prop_flat_map(|phrasings| prop::collection::vec(-4.0f64..4.0, 6 * phrasings)),
        answer_yes: bool,
    ) {
        let rows: Vec<&[f64]> = logits.chunks(6).collect();
        let p: Vec<Vec<f64>> = rows.iter().map(|row| softmax(row)).collect();
        let log_sum: Vec<f64> = rows.iter().map(|row| row.iter().map(|z| z.exp()).sum::<f64>().ln()).collect();
        let centre = |k: usize| rows[k][4];
        let narrow: Vec<f64> = rows.iter().flat_map(|row| [row[1], row[4], row[0]]).collect();
        for pool in [Pool::Single, Pool::Logsumexp] {
            let wide_spellings = Spellings { pool, yes: vec![4], no: vec![1, 0] };
            let spellings = Spellings { pool, yes: vec![1], no: vec![0, 2] };
            for (name, objective) in objectives() {
                let wide = GroupLogits { logits: &logits, columns: 6, vocabulary: None, yes: 4, no: 1, answer_yes };
                let expected = objective.evaluate_pooled(&wide, &wide_spellings);
                let pairs = objective.vocabulary_pairs(rows.len());
                let weights = |&(i, k): &(usize, usize)| -> Vec<f64> {
                    (0..6).map(|v| p[i][v] * (rows[k][v] - centre(k))).collect()
                };
                let crossed: Vec<Vec<f64>> = pairs.iter().map(weights).collect();
                let cross: Vec<f64> = crossed.iter().map(|weights| weights.iter().sum()).collect();
                let vocabulary = Some(GroupStatistics { log_sum: &log_sum, cross: &cross });
                let group = GroupLogits { logits: &narrow, columns: 3, vocabulary, yes: 1, no: 0, answer_yes };
                let found = objective.evaluate_pooled(&group, &spellings);
                let close = |found: f64, expected: f64| (found - expected).abs() <= 1e-12 * (1.0 + expected.abs());
                prop_assert!(close(found.loss, expected.loss), "{}: {} for {}", name, found.loss, expected.loss);
                prop_assert!(close(found.consistency, expected.consistency) && close(found.accuracy, expected.accuracy));
                let width = found.dvocabulary.len() / rows.len();
                for row in 0..rows.len() {
                    let coefficients = &found.dvocabulary[row * width..(row + 1) * width];
                    for v in 0..6 {
                        let terms = coefficients.iter().zip(p.iter().chain(&crossed));
                        let mut d: f64 = terms.map(|(coefficient, weights)| coefficient * weights[v]).sum();
                        if let Some(column) = [1, 4, 0].iter().position(|&column| column == v) {
                            d += found.dlogits[row * 3 + column];
                        }
                        prop_assert!(close(d, expected.dlogits[row * 6 + v]), "{}: d[{}, {}]", name, row, v);
                    }
                }
            }
        }
    }
}

#[test]
fn a_pool_of_one_spelling_is_no_pool() {
    let logits = [0.3, 1.1, -0.4, 0.9, 0.2, -2.0, 1.3, -0.1, 0.0, 0.5, 0.1, 2.0];
    for (name, objective) in objectives() {
        let plain = objective.evaluate(&group(&logits, 4, true));
        for pool in [Pool::Max, Pool::Logsumexp] {
            let one = Spellings { pool, ..Spellings::single(1, 3) };
            let found = objective.evaluate_pooled(&group(&logits, 4, true), &one);
            for (found, plain) in found.dlogits.iter().zip(&plain.dlogits) {
                assert!((found - plain).abs() < 1e-15, "{name} {pool:?}");
            }
            assert!((found.loss - plain.loss).abs() < 1e-14, "{name} {pool:?}");
        }
    }
}

#[test]
fn the_pooled_cross_entropy_is_that_of_the_spellings_summed_probability() {
    let logits = [0.3, 1.1, -0.4, 0.9, 0.2];
    let p = softmax(&logits);
    let spellings = Spellings { pool: Pool::Logsumexp, yes: vec![1, 3], no: vec![0, 4] };
    let value = |loss: &str, answer_yes: bool| {
        let objective = Objective::new(loss, Pairs::Original, None).unwrap();
        objective.evaluate_pooled(&group(&logits, 5, answer_yes), &spellings).loss
    };
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-14, "{found} for {expected}");
    let (yes, no) = (p[1] + p[3], p[0] + p[4]);
    close(value("ce-full", true), -yes.ln());
    close(value("ce-full", false), -no.ln());
    close(value("ce-binary", true), -(yes / (yes + no)).ln());
}

#[test]
fn pools_are_known_by_name() {
    for (name, pool) in POOLS.into_iter().zip([Pool::Single, Pool::Max, Pool::Logsumexp]) {
        assert_eq!((name.parse(), pool.name()), (Ok(pool), name));
        assert_eq!(serde_json::to_value(pool).unwrap(), name);
    }
    let error = "log-sum-exp".parse::<Pool>().unwrap_err();
    assert_eq!(error.to_string(), "unknown pool `log-sum-exp`: expected one of single, max, logsumexp");
    assert_eq!(error.hint().unwrap(), "did you mean `logsumexp`?");
    let pooling = Pooling { pool: Pool::Max, yes: vec![3, 1], no: Vec::new() };
    assert_eq!((pooling.yes_ids(1), pooling.no_ids(2)), (vec![1, 3], vec![2]));
    assert_eq!(Pooling { pool: Pool::Single, ..pooling }.yes_ids(1), [1]);
}

#[test]
fn one_phrasing_has_no_pairs() {
    let logits = [0.5, 2.0, -1.0];
    for (name, objective) in objectives() {
        let found = objective.evaluate(&group(&logits, 3, true));
        assert_eq!(found.consistency, 0.0, "{name}");
        if name.starts_with("paper") {
            assert_eq!((found.loss, found.accuracy), (0.0, 0.0), "{name}: its accuracy part is a mean over pairs");
            assert!(objective.needs_paraphrases());
        }
    }
    let ce = Objective::new("ce-binary", Pairs::Original, None).unwrap();
    assert!(!ce.needs_paraphrases() && !ce.needs_full_vocabulary());
    assert!((ce.evaluate(&group(&logits, 3, true)).loss - (1.0 + (-3.0f64).exp()).ln()).abs() < 1e-15);
    let full = Objective::new("ce-full", Pairs::Original, None).unwrap();
    assert!(!full.needs_paraphrases() && full.needs_full_vocabulary());
    assert!(Objective::new("combined", Pairs::Original, None).unwrap().needs_paraphrases());
    assert!(!Objective::new("combined", Pairs::Original, Some(0.0)).unwrap().needs_paraphrases());
    assert!(!Objective::new("combined", Pairs::Original, Some(f64::INFINITY)).unwrap().needs_full_vocabulary());
}

#[test]
fn extreme_margins_stay_finite_and_keep_their_digits() {
    let logits = [800.0, -800.0, -700.0, 900.0, 40.0, 0.0, 50.0, 0.0];
    for (name, objective) in objectives() {
        let found = objective.evaluate(&GroupLogits {
            logits: &logits,
            columns: 2,
            vocabulary: None,
            yes: 0,
            no: 1,
            answer_yes: false,
        });
        assert!(found.loss.is_finite() && found.dlogits.iter().all(|d| d.is_finite()), "{name}");
    }
    // p(40) − p(50) is e⁻⁵⁰ − e⁻⁴⁰ to first order: lost if taken from 1.
    let pair = GroupLogits { logits: &logits[4..], columns: 2, vocabulary: None, yes: 0, no: 1, answer_yes: true };
    let found = Objective::new("symkl-binary", Pairs::Original, None).unwrap().evaluate(&pair);
    let expected = 0.5 * 10.0 * ((-40.0f64).exp() - (-50.0f64).exp());
    assert!((found.loss - expected).abs() < 1e-12 * expected, "{} for {expected}", found.loss);
}

#[test]
fn pooled_spellings_carry_their_gradient() {
    let logits = [1.0, 3.0, -2.0];
    assert_eq!(Pool::Single.pool(&logits), (1.0, vec![1.0, 0.0, 0.0]));
    assert_eq!(Pool::Max.pool(&logits), (3.0, vec![0.0, 1.0, 0.0]));
    let (value, gradient) = Pool::Logsumexp.pool(&logits);
    assert!((value - logits.iter().map(|z| z.exp()).sum::<f64>().ln()).abs() < 1e-14);
    for (found, expected) in gradient.iter().zip(softmax(&logits)) {
        assert!((found - expected).abs() < 1e-15);
    }
}

#[test]
fn a_weight_without_a_second_part_is_refused() {
    for name in LOSSES {
        let weighted = Objective::new(name, Pairs::All, Some(0.5));
        match default_lambda(name) {
            Some(_) => assert!(weighted.is_ok(), "{name}"),
            None => assert_eq!(weighted, Err(Error::UnusedLambda { loss: name.into(), found: 0.5 })),
        }
        assert!(Objective::new(name, Pairs::All, None).is_ok(), "{name}");
    }
    assert_eq!(
        Objective::custom(None, Some(Accuracy::CeFull), Pairs::All, Some(0.0)).unwrap_err().to_string(),
        "λ = 0 was given for `one part alone`, which has no second part to weight"
    );
}

#[test]
fn unknown_losses_and_weights_are_refused_with_what_is_meant() {
    let error = Objective::new("symkl_binary", Pairs::All, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown loss `symkl_binary`: expected one of paper, margin, symkl-binary, symkl-full, ce-binary, ce-full, combined"
    );
    assert_eq!(error.hint().unwrap(), "did you mean `symkl-binary`?");
    let hint = Objective::new("zzz", Pairs::All, None).unwrap_err().hint().unwrap();
    assert_eq!(hint, "choose one of paper, margin, symkl-binary, symkl-full, ce-binary, ce-full, combined");
    assert_eq!(Objective::new("papr", Pairs::All, None).unwrap_err().hint().unwrap(), "did you mean `paper`?");
    for lambda in [-0.1, f64::NAN, f64::NEG_INFINITY] {
        assert!(matches!(Objective::new("paper", Pairs::All, Some(lambda)), Err(Error::Lambda { .. })));
        assert!(matches!(Objective::new("combined", Pairs::All, Some(lambda)), Err(Error::Lambda { .. })));
    }
    assert_eq!(Objective::custom(None, None, Pairs::All, None), Err(Error::Empty));
    assert!(
        "kl".parse::<Consistency>().is_err() && "ce".parse::<Accuracy>().is_err() && "some".parse::<Pairs>().is_err()
    );
    for name in ["margin", "symkl-binary", "symkl-full"] {
        let part: Consistency = name.parse().unwrap();
        assert_eq!(serde_json::to_value(part).unwrap(), name);
    }
}
