//! The examples of docs/formats.md are what the code reads, and the settings listed there are the defaults.

use std::path::Path;
use unflip::data::{ReadOptions, TraceInput, read_groups};
use unflip::text::PromptTemplate;
use unflip::train::Settings;

const FORMATS: &str = include_str!("../docs/formats.md");

/// Contents of the fenced blocks of a language, in order.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    FORMATS.split(&fence).skip(1).map(|rest| rest.split("```").next().expect("a block ends")).collect()
}

fn stored(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_documented_settings_are_all_settings_with_their_defaults() {
    let [text] = blocks("toml")[..] else { panic!("one block of settings") };
    let defaults = Settings::default().resolve().unwrap();
    // One of `steps` and `epochs` is unset, and so are the keys without a default: they stand in comments.
    assert_eq!(Settings::parse(text, "docs/formats.md").unwrap().resolve().unwrap(), defaults);

    let uncommented = text.replace("\n# ", "\n").replace('…', "x").replace("epochs = 1 ", "# epochs = 1 ");
    let uncommented = uncommented.replace("loss = \"paper\"", "# loss = \"paper\"");
    let everything = Settings::parse(&uncommented, "docs/formats.md").unwrap();
    // The schema knows which keys there are: a setting that has a value here or by default is documented.
    let keys = |settings: &Settings| -> Vec<String> {
        let sections = settings.to_table();
        let names = sections.iter().flat_map(|(section, content)| {
            content.as_table().unwrap().keys().map(move |name| format!("{section}.{name}"))
        });
        names.collect()
    };
    let documented = keys(&everything);
    for key in keys(&defaults) {
        assert!(documented.contains(&key) || ["schedule.epochs", "objective.loss"].contains(&key.as_str()), "{key}");
    }
    for key in ["model.path", "model.adapter", "data.limit", "objective.accuracy", "schedule.steps", "run.isa"] {
        assert!(documented.contains(&key.to_owned()), "{key}");
    }
}

#[test]
fn the_documented_groups_and_template_read() {
    let folder = tempfile::tempdir().unwrap();
    let json = blocks("json");
    let [group, ids] = json[..] else { panic!("a prompt group and a group of token ids") };
    let group = read_groups(stored(folder.path(), "data.jsonl", group), ReadOptions::default()).unwrap();
    assert_eq!(group.groups.len(), 1);
    assert_eq!(group.groups[0].phrasings().count(), 3);
    assert_eq!(group.groups[0].cluster_id(), "report:12");
    let input = TraceInput::read(stored(folder.path(), "groups.json", ids)).unwrap();
    assert_eq!((input.groups.len(), input.lambda), (1, Some(0.5)));
    let [template] = blocks("text")[..] else { panic!("one template") };
    assert_eq!(template.trim_end(), PromptTemplate::default().pattern());
}
