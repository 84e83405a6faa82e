//! Gates a second of the state vector: brickwork of dense random gates, one matrix for all.
//!
//! Usage: `statevector_rate SITES STEPS REPEATS [single]`. It prints one JSON object; `RAYON_NUM_THREADS` sets the threads.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::missing_panics_doc)]

use std::time::Instant;

use pullback_chain::statevector::Real;
use pullback_chain::{Boundary, Plan, Qca, Site, StateVector};
use pullback_tensor::c64;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |i: usize, usual: usize| arguments.get(i).map_or(usual, |x| x.parse().unwrap());
    let (sites, steps, repeats) = (number(1, 24), number(2, 2), number(3, 3));
    if arguments.get(4).is_some_and(|x| x == "single") {
        measure::<f32>(sites, steps, repeats);
    } else {
        measure::<f64>(sites, steps, repeats);
    }
}

fn measure<T: Real>(sites: usize, steps: usize, repeats: usize) {
    let qca = Qca::parse("haar(seed=1)", Site::QUBIT).unwrap();
    let step = qca.step(sites, Boundary::Open).unwrap();
    let gates: Vec<_> = (0..steps).flat_map(|_| step.clone()).collect();
    let plan: Plan<T> = Plan::new(2, sites, &gates).unwrap();
    let zero = vec![c64::new(1.0, 0.0), c64::new(0.0, 0.0)];
    let mut state: StateVector<T> = StateVector::product(2, &vec![zero; sites]).unwrap();
    state.apply(&plan);
    let bytes = (2 * size_of::<T>()) as f64 * (1_u64 << sites) as f64;
    let mut seconds: Vec<f64> = (0..repeats)
        .map(|_| {
            let start = Instant::now();
            state.apply(&plan);
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds[repeats / 2];
    // What a copy of the state reaches: it reads and writes each number once, as a pass does.
    let (re, im) = state.parts();
    let mut copies: Vec<f64> = (0..repeats)
        .map(|_| {
            let mut to = (re.to_vec(), im.to_vec());
            let start = Instant::now();
            rayon::join(|| to.0.copy_from_slice(re), || to.1.copy_from_slice(im));
            let seconds = start.elapsed().as_secs_f64();
            std::hint::black_box(&to);
            seconds
        })
        .collect();
    copies.sort_by(f64::total_cmp);
    let copy = 2.0 * bytes / copies[repeats / 2];
    let moved = 2.0 * bytes * plan.passes() as f64 / median;
    println!(
        "{{\"gates\": {}, \"passes\": {}, \"seconds\": {seconds:?}, \"gates_per_second\": {:.2}, \"moved_gb_per_second\": {:.2}, \"copy_gb_per_second\": {:.2}, \"share_of_bandwidth\": {:.3}, \"norm_off\": {:.2e}}}",
        plan.gates(),
        plan.passes(),
        plan.gates() as f64 / median,
        moved / 1e9,
        copy / 1e9,
        moved / copy,
        (state.norm_squared() - 1.0).abs()
    );
}
