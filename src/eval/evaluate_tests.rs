//! Promises of evaluation on questions with prescribed margins.

use super::super::metrics::METRICS;
use super::super::results::StoredResults;
use super::super::samples::Origin;
use super::*;
use crate::batch::TokenGroup;
use crate::train::Error as TrainError;
use std::fs;

/// Margins by group id, and how many launches it may make before it "is killed".
struct Prescribed {
    margins: Vec<(&'static str, Vec<f64>)>,
    launches_left: usize,
    asked: Vec<String>,
}

impl MarginEngine for Prescribed {
    fn margins(&mut self, groups: &[EngineGroup]) -> Result<Vec<Vec<f64>>> {
        if self.launches_left == 0 {
            return Err(crate::Error::Usage { message: "killed".into(), hint: None });
        }
        self.launches_left -= 1;
        let find = |id: &str| self.margins.iter().find(|(known, _)| *known == id).expect("known").1.clone();
        self.asked.extend(groups.iter().map(|group| group.id.clone()));
        Ok(groups.iter().map(|group| find(&group.id)).collect())
    }
}

/// (id, truth is yes, cluster, finding, phenomena of the paraphrases, margins)
type Row = (&'static str, bool, &'static str, &'static str, &'static [&'static str], &'static [f64]);
const ROWS: [Row; 4] = [
    ("a", true, "report 1", "effusion", &["lexical", "scope"], &[2.0, 1.0, -1.0]),
    ("b", false, "report 1", "effusion", &["lexical", "lexical"], &[-1.0, -3.0, 0.0]),
    ("c", true, "report 2", "fracture", &["scope"], &[-0.5, 0.25]),
    ("d", false, "report 3", "effusion", &["lexical", "scope"], &[1.5, 2.5, 3.5]),
];

fn questions() -> Vec<Question> {
    let question = |(place, row): (usize, &Row)| Question {
        group: EngineGroup {
            id: row.0.into(),
            tokens: TokenGroup {
                prefix: vec![2, place as u32],
                suffixes: (0..row.5.len()).map(|k| vec![k as u32, 9]).collect(),
            },
            yes: 5,
            no: 6,
            answer_yes: row.1,
        },
        phenomena: std::iter::once(None).chain(row.4.iter().map(|name| Some((*name).to_owned()))).collect(),
        finding: Some(row.3.into()),
        cluster: row.2.into(),
        origin: Origin::default(),
    };
    ROWS.iter().enumerate().map(question).collect()
}

fn engine() -> Prescribed {
    let margins = ROWS.iter().map(|row| (row.0, row.5.to_vec())).collect();
    Prescribed { margins, launches_left: usize::MAX, asked: Vec::new() }
}

fn header() -> Header {
    Header { model: "m".into(), data: "d".into(), template: "t".into(), ..Header::default() }
}

fn run(engine: &mut Prescribed, header: &Header, limit: Option<usize>, folder: &Path) -> Result<Evaluation> {
    let mut questions = questions();
    questions.truncate(limit.unwrap_or(usize::MAX));
    evaluate(engine, &questions, header, &EvalSettings::default(), Value::Null, folder, |_| {})
}

fn values(set: &MetricSet) -> [f64; METRICS.len()] {
    std::array::from_fn(|metric| set.estimates[metric].value)
}

fn assert_close(found: [f64; METRICS.len()], expected: [f64; METRICS.len()]) {
    for ((name, found), expected) in METRICS.iter().zip(found).zip(expected) {
        assert!(
            (found - expected).abs() < 1e-12 || (found.is_nan() && expected.is_nan()),
            "{name}: {found}, {expected}"
        );
    }
}

#[test]
fn metrics_are_those_of_a_hand_computed_example() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let evaluation = run(&mut engine(), &header(), None, folder.path()).expect("evaluated");
    // Answers: a yes yes no | b no no no (a tie) | c no yes | d yes yes yes. Flips: a's second, c's first.
    // |Δm|: 1 3 | 2 1 | 0.75 | 1 2. Originals 2, −1, −0.5, 1.5: mean 0.5, squares 2.25 + 2.25 + 1 + 1 = 6.5, over 3.
    let sd = (6.5_f64 / 3.0).sqrt();
    assert_close(
        values(&evaluation.metrics),
        [0.5, 2.0 / 7.0, 10.75 / 7.0, sd, 10.75 / 7.0 / sd, 0.5, 6.0 / 11.0, 0.5],
    );
    let counts = evaluation.metrics.counts;
    assert_eq!((counts.ties, counts.questions, counts.pairs, evaluation.metrics.clusters), (1, 4, 7, 3));

    // lexical: a (2, 1), b (−1, −3, 0), d (1.5, 2.5): no flips; scope: a (2, −1), c (−0.5, 0.25), d (1.5, 3.5).
    let lexical = &evaluation.by_phenomenon["lexical"];
    let sd = (31.0_f64 / 12.0).sqrt();
    assert_close(values(lexical), [0.0, 0.0, 5.0 / 4.0, sd, 5.0 / 4.0 / sd, 2.0 / 3.0, 5.0 / 7.0, 2.0 / 3.0]);
    let scope = &evaluation.by_phenomenon["scope"];
    let sd = 1.75_f64.sqrt();
    assert_close(
        values(scope),
        [2.0 / 3.0, 2.0 / 3.0, 5.75 / 3.0, sd, 5.75 / 3.0 / sd, 1.0 / 3.0, 2.0 / 6.0, 2.0 / 3.0],
    );
    let fracture = &evaluation.by_finding["fracture"];
    assert_close(values(fracture), [1.0, 1.0, 0.75, f64::NAN, f64::NAN, 0.0, 0.5, 0.0]);
    assert_eq!(evaluation.by_finding["effusion"].counts.questions, 3);
}

#[test]
fn intervals_enclose_the_value_and_resample_whole_clusters() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let evaluation = run(&mut engine(), &header(), None, folder.path()).expect("evaluated");
    for (name, estimate) in METRICS.iter().zip(&evaluation.metrics.estimates) {
        assert!(estimate.low <= estimate.value && estimate.value <= estimate.high, "{name}: {estimate:?}");
        assert!(estimate.stderr > 0.0, "{name}");
    }
    // One cluster: every resample is the sample.
    let one: Vec<Vec<Sample>> = evaluation.groups[..2].to_vec();
    let set = MetricSet::of(&one, 100, 0);
    assert_eq!(set.clusters, 1);
    assert!(set.estimates.iter().all(|estimate| estimate.low == estimate.value && estimate.high == estimate.value));
    // Two clusters, report 2 with rate 1 and report 3 with rate 0: resampled rates are 0, ½ and 1 only.
    let set = MetricSet::of(&evaluation.groups[2..], 1000, 0);
    let flips = set.get("flip_rate_question").expect("known");
    assert_eq!((flips.value, flips.low, flips.high), (0.5, 0.0, 1.0));
    assert!((flips.stderr - 0.125_f64.sqrt()).abs() < 0.02, "{}", flips.stderr);
}

