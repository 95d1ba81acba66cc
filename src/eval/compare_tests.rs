//! Promises of comparing, on results with prescribed margins.

use super::super::{Header, Origin};
use super::*;

/// (id, truth is yes, report, margins)
type Row<'a> = (&'a str, bool, &'a str, &'a [f64]);

fn results(rows: &[Row<'_>]) -> StoredResults {
    let sample = |row: &Row<'_>, index: usize| Sample {
        id: row.0.into(),
        index,
        phenomenon: None,
        finding: None,
        cluster: format!("report:{}", row.2),
        origin: Origin::default(),
        margin: row.3[index],
        answer: String::new(),
        truth: if row.1 { "yes" } else { "no" }.into(),
        flipped: None,
        tokens: 1,
        tokens_sha256: String::new(),
    };
    StoredResults {
        path: "results.json".into(),
        header: Header { data: "d".into(), ..Header::default() },
        json: serde_json::Value::Null,
        groups: rows.iter().map(|row| (0..row.3.len()).map(|index| sample(row, index)).collect()).collect(),
    }
}

const BASE: [Row<'static>; 4] = [
    ("a", true, "1", &[2.0, 1.0, -1.0]),
    ("b", false, "1", &[-1.0, -3.0, 0.0]),
    ("c", true, "2", &[-0.5, 0.25]),
    ("d", false, "3", &[1.5, 2.5, 3.5]),
];
const BETTER: [Row<'static>; 4] = [
    ("a", true, "1", &[2.0, 2.0, 2.0]),
    ("b", false, "1", &[-1.0, -1.0, -1.0]),
    ("c", true, "2", &[0.5, 0.5]),
    ("d", false, "3", &[-1.0, -1.0, -1.0]),
];

fn compared(base: &[Row<'_>], run: &[Row<'_>], settings: CompareSettings) -> Comparison {
    compare(&results(base), &results(run), &settings).expect("compared")
}

#[test]
fn every_metric_is_compared_by_whole_clusters() {
    let found = compared(&BASE, &BETTER, CompareSettings::default());
    assert_eq!((found.questions, found.clusters, &found.differs[..]), (4, 3, &[][..]));
    let sd_base = (6.5_f64 / 3.0).sqrt();
    // Originals 2, −1, 0.5, −1: mean 0.125, squares 4 + 1 + 0.25 + 1 − 4·0.125².
    let sd_run = (6.1875_f64 / 3.0).sqrt();
    // Exact p over 3 clusters: question and pair flips differ in two of them (2 of 4 sign patterns), the others in all
    // three (2 of 8, where the differences have one sign).
    for (metric, base, run, n, p) in [
        ("flip_rate_question", 0.5, 0.0, 4, Some(0.5)),
        ("flip_rate_pair", 2.0 / 7.0, 0.0, 7, Some(0.5)),
        ("margin_difference", 10.75 / 7.0, 0.0, 7, Some(0.25)),
        ("margin_sd", sd_base, sd_run, 4, None),
        ("margin_difference_scaled", 10.75 / 7.0 / sd_base, 0.0, 7, Some(0.25)),
        ("accuracy", 0.5, 1.0, 4, Some(0.5)),
        ("accuracy_all", 6.0 / 11.0, 1.0, 11, Some(0.25)),
        ("yes_rate", 0.5, 0.5, 4, Some(1.0)),
    ] {
        let row = found.get(metric).expect(metric);
        assert!((row.base - base).abs() < 1e-12 && (row.run - run).abs() < 1e-12, "{row:?}");
        assert!((row.difference - (run - base)).abs() < 1e-12 && row.n == n, "{row:?}");
        assert!(row.low <= row.difference && row.difference <= row.high, "{row:?}");
        assert!(p.is_none_or(|p| (row.p_permutation - p).abs() < 0.02), "{row:?}");
    }
    let same = compared(&BASE, &BASE, CompareSettings::default());
    assert!(same.metrics.iter().all(|row| row.difference == 0.0 && row.p_permutation == 1.0 && row.stderr == 0.0));
    assert!(same.metrics.iter().filter_map(|row| row.shares).all(|shares| shares.p_mcnemar == 1.0));
}

