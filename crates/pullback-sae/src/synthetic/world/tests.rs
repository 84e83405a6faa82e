#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::f64::consts::PI;

use super::*;
use crate::synthetic::Correlation;
use crate::synthetic::normal::tail;

/// Few features that fire often and correlate strongly, so that statistics say much.
fn config(exclusive: bool) -> WorldConfig {
    let mut config = WorldConfig::new(24, 300, 7);
    config.rarest = 2e-3;
    config.hierarchy.roots = 6;
    config.hierarchy.branching = 3;
    config.hierarchy.exclusive = exclusive;
    config.correlation = Correlation {
        rank: 5,
        scale: 0.3,
    };
    config
}

fn world(config: &WorldConfig) -> World {
    World::new(config, &Control::hidden()).unwrap()
}

fn samples(world: &World, pieces: u64) -> SparseCodes<f32> {
    let mut all = SparseCodes::new();
    (0..pieces).for_each(|piece| all.append(&world.piece(piece).codes));
    all
}

#[test]
fn features_fire_as_often_as_they_should() {
    for exclusive in [true, false] {
        let config = config(exclusive);
        let world = world(&config);
        let codes = samples(&world, 60);
        let n = codes.tokens() as f64;
        let mut counts = vec![0.0; config.features];
        codes
            .features()
            .iter()
            .for_each(|&feature| counts[feature as usize] += 1.0);
        let mut worst = 0.0_f64;
        let mut squares = 0.0;
        for (count, p) in counts.iter().zip(world.forest().probabilities()) {
            let error = (count - n * p) / (n * p * (1.0 - p)).sqrt();
            worst = worst.max(error.abs());
            squares += error * error;
        }
        // Activations are independent, so counts are binomial: five standard errors are passed by one of two million
        // features. The mean square of 300 errors is 1 with a standard error of about sqrt(2/300) = 0.08.
        assert!(worst < 5.0, "{worst} standard errors");
        let mean = squares / counts.len() as f64;
        assert!((mean - 1.0).abs() < 0.4, "mean square error {mean}");
        let l0 = codes.active() as f64 / n;
        assert!((l0 / world.forest().l0(config.features) - 1.0).abs() < 0.01);
    }
}

/// The integral of `f` times the density of two independent standard normal variables; its error is far below the
/// statistical ones where `f` is smooth.
fn over_plane(f: impl Fn(f64, f64) -> f64) -> f64 {
    let step = 0.05;
    let at = |i: i32| f64::from(i) * step;
    let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
    (-160..=160)
        .map(|i| {
            (-160..=160)
                .map(|j| f(at(i), at(j)) * density(at(i)) * density(at(j)))
                .sum::<f64>()
        })
        .sum::<f64>()
        * step
        * step
}

/// Probability that both features fire, without sampling: over two factors it is an integral of products.
fn joint(world: &World, features: (u32, u32)) -> f64 {
    let firing = world.firing();
    // All that is on the two lines of descent has to happen.
    let mut line: Vec<u32> = Vec::new();
    for feature in [features.0, features.1] {
        let mut at = Some(feature);
        while let Some(feature) = at {
            if !line.contains(&feature) {
                line.push(feature);
            }
            at = world.forest().parent(feature as usize);
        }
    }
    let events: Vec<(&[f64], f64, f64)> = line.iter().map(|&f| firing.bounds(f)).collect();
    over_plane(|x, y| {
        events
            .iter()
            .map(|(loading, above, below)| {
                let common = loading[0] * x + loading[1] * y;
                let rest = (1.0 - loading[0].powi(2) - loading[1].powi(2)).sqrt();
                tail((above - common) / rest) - tail((below - common) / rest)
            })
            .product()
    })
}

