//! Sites: the named places in a model where activations can be read and changed.
//!
//! Names are those of TransformerLens (`blocks.7.hook_resid_post`), with short aliases (`7.resid_post`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;

/// A kind of place. Those inside a block exist once a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The token embedding (scaled where the model scales it), `[d_model]`.
    Embed,
    /// The learned vectors of the positions, `[d_model]`.
    PosEmbed,
    /// The residual stream before a block, `[d_model]`.
    ResidPre,
    /// What the norm before attention divides by, `[1]`.
    AttnScale,
    /// The input of attention after its norm, gain and bias included, `[d_model]`.
    AttnNormalized,
    /// Queries as projected, bias included, before any norm and rotation, `[n_heads · d_head]`.
    Query,
    /// Keys as projected, `[n_kv_heads · d_head]`.
    Key,
    /// Values, `[n_kv_heads · d_head]`.
    Value,
    /// Queries after their norm, `[n_heads · d_head]`.
    QueryNormalized,
    /// Keys after their norm, `[n_kv_heads · d_head]`.
    KeyNormalized,
    /// Queries after the rotary embedding, `[n_heads · d_head]`.
    RotaryQuery,
    /// Keys after the rotary embedding, `[n_kv_heads · d_head]`.
    RotaryKey,
    /// Attention scores of each head, scaled and capped, `[n_heads · keys]`; `-inf` where a key is not seen. Edits see
    /// zeros there, and what they write there is not used.
    Scores,
    /// Attention weights of each head, `[n_heads · keys]`.
    Pattern,
    /// Values mixed by attention, `[n_heads · d_head]`.
    Mixed,
    /// What each head adds to the output of attention, without its bias, `[n_heads · d_model]`.
    HeadResult,
    /// What the norm after attention divides by, `[1]`.
    AttnPostScale,
    /// The output of attention after its norm, `[d_model]`.
    AttnPostNormalized,
    /// What attention adds to the residual stream, `[d_model]`.
    AttnOut,
    /// The residual stream between attention and MLP, `[d_model]`.
    ResidMid,
    /// What the norm before the MLP divides by, `[1]`.
    MlpScale,
    /// The input of the MLP after its norm, `[d_model]`.
    MlpNormalized,
    /// The (gate of the) MLP before its activation function, `[d_mlp]`.
    MlpPre,
    /// The other factor of a gated MLP, `[d_mlp]`.
    MlpPreLinear,
    /// The hidden layer of the MLP, `[d_mlp]`.
    MlpPost,
    /// What the norm after the MLP divides by, `[1]`.
    MlpPostScale,
    /// The output of the MLP after its norm, `[d_model]`.
    MlpPostNormalized,
    /// What the MLP adds to the residual stream, `[d_model]`.
    MlpOut,
    /// The residual stream after a block, `[d_model]`.
    ResidPost,
    /// What the final norm divides by, `[1]`.
    FinalScale,
    /// The last residual stream after the final norm, `[d_model]`.
    FinalNormalized,
    /// The logits of the next token, capped where the model caps them, `[d_vocab]`.
    Logits,
}

/// Places inside a block, in the order in which they are computed, with their names.
const BLOCK_PLACES: [(Place, &str); 27] = [
    (Place::ResidPre, "hook_resid_pre"),
    (Place::AttnScale, "ln1.hook_scale"),
    (Place::AttnNormalized, "ln1.hook_normalized"),
    (Place::Query, "attn.hook_q"),
    (Place::Key, "attn.hook_k"),
    (Place::Value, "attn.hook_v"),
    (Place::QueryNormalized, "attn.q_norm.hook_normalized"),
    (Place::KeyNormalized, "attn.k_norm.hook_normalized"),
    (Place::RotaryQuery, "attn.hook_rot_q"),
    (Place::RotaryKey, "attn.hook_rot_k"),
    (Place::Scores, "attn.hook_attn_scores"),
    (Place::Pattern, "attn.hook_pattern"),
    (Place::Mixed, "attn.hook_z"),
    (Place::HeadResult, "attn.hook_result"),
    (Place::AttnPostScale, "ln1_post.hook_scale"),
    (Place::AttnPostNormalized, "ln1_post.hook_normalized"),
    (Place::AttnOut, "hook_attn_out"),
    (Place::ResidMid, "hook_resid_mid"),
    (Place::MlpScale, "ln2.hook_scale"),
    (Place::MlpNormalized, "ln2.hook_normalized"),
    (Place::MlpPre, "mlp.hook_pre"),
    (Place::MlpPreLinear, "mlp.hook_pre_linear"),
    (Place::MlpPost, "mlp.hook_post"),
    (Place::MlpPostScale, "ln2_post.hook_scale"),
    (Place::MlpPostNormalized, "ln2_post.hook_normalized"),
    (Place::MlpOut, "hook_mlp_out"),
    (Place::ResidPost, "hook_resid_post"),
];

