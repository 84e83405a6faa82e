//! The weights of a model as numbers: read, changed, tracked for gradients.

use burn::tensor::{Tensor, TensorData};

use crate::error::ModelError;
use crate::model::{Affine, Matrix, Model, NormWeights};
use crate::weights::WeightName;

/// Where a model keeps a weight.
enum Slot<'a> {
    Matrix(&'a mut Matrix),
    Table(&'a mut Tensor<2>),
    Vector(&'a mut Tensor<1>),
}

impl Model {
    /// All weights by their roles, row-major and in `f32`, in a fixed order; an output matrix that is the embedding is left
    /// out.
    pub fn weights(&mut self) -> Vec<(WeightName, Vec<f32>)> {
        let mut all = Vec::new();
        for name in self.own_weights() {
            let values = match self.slot(name) {
                Some(Slot::Matrix(matrix)) => numbers(matrix.dense().into_data()),
                Some(Slot::Table(table)) => numbers(table.to_data()),
                Some(Slot::Vector(vector)) => numbers(vector.to_data()),
                None => continue,
            };
            all.push((name, values));
        }
        all
    }

    /// Puts other tensors in the place of weights; each is flat, `[out·in]`. Where they are tracked for gradients, all weights
    /// must be: the model then runs on their device, and gradients flow from its outputs to them.
    ///
    /// # Errors
    /// The model has no such weight, or it is of another size.
    pub fn set_weights(
        &mut self,
        weights: impl IntoIterator<Item = (WeightName, Tensor<1>)>,
    ) -> Result<(), ModelError> {
        let tied = self.config().tied_embedding;
        for (name, values) in weights {
            let shape = name.shape(self.config());
            let expected: usize = shape.iter().product();
            let found = values.dims()[0];
            let device = values.device();
            let exists = name.exists(self.config());
            let problem = |problem| Err(ModelError::Input { problem });
            let slot = self.slot(name).filter(|_| exists);
            match slot {
                None => return problem(format!("the model has no weight {name:?}")),
                Some(_) if found != expected => {
                    return problem(format!(
                        "{name:?} is to be replaced by {found} numbers, it has {expected}"
                    ));
                }
                Some(Slot::Matrix(matrix)) => {
                    let dense = values.reshape([shape[0], shape[1]]);
                    *matrix = Matrix::Dense(dense.clone());
                    if tied && name == WeightName::Embed {
                        self.set_unembed(Matrix::Dense(dense));
                    }
                }
                Some(Slot::Table(table)) => *table = values.reshape([shape[0], shape[1]]),
                Some(Slot::Vector(vector)) => *vector = values,
            }
            self.set_device(device);
        }
        Ok(())
    }

    /// Names of the weights that are kept by themselves.
    fn own_weights(&self) -> Vec<WeightName> {
        let config = self.config();
        WeightName::all(config)
            .filter(|&name| !(config.tied_embedding && name == WeightName::Unembed))
            .collect()
    }

    fn slot(&mut self, name: WeightName) -> Option<Slot<'_>> {
        use WeightName as W;
        let tied = self.config().tied_embedding;
        let parts = self.parts_mut();
        match name {
            W::Embed => return Some(Slot::Matrix(parts.embed)),
            W::Positions => return parts.positions.as_mut().map(Slot::Table),
            W::Unembed if tied => return None,
            W::Unembed => return Some(Slot::Matrix(parts.unembed)),
            W::FinalNorm => return Some(Slot::Vector(&mut parts.final_norm.gain)),
            W::FinalNormBias => return parts.final_norm.bias.as_mut().map(Slot::Vector),
            _ => {}
        }
        let block = parts.blocks.get_mut(name.layer()?)?;
        match name {
            W::AttnNorm(_) => Some(of_gain(&mut block.attn_norm)),
            W::AttnNormBias(_) => of_bias(&mut block.attn_norm),
            W::Q(_) => Some(weight(&mut block.q)),
            W::K(_) => Some(weight(&mut block.k)),
            W::V(_) => Some(weight(&mut block.v)),
            W::QBias(_) => bias(&mut block.q),
            W::KBias(_) => bias(&mut block.k),
            W::VBias(_) => bias(&mut block.v),
            W::QNorm(_) => block.qk_norms.as_mut().map(|norms| of_gain(&mut norms.0)),
            W::KNorm(_) => block.qk_norms.as_mut().map(|norms| of_gain(&mut norms.1)),
            W::O(_) => Some(weight(&mut block.o)),
            W::OBias(_) => bias(&mut block.o),
            W::AttnPostNorm(_) => block.attn_post_norm.as_mut().map(of_gain),
            W::MlpNorm(_) => Some(of_gain(&mut block.mlp_norm)),
            W::MlpNormBias(_) => of_bias(&mut block.mlp_norm),
            W::Gate(_) => block.gate.as_mut().map(weight),
            W::GateBias(_) => block.gate.as_mut().and_then(bias),
            W::Up(_) => Some(weight(&mut block.up)),
            W::UpBias(_) => bias(&mut block.up),
            W::Down(_) => Some(weight(&mut block.down)),
            W::DownBias(_) => bias(&mut block.down),
            W::MlpPostNorm(_) => block.mlp_post_norm.as_mut().map(of_gain),
            _ => None,
        }
    }
}

fn weight(map: &mut Affine) -> Slot<'_> {
    Slot::Matrix(&mut map.weight)
}

fn bias(map: &mut Affine) -> Option<Slot<'_>> {
    map.bias.as_mut().map(Slot::Vector)
}

fn of_gain(norm: &mut NormWeights) -> Slot<'_> {
    Slot::Vector(&mut norm.gain)
}

fn of_bias(norm: &mut NormWeights) -> Option<Slot<'_>> {
    norm.bias.as_mut().map(Slot::Vector)
}

fn numbers(data: TensorData) -> Vec<f32> {
    data.iter::<f32>().collect()
}
