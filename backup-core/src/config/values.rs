//! Values with a notation of their own: sizes, durations, what to keep.

use std::fmt;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use crate::retention::Ladder;

/// A duration in the notation of humantime: `90s`, `2h 30min`, `7 days`. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct SpanVisitor;
        impl Visitor<'_> for SpanVisitor {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration with a unit, such as \"90s\", \"2h 30min\" or \"7 days\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Span, E> {
                match humantime::parse_duration(text) {
                    Ok(d) if d.is_zero() => Err(E::custom("the duration must not be zero")),
                    Ok(d) => Ok(Span(d)),
                    Err(_) => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
        }
        d.deserialize_any(SpanVisitor)
    }
}

/// A number of bytes: `500GB` (powers of 1000), `512 MiB` (powers of 1024), or a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"500GB\", \"512MiB\" or a number of bytes")
            }
            fn visit_i64<E: Error>(self, n: i64) -> Result<Size, E> {
                u64::try_from(n).map(Size).map_err(|_| E::invalid_value(Unexpected::Signed(n), &self))
            }
            fn visit_u64<E: Error>(self, n: u64) -> Result<Size, E> {
                Ok(Size(n))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                match text.parse::<bytesize::ByteSize>() {
                    // What does not fit is cut to the largest number; nobody means that one.
                    Ok(size) if size.as_u64() < u64::MAX => Ok(Size(size.as_u64())),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
        }
        d.deserialize_any(SizeVisitor)
    }
}

/// A rate: `50MiB/s`. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate(pub(super) u64);

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct RateVisitor;
        impl Visitor<'_> for RateVisitor {
            type Value = Rate;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes in a second, such as \"50MiB/s\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Rate, E> {
                let bytes = text.strip_suffix("/s").and_then(|b| b.parse::<bytesize::ByteSize>().ok());
                match bytes.map(|b| b.as_u64()) {
                    Some(0) => Err(E::custom("the rate must not be zero")),
                    Some(bytes) if bytes < u64::MAX => Ok(Rate(bytes)),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
        }
        d.deserialize_any(RateVisitor)
    }
}

/// What `keep` says: a number, or a ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// The last so many.
    Last(u32),
    /// A ladder.
    Ladder(Ladder),
}

impl<'de> Deserialize<'de> for Keep {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        // Not an untagged enum: that would hide which key of the ladder is wrong.
        struct KeepVisitor;
        impl<'de> Visitor<'de> for KeepVisitor {
            type Value = Keep;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or a ladder such as { latest = 4, hourly = 24, daily = 7 }")
            }
            fn visit_i64<E: Error>(self, n: i64) -> Result<Keep, E> {
                u32::try_from(n).map(Keep::Last).map_err(|_| E::invalid_value(Unexpected::Signed(n), &self))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Keep, A::Error> {
                Ladder::deserialize(MapAccessDeserializer::new(map)).map(Keep::Ladder)
            }
        }
        d.deserialize_any(KeepVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Doc<T> {
        v: T,
    }

    fn parse<T: for<'de> Deserialize<'de>>(value: &str) -> Result<T, String> {
        let doc: Result<Doc<T>, _> = toml::from_str(&format!("v = {value}"));
        doc.map(|d| d.v).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("'17'", 17),
            ("'500GB'", 500_000_000_000),
            ("'500 GB'", 500_000_000_000),
            ("'500gb'", 500_000_000_000),
            ("'2KiB'", 2048),
            ("'1.5 MiB'", 3 << 19),
            ("'3B'", 3),
        ] {
            assert_eq!(parse::<Size>(text), Ok(Size(bytes)), "{text}");
        }
        for bad in ["-1", "'-1'", "'500 XB'", "'GB'", "''", "'1e3'", "true", "'99999999999 EiB'"] {
            assert!(parse::<Size>(bad).is_err(), "{bad}: {:?}", parse::<Size>(bad));
        }
    }

    #[test]
    fn rates() {
        assert_eq!(parse::<Rate>("'50MiB/s'"), Ok(Rate(50 << 20)));
        assert_eq!(parse::<Rate>("'1 kB/s'"), Ok(Rate(1000)));
        for bad in ["'50MiB'", "'0B/s'", "50", "'/s'", "'fast'", "'-1B/s'"] {
            assert!(parse::<Rate>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, secs) in [("'240s'", 240), ("'2h'", 7200), ("'1h 30min'", 5400), ("'7 days'", 604_800)] {
            assert_eq!(parse::<Span>(text), Ok(Span(Duration::from_secs(secs))), "{text}");
        }
        for bad in ["240", "'240'", "'0s'", "'-1s'", "'soon'", "''"] {
            assert!(parse::<Span>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keep_is_a_number_or_a_ladder() {
        assert_eq!(parse::<Keep>("3"), Ok(Keep::Last(3)));
        let ladder = Ladder { daily: 7, yearly: 1, ..Ladder::default() };
        assert_eq!(parse::<Keep>("{ daily = 7, yearly = 1 }"), Ok(Keep::Ladder(ladder)));
        assert!(parse::<Keep>("-3").is_err());
        assert!(parse::<Keep>("{ annual = 1 }").is_err_and(|e| e.starts_with("unknown field `annual`")));
    }
}
