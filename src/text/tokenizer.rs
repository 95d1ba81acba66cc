//! A model's `tokenizer.json` through the `tokenizers` crate.

use super::Error;
use std::path::Path;

/// Byte-pair tokenizer of a model folder.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model folder. Padding and truncation that the file may ask for are turned off.
    ///
    /// # Errors
    /// The file is missing or is no tokenizer; the error names it.
    pub fn open(model_dir: impl AsRef<Path>) -> Result<Self, Error> {
        let path = model_dir.as_ref().join("tokenizer.json");
        let name = path.display().to_string();
        if !path.is_file() {
            return Err(Error::NoTokenizer { path: name });
        }
        let bad = |reason: tokenizers::Error| Error::BadTokenizer { path: name.clone(), reason: reason.to_string() };
        let mut inner = tokenizers::Tokenizer::from_file(&path).map_err(bad)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(bad)?;
        Ok(Self { inner })
    }

    /// Whether the markers of Gemma's chat format are tokens: without them a prompt would silently be spelled out.
    ///
    /// # Errors
    /// The first marker that is not one token.
    pub fn check_chat_tokens(&self) -> Result<(), Error> {
        for token in ["<bos>", "<start_of_turn>", "<end_of_turn>"] {
            let ids = self.encode(token)?;
            if self.token_id(token).is_none() || ids.len() != 1 || self.token_id(token) != ids.first().copied() {
                let tokens = ids.iter().map(|&id| self.token(id).unwrap_or_else(|| id.to_string())).collect();
                return Err(Error::ChatToken { token, tokens });
            }
        }
        Ok(())
    }

    /// Token ids of a text. Special tokens written in it (`<bos>`, `<start_of_turn>`, …) become their ids; none is added, so a
    /// rendered prompt, which starts with `<bos>`, gets it once.
    ///
    /// # Errors
    /// The tokenizer's own failures (none are known for Gemma's).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, false).map_err(|reason| Error::Coding {
            action: "encode",
            subject: format!("{:?}", text.chars().take(60).collect::<String>()),
            reason: reason.to_string(),
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids, special tokens included.
    ///
    /// # Errors
    /// The tokenizer's own failures.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.inner.decode(ids, false).map_err(|reason| Error::Coding {
            action: "decode",
            subject: format!("{} token ids", ids.len()),
            reason: reason.to_string(),
        })
    }

    /// Id of a token by its exact spelling in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Spelling of a token in the vocabulary (a leading space is `▁`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A tokenizer of Gemma's kind: BPE without a prefix space, spaces as `▁`, `<bos>` added by the post-processor.
    pub(crate) fn tiny() -> Tokenizer {
        let mut vocabulary = serde_json::Map::new();
        let specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n"];
        let letters: Vec<String> = "YesNoyn▁ainly?Cert".chars().map(String::from).collect();
        let merges = [("Y", "e"), ("Ye", "s"), ("N", "o"), ("y", "e"), ("ye", "s"), ("▁", "Yes")];
        let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
        for token in specials.iter().map(ToString::to_string).chain(letters).chain(merged) {
            let next = vocabulary.len();
            vocabulary.entry(token).or_insert(next.into());
        }
        let added: Vec<_> = specials[..6]
            .iter()
            .enumerate()
            .map(|(id, content)| {
                serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true})
            })
            .collect();
        let json = serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": null,
            "added_tokens": added,
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": null,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "Fuse"}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocabulary, "merges": merges.map(|(left, right)| [left, right])},
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        Tokenizer::open(folder.path()).unwrap()
    }

    #[test]
    fn a_rendered_prompt_has_one_bos_and_is_not_truncated() {
        let tokenizer = tiny();
        let ids = tokenizer.encode("<bos><start_of_turn>\nYes No?<end_of_turn>").unwrap();
        assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 1);
        assert_eq!(ids[0], 2);
        assert!(ids.len() > 4, "the file's truncation to 4 tokens must be off: {ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), "<bos><start_of_turn>\nYes No?<end_of_turn>");
        assert!(!tokenizer.encode("Yes").unwrap().contains(&2));
    }

    #[test]
    fn chat_markers_that_are_not_tokens_are_named() {
        tiny().check_chat_tokens().unwrap();
        let mut inner = tokenizers::Tokenizer::new(tokenizers::models::bpe::BPE::default());
        inner.add_special_tokens([tokenizers::AddedToken::from("<bos>", true)].as_slice());
        let error = Tokenizer { inner }.check_chat_tokens().unwrap_err();
        assert_eq!(error, Error::ChatToken { token: "<start_of_turn>", tokens: vec![] });
        assert_eq!(error.to_string(), "`<start_of_turn>` must be one token of this model's tokenizer, found no token");
    }

    #[test]
    fn a_missing_or_broken_tokenizer_names_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let error = Tokenizer::open(folder.path()).unwrap_err();
        assert_eq!(error, Error::NoTokenizer { path: path.display().to_string() });
        assert!(error.hint().unwrap().contains("tokenizer.json"));
        std::fs::write(&path, "{\"version\": ").unwrap();
        let error = Tokenizer::open(folder.path()).unwrap_err();
        assert!(
            matches!(&error, Error::BadTokenizer { path: named, .. } if *named == path.display().to_string()),
            "{error}"
        );
    }
}
