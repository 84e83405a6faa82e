//! Fixtures, and codes as they hold them.

use std::fs;
use std::path::{Path, PathBuf};

use bytemuck::pod_collect_to_vec;
use pullback_sae::{Dictionary, Sae, SparseCodes};
use safetensors::SafeTensors;

use super::base::assert_close;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

pub fn floats(bytes: &[u8], name: &str) -> Vec<f32> {
    pod_collect_to_vec(
        SafeTensors::deserialize(bytes)
            .unwrap()
            .tensor(name)
            .unwrap()
            .data(),
    )
}

pub fn dense(codes: &SparseCodes<f32>, m: usize) -> Vec<f32> {
    (0..codes.tokens())
        .flat_map(|token| (0..m as u32).map(move |i| codes.value(token, i)))
        .collect()
}

/// Compares codes and outputs with those in `expected.safetensors` of a directory.
pub fn assert_expected(sae: &Sae, dir: &Path) {
    let bytes = fs::read(dir.join("expected.safetensors")).unwrap();
    let x = floats(&bytes, "x");
    let codes = sae.encode(&x);
    assert_close(
        &dense(&codes, sae.n_features()),
        &floats(&bytes, "codes"),
        1e-5,
    );
    assert_close(
        &sae.reconstruct(&x, &codes),
        &floats(&bytes, "output"),
        1e-5,
    );
}
