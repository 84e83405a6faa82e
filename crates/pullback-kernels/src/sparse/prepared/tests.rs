//! Every way of screening against a search through all values.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::exact::value;
use super::super::{Candidates, SparseCodes, encode_top_k};
use super::{PreparedEncoder, Screen, Screened, Way, Weights};

fn ways() -> impl Iterator<Item = Way> {
    Way::ALL.into_iter().filter(|way| way.is_available())
}

/// An encoder, and rows for it.
struct Case {
    name: &'static str,
    x: Vec<f32>,
    encoder: Vec<f32>,
    bias: Vec<f32>,
    d: usize,
}

impl Case {
    fn screened(&self, way: Way, k: usize) -> Screened {
        let weights = Weights {
            encoder: &self.encoder,
            bias: &self.bias,
            d: self.d,
        };
        Screen::new(way, weights).encode(&self.x, weights, k)
    }

    /// All values, row by row.
    fn values(&self) -> Vec<f32> {
        let rows = self.x.chunks_exact(self.d);
        rows.flat_map(|x| {
            let features = self.encoder.chunks_exact(self.d).zip(&self.bias);
            features.map(move |(row, &bias)| value(x, row, bias))
        })
        .collect()
    }

    fn by_sorting(&self, k: usize) -> SparseCodes<f32> {
        sorted(&self.values(), self.bias.len(), k)
    }
}

/// Sorts all values of each row.
fn sorted(values: &[f32], m: usize, k: usize) -> SparseCodes<f32> {
    let mut codes = SparseCodes::new();
    for values in values.chunks_exact(m) {
        let mut order: Vec<u32> = (0..m as u32)
            .filter(|&i| values[i as usize] > 0.0)
            .collect();
        order.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]));
        order.truncate(k);
        order.sort_unstable();
        let values: Vec<f32> = order.iter().map(|&i| values[i as usize]).collect();
        codes.push(&order, &values);
    }
    codes
}

fn bits(codes: &SparseCodes<f32>) -> (Vec<u32>, Vec<u32>, Vec<usize>) {
    (
        codes.features().to_vec(),
        codes.values().iter().map(|x| x.to_bits()).collect(),
        (0..codes.tokens()).map(|t| codes.span(t).end).collect(),
    )
}

fn normal(random: &mut ChaCha8Rng) -> f32 {
    (0..6).map(|_| random.random_range(-1.0_f32..1.0)).sum()
}

fn random_case(seed: u64, rows: usize, d: usize, m: usize) -> Case {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut numbers = |count: usize, scale: f32| -> Vec<f32> {
        (0..count).map(|_| scale * normal(&mut random)).collect()
    };
    Case {
        name: "random",
        x: numbers(rows * d, 1.0),
        encoder: numbers(m * d, 0.1),
        bias: numbers(m, 0.3),
        d,
    }
}

