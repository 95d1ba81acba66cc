//! Promises of settings: what they resolve to, what they refuse, which groups they choose.

use super::*;

#[test]
fn layers_read_ranges_and_lists_and_print_them_back() {
    for (text, expected) in [("8-11", vec![8, 9, 10, 11]), ("2,3,7", vec![2, 3, 7]), (" 5 , 0-2 ", vec![0, 1, 2, 5])] {
        assert_eq!(Layers::parse(text), Some(Layers::These(expected)));
    }
    for text in ["", "3-1", "a", "1,,2", "-3", "0-999999999"] {
        assert_eq!(Layers::parse(text), None, "{text:?}");
    }
    for text in ["all", "paper", "8-11", "2-3,7", "0-2,5"] {
        assert_eq!(Layers::parse(text).map(|layers| layers.to_string()).as_deref(), Some(text));
    }
    assert_eq!(Layers::All.resolve(3).expect("resolves"), [0, 1, 2]);
    let error = Layers::parse("2-4").expect("parses").resolve(4).expect_err("layer 4 of 4");
    assert_eq!(
        error.to_string(),
        "`adapter.layers` in settings must be layers 0 to 3 (the model has 4), found layer 4"
    );
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let changed = |change: fn(&mut Settings)| {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.resolve().expect_err("refused").to_string()
    };
    let both = changed(|s| (s.schedule.epochs, s.schedule.steps) = (Some(1), Some(5)));
    assert_eq!(both, "schedule.epochs and schedule.steps: only one of them can say how long the run is");
    assert!(
        changed(|s| s.schedule.groups_per_batch = 3).contains("8 groups a step cannot be split into launches of 3")
    );
    assert!(changed(|s| s.data.paraphrases = Paraphrases::None).contains("the loss compares phrasings"));
    let parts = changed(|s| {
        s.objective.loss = Some("paper".into());
        s.objective.accuracy = Some("ce-full".into());
    });
    assert!(parts.contains("not both"));
}

#[test]
fn pairs_are_drawn_once_from_the_groups_in_use() {
    let mut settings = Settings::default();
    settings.data.limit = Some(3);
    settings.data.sample_pairs = Some(7);
    let groups = super::super::toy::groups(9);
    let pairs = settings.select(groups.clone()).expect("9 pairs");
    assert_eq!(pairs, settings.select(groups.clone()).expect("the same again"));
    assert_eq!(pairs.len(), 7);
    for pair in &pairs {
        let (original, paraphrase) = pair.id.split_once(" with paraphrase ").expect("a pair's name");
        let group = groups[..3].iter().find(|group| group.id == original).expect("one of the first three");
        let paraphrase: usize = paraphrase.parse().expect("a number");
        assert_eq!(pair.tokens, group.with_phrasings(&[0, paraphrase]).tokens);
    }
    settings.run.seed = 1;
    assert_ne!(pairs, settings.select(groups.clone()).expect("others"));
    settings.data.sample_pairs = Some(10);
    let error = settings.select(groups).expect_err("nine are there");
    assert_eq!(
        error.to_string(),
        "expected at least 10 (original, paraphrase) pairs to draw from, found 9 in 3 groups"
    );
    settings.data.paraphrases = Paraphrases::None;
    assert!(settings.resolve().is_err());
}

#[test]
fn resolved_settings_name_their_loss_weight_and_length() {
    let settings = Settings::default().resolve().expect("defaults are valid");
    assert_eq!(settings.objective.loss.as_deref(), Some("paper"));
    assert_eq!((settings.objective.lambda, settings.schedule.epochs), (Some(1.0), Some(1)));
    assert_eq!(settings.total_steps(401), 51);
    let mut combined = Settings::default();
    combined.objective.loss = Some("combined".into());
    assert_eq!(combined.resolve().expect("valid").objective.lambda, Some(0.1));
    let mut margin = Settings::default();
    margin.objective.loss = Some("margin".into());
    assert_eq!(margin.resolve().expect("valid").objective.lambda, None);
}

#[test]
fn only_a_weight_of_two_parts_is_accepted() {
    let of = |loss: Option<&str>, accuracy: Option<&str>, lambda| {
        let mut settings = Settings::default();
        settings.objective.loss = loss.map(str::to_owned);
        settings.objective.accuracy = accuracy.map(str::to_owned);
        settings.objective.lambda = lambda;
        settings.resolve()
    };
    for (loss, accuracy) in [(Some("margin"), None), (Some("ce-full"), None), (None, Some("ce-full"))] {
        let error = of(loss, accuracy, Some(0.5)).expect_err("no second part");
        assert!(matches!(&error, Error::Conflict { keys, .. } if keys.contains("objective.lambda")), "{error}");
        assert!(of(loss, accuracy, None).is_ok());
    }
}

#[test]
fn paraphrases_are_needed_by_losses_that_count_pairs() {
    let needs = |loss: &str, lambda, paraphrases| {
        let mut settings = Settings::default();
        settings.objective.loss = Some(loss.into());
        settings.objective.lambda = lambda;
        settings.data.paraphrases = paraphrases;
        settings.resolve().map(|settings| settings.needs_paraphrases()).ok()
    };
    assert_eq!(needs("ce-binary", None, Paraphrases::All), Some(false));
    assert_eq!(needs("ce-full", None, Paraphrases::None), Some(false));
    assert_eq!(needs("combined", Some(0.0), Paraphrases::None), Some(false));
    assert_eq!(needs("combined", None, Paraphrases::All), Some(true));
    assert_eq!(needs("combined", None, Paraphrases::None), None);
    assert_eq!(needs("paper", Some(f64::INFINITY), Paraphrases::Sample(2)), Some(true));
}
