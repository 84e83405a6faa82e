//! The part of Python's pickle format that a file of tensors needs, read without running anything.
//!
//! A pickle is a program for a stack machine that may call any function of Python. This reader knows the few operations
//! that build dictionaries, lists and tuples of plain values, and calls only what makes an empty ordered dictionary or
//! describes a tensor; every other name is an error. Values lie in one arena and point to each other by index, so that
//! neither depth nor cycles of a hostile file cost more than its bytes. Described in Python's `pickletools` and
//! `torch.serialization`.

use std::collections::BTreeMap;

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

/// The functions and classes that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Global {
    OrderedDictionary,
    RebuildTensor,
    Storage(Element),
}

impl Global {
    fn named(module: &str, name: &str) -> Result<Self, PickleError> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDictionary,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch", "FloatStorage") => Self::Storage(Element::F32),
            ("torch", "HalfStorage") => Self::Storage(Element::F16),
            ("torch", "BFloat16Storage") => Self::Storage(Element::Bf16),
            ("torch", "DoubleStorage") => Self::Storage(Element::F64),
            ("torch", "LongStorage") => Self::Storage(Element::I64),
            ("torch", "IntStorage") => Self::Storage(Element::I32),
            _ => return Err(PickleError::Global(format!("{module}.{name}"))),
        })
    }
}

