//! The element types of ggml tensors.

use std::fmt;

/// The element type of a tensor. Quantised types store blocks of elements with common scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorType(&'static Entry);

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    id: u32,
    name: &'static str,
    block_elements: u64,
    block_bytes: u64,
    kind: Option<Kind>,
}

/// The types that can be converted to `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
    F64,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
}

const fn supported(
    id: u32,
    name: &'static str,
    block_elements: u64,
    block_bytes: u64,
    kind: Kind,
) -> Entry {
    Entry {
        id,
        name,
        block_elements,
        block_bytes,
        kind: Some(kind),
    }
}

const fn known(id: u32, name: &'static str, block_elements: u64, block_bytes: u64) -> Entry {
    Entry {
        id,
        name,
        block_elements,
        block_bytes,
        kind: None,
    }
}

/// All types of ggml with their block sizes; those that cannot be converted are kept so that a file that holds one can
/// still be listed.
static TYPES: [Entry; 33] = [
    supported(0, "F32", 1, 4, Kind::F32),
    supported(1, "F16", 1, 2, Kind::F16),
    supported(30, "BF16", 1, 2, Kind::Bf16),
    supported(28, "F64", 1, 8, Kind::F64),
    supported(8, "Q8_0", 32, 34, Kind::Q8_0),
    supported(2, "Q4_0", 32, 18, Kind::Q4_0),
    supported(3, "Q4_1", 32, 20, Kind::Q4_1),
    supported(6, "Q5_0", 32, 22, Kind::Q5_0),
    supported(7, "Q5_1", 32, 24, Kind::Q5_1),
    known(9, "Q8_1", 32, 40),
    known(10, "Q2_K", 256, 84),
    known(11, "Q3_K", 256, 110),
    known(12, "Q4_K", 256, 144),
    known(13, "Q5_K", 256, 176),
    known(14, "Q6_K", 256, 210),
    known(15, "Q8_K", 256, 292),
    known(16, "IQ2_XXS", 256, 66),
    known(17, "IQ2_XS", 256, 74),
    known(18, "IQ3_XXS", 256, 98),
    known(19, "IQ1_S", 256, 50),
    known(20, "IQ4_NL", 32, 18),
    known(21, "IQ3_S", 256, 110),
    known(22, "IQ2_S", 256, 82),
    known(23, "IQ4_XS", 256, 136),
    known(24, "I8", 1, 1),
    known(25, "I16", 1, 2),
    known(26, "I32", 1, 4),
    known(27, "I64", 1, 8),
    known(29, "IQ1_M", 256, 56),
    known(34, "TQ1_0", 256, 54),
    known(35, "TQ2_0", 256, 66),
    known(39, "MXFP4", 32, 17),
    known(40, "NVFP4", 64, 36),
];

impl TensorType {
    /// The type with a number as GGUF files store it, if there is one.
    pub fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().find(|entry| entry.id == id).map(Self)
    }

    /// The types that [`super::Gguf::read_f32`] converts.
    pub fn supported() -> impl Iterator<Item = Self> {
        TYPES.iter().filter(|entry| entry.kind.is_some()).map(Self)
    }

    /// Whether this type can be converted to `f32`.
    pub fn is_supported(self) -> bool {
        self.0.kind.is_some()
    }

    /// The number of the type in GGUF files.
    pub fn id(self) -> u32 {
        self.0.id
    }

    /// The name of the type in ggml, such as `Q4_1`.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Elements in a block; 1 for types without blocks. Rows are whole blocks.
    pub fn block_elements(self) -> u64 {
        self.0.block_elements
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> u64 {
        self.0.block_bytes
    }

    pub(super) fn kind(self) -> Option<Kind> {
        self.0.kind
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}
