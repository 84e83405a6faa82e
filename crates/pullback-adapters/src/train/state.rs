//! What training keeps of itself to go on from.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::AdapterTraining;
use super::config::TrainConfig;
use crate::AdapterError;
use crate::feature::map::Support;
use crate::tensor_file::{TensorFile, write_tensors};

/// Parameters with their Adam moments, part by part.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Parameters {
    pub(crate) values: Vec<Vec<f32>>,
    pub(crate) first: Vec<Vec<f32>>,
    pub(crate) second: Vec<Vec<f32>>,
}

impl Parameters {
    pub(crate) fn new(values: Vec<Vec<f32>>) -> Self {
        let zeros: Vec<Vec<f32>> = values.iter().map(|part| vec![0.0; part.len()]).collect();
        Self {
            values,
            first: zeros.clone(),
            second: zeros,
        }
    }

    /// One step of Adam (arXiv 1412.6980, algorithm 1, with β = 0.9, 0.99: runs are short).
    pub(crate) fn step(&mut self, gradient: &[Vec<f32>], step: usize, lr: f64) {
        let t = step as i32 + 1;
        let (beta1, beta2): (f64, f64) = (0.9, 0.99);
        let (correct1, correct2) = (1.0 - beta1.powi(t), 1.0 - beta2.powi(t));
        for (part, gradient) in gradient.iter().enumerate() {
            for (i, &g) in gradient.iter().enumerate() {
                let g = f64::from(g);
                let first = beta1 * f64::from(self.first[part][i]) + (1.0 - beta1) * g;
                let second = beta2 * f64::from(self.second[part][i]) + (1.0 - beta2) * g * g;
                self.first[part][i] = first as f32;
                self.second[part][i] = second as f32;
                let moved = lr * (first / correct1) / ((second / correct2).sqrt() + 1e-8);
                self.values[part][i] -= moved as f32;
            }
        }
    }
}

/// What the work is: a state of other work is of no use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) config: TrainConfig,
    /// Digests.
    pub(crate) data: String,
    pub(crate) model: String,
    pub(crate) dictionary: Option<String>,
    pub(crate) teacher: Option<String>,
}

/// The parameters at the best held-out loss so far.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Best {
    pub(crate) step: usize,
    pub(crate) loss: f64,
    pub(crate) values: Vec<Vec<f32>>,
    pub(crate) support: Option<Support>,
}

/// A training between two steps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct State {
    pub(crate) work: Work,
    pub(crate) step: usize,
    pub(crate) training: AdapterTraining,
    pub(crate) parameters: Parameters,
    pub(crate) support: Option<Support>,
    pub(crate) best: Option<Best>,
}

/// The part of a state that is not numbers of parameters.
#[derive(Serialize, Deserialize)]
struct Notes {
    work: Work,
    step: usize,
    training: AdapterTraining,
    best: Option<(usize, f64)>,
    /// Parts of the parameters.
    parts: usize,
}

const NOTES: &str = "state";

impl State {
    /// Writes it to a file, at once.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn save(&self, path: &Path) -> Result<(), AdapterError> {
        let mut file = TensorFile::default();
        let mut all = |name: &str, parts: &[Vec<f32>]| {
            for (number, part) in parts.iter().enumerate() {
                file.floats(format!("{name}.{number}"), vec![part.len()], part.clone());
            }
        };
        all("values", &self.parameters.values);
        all("first", &self.parameters.first);
        all("second", &self.parameters.second);
        if let Some(best) = &self.best {
            all("best", &best.values);
        }
        if let Some(support) = &self.support {
            put_support(&mut file, "support", support);
        }
        if let Some(support) = self.best.as_ref().and_then(|best| best.support.as_ref()) {
            put_support(&mut file, "best_support", support);
        }
        let notes = Notes {
            work: self.work.clone(),
            step: self.step,
            training: self.training.clone(),
            best: self.best.as_ref().map(|best| (best.step, best.loss)),
            parts: self.parameters.values.len(),
        };
        let notes = serde_json::to_string(&notes)
            .map_err(|error| AdapterError::Option(error.to_string()))?;
        write_tensors(path, &file, Some([(NOTES.to_owned(), notes)].into()))
    }

    /// Reads it back; `form` is a support of the same form as those that were written.
    ///
    /// # Errors
    /// The file is missing or no whole state.
    pub(crate) fn load(path: &Path, form: Option<&Support>) -> Result<Self, AdapterError> {
        let file = TensorFile::read(path)?;
        let wrong = |problem: String| AdapterError::File {
            path: path.to_owned(),
            problem,
        };
        let notes = file
            .note(NOTES)
            .ok_or_else(|| wrong("it holds no state of a training".to_owned()))?;
        let notes: Notes = serde_json::from_str(notes).map_err(|error| wrong(error.to_string()))?;
        let all = |name: &str| {
            (0..notes.parts)
                .map(|number| file.vector(&format!("{name}.{number}")))
                .collect::<Result<Vec<_>, _>>()
        };
        let parameters = Parameters {
            values: all("values")?,
            first: all("first")?,
            second: all("second")?,
        };
        let support_of = |name: &str| {
            let form = form?;
            take_support(&file, name, form)
        };
        let best = match notes.best {
            Some((step, loss)) => Some(Best {
                step,
                loss,
                values: all("best")?,
                support: support_of("best_support"),
            }),
            None => None,
        };
        Ok(Self {
            work: notes.work,
            step: notes.step,
            training: notes.training,
            parameters,
            support: support_of("support"),
            best,
        })
    }
}

fn put_support(file: &mut TensorFile, name: &str, support: &Support) {
    let mut pairs = |name: String, pairs: &[(u32, u32)]| {
        file.integers(name, pairs.iter().flat_map(|&(a, b)| [a, b]).collect());
    };
    match support {
        Support::Bias { features, .. } => file.integers(format!("{name}.0"), features.clone()),
        Support::Sparse { pairs: entries } => pairs(format!("{name}.0"), entries),
        Support::LowRank { read, write, .. } => {
            pairs(format!("{name}.0"), read);
            pairs(format!("{name}.1"), write);
        }
    }
}

fn take_support(file: &TensorFile, name: &str, form: &Support) -> Option<Support> {
    let list = |part: usize| file.integer_list(&format!("{name}.{part}"));
    let pairs = |part: usize| {
        let list = list(part)?;
        let pairs = list.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        Some(pairs.collect::<Vec<_>>())
    };
    Some(match form {
        Support::Bias { active_only, .. } => Support::Bias {
            features: list(0)?.to_vec(),
            active_only: *active_only,
        },
        Support::Sparse { .. } => Support::Sparse { pairs: pairs(0)? },
        Support::LowRank { rank, .. } => Support::LowRank {
            rank: *rank,
            read: pairs(0)?,
            write: pairs(1)?,
        },
    })
}