/// A value; what is not plain is an index into the machine's lists.
#[derive(Clone, Copy, Debug)]
enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    Text(usize),
    Tuple(usize),
    List(usize),
    Dictionary(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

struct Storage {
    element: Element,
    name: String,
    count: usize,
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value>,
    texts: Vec<String>,
    tuples: Vec<Vec<Value>>,
    lists: Vec<Vec<Value>>,
    dictionaries: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    tensors: Vec<TensorView>,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: BTreeMap::new(),
            texts: Vec::new(),
            tuples: Vec::new(),
            lists: Vec::new(),
            dictionaries: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
        }
    }

    fn broken(&self, problem: &'static str) -> PickleError {
        PickleError::Broken {
            at: self.at,
            problem,
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], PickleError> {
        let taken = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.get(..count))
            .ok_or(PickleError::Truncated {
                at: self.bytes.len(),
            })?;
        self.at += count;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        Ok(self.take(1)?[0])
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    /// Up to the end of the line.
    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = &self.bytes[self.at..];
        let length = rest
            .iter()
            .position(|&byte| byte == b'\n')
            .ok_or(PickleError::Truncated {
                at: self.bytes.len(),
            })?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| self.broken("a name is no UTF-8"))
    }

    fn pop(&mut self) -> Result<Value, PickleError> {
        // Values below a mark are not an operation's to take.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.broken("a value is missing on the stack"));
        }
        self.stack
            .pop()
            .ok_or_else(|| self.broken("a value is missing on the stack"))
    }

    fn top(&self) -> Result<Value, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.broken("a value is missing on the stack"));
        }
        Ok(self.stack[self.stack.len() - 1])
    }

    /// The values above the last mark.
    fn above_mark(&mut self) -> Result<Vec<Value>, PickleError> {
        let mark = self
            .marks
            .pop()
            .ok_or_else(|| self.broken("a mark is missing"))?;
        Ok(self.stack.split_off(mark))
    }

    fn push_text(&mut self, bytes: &[u8]) -> Result<(), PickleError> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.broken("a text is no UTF-8"))?;
        self.texts.push(text.to_owned());
        self.stack.push(Value::Text(self.texts.len() - 1));
        Ok(())
    }

    fn push_tuple(&mut self, values: Vec<Value>) {
        self.tuples.push(values);
        self.stack.push(Value::Tuple(self.tuples.len() - 1));
    }

    fn push_dictionary(&mut self) {
        self.dictionaries.push(Vec::new());
        self.stack
            .push(Value::Dictionary(self.dictionaries.len() - 1));
    }

    fn run(&mut self) -> Result<Value, PickleError> {
        loop {
            let at = self.at;
            let operation = self.byte()?;
            match operation {
                // PROTO
                0x80 => {
                    self.byte()?;
                }
                // FRAME
                0x95 => {
                    self.take(8)?;
                }
                b'(' => self.marks.push(self.stack.len()),
                b'.' if self.marks.is_empty() => return self.pop(),
                b'.' => return Err(self.broken("a mark is left at the end")),
                b'N' => self.stack.push(Value::None),
                // NEWTRUE, NEWFALSE
                0x88 | 0x89 => self.stack.push(Value::Bool),
                b'J' => {
                    let value = i32::from_le_bytes(self.number()?);
                    self.stack.push(Value::Int(value.into()));
                }
                b'K' => {
                    let value = self.byte()?;
                    self.stack.push(Value::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.number()?);
                    self.stack.push(Value::Int(value.into()));
                }
                // LONG1
                0x8a => {
                    let value = self.long()?;
                    self.stack.push(Value::Int(value));
                }
                b'G' => {
                    self.take(8)?;
                    self.stack.push(Value::Float);
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.number()?);
                    let text = self.take(length as usize)?;
                    self.push_text(text)?;
                }
                // SHORT_BINUNICODE
                0x8c => {
                    let length = self.byte()?;
                    let text = self.take(length.into())?;
                    self.push_text(text)?;
                }
                b')' => self.push_tuple(Vec::new()),
                // TUPLE1, TUPLE2, TUPLE3
                0x85..=0x87 => {
                    let mut values = vec![Value::None; usize::from(operation - 0x84)];
                    for value in values.iter_mut().rev() {
                        *value = self.pop()?;
                    }
                    self.push_tuple(values);
                }
                b't' => {
                    let values = self.above_mark()?;
                    self.push_tuple(values);
                }
                b']' => {
                    self.lists.push(Vec::new());
                    self.stack.push(Value::List(self.lists.len() - 1));
                }
                b'a' => {
                    let value = self.pop()?;
                    self.append(&[value])?;
                }
                b'e' => {
                    let values = self.above_mark()?;
                    self.append(&values)?;
                }
                b'}' => self.push_dictionary(),
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.insert(&[key, value])?;
                }
                b'u' => {
                    let values = self.above_mark()?;
                    self.insert(&values)?;
                }
                b'q' => {
                    let place = self.byte()?;
                    self.memo.insert(place.into(), self.top()?);
                }
                b'r' => {
                    let place = u32::from_le_bytes(self.number()?);
                    self.memo.insert(place, self.top()?);
                }
                // MEMOIZE
                0x94 => {
                    self.memo.insert(self.memo.len() as u32, self.top()?);
                }
                b'h' => {
                    let place = self.byte()?;
                    self.recall(place.into())?;
                }
                b'j' => {
                    let place = u32::from_le_bytes(self.number()?);
                    self.recall(place)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.stack.push(Value::Global(Global::named(module, name)?));
                }
                // STACK_GLOBAL
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) = (module, name) else {
                        return Err(self.broken("a function's name is no text"));
                    };
                    let global = Global::named(&self.texts[module], &self.texts[name])?;
                    self.stack.push(Value::Global(global));
                }
                b'Q' => self.storage()?,
                b'R' => self.call()?,
                b'b' => {
                    // What else an ordered dictionary keeps: versions of modules, which mean nothing here.
                    self.pop()?;
                    let Value::Dictionary(_) = self.top()? else {
                        return Err(self.broken("only a dictionary can be given a state"));
                    };
                }
                operation => return Err(PickleError::Operation { operation, at }),
            }
        }
    }

    /// A little-endian number in two's complement, with its length before it.
    fn long(&mut self) -> Result<i64, PickleError> {
        let length = usize::from(self.byte()?);
        let digits = self.take(length)?;
        if length > 8 {
            return Err(self.broken("a whole number is too large"));
        }
        let negative = digits.last().is_some_and(|&last| last >= 0x80);
        let mut bytes = [if negative { 0xff } else { 0 }; 8];
        bytes[..length].copy_from_slice(digits);
        Ok(i64::from_le_bytes(bytes))
    }

    fn append(&mut self, values: &[Value]) -> Result<(), PickleError> {
        let Value::List(list) = self.top()? else {
            return Err(self.broken("only to a list can be appended"));
        };
        self.lists[list].extend_from_slice(values);
        Ok(())
    }

    fn insert(&mut self, values: &[Value]) -> Result<(), PickleError> {
        let Value::Dictionary(dictionary) = self.top()? else {
            return Err(self.broken("only a dictionary has keys"));
        };
        let (pairs, rest) = values.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.broken("a key has no value"));
        }
        self.dictionaries[dictionary].extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Result<(), PickleError> {
        let value = self.memo.get(&place).copied();
        let value = value.ok_or_else(|| self.broken("a value that was never kept is asked for"))?;
        self.stack.push(value);
        Ok(())
    }

    /// `("storage", class, name, device, count)`.
    fn storage(&mut self) -> Result<(), PickleError> {
        let Value::Tuple(tuple) = self.pop()? else {
            return Err(self.broken("a storage is described by a tuple"));
        };
        let &[
            Value::Text(kind),
            Value::Global(Global::Storage(element)),
            Value::Text(name),
            Value::Text(_device),
            Value::Int(count),
        ] = &self.tuples[tuple][..]
        else {
            return Err(self.broken("a storage is a kind, a class, a name, a device and a count"));
        };
        if self.texts[kind] != "storage" {
            return Err(self.broken("what lies outside of the pickle is no storage"));
        }
        let count =
            usize::try_from(count).map_err(|_| self.broken("a storage's count is negative"))?;
        self.storages.push(Storage {
            element,
            name: self.texts[name].clone(),
            count,
        });
        self.stack.push(Value::Storage(self.storages.len() - 1));
        Ok(())
    }

    fn call(&mut self) -> Result<(), PickleError> {
        let (Value::Tuple(arguments), Value::Global(global)) = (self.pop()?, self.pop()?) else {
            return Err(self.broken("a call needs a function and a tuple"));
        };
        match global {
            Global::OrderedDictionary if self.tuples[arguments].is_empty() => {
                self.push_dictionary();
                Ok(())
            }
            Global::RebuildTensor => self.tensor(arguments),
            Global::OrderedDictionary | Global::Storage(_) => {
                Err(self.broken("this class is not made from values"))
            }
        }
    }

    /// `(storage, offset, shape, strides, …)`; what follows says nothing of the numbers.
    fn tensor(&mut self, arguments: usize) -> Result<(), PickleError> {
        let &[
            Value::Storage(storage),
            Value::Int(offset),
            Value::Tuple(shape),
            Value::Tuple(strides),
            ..,
        ] = &self.tuples[arguments][..]
        else {
            return Err(self.broken("a tensor is a storage, an offset, a shape and strides"));
        };
        let sizes = |tuple: usize| {
            self.tuples[tuple]
                .iter()
                .map(|value| match value {
                    Value::Int(size) => usize::try_from(*size).ok(),
                    _ => None,
                })
                .collect::<Option<Vec<usize>>>()
                .ok_or_else(|| self.broken("a size of a tensor is no whole number from 0 on"))
        };
        let (shape, strides) = (sizes(shape)?, sizes(strides)?);
        let offset =
            usize::try_from(offset).map_err(|_| self.broken("a tensor's offset is negative"))?;
        let Storage {
            element,
            name,
            count,
        } = &self.storages[storage];
        if shape.len() != strides.len() {
            return Err(self.broken("a tensor has as many strides as sizes"));
        }
        if !within(offset, &shape, &strides, *count) {
            return Err(self.broken("a tensor reaches beyond its storage"));
        }
        self.tensors.push(TensorView {
            element: *element,
            storage: name.clone(),
            count: *count,
            offset,
            shape,
            strides,
        });
        self.stack.push(Value::Tensor(self.tensors.len() - 1));
        Ok(())
    }
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
            b"}K\x01b.",
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
