//! The walk itself: one step at a time, over bytes that come in pieces.

use backup_core::AdapterError;

use super::Step::{
    self, AuxName, AuxValue, Compressed, CountEach, CountStrings, Database, Double, Each, ExpiryMs,
    ExpirySeconds, Header, Lens, Module, ModuleId, Opcode, Skip, Strings, Text, TextBytes, TextNumber,
};
use super::Walker;
use super::formats::module_name;

/// The longest auxiliary text that is kept, in bytes.
const MAX_TEXT: u64 = 1024;

/// More fields than any server writes.
const MAX_AUX: usize = 100;

/// A length, or what stands in its place.
#[derive(Debug, Clone, Copy)]
enum Length {
    Plain(u64),
    Encoded(u8),
}

/// A step is done, or it needs more bytes: then what is missing of it lies on the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    Starved,
}

impl Walker {
    pub(super) fn push(&mut self, steps: &[Step]) {
        self.steps.extend(steps.iter().rev());
    }

    /// The next `N` bytes, once all of them are there.
    fn take<const N: usize>(&mut self, rest: &mut &[u8]) -> Option<[u8; N]> {
        if self.carry.is_empty()
            && let Some((token, after)) = rest.split_first_chunk::<N>()
        {
            *rest = after;
            self.at += N as u64;
            return Some(*token);
        }
        let missing = N.saturating_sub(self.carry.len()).min(rest.len());
        let (more, after) = rest.split_at(missing);
        self.carry.extend_from_slice(more);
        *rest = after;
        let token = <[u8; N]>::try_from(self.carry.as_slice()).ok()?;
        self.carry.clear();
        self.at += N as u64;
        Some(token)
    }

    /// Skips up to `bytes`; how many are left to skip.
    fn skip(&mut self, bytes: u64, rest: &mut &[u8]) -> u64 {
        let now = usize::try_from(bytes).unwrap_or(usize::MAX).min(rest.len());
        *rest = rest.get(now..).unwrap_or_default();
        self.at += now as u64;
        bytes - now as u64
    }

    fn length(&mut self, rest: &mut &[u8]) -> Result<Option<Length>, AdapterError> {
        let Some(&first) = self.carry.first().or(rest.first()) else { return Ok(None) };
        let plain = match first {
            0x00..=0x3f => self.take::<1>(rest).map(|[b]| u64::from(b)),
            0x40..=0x7f => self.take::<2>(rest).map(|b| u64::from(u16::from_be_bytes(b) & 0x3fff)),
            0x80 => self.take::<5>(rest).map(|[_, a, b, c, d]| u32::from_be_bytes([a, b, c, d]).into()),
            0x81 => self
                .take::<9>(rest)
                .map(|[_, a, b, c, d, e, f, g, h]| u64::from_be_bytes([a, b, c, d, e, f, g, h])),
            0xc0.. => return Ok(self.take::<1>(rest).map(|[b]| Length::Encoded(b & 0x3f))),
            _ => return Err(self.damaged(&format!("{first:#04x} begins no length"))),
        };
        Ok(plain.map(Length::Plain))
    }

    /// A length that cannot be anything else.
    fn number(&mut self, rest: &mut &[u8]) -> Result<Option<u64>, AdapterError> {
        match self.length(rest)? {
            Some(Length::Encoded(_)) => Err(self.damaged("a string where a number should be")),
            Some(Length::Plain(n)) => Ok(Some(n)),
            None => Ok(None),
        }
    }

    /// The body of a string that begins with `length`: bytes to skip, or the steps for it.
    fn string(&mut self, length: Length) -> Result<Step, AdapterError> {
        Ok(match length {
            Length::Plain(bytes) => Skip(bytes),
            Length::Encoded(0) => Skip(1),
            Length::Encoded(1) => Skip(2),
            Length::Encoded(2) => Skip(4),
            Length::Encoded(3) => Compressed,
            Length::Encoded(other) => {
                return Err(self.damaged(&format!("unknown encoding {other} of a string")));
            }
        })
    }

