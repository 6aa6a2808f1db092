//! PackStream: the values of the Bolt protocol, as far as we send and read them.
//!
//! <https://neo4j.com/docs/bolt/current/packstream/>

use backup_core::AdapterError;

/// How deep values may nest: what we ask for is flat.
const MAX_DEPTH: u32 = 32;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Bytes(Vec<u8>),
    Text(String),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
    /// A message or a type of its own: tag and fields.
    Struct(u8, Vec<Self>),
}

impl Value {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_count(&self) -> Option<u64> {
        match self {
            Self::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(pairs) => pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The value for people; `None` for null.
    pub(super) fn shown(&self) -> Option<String> {
        let all = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
        let inner = |v: &Self| v.shown().unwrap_or_else(|| "null".to_owned());
        Some(match self {
            Self::Null => return None,
            Self::Bool(no_or_yes) => no_or_yes.to_string(),
            Self::Int(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Bytes(bytes) if bytes.is_empty() => String::new(),
            Self::Bytes(bytes) => format!("{} bytes", bytes.len()),
            Self::Text(text) => text.clone(),
            Self::List(items) => format!("[{}]", all(&mut items.iter().map(inner))),
            Self::Map(pairs) => {
                format!("{{{}}}", all(&mut pairs.iter().map(|(k, v)| format!("{k}: {}", inner(v)))))
            }
            Self::Struct(0x4E, _) => "a node".to_owned(),
            Self::Struct(0x52, _) => "a relationship".to_owned(),
            Self::Struct(..) => "a value of Neo4j's own".to_owned(),
        })
    }

    /// Appends the value.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.push(0xC0),
            Self::Bool(no_or_yes) => out.push(0xC2 + u8::from(*no_or_yes)),
            Self::Int(n) => match i8::try_from(*n) {
                Ok(small @ -16..) => out.push(small.cast_unsigned()),
                _ => {
                    out.push(0xCB);
                    out.extend(n.to_be_bytes());
                }
            },
            Self::Float(x) => {
                out.push(0xC1);
                out.extend(x.to_be_bytes());
            }
            Self::Bytes(bytes) => {
                sized(out, None, [0xCC, 0xCD, 0xCE], bytes.len());
                out.extend(bytes);
            }
            Self::Text(text) => {
                sized(out, Some(0x80), [0xD0, 0xD1, 0xD2], text.len());
                out.extend(text.as_bytes());
            }
            Self::List(items) => {
                sized(out, Some(0x90), [0xD4, 0xD5, 0xD6], items.len());
                items.iter().for_each(|i| i.write(out));
            }
            Self::Map(pairs) => {
                sized(out, Some(0xA0), [0xD8, 0xD9, 0xDA], pairs.len());
                for (key, value) in pairs {
                    Self::text(key.as_str()).write(out);
                    value.write(out);
                }
            }
            Self::Struct(tag, fields) => {
                // At most 15 fields, by the format.
                out.push(0xB0 | u8::try_from(fields.len()).unwrap_or(15).min(15));
                out.push(*tag);
                fields.iter().for_each(|f| f.write(out));
            }
        }
    }

    /// Reads one value, which must be all of `bytes`.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, AdapterError> {
        let mut reader = Reader(bytes);
        let value = reader.value(0)?;
        if reader.0.is_empty() { Ok(value) } else { Err(broken()) }
    }
}

fn sized(out: &mut Vec<u8>, tiny: Option<u8>, markers: [u8; 3], len: usize) {
    match (tiny, u8::try_from(len), u16::try_from(len)) {
        (Some(tiny), Ok(n @ ..=15), _) => out.push(tiny | n),
        (_, Ok(n), _) => out.extend([markers[0], n]),
        (_, _, Ok(n)) => {
            out.push(markers[1]);
            out.extend(n.to_be_bytes());
        }
        _ => {
            out.push(markers[2]);
            out.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        }
    }
}

