//! Derivatives of activations by activations, in both directions: `J·v` in one forward pass, `Jᵀ·u` in one backward pass.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::Tensor;

use crate::error::ModelError;
use crate::intervention::{Edit, Intervention, Rows};
use crate::model::Model;
use crate::pass::Direction;
use crate::run::{Input, PassOptions, RunOptions, WHOLE, take};
use crate::site::Site;

/// What a run in forward mode returns: activations and their derivatives in the direction.
#[derive(Debug)]
pub struct ForwardMode {
    /// Activations at the recorded sites, `[rows, width of the site]`.
    pub recorded: HashMap<Site, Tensor<2>>,
    /// Their derivatives `J·v`, of the same shapes.
    pub tangents: HashMap<Site, Tensor<2>>,
}

impl ForwardMode {
    /// Takes the derivative at a recorded site.
    ///
    /// # Errors
    /// The site was not asked for.
    pub fn take(&mut self, site: Site) -> Result<Tensor<2>, ModelError> {
        take(&mut self.tangents, site)
    }
}

impl Model {
    /// Forward-mode derivatives: how the activations at the sites `of` change when that at `at` moves along `direction`
    /// (`[rows, width of the site]`), exactly, in one run.
    ///
    /// # Errors
    /// As [`Model::run`]; also when the direction has another shape than the activation, the run is on an autodiff
    /// device, or an intervention has no forward derivative.
    pub fn jvp(
        &self,
        input: Input,
        at: Site,
        direction: Tensor<2>,
        of: &[Site],
        interventions: &[Intervention],
    ) -> Result<ForwardMode, ModelError> {
        if self.device().is_autodiff() || direction.device().is_autodiff() {
            return Err(ModelError::Input {
                problem: "forward-mode products run on a device without autodiff".into(),
            });
        }
        let direction = Direction {
            site: at,
            vector: direction,
        };
        let options = RunOptions {
            interventions,
            record: of,
            ..RunOptions::default()
        };
        let how = PassOptions {
            direction: Some(&direction),
            only_record: true,
            ..WHOLE
        };
        let out = self.pass(input, &options, None, how)?;
        Ok(ForwardMode {
            recorded: out.recorded,
            tangents: out.tangents,
        })
    }

    /// Reverse-mode derivatives `Jᵀ·u`: the gradient of `⟨u, activation at of⟩` by the activation at each site of `at`;
    /// `u` has the shape of the activation at `of`.
    ///
    /// # Errors
    /// As [`Model::run`]; also when `u` has another shape than the activation.
    pub fn vjp(
        &self,
        input: Input,
        at: &[Site],
        of: Site,
        u: Tensor<2>,
        interventions: &[Intervention],
    ) -> Result<HashMap<Site, Tensor<2>>, ModelError> {
        // The shapes that are needed come from a run without gradients, which holds nothing back.
        let shapes = self.record(input.clone(), at, interventions)?;
        let device = self.device().clone().autodiff();
        let mut leaves = HashMap::new();
        let mut all = interventions.to_vec();
        for &site in at {
            let dims = shapes.get(&site).map_or([0, 0], Tensor::dims);
            let leaf = Tensor::<2>::zeros(dims, (&device, self.dtype())).require_grad();
            all.push(Intervention::new(site, Arc::new(Offset(leaf.clone()))));
            leaves.insert(site, leaf);
        }
        let options = RunOptions {
            interventions: &all,
            record: &[of],
            device: Some(device),
            ..RunOptions::default()
        };
        let how = PassOptions {
            only_record: true,
            ..WHOLE
        };
        let input = lift(input);
        let mut out = self.pass(input, &options, None, how)?;
        let value = take(&mut out.recorded, of)?;
        if value.dims() != u.dims() {
            return Err(ModelError::Input {
                problem: format!(
                    "the vector at {of} has the shape {:?}, the activation there {:?}",
                    u.dims(),
                    value.dims()
                ),
            });
        }
        let u = if u.device().is_autodiff() {
            u
        } else {
            Tensor::from_inner(u)
        };
        // Hidden scores are infinite; they have no part in the product.
        let infinite = value.clone().is_inf();
        let grads = (value.mask_fill(infinite, 0.0) * u).sum().backward();
        Ok(leaves
            .into_iter()
            .map(|(site, leaf)| {
                let zeros = || Tensor::zeros(leaf.dims(), (self.device(), self.dtype()));
                (site, leaf.grad(&grads).unwrap_or_else(zeros))
            })
            .collect())
    }
}

/// The input on an autodiff device.
fn lift(input: Input) -> Input {
    match input {
        Input::Residual {
            stream,
            lengths,
            layer,
        } if !stream.device().is_autodiff() => Input::Residual {
            stream: Tensor::from_inner(stream),
            lengths,
            layer,
        },
        other => other,
    }
}

/// Adds a tensor of the activation's own shape: where its gradient is read.
struct Offset(Tensor<2>);

impl Edit for Offset {
    fn apply(&self, x: Tensor<2>, _rows: &Rows) -> Tensor<2> {
        if x.device().is_autodiff() {
            x + self.0.clone()
        } else {
            x
        }
    }

    fn describe(&self) -> String {
        "reading a gradient".to_owned()
    }
}