#[test]
fn samples_hold_what_was_asked_and_answered() {
    let folder = tempfile::tempdir().expect("temporary folder");
    run(&mut engine(), &header(), None, folder.path()).expect("evaluated");
    let text = fs::read_to_string(folder.path().join("samples.jsonl")).expect("read");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 12);
    assert_eq!(lines[0]["header"]["template"], "t");
    let expected = json!({
        "id": "a", "index": 2, "phenomenon": "scope", "finding": "effusion", "cluster": "report 1", "margin": -1.0,
        "answer": "no", "truth": "yes", "flipped": true, "tokens": 4,
        // sha256 of the little-endian words 2, 0, 2, 9, from Python's hashlib.
        "tokens_sha256": "5b61f31c28f00b234dce8eb41c4a36d6b97c3da4657a26b03a4083dd07059c55",
    });
    assert_eq!(lines[3], expected);
    assert_eq!(lines[1]["flipped"], Value::Null);
    let results = StoredResults::read(folder.path()).expect("read");
    for key in ["flip_rate_pair", "flip_rate_pair_stderr", "flip_rate_pair_low", "yes_rate_high", "n_clusters", "ties"]
    {
        assert!(results.json["results"][key].is_number(), "{key}");
    }
    assert_eq!(results.json["by_finding"]["fracture"]["margin_sd"], Value::Null);
    for (name, metric) in METRICS.iter().flat_map(|name| ["", "_stderr", "_low", "_high"].map(|end| (name, end))) {
        assert!(results.json["results"][format!("{name}{metric}")].is_number(), "{name}{metric}");
    }
    assert_eq!((&results.json["data_hash"], &results.json["template_hash"]), (&"d".into(), &"t".into()));
}

