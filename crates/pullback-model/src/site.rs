//! Sites: the named places in a model where activations can be read and changed.
//!
//! Names are those of TransformerLens (`blocks.7.hook_resid_post`), with short aliases (`7.resid_post`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A kind of place. Those inside a block exist once a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The token embedding, `[d_model]`.
    Embed,
    /// The residual stream before a block, `[d_model]`.
    ResidPre,
    /// The input of attention after its norm, `[d_model]`.
    AttnNormalized,
    /// Queries before the rotary embedding, `[n_heads · d_head]`.
    Query,
    /// Keys before the rotary embedding, `[n_kv_heads · d_head]`.
    Key,
    /// Values, `[n_kv_heads · d_head]`.
    Value,
    /// Values mixed by attention, `[n_heads · d_head]`.
    Mixed,
    /// What attention adds to the residual stream, `[d_model]`.
    AttnOut,
    /// The residual stream between attention and MLP, `[d_model]`.
    ResidMid,
    /// The input of the MLP after its norm, `[d_model]`.
    MlpNormalized,
    /// The gate of the MLP before its activation function, `[d_mlp]`.
    MlpPre,
    /// The other factor of a gated MLP, `[d_mlp]`.
    MlpPreLinear,
    /// The hidden layer of the MLP, `[d_mlp]`.
    MlpPost,
    /// What the MLP adds to the residual stream, `[d_model]`.
    MlpOut,
    /// The residual stream after a block, `[d_model]`.
    ResidPost,
    /// The last residual stream after the final norm, `[d_model]`.
    FinalNormalized,
}

/// Places inside a block, in the order in which they are computed, with their names.
const BLOCK_PLACES: [(Place, &str); 14] = [
    (Place::ResidPre, "hook_resid_pre"),
    (Place::AttnNormalized, "ln1.hook_normalized"),
    (Place::Query, "attn.hook_q"),
    (Place::Key, "attn.hook_k"),
    (Place::Value, "attn.hook_v"),
    (Place::Mixed, "attn.hook_z"),
    (Place::AttnOut, "hook_attn_out"),
    (Place::ResidMid, "hook_resid_mid"),
    (Place::MlpNormalized, "ln2.hook_normalized"),
    (Place::MlpPre, "mlp.hook_pre"),
    (Place::MlpPreLinear, "mlp.hook_pre_linear"),
    (Place::MlpPost, "mlp.hook_post"),
    (Place::MlpOut, "hook_mlp_out"),
    (Place::ResidPost, "hook_resid_post"),
];

/// A place in a model: `hook_embed`, `blocks.L.…` or `ln_final.hook_normalized`.
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
        "`{name}` is not a site; sites are hook_embed, ln_final.hook_normalized and blocks.L.X with X one of {}",
        block_names()
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
    /// The run does not come past the site.
    #[error("{site} is not reached: {reached}")]
    NotReached {
        /// The site.
        site: Site,
        /// What the run does compute.
        reached: String,
    },
}

fn block_names() -> String {
    BLOCK_PLACES.map(|(_, name)| name).join(", ")
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

    /// The kind of place.
    pub fn place(self) -> Place {
        self.place
    }

    /// The block, for a site inside one.
    pub fn layer(self) -> Option<usize> {
        (!matches!(self.place, Place::Embed | Place::FinalNormalized)).then_some(self.layer)
    }

    pub(crate) fn at(layer: usize, place: Place) -> Self {
        Self { layer, place }
    }

    /// All sites of a model with this many blocks, in the order in which they are computed.
    pub fn all(n_layers: usize) -> Vec<Self> {
        let blocks =
            (0..n_layers).flat_map(|layer| BLOCK_PLACES.map(|(place, _)| Self { layer, place }));
        std::iter::once(Self::embed())
            .chain(blocks)
            .chain(std::iter::once(Self::final_normalized()))
            .collect()
    }

    /// Checks that the model has this site.
    ///
    /// # Errors
    /// The layer does not exist.
    pub fn check(self, n_layers: usize) -> Result<Self, SiteError> {
        match self.layer() {
            Some(layer) if layer >= n_layers => Err(SiteError::NoSuchLayer {
                site: self,
                last: n_layers.saturating_sub(1),
            }),
            _ => Ok(self),
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Embed => f.write_str("hook_embed"),
            Place::FinalNormalized => f.write_str("ln_final.hook_normalized"),
            inside => {
                let name = BLOCK_PLACES
                    .iter()
                    .find(|(place, _)| *place == inside)
                    .map_or("", |(_, name)| name);
                write!(f, "blocks.{}.{name}", self.layer)
            }
        }
    }
}

impl FromStr for Site {
    type Err = SiteError;

    fn from_str(name: &str) -> Result<Self, SiteError> {
        let unknown = || SiteError::Unknown {
            name: name.to_owned(),
        };
        let text = name.trim();
        match text {
            "hook_embed" | "embed" => return Ok(Self::embed()),
            "ln_final.hook_normalized" | "ln_final" => return Ok(Self::final_normalized()),
            _ => {}
        }
        let text = text.strip_prefix("blocks.").unwrap_or(text);
        let (layer, rest) = text.split_once('.').ok_or_else(unknown)?;
        let layer = layer.parse().map_err(|_| unknown())?;
        BLOCK_PLACES
            .iter()
            .find(|(_, full)| {
                *full == rest
                    || full.replace("hook_", "") == rest
                    || full.rsplit("hook_").next() == Some(rest)
                        && *full != "ln1.hook_normalized"
                        && *full != "ln2.hook_normalized"
            })
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
    use super::{Site, SiteError};

    #[test]
    fn every_site_parses_from_its_own_name() {
        let sites = Site::all(3);
        assert_eq!(sites.len(), 2 + 3 * 14);
        for site in sites {
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
        assert_eq!(
            Site::resid_post(30).check(30),
            Err(SiteError::NoSuchLayer {
                site: Site::resid_post(30),
                last: 29
            })
        );
    }
}