#[test]
fn features_fire_together_as_often_as_the_copula_says() {
    let mut config = config(true);
    // Two factors can be integrated over; with one level below the roots they keep a line of descent apart.
    config.correlation = Correlation {
        rank: 2,
        scale: 0.5,
    };
    config.hierarchy.depth = 1;
    let world = world(&config);
    let codes = samples(&world, 60);
    let n = codes.tokens() as f64;
    let p = world.forest().probabilities();
    // Roots, children of other roots, a child with its own parent, features of no tree.
    let pairs = (0..12)
        .flat_map(|a| [(a, a + 1), (a, a + 5), (a, a + 12), (a, 30)])
        .filter(|&(a, b)| {
            let (a, b) = (a as usize, b as usize);
            world.forest().parent(a).is_none()
                || world.forest().parent(a) != world.forest().parent(b)
        });
    let (mut worst, mut far, mut seen, mut squares) = (0.0_f64, 0, 0.0, 0.0);
    for (a, b) in pairs {
        let expected = joint(&world, (a, b));
        let both = (0..codes.tokens())
            .filter(|&token| codes.value(token, a) > 0.0 && codes.value(token, b) > 0.0)
            .count() as f64;
        let error = (both - n * expected) / (n * expected * (1.0 - expected)).sqrt();
        worst = worst.max(error.abs());
        squares += error * error;
        seen += 1.0;
        let independent = p[a as usize] * p[b as usize];
        far += i32::from(
            (n * (expected - independent)).abs() > 20.0 * (n * expected * (1.0 - expected)).sqrt(),
        );
    }
    assert!(seen > 40.0 && far > 20, "{far} of {seen} pairs correlate");
    assert!(worst < 4.5, "{worst} standard errors");
    assert!(squares / seen < 1.8, "mean square error {}", squares / seen);
    // The integral itself: what a child does is independent of whether its parent fires.
    let child = world.forest().children(0).start;
    assert!((joint(&world, (0, child)) - p[child as usize]).abs() < 1e-9);
    assert!((joint(&world, (1, 1)) - p[1]).abs() < 1e-9);
}

