//! The part of Python's pickle format that a file of tensors needs, read without running anything.
//!
//! A pickle is a program for a stack machine that may call any function of Python. This reader knows the few operations
//! that build dictionaries, lists and tuples of plain values, and calls only what makes an empty ordered dictionary or
//! describes a tensor; every other name is an error. Values lie in one arena and point to each other by index, so that
//! neither depth nor cycles of a hostile file cost more than its bytes. Described in Python's `pickletools` and
//! `torch.serialization`.

mod machine;

use std::collections::BTreeMap;

use self::machine::{Machine, Value};
use super::arrays::Element;

/// A pickle that is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// A function or class that no tensor needs.
    #[error(
        "the pickle names `{0}`, which a file of tensors does not need; it is not run, and the file is not read"
    )]
    Global(String),
    /// An operation that no tensor needs.
    #[error(
        "the pickle has the operation 0x{operation:02x} at byte {at}, which a file of tensors does not need"
    )]
    Operation {
        /// The operation.
        operation: u8,
        /// Where it stands.
        at: usize,
    },
    /// The end came too early.
    #[error("the pickle is cut short at byte {at}")]
    Truncated {
        /// Where it ends.
        at: usize,
    },
    /// Operations that do not fit together.
    #[error("the pickle is broken at byte {at}: {problem}")]
    Broken {
        /// After the operation that fails.
        at: usize,
        /// What is wrong.
        problem: &'static str,
    },
}

/// A view of numbers that stand elsewhere in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorView {
    pub(super) element: Element,
    /// Name of the numbers' record.
    pub(super) storage: String,
    /// Numbers in the record.
    pub(super) count: usize,
    /// The first number.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// What stands under a name of the pickled dictionary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Tensor(TensorView),
    /// A dictionary.
    Dictionary,
    /// Anything else.
    Other,
}

/// Reads a pickle whose value is a dictionary with names as keys.
///
/// # Errors
/// It is cut short or broken, names a function, or is something else.
pub(super) fn read_dictionary(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, PickleError> {
    let mut machine = Machine::new(bytes);
    let result = machine.run()?;
    let Value::Dictionary(result) = result else {
        return Err(machine.broken("the value is no dictionary"));
    };
    let mut entries = BTreeMap::new();
    for &(key, value) in &machine.dictionaries[result] {
        let Value::Text(key) = key else {
            return Err(machine.broken("a key is no text"));
        };
        let entry = match value {
            Value::Tensor(tensor) => Entry::Tensor(machine.tensors[tensor].clone()),
            Value::Dictionary(_) => Entry::Dictionary,
            _ => Entry::Other,
        };
        entries.insert(machine.texts[key].clone(), entry);
    }
    Ok(entries)
}

/// Whether every number of a view is one of `count`, and the view has no more numbers than those.
fn within(offset: usize, shape: &[usize], strides: &[usize], count: usize) -> bool {
    let elements = shape
        .iter()
        .try_fold(1_usize, |all, &size| all.checked_mul(size));
    if elements == Some(0) {
        return offset <= count;
    }
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(offset, |last, (&size, &stride)| {
            last.checked_add((size - 1).checked_mul(stride)?)
        });
    elements.is_some_and(|elements| elements <= count) && last.is_some_and(|last| last < count)
}

#[cfg(test)]
mod tests {
    use super::{Element, Entry, PickleError, TensorView, read_dictionary};

    /// A tensor named `w` in a storage of `count` numbers.
    fn pickle(count: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
        let mut out = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
        out.extend(
            b"X\x07\x00\x00\x00storagectorch\nHalfStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu",
        );
        let integer = |out: &mut Vec<u8>, value: i32| {
            out.push(b'J');
            out.extend(value.to_le_bytes());
        };
        integer(&mut out, count);
        out.extend(b"tQ");
        integer(&mut out, offset);
        for sizes in [shape, strides] {
            out.push(b'(');
            for &size in sizes {
                integer(&mut out, size);
            }
            out.push(b't');
        }
        out.extend(b"\x89ccollections\nOrderedDict\n)RtRs.");
        out
    }

    #[test]
    fn a_tensor_within_its_storage_is_described() {
        let entries = read_dictionary(&pickle(100, 4, &[3, 32], &[32, 1])).unwrap();
        let view = TensorView {
            element: Element::F16,
            storage: "0".to_owned(),
            count: 100,
            offset: 4,
            shape: vec![3, 32],
            strides: vec![32, 1],
        };
        assert_eq!(entries["w"], Entry::Tensor(view));
    }

    #[test]
    fn views_beyond_their_storage_are_refused() {
        let far = i32::MAX;
        for (count, offset, shape, strides) in [
            (100, 5, &[3, 32][..], &[32, 1][..]),
            (100, 0, &[2], &[100]),
            (-1, 0, &[2], &[1]),
            (100, -1, &[2], &[1]),
            (100, 0, &[-2], &[1]),
            (100, 0, &[2], &[-1]),
            (100, 0, &[2, 2], &[1]),
            // More numbers than there are, all of them the same one.
            (1, 0, &[far, far, far], &[0, 0, 0]),
            (100, 0, &[far, far, far, far], &[far, far, far, far]),
            (0, 1, &[0], &[1]),
        ] {
            let result = read_dictionary(&pickle(count, offset, shape, strides));
            assert!(
                matches!(result, Err(PickleError::Broken { .. })),
                "{offset} {shape:?} {strides:?}"
            );
        }
    }

    #[test]
    fn what_is_no_dictionary_of_tensors_is_an_error() {
        // A million tuples, each in the next: depth costs nothing.
        let deep = [&b"\x80\x02)"[..], &vec![0x85; 1 << 20], b"."].concat();
        // A dictionary that holds itself.
        let cycle = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.";
        assert_eq!(read_dictionary(cycle).unwrap()["a"], Entry::Dictionary);
        for broken in [
            &deep[..],
            b".",
            b"t",
            b"(}.",
            b"u.",
            b"}(Ku.",
            b"}(K\x01u.",
            b"h\x05.",
            b"K\x01K\x01b.",
            b"K\x01K\x01R.",
            b"K\x01Q.",
            b"\x8a\x09\x01\x02\x03\x04\x05\x06\x07\x08\x09.",
            b"}K\x01K\x01s.",
            b"X\x01\x00\x00\x00\xff.",
            b"X\xff\xff\xff\xffa",
            b"i",
            b"",
        ] {
            assert!(
                read_dictionary(broken).is_err(),
                "{:?}",
                &broken[..broken.len().min(20)]
            );
        }
        assert_eq!(
            read_dictionary(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93."),
            Err(PickleError::Global("builtins.eval".to_owned()))
        );
        assert_eq!(
            read_dictionary(b"\x80\x02i"),
            Err(PickleError::Operation {
                operation: b'i',
                at: 2
            })
        );
    }
}
