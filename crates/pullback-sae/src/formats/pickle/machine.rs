//! The stack machine that a pickle is a program for.

use std::collections::BTreeMap;

use super::{PickleError, TensorView, within};
use crate::formats::arrays::Element;

/// The functions and classes that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
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
pub(super) enum Value {
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

/// Its state; dictionaries, texts and tensors stand where [`Value`]s say.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value>,
    pub(super) texts: Vec<String>,
    tuples: Vec<Vec<Value>>,
    lists: Vec<Vec<Value>>,
    pub(super) dictionaries: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    pub(super) tensors: Vec<TensorView>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
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

    pub(super) fn broken(&self, problem: &'static str) -> PickleError {
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

    pub(super) fn run(&mut self) -> Result<Value, PickleError> {
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
