//! The element types of ggml tensors.

use std::fmt;

use pullback_kernels::Format;

/// The element type of a tensor. Quantised types store blocks of elements with common scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorType(&'static Entry);

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    id: u32,
    name: &'static str,
    block_elements: u64,
    block_bytes: u64,
    format: Option<Format>,
}

const fn supported(id: u32, format: Format) -> Entry {
    Entry {
        id,
        name: format.name(),
        block_elements: format.block_size() as u64,
        block_bytes: format.block_bytes() as u64,
        format: Some(format),
    }
}

const fn known(id: u32, name: &'static str, block_elements: u64, block_bytes: u64) -> Entry {
    Entry {
        id,
        name,
        block_elements,
        block_bytes,
        format: None,
    }
}

/// All types of ggml with their block sizes; those that cannot be converted are kept so that a file that holds one can
/// still be listed.
static TYPES: [Entry; 33] = [
    supported(0, Format::F32),
    supported(1, Format::F16),
    supported(30, Format::BF16),
    supported(28, Format::F64),
    supported(8, Format::Q8_0),
    supported(2, Format::Q4_0),
    supported(3, Format::Q4_1),
    supported(6, Format::Q5_0),
    supported(7, Format::Q5_1),
    supported(12, Format::Q4K),
    supported(13, Format::Q5K),
    supported(14, Format::Q6K),
    known(9, "Q8_1", 32, 40),
    known(10, "Q2_K", 256, 84),
    known(11, "Q3_K", 256, 110),
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
        TYPES
            .iter()
            .filter(|entry| entry.format.is_some())
            .map(Self)
    }

    /// Whether this type can be converted to `f32`.
    pub fn is_supported(self) -> bool {
        self.0.format.is_some()
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

    /// The format of the elements where they can be converted to `f32`.
    pub fn format(self) -> Option<Format> {
        self.0.format
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}