#[test]
fn shares_are_tested_unit_by_unit() {
    let found = compared(&BASE, &BETTER, CompareSettings::default());
    let shares = |metric: &str| found.get(metric).expect(metric).shares.expect("a share");
    // Base flips a and c, right originals a and b; phrasings right a a | b b b | c's second; the run all.
    for (metric, only_base, only_run, base, run, p) in [
        ("flip_rate_question", 2, 0, (2, 4), (0, 4), 0.5),
        ("flip_rate_pair", 2, 0, (2, 7), (0, 7), 0.5),
        ("accuracy", 0, 2, (2, 4), (4, 4), 0.5),
        ("accuracy_all", 0, 5, (6, 11), (11, 11), 0.0625),
        ("yes_rate", 1, 1, (2, 4), (2, 4), 1.0),
    ] {
        let shares = shares(metric);
        assert_eq!((shares.only_base, shares.only_run), (only_base, only_run), "{metric}");
        assert_eq!((shares.proportions.first, shares.proportions.second), (base, run), "{metric}");
        assert!((shares.p_mcnemar - p).abs() < 1e-12, "{metric}: {}", shares.p_mcnemar);
    }
    for metric in ["margin_difference", "margin_sd", "margin_difference_scaled"] {
        assert_eq!(found.get(metric).expect(metric).shares, None);
    }
}

#[test]
fn a_difference_of_scale_alone_is_no_difference_of_scaled_margins() {
    let doubled: Vec<Vec<f64>> = BASE.iter().map(|row| row.3.iter().map(|m| 2.0 * m).collect()).collect();
    let rows: Vec<Row<'_>> = BASE.iter().zip(&doubled).map(|(row, m)| (row.0, row.1, row.2, &m[..])).collect();
    let found = compared(&BASE, &rows, CompareSettings::default());
    let row = |metric: &str| found.get(metric).expect(metric);
    assert!((row("margin_difference").difference - 10.75 / 7.0).abs() < 1e-12);
    let scaled = row("margin_difference_scaled");
    assert!(scaled.difference.abs() < 1e-12 && scaled.low.abs() < 1e-9 && scaled.high.abs() < 1e-9, "{scaled:?}");
}

#[test]
fn intervals_of_differences_are_of_paired_resamples() {
    // Both flip rates are noisy and move together: every question that the run flips the base flips too, and one more in ten.
    let ids: Vec<String> = (0..200).map(|k| k.to_string()).collect();
    let (kept, flipped): (&[f64], &[f64]) = (&[1.0, 1.0], &[1.0, -1.0]);
    let rows = |flips: &dyn Fn(usize) -> bool| -> Vec<Row<'_>> {
        ids.iter().enumerate().map(|(k, id)| (&id[..], true, &id[..], if flips(k) { flipped } else { kept })).collect()
    };
    let (base, run) = (rows(&|k| k % 10 < 5), rows(&|k| k % 10 < 4));
    let found = compared(&base, &run, CompareSettings { resamples: 4000, ..CompareSettings::default() });
    let row = found.get("flip_rate_question").expect("known");
    // √(0.1·0.9/200) = 0.0212, not the √(2·0.25/200) = 0.05 of two samples.
    assert!((row.stderr - 0.0212).abs() < 0.0012, "{row:?}");
    assert!((row.low + 0.145).abs() <= 0.0101 && (row.high + 0.06).abs() <= 0.0101, "{row:?}");
    // 20 differences of one sign.
    assert!(row.p_permutation < 0.001 && row.shares.expect("a share").p_mcnemar < 1e-5);
    let again = compared(&base, &run, CompareSettings { resamples: 4000, ..CompareSettings::default() });
    // NaN is not equal to itself.
    assert_eq!(format!("{found:?}"), format!("{again:?}"));
}

