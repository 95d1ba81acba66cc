//! Sites: the places of a decoder block where interpretability reads, changes and differentiates activations.
//!
//! They are Gemma Scope's hook points: the residual stream before and after a block, the input of o_proj, the input of the
//! MLP (its norm's weight included) and the MLP branch after its post-norm. A write to a prefix row that should differ between the
//! phrasings of a group needs a batch packed without sharing.

use super::Error;
use crate::batch::PackedBatch;
use crate::ops::Backend;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// Which activation of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SiteKind {
    /// Residual stream entering the block `[rows, hidden]`.
    ResidPre,
    /// Concatenated heads entering o_proj `[rows, heads·head_dim]`.
    AttnOut,
    /// Pre-feedforward norm's output `[rows, hidden]`.
    MlpIn,
    /// Post-feedforward norm's output `[rows, hidden]`, before it is added.
    MlpOut,
    /// Residual stream leaving the block `[rows, hidden]`, before any norm.
    ResidPost,
}

impl SiteKind {
    const NAMES: [(Self, &'static str, &'static str); 5] = [
        (Self::ResidPre, "resid_pre", "hook_resid_pre"),
        (Self::AttnOut, "attn_out", "attn.hook_z"),
        (Self::MlpIn, "mlp_in", "hook_mlp_in"),
        (Self::MlpOut, "mlp_out", "hook_mlp_out"),
        (Self::ResidPost, "resid_post", "hook_resid_post"),
    ];
}

/// A kind of activation in one layer. Parses from `17.resid_post`, `layers.17.resid_post` and TransformerLens's
/// `blocks.17.hook_resid_post`; prints as the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// Layer index.
    pub layer: usize,
    /// Activation.
    pub kind: SiteKind,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SiteKind::NAMES.iter().find(|(kind, ..)| *kind == self.kind).map_or("?", |(_, name, _)| name);
        write!(f, "{}.{name}", self.layer)
    }
}

impl FromStr for Site {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error::UnknownSite { name: text.into() };
        let rest = text.strip_prefix("layers.").or_else(|| text.strip_prefix("blocks.")).unwrap_or(text);
        let (layer, name) = rest.split_once('.').ok_or_else(unknown)?;
        let layer = layer.parse().map_err(|_| unknown())?;
        let kind = SiteKind::NAMES
            .iter()
            .find(|(_, own, lens)| name == *own || name == *lens)
            .map(|(kind, ..)| *kind)
            .ok_or_else(unknown)?;
        Ok(Self { layer, kind })
    }
}

/// The function of a [`SiteWrite`]: device, batch, and the site's value `[rows, width]` to change in place.
pub type Edit<'a, D> = Box<dyn Fn(&D, &PackedBatch, &mut <D as Backend>::Buf) + 'a>;

/// A change of a site's value.
pub struct SiteWrite<'a, D: Backend> {
    /// The change.
    pub edit: Edit<'a, D>,
    /// Whether it adds something that does not depend on the value, so that gradients pass through unchanged. A write that is not
    /// additive is refused where a gradient flows.
    pub additive: bool,
}

/// What to do at sites during a forward pass.
pub struct SitePlan<'a, D: Backend> {
    /// Values to return, as they are after any write.
    pub read: BTreeSet<Site>,
    /// Values to change.
    pub write: BTreeMap<Site, SiteWrite<'a, D>>,
    /// Values whose gradients are wanted: leaves of the tape.
    pub gradient: BTreeSet<Site>,
}

impl<D: Backend> Default for SitePlan<'_, D> {
    fn default() -> Self {
        Self { read: BTreeSet::new(), write: BTreeMap::new(), gradient: BTreeSet::new() }
    }
}

impl<D: Backend> SitePlan<'_, D> {
    /// Whether anything happens at a site.
    pub fn touches(&self, site: Site) -> bool {
        self.read.contains(&site) || self.write.contains_key(&site) || self.gradient.contains(&site)
    }

    /// Whether anything happens in a layer.
    pub fn touches_layer(&self, layer: usize) -> bool {
        self.all().any(|site| site.layer == layer)
    }

    /// Every site of the plan.
    pub fn all(&self) -> impl Iterator<Item = Site> + '_ {
        self.read.iter().chain(self.write.keys()).chain(&self.gradient).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn site_names_of_both_kinds_parse_and_print() {
        for (text, printed) in [
            ("17.resid_post", "17.resid_post"),
            ("layers.3.mlp_in", "3.mlp_in"),
            ("blocks.17.hook_resid_post", "17.resid_post"),
            ("blocks.0.attn.hook_z", "0.attn_out"),
        ] {
            assert_eq!(text.parse::<Site>().unwrap().to_string(), printed);
        }
        for text in ["resid_post", "x.resid_post", "3.resid", "", "3."] {
            assert!(text.parse::<Site>().is_err(), "{text}");
        }
    }
}