    /// Takes one step. If bytes are missing, what is left of it is on the stack again.
    pub(super) fn step(&mut self, step: Step, rest: &mut &[u8]) -> Result<Progress, AdapterError> {
        /// What was read, or the step again as soon as there are more bytes.
        macro_rules! or_starve {
            ($read:expr) => {
                match $read {
                    Some(read) => read,
                    None => {
                        self.steps.push(step);
                        return Ok(Progress::Starved);
                    }
                }
            };
        }
        match step {
            Skip(bytes) => {
                let left = self.skip(bytes, rest);
                if left > 0 {
                    self.steps.push(Skip(left));
                    return Ok(Progress::Starved);
                }
            }
            Strings(count) => return self.strings(count, rest),
            Compressed => {
                let packed = or_starve!(self.number(rest)?);
                self.push(&[Lens(1), Skip(packed)]);
            }
            Lens(count) => {
                for left in (1..=count).rev() {
                    if self.number(rest)?.is_none() {
                        self.steps.push(Lens(left));
                        return Ok(Progress::Starved);
                    }
                }
            }
            CountStrings(each) => {
                let count = or_starve!(self.number(rest)?);
                let strings = count.checked_mul(each).ok_or_else(|| self.damaged("an impossible count"))?;
                self.steps.push(Strings(strings));
            }
            CountEach(steps) => {
                let count = or_starve!(self.number(rest)?);
                self.steps.push(Each(count, steps));
            }
            Each(0, _) => {}
            Each(count, steps) => {
                self.steps.push(Each(count - 1, steps));
                self.push(steps);
            }
            Double => {
                let [bytes] = or_starve!(self.take::<1>(rest));
                // 253 to 255 stand for what is no number, and for the infinities.
                self.steps.push(Skip(if bytes >= 253 { 0 } else { bytes.into() }));
            }
            ModuleId => {
                let id = or_starve!(self.number(rest)?);
                self.summary.modules.insert(module_name(id));
            }
            Module => {
                let opcode = or_starve!(self.number(rest)?);
                let item = match opcode {
                    0 => return Ok(Progress::Done),
                    1 | 2 => Lens(1),
                    3 => Skip(4),
                    4 => Skip(8),
                    5 => Strings(1),
                    other => return Err(self.damaged(&format!("unknown item {other} of a module"))),
                };
                self.push(&[item, Module]);
            }
            Header => {
                let header = or_starve!(self.take::<9>(rest));
                self.header(&header)?;
            }
            Opcode => {
                let [opcode] = or_starve!(self.take::<1>(rest));
                self.opcode(opcode)?;
            }
            ExpiryMs => {
                let at = i64::from_le_bytes(or_starve!(self.take::<8>(rest)));
                self.expires_at = Some(u64::try_from(at).unwrap_or(0));
            }
            ExpirySeconds => {
                let at = i32::from_le_bytes(or_starve!(self.take::<4>(rest)));
                self.expires_at = Some(u64::try_from(at).unwrap_or(0) * 1000);
            }
            Database => {
                let number = or_starve!(self.number(rest)?);
                self.leave_database();
                self.database = number;
            }
            Text => {
                let length = or_starve!(self.length(rest)?);
                self.text = None;
                let body = match (length, self.string(length)?) {
                    (Length::Plain(bytes), _) if bytes <= MAX_TEXT => {
                        self.text = Some(Vec::new());
                        TextBytes(bytes)
                    }
                    (Length::Encoded(n @ 0..=2), _) => TextNumber(n),
                    (_, skipped) => skipped,
                };
                self.steps.push(body);
            }
            TextBytes(bytes) => {
                let now = usize::try_from(bytes).unwrap_or(usize::MAX).min(rest.len());
                self.text.get_or_insert_default().extend(rest.get(..now).unwrap_or_default());
                let left = self.skip(bytes, rest);
                if left > 0 {
                    self.steps.push(TextBytes(left));
                    return Ok(Progress::Starved);
                }
            }
            TextNumber(encoding) => {
                let number = match encoding {
                    0 => i32::from(i8::from_le_bytes(or_starve!(self.take::<1>(rest)))),
                    1 => i32::from(i16::from_le_bytes(or_starve!(self.take::<2>(rest)))),
                    _ => i32::from_le_bytes(or_starve!(self.take::<4>(rest))),
                };
                self.text = Some(number.to_string().into_bytes());
            }
            AuxName => self.aux_name = self.taken_text(),
            AuxValue => {
                if let (Some(name), Some(value)) = (self.aux_name.take(), self.taken_text())
                    && self.summary.aux.len() < MAX_AUX
                {
                    self.summary.aux.insert(name, value);
                }
            }
        }
        Ok(Progress::Done)
    }

    /// Most of a file: so the common case, a string that is all there, costs no trip over the stack.
    fn strings(&mut self, count: u64, rest: &mut &[u8]) -> Result<Progress, AdapterError> {
        for left in (1..=count).rev() {
            let Some(length) = self.length(rest)? else {
                self.steps.push(Strings(left));
                return Ok(Progress::Starved);
            };
            let body = self.string(length)?;
            let missing = match body {
                Skip(bytes) => Skip(self.skip(bytes, rest)),
                other => other,
            };
            if !matches!(missing, Skip(0)) {
                self.push(&[missing, Strings(left - 1)]);
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::Done)
    }

    fn taken_text(&mut self) -> Option<String> {
        let text = String::from_utf8(self.text.take()?).ok()?;
        text.chars().all(|c| !c.is_control()).then_some(text)
    }
}