/// Places outside of blocks: before them, then after them.
const OUTER_PLACES: [(Place, &str); 5] = [
    (Place::Embed, "hook_embed"),
    (Place::PosEmbed, "hook_pos_embed"),
    (Place::FinalScale, "ln_final.hook_scale"),
    (Place::FinalNormalized, "ln_final.hook_normalized"),
    (Place::Logits, "hook_logits"),
];

impl Place {
    /// Whether models of this configuration have such a place.
    pub fn exists(self, config: &ModelConfig) -> bool {
        match self {
            Self::PosEmbed => config.rotary.is_none(),
            Self::QueryNormalized | Self::KeyNormalized => config.qk_norms,
            Self::RotaryQuery | Self::RotaryKey => config.rotary.is_some(),
            Self::AttnPostScale
            | Self::AttnPostNormalized
            | Self::MlpPostScale
            | Self::MlpPostNormalized => config.post_norms,
            Self::ResidMid => !config.parallel_blocks,
            Self::MlpPreLinear => config.gated_mlp,
            _ => true,
        }
    }

    /// How many heads share the width of the activation there; `None` where it is not divided into heads.
    pub fn heads(self, config: &ModelConfig) -> Option<usize> {
        match self {
            Self::Query
            | Self::QueryNormalized
            | Self::RotaryQuery
            | Self::Scores
            | Self::Pattern
            | Self::Mixed
            | Self::HeadResult => Some(config.n_heads),
            Self::Key | Self::Value | Self::KeyNormalized | Self::RotaryKey => {
                Some(config.n_kv_heads)
            }
            _ => None,
        }
    }

    /// The width of the activation there; `None` for scores and patterns, whose width follows the text.
    pub fn width(self, config: &ModelConfig) -> Option<usize> {
        Some(match self {
            Self::Scores | Self::Pattern => return None,
            Self::Query | Self::QueryNormalized | Self::RotaryQuery | Self::Mixed => config.d_q(),
            Self::Key | Self::Value | Self::KeyNormalized | Self::RotaryKey => config.d_kv(),
            Self::HeadResult => config.n_heads * config.d_model,
            Self::MlpPre | Self::MlpPreLinear | Self::MlpPost => config.d_mlp,
            Self::AttnScale
            | Self::AttnPostScale
            | Self::MlpScale
            | Self::MlpPostScale
            | Self::FinalScale => 1,
            Self::Logits => config.d_vocab,
            _ => config.d_model,
        })
    }

    fn is_outer(self) -> bool {
        OUTER_PLACES.iter().any(|(place, _)| *place == self)
    }
}

/// A place in a model: `hook_embed`, `blocks.L.…`, `ln_final.hook_normalized` and others.
///
/// ```
/// use pullback_model::Site;
///
/// let site: Site = "15.resid_post".parse()?;
/// assert_eq!(site.to_string(), "blocks.15.hook_resid_post");
/// assert!("blocks.15.hook_risid_post".parse::<Site>().is_err());
/// # Ok::<(), pullback_model::SiteError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Site {
    layer: usize,
    place: Place,
}

