//! Bond updates a second of matrix-product states: the Ising chain at its critical field after a quench, on bonds that are
//! as wide as the largest dimension.
//!
//! Usage: `tebd_rate BOND STATE.bin [LAYERS]` makes the state, writes it and measures; `RAYON_NUM_THREADS` sets the threads.
//! It prints one JSON object. The file holds little-endian numbers: sites, the bond dimensions, Schmidt coefficients and
//! tensors as `benches/rivals/tebd.py` reads them.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::missing_panics_doc)]

use std::time::Instant;

use pullback_chain::{Boundary, Hamiltonian, Mps, Scheme, Site, Truncation, trotter_circuit};
use pullback_tensor::c64;

/// The step of the gates that are measured.
const DT: f64 = 0.05;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let bond: usize = arguments[1].parse().unwrap();
    let layers: usize = arguments.get(3).map_or(20, |x| x.parse().unwrap());
    let narrow = bond.ilog2() as usize;
    // Ten bonds in the middle that are all of full width, and the room beside them that this takes.
    let sites = 2 * (narrow + 4) + 10;
    let first = (sites - 10) / 2 - (sites - 10) / 2 % 2;
    let h = Hamiltonian::parse("ising(g=1)", Site::QUBIT).unwrap();
    let scheme = Scheme::parse("first").unwrap();
    let truncation = Truncation::new(bond, 1e-16).unwrap();
    let plus = vec![c64::new(0.5_f64.sqrt(), 0.0); 2];
    let mut state = Mps::product(2, &vec![plus; sites]).unwrap();
    // Until the middle is full and truncation takes something that can be compared.
    let grow = trotter_circuit(&h, &scheme, 0.2, 2, sites, Boundary::Open).unwrap();
    let full = |state: &Mps| (first..first + 10).all(|b| state.bonds()[b] == bond);
    let mut last = 0.0;
    for _ in 0..100 {
        let before = state.ledger().discarded();
        state.apply(&grow, truncation).unwrap();
        last = state.ledger().discarded() - before;
        if full(&state) && last > 1e-7 {
            break;
        }
    }
    write(&state, &arguments[2]);
    let step = trotter_circuit(&h, &scheme, DT, 1, sites, Boundary::Open).unwrap();
    let window = |even: usize| {
        step.iter()
            .filter(move |gate| gate.sites.0 % 2 == even)
            .filter(move |gate| (first..first + 10).contains(&gate.sites.0))
    };
    let gates: Vec<_> = (0..layers)
        .flat_map(|layer| window(layer % 2))
        .cloned()
        .collect();
    let before = state.ledger().discarded();
    let (start, busy) = (Instant::now(), processor_seconds());
    state.apply(&gates, truncation).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let busy = processor_seconds() - busy;
    println!(
        "{{\"bond\": {bond}, \"sites\": {sites}, \"first\": {first}, \"layers\": {layers}, \"dt\": {DT}, \"updates\": {}, \"seconds\": {seconds:.6}, \"ms_per_update\": {:.4}, \"processor_ms_per_update\": {:.4}, \"discarded\": {:e}, \"discarded_while_growing\": {last:e}, \"full\": {}}}",
        gates.len(),
        1e3 * seconds / gates.len() as f64,
        1e3 * busy / gates.len() as f64,
        state.ledger().discarded() - before,
        full(&state),
    );
}

/// Time that all threads have used, to a hundredth of a second; 0 where the system does not say.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
    let ticks: f64 = fields
        .skip(11)
        .take(2)
        .filter_map(|x| x.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

fn write(state: &Mps, path: &str) {
    let mut bytes = Vec::new();
    bytes.extend((state.sites() as u64).to_le_bytes());
    for bond in state.bonds() {
        bytes.extend((bond as u64).to_le_bytes());
    }
    for bond in 0..state.sites() - 1 {
        bytes.extend(state.schmidt(bond).iter().flat_map(|x| x.to_le_bytes()));
    }
    for site in 0..state.sites() {
        let entries = state.tensor(site).1.iter();
        bytes.extend(entries.flat_map(|x| [x.re.to_le_bytes(), x.im.to_le_bytes()].concat()));
    }
    std::fs::write(path, bytes).unwrap();
}
