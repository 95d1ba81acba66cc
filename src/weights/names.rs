//! Tensor names of every era to one canonical name.
//!
//! The same weight is stored as `model.layers…` (text-only), `language_model.model.layers…` (hub files) or
//! `model.language_model.layers…` (saved without the reverse mapping); canonical is `language_model.layers…`,
//! `vision_tower.…` without the inner `vision_model.`, `multi_modal_projector.…` and `lm_head.weight`. Adapter names
//! follow the same eras after PEFT's `base_model.model.`. The rules are those of docs/formats.md.

/// What PEFT puts before every module path.
pub(super) const PEFT_PREFIX: &str = "base_model.model.";

/// The canonical name of a stored one. Names outside the model come back unchanged.
pub fn canonical(stored: &str) -> String {
    let mut name = stored.strip_prefix(PEFT_PREFIX).unwrap_or(stored);
    if let Some(rest) = name.strip_prefix("model.")
        && ["language_model.", "vision_tower.", "multi_modal_projector."].iter().any(|part| rest.starts_with(part))
    {
        name = rest;
    }
    if let Some(rest) = name.strip_prefix("language_model.") {
        if rest.starts_with("lm_head.") {
            return rest.into();
        }
        return format!("language_model.{}", rest.strip_prefix("model.").unwrap_or(rest));
    }
    if let Some(rest) = name.strip_prefix("vision_tower.") {
        return format!("vision_tower.{}", rest.strip_prefix("vision_model.").unwrap_or(rest));
    }
    // A text-only model, or its bare decoder saved alone.
    let bare = name.strip_prefix("model.").unwrap_or(name);
    if ["layers.", "embed_tokens.", "norm."].iter().any(|part| bare.starts_with(part)) {
        return format!("language_model.{bare}");
    }
    name.into()
}

/// The most similar of some names, if one is similar enough to be a spelling of the one asked for.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    names
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|&(similarity, _)| similarity > 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0).then(right.1.cmp(left.1)))
        .map(|(_, other)| other.to_string())
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn every_era_of_a_name_has_one_canonical_name() {
        for (canonical_name, eras) in [
            (
                "language_model.layers.3.self_attn.q_proj.weight",
                &[
                    "model.layers.3.self_attn.q_proj.weight",
                    "language_model.model.layers.3.self_attn.q_proj.weight",
                    "model.language_model.layers.3.self_attn.q_proj.weight",
                    "language_model.layers.3.self_attn.q_proj.weight",
                    "layers.3.self_attn.q_proj.weight",
                    "base_model.model.model.language_model.layers.3.self_attn.q_proj.weight",
                ][..],
            ),
            ("language_model.norm.weight", &["model.norm.weight", "language_model.model.norm.weight"]),
            (
                "language_model.embed_tokens.weight",
                &["model.embed_tokens.weight", "model.language_model.embed_tokens.weight"],
            ),
            ("lm_head.weight", &["lm_head.weight", "language_model.lm_head.weight"]),
            (
                "vision_tower.encoder.layers.0.layer_norm1.bias",
                &[
                    "vision_tower.vision_model.encoder.layers.0.layer_norm1.bias",
                    "model.vision_tower.vision_model.encoder.layers.0.layer_norm1.bias",
                    "model.vision_tower.encoder.layers.0.layer_norm1.bias",
                ],
            ),
            (
                "multi_modal_projector.mm_input_projection_weight",
                &[
                    "multi_modal_projector.mm_input_projection_weight",
                    "model.multi_modal_projector.mm_input_projection_weight",
                ],
            ),
            ("score.weight", &["score.weight"]),
        ] {
            for era in eras {
                assert_eq!(canonical(era), canonical_name, "{era}");
            }
            assert_eq!(canonical(canonical_name), canonical_name, "canonical names are fixed points");
        }
    }
}
