//! `unflip ask`.

use super::data::Prompting;
use super::device::{DeviceArgs, OnDevice};
use super::model::ModelArgs;
use crate::data::{Answer, Meta, Paraphrase, Problem, PromptGroup, ReadOptions};
use crate::objective::Pooling;
use crate::ops::Device;
use crate::report::{Cell, Table, progress_bar};
use crate::text::Tokenizer;
use crate::train::{EngineGroup, MarginEngine, says_yes};
use crate::weights::{AdapterFile, Checkpoint};
use clap::Args;
use std::path::PathBuf;

/// Arguments of `ask`.
#[derive(Args)]
#[command(
    after_help = "Example:\n  unflip ask --model models/gemma-3-270m --context \"The lungs are clear. No effusion.\" \\\n    \
    \"Is there a pleural effusion?\" -p \"Is pleural fluid present?\" -p \"Does the patient have fluid around the lung?\"\n  unflip ask --model models/gemma-3-270m \"What is a pleural effusion?\" --generate 60"
)]
pub struct Ask {
    #[command(flatten)]
    model: ModelArgs,
    /// The question
    #[arg(value_name = "QUESTION")]
    question: String,
    /// The same question in other words (repeat for more)
    #[arg(short, long = "paraphrase", value_name = "TEXT")]
    paraphrases: Vec<String>,
    /// Text before the question, a report say
    #[arg(long, value_name = "TEXT", conflicts_with = "context_file")]
    context: Option<String>,
    /// File with the text before the question
    #[arg(long, value_name = "FILE")]
    context_file: Option<PathBuf>,
    /// Image of the question (vision-language models)
    #[arg(long, value_name = "FILE")]
    image: Option<String>,
    /// Pattern of the user's turn (default: the one that the adapter was trained with, else the paper's)
    #[arg(long, value_name = "PATTERN")]
    template: Option<String>,
    /// How an answer's spellings become one logit: single (the first alone), max or logsumexp (default: as the adapter was
    /// trained, else single)
    #[arg(long, value_name = "HOW")]
    pool: Option<String>,
    /// Also write an answer to each phrasing, of at most N tokens: greedy, with keys and values kept
    #[arg(long, value_name = "N", value_parser = super::count)]
    generate: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Ask {
    /// Runs the verb.
    ///
    /// # Errors
    /// Anything wrong with the model, its tokenizer or the prompts.
    pub fn run(mut self) -> crate::Result<()> {
        if let Some(path) = &self.context_file {
            let text = std::fs::read_to_string(path).map_err(|error| crate::Error::io("read", path, error))?;
            self.context = Some(text.trim_end().to_owned());
        }
        let group = self.group();
        group.check(ReadOptions { allow_no_paraphrases: true }).map_err(|problem| crate::Error::Usage {
            // The texts are arguments: the flaw is named by the one it is in.
            message: match problem {
                Problem::Empty(key) => {
                    let what = if key == "question" { "QUESTION" } else { "--paraphrase" };
                    format!("{what} must be a question, found an empty text")
                }
                other => other.to_string(),
            },
            hint: Some("`unflip ask --help` has an example".into()),
        })?;
        let (checkpoint, adapter) = self.model.open()?;
        if let Some(image) = &self.image {
            super::model::refuse_image(&format!("--image {image}"), &checkpoint)?;
        }
        let template = super::data::template(self.template.as_deref(), self.model.adapter.as_deref())?;
        let pool = super::data::pool(self.pool.as_deref(), self.model.adapter.as_deref())?;
        let prompting = Prompting::open(&checkpoint, template)?;
        let pooling = prompting.pooling(pool);
        let tokens = group.tokenize(&prompting.tokenizer, &prompting.template, None)?;
        let (yes, no) = (prompting.answers.yes, prompting.answers.no);
        let group = EngineGroup { id: group.id, tokens, yes, no, answer_yes: true };
        let device = self.device.clone();
        let (model, json, generate) = (self.model.clone(), self.json, self.generate);
        let phrasings: Vec<String> = std::iter::once(self.question).chain(self.paraphrases).collect();
        let tokenizer = prompting.tokenizer;
        let answers = device.run(Work { model, checkpoint, adapter, group, pooling, generate, tokenizer })?;
        print(&phrasings, &answers, json)
    }

    fn group(&self) -> PromptGroup {
        let paraphrase = |text: &String| Paraphrase { text: text.clone(), phenomenon: None };
        PromptGroup {
            id: "ask".into(),
            image: None,
            context: self.context.clone(),
            question: self.question.clone(),
            paraphrases: self.paraphrases.iter().map(paraphrase).collect(),
            // Margins do not depend on it.
            answer: Answer::Yes,
            meta: Meta::default(),
        }
    }
}

struct Work {
    model: ModelArgs,
    checkpoint: Checkpoint,
    adapter: Option<AdapterFile>,
    group: EngineGroup,
    pooling: Pooling,
    generate: Option<usize>,
    tokenizer: Tokenizer,
}

/// What the model says to each phrasing.
struct Answers {
    margins: Vec<f64>,
    /// Texts, if asked for.
    generated: Vec<String>,
}

impl OnDevice for Work {
    type Output = Answers;

