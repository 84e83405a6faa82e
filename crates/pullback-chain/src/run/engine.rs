//! The engines behind one interface.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};

use crate::circuit::{PlacedGate, trotter_circuit};
use crate::error::ChainError;
use crate::initial::{amplitudes, letters};
use crate::measure::Measure;
use crate::stabilizer::{CliffordGate, Stabilizer};
use crate::statevector::{Plan, Real, StateVector};

use super::config::{Movement, RunConfig, Setting};

/// Gates that are planned together.
const PLANNED: usize = 4000;

/// Numbers of a state as they are kept in a file: name, kind, length and bytes.
pub(super) type Stored<'a> = Vec<(&'static str, TensorView<'a>)>;

/// Something that can be evolved, measured, kept and found again.
pub(super) trait Engine: Measure {
    /// So many steps.
    fn advance(&mut self, steps: usize) -> Result<(), ChainError>;

    /// The state in numbers.
    fn stored(&self) -> Result<Stored<'_>, ChainError>;

    /// Takes the state from what was stored; `false` if it is of another shape.
    fn restore(&mut self, name: &str, view: &TensorView<'_>) -> bool;

    /// The names under which it is stored.
    fn names(&self) -> [&'static str; 2];
}

/// The gates of so many steps.
fn gates(
    config: &RunConfig,
    setting: &Setting,
    steps: usize,
) -> Result<Vec<PlacedGate>, ChainError> {
    match &setting.movement {
        Movement::Hamiltonian(h, scheme) => {
            trotter_circuit(h, scheme, config.dt, steps, config.sites, config.boundary)
        }
        Movement::Automaton(qca) => {
            let step = qca.step(config.sites, config.boundary)?;
            Ok((0..steps).flat_map(|_| step.iter().cloned()).collect())
        }
    }
}

/// All amplitudes.
pub(super) struct Amplitudes<'a, T> {
    config: &'a RunConfig,
    setting: &'a Setting,
    state: StateVector<T>,
    /// Plans by their number of steps.
    plans: BTreeMap<usize, Plan<T>>,
}

/// A number that files hold.
pub(super) trait Storable: Real + bytemuck::Pod {
    const DTYPE: Dtype;
}

impl Storable for f32 {
    const DTYPE: Dtype = Dtype::F32;
}

impl Storable for f64 {
    const DTYPE: Dtype = Dtype::F64;
}

impl<'a, T: Storable> Amplitudes<'a, T> {
    pub(super) fn new(config: &'a RunConfig, setting: &'a Setting) -> Result<Self, ChainError> {
        let d = setting.site.dimension();
        StateVector::<T>::check_size(d, config.sites)?;
        let locals: Vec<_> = letters(&config.state, d, config.sites)?
            .iter()
            .map(|letter| amplitudes(*letter, d))
            .collect();
        Ok(Self {
            config,
            setting,
            state: StateVector::product(d, &locals)?,
            plans: BTreeMap::new(),
        })
    }
}

impl<T> Measure for Amplitudes<'_, T>
where
    T: Storable,
{
    fn sites(&self) -> usize {
        self.state.sites()
    }

    fn expectation(
        &self,
        sites: &[usize],
        operator: &crate::dense::Matrix,
    ) -> Result<pullback_tensor::c64, ChainError> {
        Measure::expectation(&self.state, sites, operator)
    }

    fn entropy(&self, bond: usize) -> Result<f64, ChainError> {
        self.state.entropy(bond)
    }

    fn norm_squared(&self) -> f64 {
        self.state.norm_squared()
    }
}

impl<T: Storable> Engine for Amplitudes<'_, T> {
    fn advance(&mut self, steps: usize) -> Result<(), ChainError> {
        let mut left = steps;
        // Many steps are planned in parts: the time to plan grows faster than the number of gates.
        let part = (PLANNED / gates(self.config, self.setting, 1)?.len().max(1)).max(1);
        while left > 0 {
            let now = left.min(part);
            if !self.plans.contains_key(&now) {
                let gates = gates(self.config, self.setting, now)?;
                let plan = Plan::new(self.state.dimension(), self.state.sites(), &gates)?;
                self.plans.insert(now, plan);
            }
            if let Some(plan) = self.plans.get(&now) {
                self.state.apply(plan);
            }
            left -= now;
        }
        Ok(())
    }