#[test]
fn children_fire_with_their_parent_and_one_at_a_time() {
    for exclusive in [true, false] {
        let world = world(&config(exclusive));
        let codes = samples(&world, 10);
        let (mut alone, mut accompanied, mut several) = (0, 0, 0);
        for token in 0..codes.tokens() {
            let (features, values) = codes.token(token);
            assert!(features.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(values.iter().all(|&value| value > 0.0));
            for &feature in features {
                if let Some(parent) = world.forest().parent(feature as usize) {
                    assert!(features.contains(&parent));
                }
                let family = world.forest().children(feature as usize);
                match features.iter().filter(|&f| family.contains(f)).count() {
                    0 => alone += usize::from(!family.is_empty()),
                    1 => accompanied += 1,
                    _ => several += 1,
                }
            }
        }
        assert!(alone > 1000 && accompanied > 1000);
        assert_eq!(several == 0, exclusive, "{several}");
    }
}

#[test]
fn magnitudes_are_normal_above_zero_and_follow_the_parent() {
    let mut config = config(true);
    config.magnitudes.first = 3.0;
    config.magnitudes.last = 1.0;
    config.magnitudes.spread = 1.0;
    let world = world(&config);
    let codes = samples(&world, 60);
    // Mean and variance of a normal variable above zero, in units of its deviation.
    let moments = |feature: usize| {
        let (mean, deviation) = world.firing().magnitude(feature);
        let at = -mean / deviation;
        let hazard = (-0.5 * at * at).exp() / (2.0 * PI).sqrt() / tail(at);
        (
            mean + deviation * hazard,
            deviation.powi(2) * (1.0 + at * hazard - hazard * hazard),
        )
    };
    let roots: Vec<usize> = (0..6).chain(250..260).collect();
    for feature in roots {
        let values: Vec<f64> = (0..codes.tokens())
            .map(|token| f64::from(codes.value(token, feature as u32)))
            .filter(|&value| value > 0.0)
            .collect();
        let n = values.len() as f64;
        assert!(n > 200.0);
        let (mean, variance) = moments(feature);
        let found = values.iter().sum::<f64>() / n;
        assert!((found - mean).abs() < 4.5 * (variance / n).sqrt());
        let spread = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        // The fourth moment of these is at most that of a normal variable, 3 variances squared.
        assert!((spread - variance).abs() < 4.5 * variance * (2.0 / n).sqrt() + 1e-6);
    }
    // A child's magnitude over its parent's ratio to its mean is one of those variables again.
    let child = world.forest().children(0).start;
    let (parent_mean, _) = world.firing().magnitude(0);
    let (mean, variance) = moments(child as usize);
    let ratios: Vec<f64> = (0..codes.tokens())
        .filter(|&token| codes.value(token, child) > 0.0)
        .map(|token| {
            f64::from(codes.value(token, child)) / f64::from(codes.value(token, 0)) * parent_mean
        })
        .collect();
    let n = ratios.len() as f64;
    let found = ratios.iter().sum::<f64>() / n;
    assert!(n > 1000.0 && (found - mean).abs() < 4.5 * (variance / n).sqrt());
}

#[test]
fn activations_are_sums_of_directions() {
    let world = world(&config(true));
    let sample = world.held_out(3);
    let d = world.config().d;
    let length = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    assert!((length(world.bias()) - 0.5).abs() < 1e-6);
    assert_eq!(sample.codes.tokens(), PIECE_ROWS);
    for (token, row) in sample.rows.chunks_exact(d).enumerate() {
        for (j, &x) in row.iter().enumerate() {
            let sum: f64 = (0..world.config().features)
                .map(|i| {
                    f64::from(sample.codes.value(token, i as u32))
                        * f64::from(world.directions()[i * d + j])
                })
                .sum();
            let expected = sum + f64::from(world.bias()[j]);
            assert!((f64::from(x) - expected).abs() < 1e-4);
        }
    }
}

#[test]
fn a_piece_is_the_same_whenever_it_is_asked_for() {
    let config = config(true);
    let (first, second) = (world(&config), world(&config));
    let late = first.piece(9);
    assert_eq!(first.piece(0), second.piece(0));
    assert_eq!(second.piece(9), late);
    let one_thread = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    assert_eq!(one_thread.install(|| second.piece(9)), late);
    let others = [
        first.piece(8),
        first.held_out(9),
        world(&WorldConfig { seed: 8, ..config }).piece(9),
    ];
    for other in others {
        assert_ne!(other.codes, late.codes);
        assert_ne!(other.rows, late.rows);
    }
}

#[test]
fn worlds_that_cannot_be_are_refused() {
    type Change = fn(&mut WorldConfig);
    let base = config(true);
    let cases: [(Change, &str); 14] = [
        (|c| c.d = 0, "width 0"),
        (|c| c.features = 0, "0 features"),
        (|c| c.d = usize::MAX / 2, "too many numbers"),
        (|c| c.rarest = 0.5, "0.4 to 0.5"),
        (|c| c.most_frequent = 1.0, "from 1 to"),
        (|c| c.exponent = f64::NAN, "NaN"),
        (|c| c.hierarchy.roots = 301, "301 trees"),
        (|c| c.hierarchy.branching = 0, "at least one child"),
        (|c| c.hierarchy.share = 1.5, "1.5"),
        (|c| c.correlation.rank = 3, "at least 4"),
        (|c| c.correlation.rank = 1 << 40, "factors"),
        (|c| c.correlation.scale = -1.0, "-1"),
        (|c| c.magnitudes.last = 0.0, "the last magnitude is 0"),
        (|c| c.overlap = Some(1.5), "1.5"),
    ];
    for (change, word) in cases {
        let mut config = base.clone();
        change(&mut config);
        let Err(error) = World::new(&config, &Control::hidden()) else {
            panic!("{word} was let through");
        };
        assert!(
            error.to_string().contains(word),
            "`{word}` is not in: {error}"
        );
    }
}