    fn run<D: Device + 'static>(self, device: D) -> crate::Result<Answers> {
        let mut engine = self.model.engine(device, &self.checkpoint, self.adapter.as_ref(), None)?;
        engine.pooling = self.pooling;
        let mut generated = Vec::new();
        if let Some(count) = self.generate {
            // A chat's turn ends before the text does.
            let turn = self.tokenizer.token_id("<end_of_turn>");
            let stop: Vec<u32> = self.checkpoint.config.eos_token_ids.iter().copied().chain(turn).collect();
            let prompts: Vec<Vec<u32>> =
                (0..self.group.tokens.phrasings()).map(|k| self.group.tokens.prompt(k)).collect();
            let bar = progress_bar((prompts.len() * count) as u64, "generate {bar:30} {pos}/{len} tokens");
            for prompt in &prompts {
                let answer = engine.generate(prompt, count, &stop, |_| bar.inc(1))?;
                generated.push(self.tokenizer.decode(&answer.tokens)?);
            }
            bar.finish_and_clear();
        }
        let margins = MarginEngine::margins(&mut engine, &[self.group])?.remove(0);
        Ok(Answers { margins, generated })
    }
}

fn print(phrasings: &[String], answers: &Answers, json: bool) -> crate::Result<()> {
    let margins = &answers.margins;
    let original = says_yes(margins[0]);
    let mut table = Table::new(&["phrasing", "answer", "margin", "p(yes)", "flip"]);
    let mut flips = 0;
    for (text, &margin) in phrasings.iter().zip(margins) {
        let flip = says_yes(margin) != original;
        flips += u32::from(flip);
        table.row(vec![
            Cell::text(text),
            Cell::text(if says_yes(margin) { "yes" } else { "no" }),
            Cell::Number(margin, 3),
            Cell::Percent(1.0 / (1.0 + (-margin).exp()), 1),
            Cell::Flag(flip, "FLIP"),
        ]);
    }
    if json {
        let mut records = table.json();
        for (index, text) in answers.generated.iter().enumerate() {
            records[index]["generated"] = text.as_str().into();
        }
        return super::print_json(&records);
    }
    super::out(&table.plain())?;
    for (phrasing, text) in phrasings.iter().zip(&answers.generated) {
        super::out(&format!("\n{phrasing}\n  {}\n", text.trim().replace('\n', "\n  ")))?;
    }
    if phrasings.len() > 1 {
        super::out(&format!("\n{flips} of {} paraphrases flip the answer\n", phrasings.len() - 1))?;
    }
    Ok(())
}