/// A name that is no site, or a site that the model or the run does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    /// The name does not parse.
    #[error(
        "`{name}` is not a site; sites are {} and blocks.L.X with X one of {}",
        names(&OUTER_PLACES),
        names(&BLOCK_PLACES)
    )]
    Unknown {
        /// The name as given.
        name: String,
    },
    /// The layer does not exist.
    #[error("{site} does not exist: the model's blocks are blocks.0 to blocks.{last}")]
    NoSuchLayer {
        /// The site.
        site: Site,
        /// The last block of the model.
        last: usize,
    },
    /// Models of this family have no such place.
    #[error("{site} does not exist in a {architecture} model; its sites are {valid}")]
    NotInFamily {
        /// The site.
        site: Site,
        /// The family.
        architecture: String,
        /// The names of the sites that there are, those of blocks once.
        valid: String,
    },
    /// The run does not come past the site.
    #[error("{site} is not reached: {reached}")]
    NotReached {
        /// The site.
        site: Site,
        /// What the run does compute.
        reached: String,
    },
}

fn names(places: &[(Place, &'static str)]) -> String {
    let names: Vec<&str> = places.iter().map(|(_, name)| *name).collect();
    names.join(", ")
}

/// The sites of a model's family in a few words.
fn valid_names(config: &ModelConfig) -> String {
    let of = |places: &[(Place, &'static str)]| {
        let existing: Vec<_> = places
            .iter()
            .filter(|(place, _)| place.exists(config))
            .copied()
            .collect();
        names(&existing)
    };
    format!(
        "{} and blocks.L.X with X one of {}",
        of(&OUTER_PLACES),
        of(&BLOCK_PLACES)
    )
}

impl Site {
    /// The site of a kind inside a block.
    ///
    /// # Errors
    /// The kind is not inside a block.
    pub fn in_block(layer: usize, place: Place) -> Result<Self, SiteError> {
        if BLOCK_PLACES.iter().any(|(inside, _)| *inside == place) {
            Ok(Self { layer, place })
        } else {
            Err(SiteError::Unknown {
                name: format!("blocks.{layer}.{place:?}"),
            })
        }
    }

    /// The residual stream after a block.
    pub fn resid_post(layer: usize) -> Self {
        Self {
            layer,
            place: Place::ResidPost,
        }
    }

    /// The token embedding.
    pub fn embed() -> Self {
        Self {
            layer: 0,
            place: Place::Embed,
        }
    }

    /// The last residual stream after the final norm.
    pub fn final_normalized() -> Self {
        Self {
            layer: 0,
            place: Place::FinalNormalized,
        }
    }

    /// The logits.
    pub fn logits() -> Self {
        Self {
            layer: 0,
            place: Place::Logits,
        }
    }

    /// The kind of place.
    pub fn place(self) -> Place {
        self.place
    }

    /// The block, for a site inside one.
    pub fn layer(self) -> Option<usize> {
        (!self.place.is_outer()).then_some(self.layer)
    }

    pub(crate) fn at(layer: usize, place: Place) -> Self {
        Self { layer, place }
    }

    /// All sites of a model, in the order in which they are computed.
    pub fn all(config: &ModelConfig) -> Vec<Self> {
        let outer = |places: &[(Place, &str)]| -> Vec<Self> {
            let existing = places.iter().filter(|(place, _)| place.exists(config));
            existing
                .map(|&(place, _)| Self { layer: 0, place })
                .collect()
        };
        let mut sites = outer(&OUTER_PLACES[..2]);
        for layer in 0..config.n_layers {
            let existing = BLOCK_PLACES
                .iter()
                .filter(|(place, _)| place.exists(config));
            sites.extend(existing.map(|&(place, _)| Self { layer, place }));
        }
        sites.extend(outer(&OUTER_PLACES[2..]));
        sites
    }

    /// Checks that the model has this site.
    ///
    /// # Errors
    /// The layer does not exist, or models of the family have no such place.
    pub fn check(self, config: &ModelConfig) -> Result<Self, SiteError> {
        match self.layer() {
            Some(layer) if layer >= config.n_layers => {
                return Err(SiteError::NoSuchLayer {
                    site: self,
                    last: config.n_layers.saturating_sub(1),
                });
            }
            _ => {}
        }
        if !self.place.exists(config) {
            return Err(SiteError::NotInFamily {
                site: self,
                architecture: config.architecture.clone(),
                valid: valid_names(config),
            });
        }
        Ok(self)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name_in = |places: &[(Place, &'static str)]| {
            let found = places.iter().find(|(place, _)| *place == self.place);
            found.map(|(_, name)| *name)
        };
        if let Some(name) = name_in(&OUTER_PLACES) {
            return f.write_str(name);
        }
        write!(
            f,
            "blocks.{}.{}",
            self.layer,
            name_in(&BLOCK_PLACES).unwrap_or_default()
        )
    }
}

/// Whether `given` means the place called `full`: the name itself, the name without `hook_`, or only what follows
/// `hook_` where that is said of one place alone.
fn means(given: &str, full: &str) -> bool {
    if given == full || given == full.replace("hook_", "") {
        return true;
    }
    let last = full.rsplit("hook_").next();
    last == Some(given) && given != "normalized" && given != "scale"
}

impl FromStr for Site {
    type Err = SiteError;

    fn from_str(name: &str) -> Result<Self, SiteError> {
        let unknown = || SiteError::Unknown {
            name: name.to_owned(),
        };
        let text = name.trim();
        if text == "ln_final" {
            return Ok(Self::final_normalized());
        }
        if let Some((place, _)) = OUTER_PLACES.iter().find(|(_, full)| means(text, full)) {
            return Ok(Self {
                layer: 0,
                place: *place,
            });
        }
        let text = text.strip_prefix("blocks.").unwrap_or(text);
        let (layer, rest) = text.split_once('.').ok_or_else(unknown)?;
        let layer = layer.parse().map_err(|_| unknown())?;
        BLOCK_PLACES
            .iter()
            .find(|(_, full)| means(rest, full))
            .map(|(place, _)| Self {
                layer,
                place: *place,
            })
            .ok_or_else(unknown)
    }
}

impl TryFrom<String> for Site {
    type Error = SiteError;

    fn try_from(name: String) -> Result<Self, SiteError> {
        name.parse()
    }
}

impl From<Site> for String {
    fn from(site: Site) -> Self {
        site.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_PLACES, OUTER_PLACES, Site, SiteError};

    #[test]
    fn every_site_parses_from_its_own_name() {
        for &(place, name) in BLOCK_PLACES.iter().chain(&OUTER_PLACES) {
            let site = if place.is_outer() {
                Site { layer: 0, place }
            } else {
                Site { layer: 3, place }
            };
            assert!(site.to_string().ends_with(name));
            assert_eq!(site.to_string().parse::<Site>(), Ok(site));
        }
    }

    #[test]
    fn aliases() {
        for (alias, full) in [
            ("7.resid_post", "blocks.7.hook_resid_post"),
            ("blocks.7.resid_pre", "blocks.7.hook_resid_pre"),
            ("2.mlp.post", "blocks.2.mlp.hook_post"),
            ("2.attn.q", "blocks.2.attn.hook_q"),
            ("2.q", "blocks.2.attn.hook_q"),
            ("0.ln1.normalized", "blocks.0.ln1.hook_normalized"),
            ("ln_final", "ln_final.hook_normalized"),
            ("logits", "hook_logits"),
            ("3.pattern", "blocks.3.attn.hook_pattern"),
            ("3.attn_scores", "blocks.3.attn.hook_attn_scores"),
            ("3.ln2.scale", "blocks.3.ln2.hook_scale"),
            (
                "3.attn.q_norm.normalized",
                "blocks.3.attn.q_norm.hook_normalized",
            ),
        ] {
            assert_eq!(
                alias.parse::<Site>().map(|site| site.to_string()),
                Ok(full.to_owned())
            );
        }
    }

    #[test]
    fn a_name_that_is_no_site_lists_the_valid_ones() {
        let error = "blocks.3.hook_resid_pst"
            .parse::<Site>()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`blocks.3.hook_resid_pst` is not a site"),
            "{error}"
        );
        assert!(
            error.contains("hook_resid_post") && error.contains("attn.hook_z"),
            "{error}"
        );
        assert!(matches!(
            "3.normalized".parse::<Site>(),
            Err(SiteError::Unknown { .. })
        ));
    }
}