#[test]
fn a_killed_evaluation_goes_on_and_equals_an_uninterrupted_one() {
    let whole = tempfile::tempdir().expect("temporary folder");
    run(&mut engine(), &header(), None, whole.path()).expect("evaluated");
    let expected = |name: &str| fs::read(whole.path().join(name)).expect("read");
    let samples = expected("samples.jsonl");
    // Killed after any byte of the file.
    for cut in (0..=samples.len()).step_by(7) {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::write(folder.path().join("samples.jsonl"), &samples[..cut]).expect("written");
        let mut engine = engine();
        let evaluation = run(&mut engine, &header(), None, folder.path()).expect("evaluated");
        assert_eq!(evaluation.resumed + engine.asked.len(), 4, "cut at {cut}");
        for name in ["samples.jsonl", "results.json"] {
            assert_eq!(fs::read(folder.path().join(name)).expect("read"), expected(name), "{name} cut at {cut}");
        }
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    run(&mut Prescribed { launches_left: 2, ..engine() }, &header(), None, folder.path()).expect_err("killed");
    let mut second = engine();
    assert_eq!(run(&mut second, &header(), None, folder.path()).expect("evaluated").resumed, 2);
    assert_eq!(second.asked, ["c", "d"]);
}

#[test]
fn a_limit_may_rise_and_fall() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let evaluation = run(&mut engine(), &header(), Some(2), folder.path()).expect("evaluated");
    assert_eq!(evaluation.metrics.counts.questions, 2);
    let mut more = engine();
    run(&mut more, &header(), None, folder.path()).expect("evaluated");
    assert_eq!(more.asked, ["c", "d"]);
    let mut fewer = engine();
    run(&mut fewer, &header(), Some(1), folder.path()).expect("evaluated");
    assert!(fewer.asked.is_empty());
    assert_eq!(StoredResults::read(folder.path()).expect("read").groups.len(), 1);
}

#[test]
fn samples_of_another_evaluation_are_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    run(&mut engine(), &header(), None, folder.path()).expect("evaluated");
    let before = fs::read(folder.path().join("samples.jsonl")).expect("read");
    let other = Header { adapter: Some("x".into()), ..header() };
    let error = run(&mut engine(), &other, None, folder.path()).expect_err("another adapter");
    assert!(error.to_string().ends_with("was begun with another adapter: it has none, this evaluation x"), "{error}");
    for (other, key) in [
        (Header { embed_scale: "22.627417".into(), ..header() }, "embedding scale"),
        (Header { share_prefix: true, ..header() }, "prefix sharing"),
        (Header { yes: 5, ..header() }, "yes token"),
        (Header { no: 6, ..header() }, "no token"),
        (Header { precision: "bf16".into(), ..header() }, "precision"),
    ] {
        let error = run(&mut engine(), &other, None, folder.path()).expect_err(key).to_string();
        assert!(error.contains(&format!("was begun with another {key}: ")), "{error}");
    }
    let mut tokens = questions();
    tokens[1].group.tokens.suffixes[2] = vec![77];
    let settings = EvalSettings::default();
    let error = evaluate(&mut engine(), &tokens, &header(), &settings, Value::Null, folder.path(), |_| {});
    assert!(
        error.expect_err("other tokens").to_string().ends_with("samples.jsonl:5: phrasing 2 of `b` had other tokens")
    );
    assert_eq!(fs::read(folder.path().join("samples.jsonl")).expect("read"), before);
    let lock = FolderLock::take(folder.path()).expect("free");
    let error = run(&mut engine(), &header(), None, folder.path()).expect_err("in use");
    assert!(matches!(error, crate::Error::Train(TrainError::Locked { .. })), "{error}");
    drop(lock);
}