/// Cases that are hard on the bound, on ties, or on the range of numbers.
fn hard_cases() -> Vec<Case> {
    let (rows, d, m) = (70, 75, 1045);
    let base = |name, seed| Case {
        name,
        ..random_case(seed, rows, d, m)
    };
    let mut cases = Vec::new();

    // All features nearly the same: scores cannot tell them apart.
    let mut case = base("clustered", 1);
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for i in 0..m {
        for j in 0..d {
            case.encoder[i * d + j] = case.encoder[j] * (1.0 + 1e-6 * normal(&mut random));
        }
        case.bias[i] = 0.5;
    }
    cases.push(case);

    // Groups of nearly the same features of 40 each: few enough to be told apart exactly.
    let mut case = base("clusters", 2);
    for i in 0..m {
        let first = i / 40 * 40;
        for j in 0..d {
            case.encoder[i * d + j] =
                case.encoder[first * d + j] * (1.0 + 1e-5 * normal(&mut random));
        }
        case.bias[i] = case.bias[first];
    }
    cases.push(case);

    // Every feature five times.
    let mut case = base("ties", 3);
    for i in 0..m {
        let from = i % (m / 5);
        case.encoder.copy_within(from * d..(from + 1) * d, i * d);
        case.bias[i] = case.bias[from];
    }
    cases.push(case);

    // Whole numbers, so that many values are equal without features being so.
    let mut case = base("whole numbers", 4);
    for x in case
        .x
        .iter_mut()
        .chain(&mut case.encoder)
        .chain(&mut case.bias)
    {
        *x = (*x * 3.0).round();
    }
    cases.push(case);

    let mut case = base("zero rows, biases and features", 5);
    case.x[..3 * d].fill(0.0);
    case.encoder[7 * d..300 * d].fill(0.0);
    case.bias[..100].fill(0.0);
    cases.push(case);

    let mut case = base("all zero", 6);
    case.x.fill(0.0);
    case.bias.fill(0.0);
    cases.push(case);

    let mut case = base("nothing positive", 7);
    case.bias.fill(-1e4);
    cases.push(case);

    // Rounding to eight bits is off in the same direction everywhere.
    let mut case = base("adversarial", 8);
    for (i, x) in case.x.iter_mut().enumerate() {
        *x = x.signum() * (1.0 + 0.003_9 * ((i % d) as f32 / d as f32));
    }
    for (i, row) in case.encoder.chunks_exact_mut(d).enumerate() {
        for (j, w) in row.iter_mut().enumerate() {
            *w = case.x[i % rows * d + j].signum() * (1.0 + 0.003_9 * (i as f32 / m as f32));
        }
    }
    cases.push(case);

    let mut case = base("large coordinates", 9);
    for x in case.x.chunks_exact_mut(d) {
        x[3] *= 300.0;
        x[70] = 1234.567;
    }
    cases.push(case);

    for (name, scale_x, scale_w) in [
        ("huge rows", 1e30, 1.0),
        ("huge features", 1.0, 1e30),
        ("overflow", 1e20, 1e20),
        ("tiny rows", 1e-38, 1.0),
        ("tiny features", 1.0, 1e-39),
        ("subnormal products", 1e-20, 1e-20),
        ("tiny and huge", 1e-30, 1e30),
    ] {
        let mut case = base(name, 10);
        case.x.iter_mut().for_each(|x| *x *= scale_x);
        case.encoder.iter_mut().for_each(|w| *w *= scale_w);
        case.bias.iter_mut().for_each(|b| *b *= scale_x * scale_w);
        cases.push(case);
    }

    let mut case = base("not finite", 11);
    case.x[5] = f32::NAN;
    case.x[3 * d] = f32::INFINITY;
    case.x[4 * d + 1] = f32::NEG_INFINITY;
    case.x[6 * d + 1] = f32::MAX;
    case.encoder[8 * d + 2] = f32::NAN;
    case.encoder[9 * d + 3] = f32::INFINITY;
    case.encoder[10 * d + 3] = f32::NEG_INFINITY;
    case.encoder[11 * d + 3] = f32::MAX;
    case.bias[20] = f32::NAN;
    case.bias[21] = f32::INFINITY;
    case.bias[22] = f32::NEG_INFINITY;
    case.bias[23] = f32::MAX;
    case.bias[24] = f32::MIN;
    cases.push(case);

    let mut case = base("one feature far above", 12);
    case.encoder[500 * d..501 * d]
        .iter_mut()
        .for_each(|w| *w *= 1e6);
    cases.push(case);
    cases
}

#[test]
fn every_way_finds_what_sorting_finds() {
    for case in hard_cases() {
        let values = case.values();
        for k in [1, 33, 130] {
            let expected = bits(&sorted(&values, case.bias.len(), k));
            for way in ways() {
                let found = case.screened(way, k);
                assert!(
                    bits(&found.codes) == expected,
                    "{}, {way:?}, k {k}",
                    case.name
                );
                assert_eq!(found.screening.rows, 70);
            }
        }
    }
}

