//! The residual-stream adapter.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData, activation};
use bytemuck::{cast_slice, pod_collect_to_vec};
use pullback_artifact::{Manifest, read_json, write_atomic, write_json};
use pullback_kernels::fused::linear;
use pullback_model::{Edit, Rows, Site, symmetric_tangent};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::AdapterError;

/// The `kind` of an adapter's manifest.
pub const ADAPTER_KIND: &str = "adapter";

const WEIGHTS: &str = "adapter.safetensors";
const DESCRIPTION: &str = "adapter.json";

/// The function between an adapter's two matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// None: the adapter is a low-rank matrix.
    Identity,
    /// `max(u, 0)`.
    Relu,
    /// `u·Φ(u)`, with the exact normal distribution function.
    Gelu,
    /// `u / (1 + e^{−u})`.
    Silu,
}

impl Activation {
    pub(crate) fn apply(self, u: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Identity => u,
            Self::Relu => activation::relu(u),
            Self::Gelu => activation::gelu(u),
            Self::Silu => activation::silu(u),
        }
    }

    /// The name in files and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Relu => "relu",
            Self::Gelu => "gelu",
            Self::Silu => "silu",
        }
    }
}

/// `x ↦ x + W_out·act(W_in x + b_in)`, from the second position of a sequence on.
///
/// The first position is left alone: it is an attention sink whose activation hangs on no context, and whose
/// norm (a hundred times the others') would drown what the hidden units say of the text.
#[derive(Clone, Debug)]
pub struct ResidualAdapter {
    /// Where it acts.
    pub site: Site,
    /// Between the matrices.
    pub activation: Activation,
    /// `[rank, d]`.
    pub w_in: Tensor<2>,
    /// `[rank]`.
    pub b_in: Tensor<1>,
    /// `[d, rank]`.
    pub w_out: Tensor<2>,
}

/// The first position an adapter acts on.
pub(crate) const FIRST_POSITION: usize = 1;

#[derive(Serialize, Deserialize)]
struct Description {
    /// Adapters of older programs do not say it.
    #[serde(default = "residual")]
    basis: String,
    site: Site,
    activation: Activation,
    rank: usize,
    d: usize,
    first_position: usize,
}

fn residual() -> String {
    "residual".to_owned()
}

impl ResidualAdapter {
    /// Number of hidden units.
    pub fn rank(&self) -> usize {
        self.w_in.dims()[0]
    }

    /// Width of the residual stream.
    pub fn d(&self) -> usize {
        self.w_in.dims()[1]
    }

    /// `act(W_in x + b_in)`: `x [n, d]` → `[n, rank]`.
    pub fn hidden(&self, x: Tensor<2>) -> Tensor<2> {
        self.activation.apply(self.pre_activation(x))
    }

    /// `W_in x + b_in`: `x [n, d]` → `[n, rank]`.
    pub(crate) fn pre_activation(&self, x: Tensor<2>) -> Tensor<2> {
        linear(x, self.w_in.clone()) + self.b_in.clone().unsqueeze()
    }

    /// What it adds: `W_out·act(W_in x + b_in)`, `[n, d]` → `[n, d]`.
    pub fn change(&self, x: Tensor<2>) -> Tensor<2> {
        linear(self.hidden(x), self.w_out.clone())
    }

