//! The engines behind one interface.

use std::borrow::Cow;
use std::collections::BTreeMap;

use safetensors::View;
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

/// Numbers of a state as they are kept in a file, by name.
pub(super) type Stored<'a> = Vec<(&'static str, Numbers<'a>)>;

/// Numbers of one kind.
pub(super) struct Numbers<'a> {
    dtype: Dtype,
    shape: [usize; 1],
    bytes: Cow<'a, [u8]>,
}

impl<'a> Numbers<'a> {
    /// Those of a state that has them one after the other.
    pub(super) fn lent<T: bytemuck::Pod>(dtype: Dtype, x: &'a [T]) -> Self {
        Self {
            dtype,
            shape: [x.len()],
            bytes: Cow::Borrowed(bytemuck::cast_slice(x)),
        }
    }

    /// Those that were gathered.
    pub(super) fn gathered<T: bytemuck::Pod>(dtype: Dtype, x: &[T]) -> Self {
        Self {
            dtype,
            shape: [x.len()],
            bytes: Cow::Owned(bytemuck::cast_slice(x).to_vec()),
        }
    }
}

impl View for Numbers<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Something that can be evolved, measured, kept and found again.
pub(super) trait Engine: Measure {
    /// So many steps.
    fn advance(&mut self, steps: usize) -> Result<(), ChainError>;

    /// The state in numbers.
    fn stored(&self) -> Stored<'_>;

    /// Takes the state from what was stored; `false` if it is of another shape.
    fn restore(&mut self, name: &str, view: &TensorView<'_>) -> bool;

    /// The names under which it is stored.
    fn names(&self) -> &'static [&'static str];

    /// What truncation took, of engines that truncate.
    fn truncated(&self) -> Option<&crate::mps::Ledger> {
        None
    }
}

/// The gates of so many steps.
pub(super) fn gates(
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

    fn stored(&self) -> Stored<'_> {
        let (re, im) = self.state.parts();
        vec![
            ("re", Numbers::lent(T::DTYPE, re)),
            ("im", Numbers::lent(T::DTYPE, im)),
        ]
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

    fn names(&self) -> &'static [&'static str] {
        &["re", "im"]
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

    fn stored(&self) -> Stored<'_> {
        let [stabilizers, destabilizers] = self.state.words();
        vec![
            ("stabilizers", Numbers::lent(Dtype::U64, stabilizers)),
            ("destabilizers", Numbers::lent(Dtype::U64, destabilizers)),
        ]
    }

    fn restore(&mut self, name: &str, stored: &TensorView<'_>) -> bool {
        let read: Vec<u64> = numbers(stored.data());
        stored.dtype() == Dtype::U64 && self.state.set_words(name == "stabilizers", read)
    }

    fn names(&self) -> &'static [&'static str] {
        &["stabilizers", "destabilizers"]
    }
}

/// Numbers of bytes that need not lie as numbers must.
pub(super) fn numbers<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytes
        .chunks_exact(size_of::<T>())
        .map(bytemuck::pod_read_unaligned)
        .collect()
}
