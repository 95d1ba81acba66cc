//! Gemma's chat format for one user turn, and what an image becomes in it.

use super::Error;
use serde::{Deserialize, Serialize};

/// Marker of an image in a rendered prompt.
pub(super) const IMAGE_MARKER: &str = "<start_of_image>";

/// How a model writes an image into its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageTokens {
    /// Id of the soft token that embeddings replace (262144).
    pub token: u32,
    /// Soft tokens of one image (256).
    pub count: usize,
}

/// A conversation of one user turn, ready for the answer: `<bos>`, the turn, and the generation prompt. Content is trimmed, as
/// the model's own template does.
pub fn user_turn(content: &str) -> String {
    // Python's strip also takes the four separators U+001C to U+001F.
    let content = content.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c));
    format!("<bos><start_of_turn>user\n{content}<end_of_turn>\n<start_of_turn>model\n")
}

/// Replaces each image marker by what the model sees: blank line, marker, soft tokens, end marker, blank line. It must be done
/// before tokenization, because line breaks merge with their neighbours.
///
/// # Errors
/// The text has another number of markers than `images`.
pub fn expand_images(text: &str, images: usize, tokens_per_image: usize) -> Result<String, Error> {
    let found = text.matches(IMAGE_MARKER).count();
    if found != images {
        return Err(Error::ImageMarkers { images, found, marker: IMAGE_MARKER });
    }
    let soft = "<image_soft_token>".repeat(tokens_per_image);
    Ok(text.replace(IMAGE_MARKER, &format!("\n\n{IMAGE_MARKER}{soft}<end_of_image>\n\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_turn_is_written_as_gemma_writes_it() {
        assert_eq!(
            user_turn(" <start_of_image>Is there pneumothorax?\n"),
            "<bos><start_of_turn>user\n<start_of_image>Is there pneumothorax?<end_of_turn>\n<start_of_turn>model\n"
        );
    }

    #[test]
    fn an_image_becomes_its_soft_tokens_between_blank_lines() {
        let expanded = expand_images("a<start_of_image>b", 1, 2).unwrap();
        assert_eq!(expanded, "a\n\n<start_of_image><image_soft_token><image_soft_token><end_of_image>\n\nb");
        let error = expand_images("a<start_of_image>b<start_of_image>", 1, 2).unwrap_err();
        assert_eq!(error.to_string(), "the prompt has 1 image(s) and 2 `<start_of_image>` marker(s)");
    }
}