#[test]
fn shapes_that_fill_no_panel_and_large_k() {
    for (rows, d, m) in [
        (1, 1, 1),
        (33, 31, 33),
        (40, 64, 512),
        (65, 33, 1000),
        (300, 40, 3000),
    ] {
        let case = random_case(20, rows, d, m);
        let values = case.values();
        for k in [0, 1, 7, m / 8, m / 2, m, m + 5] {
            let expected = bits(&sorted(&values, m, k));
            for way in ways() {
                let found = bits(&case.screened(way, k).codes);
                assert!(found == expected, "{rows} × {d} × {m}, {way:?}, k {k}");
            }
            let prepared = PreparedEncoder::new(&case.encoder, &case.bias);
            let found = prepared.encode_top_k(&case.x, &case.encoder, &case.bias, k, None);
            assert!(
                bits(&found.codes) == expected,
                "prepared, {rows} × {d} × {m}, k {k}"
            );
            let found = encode_top_k(&case.x, &case.encoder, &case.bias, k, None);
            assert!(bits(&found.codes) == expected, "{rows} × {d} × {m}, k {k}");
        }
    }
}

#[test]
fn few_features_are_looked_at_twice() {
    let case = random_case(21, 256, 96, 4096);
    for way in ways() {
        let screening = case.screened(way, 32).screening;
        let most = match way {
            Way::Everything => {
                assert_eq!(screening.dense_rows, 256);
                continue;
            }
            Way::Bytes256 | Way::Bytes512 => 250.0,
            Way::Products | Way::Tiles => 80.0,
        };
        assert_eq!(screening.dense_rows, 0, "{way:?}");
        let candidates = screening.candidates_a_row();
        assert!((32.0..most).contains(&candidates), "{way:?}: {candidates}");
    }
}

#[test]
fn loose_bounds_are_replaced_by_those_of_better_products() {
    let mut case = random_case(23, 80, 96, 1024);
    // Values differ by less than what bf16 can tell apart.
    for row in case.encoder.chunks_exact_mut(96) {
        for (i, w) in row.iter_mut().enumerate() {
            *w = 1e-3 * *w + if i.is_multiple_of(2) { 1.0 } else { -1.0 };
        }
    }
    let expected = bits(&case.by_sorting(16));
    for way in ways() {
        let found = case.screened(way, 16);
        assert!(bits(&found.codes) == expected, "{way:?}");
        assert_eq!(found.screening.rows, 80);
        let dense = if way == Way::Everything { 80 } else { 0 };
        assert_eq!(found.screening.dense_rows, dense, "{way:?}");
    }
}

#[test]
fn the_choice_among_some_features_is_exact() {
    let case = random_case(22, 100, 64, 2000);
    for step in [1, 2, 3, 900] {
        let features: Vec<u32> = (0..2000).step_by(step).collect();
        let alone = Case {
            name: "alone",
            x: case.x.clone(),
            encoder: features
                .iter()
                .flat_map(|&i| case.encoder[i as usize * 64..][..64].iter().copied())
                .collect(),
            bias: features.iter().map(|&i| case.bias[i as usize]).collect(),
            d: 64,
        };
        for k in [3, 40] {
            let candidates = Candidates {
                features: &features,
                k,
            };
            let encoded = encode_top_k(&case.x, &case.encoder, &case.bias, 32, Some(candidates));
            assert!(bits(&encoded.codes) == bits(&case.by_sorting(32)));
            let mut expected = alone.by_sorting(k);
            expected.rename(&features);
            assert!(encoded.among.map(|codes| bits(&codes)) == Some(bits(&expected)));
        }
    }
    let none = Candidates {
        features: &[],
        k: 3,
    };
    let encoded = encode_top_k(&case.x, &case.encoder, &case.bias, 32, Some(none));
    let among = encoded.among.map(|codes| (codes.tokens(), codes.active()));
    assert_eq!(among, Some((100, 0)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_shape(
        rows in 1_usize..90,
        d in 1_usize..80,
        m in 1_usize..1500,
        k in 0_usize..70,
        seed in any::<u64>(),
    ) {
        let case = random_case(seed, rows, d, m);
        let expected = bits(&case.by_sorting(k));
        for way in ways() {
            let found = case.screened(way, k);
            prop_assert!(bits(&found.codes) == expected, "{:?}", way);
        }
    }
}