    /// Writes `adapter.safetensors` (`W_in [rank, d]`, `b_in [rank]`, `W_out [d, rank]`) and `adapter.json`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), AdapterError> {
        let path = dir.join(WEIGHTS);
        let wrong = |error: safetensors::SafeTensorError| AdapterError::File {
            path: path.clone(),
            problem: error.to_string(),
        };
        let parts = [
            ("W_in", self.w_in.dims().to_vec(), values(&self.w_in)),
            ("b_in", self.b_in.dims().to_vec(), values(&self.b_in)),
            ("W_out", self.w_out.dims().to_vec(), values(&self.w_out)),
        ];
        let mut tensors = Vec::new();
        for (name, shape, values) in &parts {
            let view =
                TensorView::new(Dtype::F32, shape.clone(), cast_slice(values)).map_err(wrong)?;
            tensors.push((*name, view));
        }
        let bytes = safetensors::serialize(tensors, None).map_err(wrong)?;
        write_atomic(&path, &bytes)?;
        let description = Description {
            basis: residual(),
            site: self.site,
            activation: self.activation,
            rank: self.rank(),
            d: self.d(),
            first_position: FIRST_POSITION,
        };
        Ok(write_json(&dir.join(DESCRIPTION), &description)?)
    }

    /// The same on another device, such as that of the model it is to act in.
    #[must_use]
    pub fn to_device(self, device: &Device) -> Self {
        Self {
            w_in: self.w_in.to_device(device),
            b_in: self.b_in.to_device(device),
            w_out: self.w_out.to_device(device),
            ..self
        }
    }

    /// Loads an adapter's artifact, onto the CPU.
    ///
    /// # Errors
    /// The directory is no adapter, or a file of it is damaged.
    pub fn load(dir: &Path) -> Result<(Self, Manifest), AdapterError> {
        let manifest = Manifest::load_kind(dir, ADAPTER_KIND)?;
        manifest.verify_sizes(dir)?;
        let description: Description = read_json(&dir.join(DESCRIPTION))?;
        if description.basis != residual() {
            return Err(AdapterError::File {
                path: dir.join(DESCRIPTION),
                problem: format!(
                    "the basis is \"{}\", a residual adapter is needed here",
                    description.basis
                ),
            });
        }
        manifest.check_site(&description.site.to_string())?;
        if description.first_position != FIRST_POSITION
            || description.rank == 0
            || description.d == 0
        {
            return Err(AdapterError::File {
                path: dir.join(DESCRIPTION),
                problem: format!(
                    "rank {}, width {} and first position {}: rank and width must be above 0, the first position {}",
                    description.rank, description.d, description.first_position, FIRST_POSITION
                ),
            });
        }
        let path = dir.join(WEIGHTS);
        let wrong = |problem: String| AdapterError::File {
            path: path.clone(),
            problem,
        };
        let bytes = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
        let read = |name: &str, shape: Vec<usize>| -> Result<TensorData, AdapterError> {
            let view = tensors
                .tensor(name)
                .map_err(|error| wrong(format!("{name}: {error}")))?;
            if view.dtype() != Dtype::F32 || view.shape() != shape {
                return Err(wrong(format!(
                    "{name} is {:?} {:?}, expected F32 {shape:?}",
                    view.dtype(),
                    view.shape()
                )));
            }
            Ok(TensorData::new(
                pod_collect_to_vec::<u8, f32>(view.data()),
                shape,
            ))
        };
        let (rank, d) = (description.rank, description.d);
        let device = Device::flex();
        let adapter = Self {
            site: description.site,
            activation: description.activation,
            w_in: Tensor::from_data(read("W_in", vec![rank, d])?, &device),
            b_in: Tensor::from_data(read("b_in", vec![rank])?, &device),
            w_out: Tensor::from_data(read("W_out", vec![d, rank])?, &device),
        };
        Ok((adapter, manifest))
    }
}

/// A tensor's numbers.
pub(crate) fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

impl Edit for ResidualAdapter {
    fn apply(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        let change = self.change(x.clone());
        match rows.mask_from(FIRST_POSITION, &x) {
            Some(mask) => x + change * mask,
            None => x + change,
        }
    }

    fn tangent(&self, x: &Tensor<2>, dx: Tensor<2>, rows: &Rows) -> Option<Tensor<2>> {
        let u = self.pre_activation(x.clone());
        let du = linear(dx.clone(), self.w_in.clone());
        let dh = symmetric_tangent(|u| self.activation.apply(u), &u, du);
        let change = linear(dh, self.w_out.clone());
        Some(match rows.mask_from(FIRST_POSITION, x) {
            Some(mask) => dx + change * mask,
            None => dx + change,
        })
    }

    fn describe(&self) -> String {
        format!("a residual adapter of rank {}", self.rank())
    }
}

/// An adapter as an edit to give to a run.
impl From<ResidualAdapter> for Arc<dyn Edit> {
    fn from(adapter: ResidualAdapter) -> Self {
        Arc::new(adapter)
    }
}