#[test]
fn accuracy_is_not_inferior_where_the_interval_stays_above_the_margin() {
    let ids: Vec<String> = (0..200).map(|k| k.to_string()).collect();
    let (right, wrong): (&[f64], &[f64]) = (&[1.0, 1.0], &[1.0, -1.0]);
    let rows = |wrongs: usize| -> Vec<Row<'_>> {
        let margins = |k: usize| if k < wrongs { wrong } else { right };
        ids.iter().enumerate().map(|(k, id)| (&id[..], true, &id[..], margins(k))).collect()
    };
    let found = |wrongs: usize, margin: f64| {
        let settings = CompareSettings { margin, ..CompareSettings::default() };
        compared(&rows(10), &rows(wrongs), settings).non_inferiority
    };
    let slightly_worse = found(12, 0.03);
    assert!(slightly_worse.holds && slightly_worse.low < 0.0, "{slightly_worse:?}");
    assert!(!found(12, 0.005).holds, "half a point is less than the interval reaches down");
    assert!(!found(30, 0.03).holds, "five points fewer");
    assert!(found(0, 0.0).holds, "better");
}

#[test]
fn clusters_are_what_is_asked_for() {
    let clusters =
        |by| compared(&BASE, &BETTER, CompareSettings { cluster: by, ..CompareSettings::default() }).clusters;
    assert_eq!((clusters(ClusterBy::Auto), clusters(ClusterBy::Question), clusters(ClusterBy::Report)), (3, 4, 3));
    let mut base = results(&BASE);
    for (group, patient) in base.groups.iter_mut().zip(["p", "q", "p", "q"]) {
        group.iter_mut().for_each(|sample| sample.origin.patient = Some(patient.into()));
    }
    let by = |cluster| compare(&base, &results(&BETTER), &CompareSettings { cluster, ..CompareSettings::default() });
    assert_eq!(by(ClusterBy::Patient).expect("compared").clusters, 2);
    let error = by(ClusterBy::Image).expect_err("no image").to_string();
    assert_eq!(error, "results.json: question `a` does not say its image");
}

#[test]
fn results_on_other_data_are_not_compared_and_the_difference_is_named() {
    let base = results(&BASE);
    let refused = |change: &dyn Fn(&mut StoredResults)| {
        let mut other = results(&BETTER);
        change(&mut other);
        compare(&base, &other, &CompareSettings::default()).expect_err("refused").to_string()
    };
    assert!(refused(&|r| r.header.data = "e".into()).ends_with("they are of different data (SHA-256 d and e)"));
    assert!(refused(&|r| r.groups.truncate(3)).ends_with("they have 4 and 3 questions"));
    let truth = refused(&|r| r.groups[1][0].truth = "yes".into());
    assert!(truth.ends_with("question 2 is `b` (3 phrasings, truth no) and `b` (3 phrasings, truth yes)"), "{truth}");
    let mut adapted = results(&BETTER);
    (adapted.header.adapter, adapted.header.template) = (Some("x".into()), "t".into());
    let found = compare(&base, &adapted, &CompareSettings::default()).expect("compared");
    assert_eq!(found.differs, ["adapter", "template hash"]);
}

#[test]
fn without_paraphrases_only_accuracy_is_compared() {
    let rows = [("a", true, "1", &[1.0][..]), ("b", true, "2", &[-1.0][..])];
    let found = compared(&rows, &rows, CompareSettings { permutations: 10, ..CompareSettings::default() });
    for metric in ["flip_rate_question", "flip_rate_pair", "margin_difference", "margin_difference_scaled"] {
        let row = found.get(metric).expect(metric);
        assert!(row.n == 0 && row.base.is_nan() && row.p_permutation.is_nan() && row.low.is_nan(), "{row:?}");
    }
    let row = found.get("accuracy_all").expect("known");
    assert_eq!((row.n, row.base, row.p_permutation), (2, 0.5, 1.0));
}