fn broken() -> AdapterError {
    AdapterError::corrupt("the server's answer is not Bolt")
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], AdapterError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or_else(broken)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], AdapterError> {
        self.take(N)?.try_into().map_err(|_| broken())
    }

    /// A length of 1, 2 or 4 bytes.
    fn len(&mut self, width: u8) -> Result<usize, AdapterError> {
        Ok(match width {
            0 => usize::from(u8::from_be_bytes(self.array()?)),
            1 => usize::from(u16::from_be_bytes(self.array()?)),
            _ => usize::try_from(u32::from_be_bytes(self.array()?)).map_err(|_| broken())?,
        })
    }

    fn text(&mut self, len: usize) -> Result<Value, AdapterError> {
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| broken())?;
        Ok(Value::text(text))
    }

    fn items(&mut self, count: usize, depth: u32) -> Result<Vec<Value>, AdapterError> {
        // Each takes a byte at least: a count is no reason to reserve memory.
        if count > self.0.len() {
            return Err(broken());
        }
        (0..count).map(|_| self.value(depth)).collect()
    }

    fn map(&mut self, count: usize, depth: u32) -> Result<Value, AdapterError> {
        if count > self.0.len() {
            return Err(broken());
        }
        let pairs = (0..count).map(|_| match (self.value(depth)?, self.value(depth)?) {
            (Value::Text(key), value) => Ok((key, value)),
            _ => Err(broken()),
        });
        Ok(Value::Map(pairs.collect::<Result<_, _>>()?))
    }

    fn value(&mut self, depth: u32) -> Result<Value, AdapterError> {
        if depth > MAX_DEPTH {
            return Err(broken());
        }
        let depth = depth + 1;
        let [marker] = self.array()?;
        let tiny = usize::from(marker & 0x0F);
        Ok(match marker {
            0x00..=0x7F | 0xF0..=0xFF => Value::Int(i64::from(marker.cast_signed())),
            0x80..=0x8F => self.text(tiny)?,
            0x90..=0x9F => Value::List(self.items(tiny, depth)?),
            0xA0..=0xAF => self.map(tiny, depth)?,
            0xB0..=0xBF => {
                let [tag] = self.array()?;
                Value::Struct(tag, self.items(tiny, depth)?)
            }
            0xC0 => Value::Null,
            0xC1 => Value::Float(f64::from_be_bytes(self.array()?)),
            0xC2 | 0xC3 => Value::Bool(marker == 0xC3),
            0xC8 => Value::Int(i8::from_be_bytes(self.array()?).into()),
            0xC9 => Value::Int(i16::from_be_bytes(self.array()?).into()),
            0xCA => Value::Int(i32::from_be_bytes(self.array()?).into()),
            0xCB => Value::Int(i64::from_be_bytes(self.array()?)),
            0xCC..=0xCE => {
                let len = self.len(marker - 0xCC)?;
                Value::Bytes(self.take(len)?.to_vec())
            }
            0xD0..=0xD2 => {
                let len = self.len(marker - 0xD0)?;
                self.text(len)?
            }
            0xD4..=0xD6 => {
                let len = self.len(marker - 0xD4)?;
                Value::List(self.items(len, depth)?)
            }
            0xD8..=0xDA => {
                let len = self.len(marker - 0xD8)?;
                self.map(len, depth)?
            }
            _ => return Err(broken()),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-40i64..300).prop_map(Value::Int),
            (-1e9..1e9f64).prop_map(Value::Float),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(Value::Bytes),
            ".{0,300}".prop_map(Value::Text),
        ];
        leaf.prop_recursive(3, 40, 20, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..20).prop_map(Value::List),
                prop::collection::vec((".{0,20}", inner.clone()), 0..20).prop_map(Value::Map),
                (any::<u8>(), prop::collection::vec(inner, 0..15)).prop_map(|(t, f)| Value::Struct(t, f)),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value in any_value()) {
            let mut bytes = Vec::new();
            value.write(&mut bytes);
            prop_assert_eq!(Value::read(&bytes).unwrap(), value);
            prop_assert!(Value::read(&bytes[..bytes.len() - 1]).is_err());
        }

        #[test]
        fn garbage_is_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _either = Value::read(&bytes);
        }
    }

    #[test]
    fn lengths_that_lie_take_no_memory() {
        assert!(Value::read(&[0xD6, 0xFF, 0xFF, 0xFF, 0xFF]).is_err());
        assert!(Value::read(&[0xDA, 0xFF, 0xFF, 0xFF, 0xFF]).is_err());
        assert!(Value::read(&[0x91; 10_000]).is_err(), "nested without end");
    }
}
