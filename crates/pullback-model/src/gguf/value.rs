//! The values of GGUF metadata.

use super::reader::Reader;
use crate::error::ModelError;

/// How deep arrays of arrays may go.
const MAX_DEPTH: usize = 8;

/// The value of a metadata key.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Type 0.
    U8(u8),
    /// Type 1.
    I8(i8),
    /// Type 2.
    U16(u16),
    /// Type 3.
    I16(i16),
    /// Type 4.
    U32(u32),
    /// Type 5.
    I32(i32),
    /// Type 6.
    F32(f32),
    /// Type 7.
    Bool(bool),
    /// Type 8.
    String(String),
    /// Type 9.
    Array(Array),
    /// Type 10.
    U64(u64),
    /// Type 11.
    I64(i64),
    /// Type 12.
    F64(f64),
}

/// A metadata array. All its elements have one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Elements of type 0.
    U8(Vec<u8>),
    /// Elements of type 1.
    I8(Vec<i8>),
    /// Elements of type 2.
    U16(Vec<u16>),
    /// Elements of type 3.
    I16(Vec<i16>),
    /// Elements of type 4.
    U32(Vec<u32>),
    /// Elements of type 5.
    I32(Vec<i32>),
    /// Elements of type 6.
    F32(Vec<f32>),
    /// Elements of type 7.
    Bool(Vec<bool>),
    /// Elements of type 8.
    String(Vec<String>),
    /// Elements of type 9.
    Array(Vec<Array>),
    /// Elements of type 10.
    U64(Vec<u64>),
    /// Elements of type 11.
    I64(Vec<i64>),
    /// Elements of type 12.
    F64(Vec<f64>),
}

impl Value {
    /// Reads a type and a value of that type.
    pub(super) fn read(reader: &mut Reader<'_>, key: &str) -> Result<Self, ModelError> {
        let type_id = reader.u32(key)?;
        Ok(match type_id {
            0 => Self::U8(number(reader, key)?),
            1 => Self::I8(number(reader, key)?),
            2 => Self::U16(number(reader, key)?),
            3 => Self::I16(number(reader, key)?),
            4 => Self::U32(number(reader, key)?),
            5 => Self::I32(number(reader, key)?),
            6 => Self::F32(number(reader, key)?),
            7 => Self::Bool(truth(reader, key)?),
            8 => Self::String(reader.string(key)?),
            9 => Self::Array(Array::read(reader, key, 0)?),
            10 => Self::U64(number(reader, key)?),
            11 => Self::I64(number(reader, key)?),
            12 => Self::F64(number(reader, key)?),
            _ => return Err(unknown_type(reader, key, type_id)),
        })
    }

    /// The value if it is an integer that is not negative.
    pub fn as_unsigned(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The value if it is a number, rounded to the nearest `f64`.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            Self::I8(value) => Some(value.into()),
            Self::I16(value) => Some(value.into()),
            Self::I32(value) => Some(value.into()),
            Self::I64(value) => Some(value as f64),
            _ => self.as_unsigned().map(|value| value as f64),
        }
    }

    /// The value in a few words: numbers and short strings in full, the length of anything longer.
    pub fn summary(&self) -> String {
        match self {
            Self::U8(value) => value.to_string(),
            Self::I8(value) => value.to_string(),
            Self::U16(value) => value.to_string(),
            Self::I16(value) => value.to_string(),
            Self::U32(value) => value.to_string(),
            Self::I32(value) => value.to_string(),
            Self::F32(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::String(text) if text.chars().count() <= 60 => format!("{text:?}"),
            Self::String(text) => format!("a string of {} bytes", text.len()),
            Self::Array(array) => format!("an array of {} {}", array.len(), array.element_type()),
            Self::U64(value) => value.to_string(),
            Self::I64(value) => value.to_string(),
            Self::F64(value) => value.to_string(),
        }
    }
}