    fn stored(&self) -> Result<Stored<'_>, ChainError> {
        let (re, im) = self.state.parts();
        [("re", re), ("im", im)]
            .into_iter()
            .map(|(name, x)| Ok((name, view(T::DTYPE, x)?)))
            .collect()
    }

    fn restore(&mut self, name: &str, stored: &TensorView<'_>) -> bool {
        let (re, im) = self.state.parts();
        if stored.dtype() != T::DTYPE || stored.shape() != [re.len()] {
            return false;
        }
        let read: Vec<T> = numbers(stored.data());
        let (re, im) = if name == "re" {
            (read, im.to_vec())
        } else {
            (re.to_vec(), read)
        };
        match StateVector::from_parts(self.state.dimension(), self.state.sites(), re, im) {
            Ok(state) => {
                self.state = state;
                true
            }
            Err(_) => false,
        }
    }

    fn names(&self) -> [&'static str; 2] {
        ["re", "im"]
    }
}

/// Generators of a stabilizer state.
pub(super) struct Generators<'a> {
    config: &'a RunConfig,
    setting: &'a Setting,
    state: Stabilizer,
    /// The gates of a step.
    step: Vec<(CliffordGate, usize, usize)>,
}

impl<'a> Generators<'a> {
    pub(super) fn new(config: &'a RunConfig, setting: &'a Setting) -> Result<Self, ChainError> {
        let state = Stabilizer::product(&letters(
            &config.state,
            setting.site.dimension(),
            config.sites,
        )?)?;
        let mut engine = Self {
            config,
            setting,
            state,
            step: Vec::new(),
        };
        engine.step = engine.one_step()?;
        Ok(engine)
    }

    fn one_step(&self) -> Result<Vec<(CliffordGate, usize, usize)>, ChainError> {
        let placed = gates(self.config, self.setting, 1)?;
        let mut known: Vec<(*const crate::dense::Matrix, CliffordGate)> = Vec::new();
        let mut out = Vec::with_capacity(placed.len());
        for gate in &placed {
            let key = std::sync::Arc::as_ptr(&gate.matrix);
            let found = known
                .iter()
                .find(|(k, _)| *k == key)
                .map(|(_, gate)| gate.clone());
            let clifford = if let Some(gate) = found {
                gate
            } else {
                let clifford = CliffordGate::from_matrix(&gate.matrix).ok_or_else(|| {
                    ChainError::value(
                        "a gate of the engine `stabilizer`",
                        "no Clifford gate of qubits",
                        "use --engine statevector",
                    )
                })?;
                known.push((key, clifford.clone()));
                clifford
            };
            out.push((clifford, gate.sites.0, gate.sites.1));
        }
        Ok(out)
    }
}

impl Measure for Generators<'_> {
    fn sites(&self) -> usize {
        self.state.sites()
    }

    fn expectation(
        &self,
        sites: &[usize],
        operator: &crate::dense::Matrix,
    ) -> Result<pullback_tensor::c64, ChainError> {
        Measure::expectation(&self.state, sites, operator)
    }

    fn entropy(&self, bond: usize) -> Result<f64, ChainError> {
        Measure::entropy(&self.state, bond)
    }

    fn norm_squared(&self) -> f64 {
        1.0
    }
}

impl Engine for Generators<'_> {
    fn advance(&mut self, steps: usize) -> Result<(), ChainError> {
        for _ in 0..steps {
            for (gate, left, right) in &self.step {
                self.state.apply(gate, *left, *right);
            }
        }
        Ok(())
    }

    fn stored(&self) -> Result<Stored<'_>, ChainError> {
        let [stabilizers, destabilizers] = self.state.words();
        [
            ("stabilizers", stabilizers),
            ("destabilizers", destabilizers),
        ]
        .into_iter()
        .map(|(name, x)| Ok((name, view(Dtype::U64, x)?)))
        .collect()
    }

    fn restore(&mut self, name: &str, stored: &TensorView<'_>) -> bool {
        let read: Vec<u64> = numbers(stored.data());
        stored.dtype() == Dtype::U64 && self.state.set_words(name == "stabilizers", read)
    }

    fn names(&self) -> [&'static str; 2] {
        ["stabilizers", "destabilizers"]
    }
}

fn view<T: bytemuck::Pod>(dtype: Dtype, x: &[T]) -> Result<TensorView<'_>, ChainError> {
    TensorView::new(dtype, vec![x.len()], bytemuck::cast_slice(x)).map_err(|error| {
        ChainError::value("a stored state", error, "expected one that can be written")
    })
}

/// Numbers of bytes that need not lie as numbers must.
fn numbers<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytes
        .chunks_exact(size_of::<T>())
        .map(bytemuck::pod_read_unaligned)
        .collect()
}