#[test]
fn bad_questions_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let error = run(&mut engine(), &header(), Some(0), folder.path()).expect_err("none");
    assert_eq!(error.to_string(), "there are no questions to evaluate");
    let mut broken = engine();
    broken.margins[1].1[2] = f64::NAN;
    let error = run(&mut broken, &header(), None, folder.path()).expect_err("not finite");
    assert_eq!(error.to_string(), "phrasing 2 of group `b` has a margin of NaN");
}

#[test]
fn questions_without_paraphrase_count_where_nothing_is_paired() {
    let lone = |places: &[usize]| {
        let mut questions = questions();
        let mut engine = engine();
        for &place in places {
            questions[place].group.tokens.suffixes.truncate(1);
            engine.margins[place].1.truncate(1);
        }
        let folder = tempfile::tempdir().expect("temporary folder");
        let settings = EvalSettings::default();
        let evaluation = evaluate(&mut engine, &questions, &header(), &settings, Value::Null, folder.path(), |_| {});
        (evaluation.expect("evaluated"), StoredResults::read(folder.path()).expect("read"))
    };
    // Without c's paraphrase: a flips of a, b, d; |Δm| 1 3 | 2 1 | 1 2; originals as before.
    let (evaluation, _) = lone(&[2]);
    let sd = (6.5_f64 / 3.0).sqrt();
    assert_close(values(&evaluation.metrics), [1.0 / 3.0, 1.0 / 6.0, 10.0 / 6.0, sd, 10.0 / 6.0 / sd, 0.5, 0.5, 0.5]);
    assert_eq!((evaluation.metrics.can_flip, evaluation.metrics.counts.questions), (3, 4));
    let (evaluation, results) = lone(&[0, 1, 2, 3]);
    assert_close(values(&evaluation.metrics), [f64::NAN, f64::NAN, f64::NAN, sd, f64::NAN, 0.5, 0.5, 0.5]);
    for key in ["flip_rate_question", "flip_rate_pair_low", "margin_difference"] {
        assert_eq!(results.json["results"][key], Value::Null, "{key}");
    }
    assert_eq!(results.json["results"]["n_questions_with_paraphrases"], 0);
}

#[test]
fn a_file_that_is_no_sample_file_is_refused_and_stays_as_it_is() {
    for foreign in ["notes without a line's end", "{\"head", "{\"id\": 1}\n{\"id\": 2}\n", "\n", "text\nmore"] {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("samples.jsonl");
        fs::write(&path, foreign).expect("written");
        let refused = run(&mut engine(), &header(), None, folder.path());
        if foreign == "{\"head" {
            refused.expect("the beginning of our own header is a torn header");
            continue;
        }
        let error = refused.expect_err(foreign);
        assert!(matches!(error, crate::Error::Eval(Error::NotSamples { .. })), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("read"), foreign);
    }
}

#[test]
fn a_group_torn_in_the_middle_is_refused_and_the_file_stays_as_it_is() {
    let folder = tempfile::tempdir().expect("temporary folder");
    run(&mut engine(), &header(), None, folder.path()).expect("evaluated");
    let path = folder.path().join("samples.jsonl");
    let text = fs::read_to_string(&path).expect("read");
    let lines: Vec<&str> = text.lines().collect();
    // Line 4 is the last phrasing of `a`.
    let torn = [&lines[..3], &lines[4..]].concat().join("\n") + "\n";
    fs::write(&path, &torn).expect("written");
    let error = run(&mut engine(), &header(), None, folder.path()).expect_err("torn").to_string();
    assert!(error.ends_with("samples.jsonl:2: expected 3 phrasings of `a`, found 2"), "{error}");
    assert_eq!(fs::read_to_string(&path).expect("read"), torn);
}