impl Array {
    fn read(reader: &mut Reader<'_>, key: &str, depth: usize) -> Result<Self, ModelError> {
        if depth == MAX_DEPTH {
            return Err(
                reader.malformed(key, format!("arrays are nested more than {MAX_DEPTH} deep"))
            );
        }
        let type_id = reader.u32(key)?;
        Ok(match type_id {
            0 => Self::U8(numbers(reader, key)?),
            1 => Self::I8(numbers(reader, key)?),
            2 => Self::U16(numbers(reader, key)?),
            3 => Self::I16(numbers(reader, key)?),
            4 => Self::U32(numbers(reader, key)?),
            5 => Self::I32(numbers(reader, key)?),
            6 => Self::F32(numbers(reader, key)?),
            7 => Self::Bool(items(reader, key, 1, truth)?),
            8 => Self::String(items(reader, key, 8, Reader::string)?),
            // The type and the length of the inner array.
            9 => Self::Array(items(reader, key, 12, |reader, key| {
                Self::read(reader, key, depth + 1)
            })?),
            10 => Self::U64(numbers(reader, key)?),
            11 => Self::I64(numbers(reader, key)?),
            12 => Self::F64(numbers(reader, key)?),
            _ => return Err(unknown_type(reader, key, type_id)),
        })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(items) => items.len(),
            Self::I8(items) => items.len(),
            Self::U16(items) => items.len(),
            Self::I16(items) => items.len(),
            Self::U32(items) => items.len(),
            Self::I32(items) => items.len(),
            Self::F32(items) => items.len(),
            Self::Bool(items) => items.len(),
            Self::String(items) => items.len(),
            Self::Array(items) => items.len(),
            Self::U64(items) => items.len(),
            Self::I64(items) => items.len(),
            Self::F64(items) => items.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the elements are, in the plural.
    fn element_type(&self) -> &'static str {
        match self {
            Self::F32(_) | Self::F64(_) => "numbers",
            Self::Bool(_) => "truth values",
            Self::String(_) => "strings",
            Self::Array(_) => "arrays",
            _ => "integers",
        }
    }
}

fn unknown_type(reader: &Reader<'_>, key: &str, type_id: u32) -> ModelError {
    reader.malformed(key, format!("unknown metadata type {type_id}"))
}

/// A number of fixed width in little-endian order.
trait Number: Sized {
    const BYTES: u64;
    fn from_le(bytes: &[u8]) -> Self;
}

macro_rules! impl_number {
    ($($type:ty),*) => {$(
        impl Number for $type {
            const BYTES: u64 = size_of::<$type>() as u64;
            fn from_le(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<$type>()];
                array.copy_from_slice(bytes);
                Self::from_le_bytes(array)
            }
        }
    )*};
}

impl_number!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64);

fn number<T: Number>(reader: &mut Reader<'_>, key: &str) -> Result<T, ModelError> {
    Ok(T::from_le(reader.take(T::BYTES, key)?))
}

fn numbers<T: Number>(reader: &mut Reader<'_>, key: &str) -> Result<Vec<T>, ModelError> {
    let count = reader.count(key, T::BYTES)?;
    let bytes = reader.take(count as u64 * T::BYTES, key)?;
    Ok(bytes.chunks_exact(size_of::<T>()).map(T::from_le).collect())
}

fn truth(reader: &mut Reader<'_>, key: &str) -> Result<bool, ModelError> {
    match reader.u8(key)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(reader.malformed(key, format!("the truth value {other} is neither 0 nor 1"))),
    }
}

fn items<'a, T>(
    reader: &mut Reader<'a>,
    key: &str,
    item_bytes: u64,
    mut read: impl FnMut(&mut Reader<'a>, &str) -> Result<T, ModelError>,
) -> Result<Vec<T>, ModelError> {
    let count = reader.count(key, item_bytes)?;
    // Grown as items arrive: their number is only an upper bound until they have been read.
    let mut items = Vec::new();
    for _ in 0..count {
        items.push(read(reader, key)?);
    }
    Ok(items)
}
