//! How the values of each type are written, as steps for the walker.
//!
//! Sources: `rdb.h` and `rdb.c` of Redis (types 0 to 25) and of Valkey 9 (its type 22).

use super::Step::{self, CountEach, CountStrings, Double, Lens, Module, ModuleId, Skip, Strings};

const PENDING: &[Step] = &[Skip(16 + 8), Lens(1)];
const CONSUMER: &[Step] = &[Strings(1), Skip(8), CountEach(&[Skip(16)])];
const CONSUMER_3: &[Step] = &[Strings(1), Skip(8 + 8), CountEach(&[Skip(16)])];
const GROUP: &[Step] = &[Strings(1), Lens(2), CountEach(PENDING), CountEach(CONSUMER)];
const GROUP_2: &[Step] = &[Strings(1), Lens(3), CountEach(PENDING), CountEach(CONSUMER)];
const GROUP_3: &[Step] = &[Strings(1), Lens(3), CountEach(PENDING), CountEach(CONSUMER_3)];
const FIELDS_WITH_TTL: Step = CountEach(&[Lens(1), Strings(2)]);

/// What follows the key of a value of type `kind`; `None` if nobody knows.
pub(super) fn value(kind: u8, valkey: bool) -> Option<&'static [Step]> {
    Some(match kind {
        // A string; and all that is packed into one: zip maps, zip lists, int sets, list packs.
        0 | 9..=13 | 16 | 17 | 20 => &[Strings(1)],
        // Lists, sets, lists of zip lists.
        1 | 2 | 14 => &[CountStrings(1)],
        // Sorted sets with scores as text, and as binary.
        3 => &[CountEach(&[Strings(1), Double])],
        5 => &[CountEach(&[Strings(1), Skip(8)])],
        4 => &[CountStrings(2)],
        7 => &[ModuleId, Module],
        // Lists of list packs and of large elements.
        18 => &[CountEach(&[Lens(1), Strings(1)])],
        // Streams: nodes; length, last id (and first id, deleted id, added); groups.
        15 => &[CountStrings(2), Lens(3), CountEach(GROUP)],
        19 => &[CountStrings(2), Lens(3 + 5), CountEach(GROUP_2)],
        21 => &[CountStrings(2), Lens(3 + 5), CountEach(GROUP_3)],
        // Hashes whose fields expire.
        22 if valkey => &[CountEach(&[Strings(2), Skip(8)])],
        22 => &[FIELDS_WITH_TTL],
        23 => &[Strings(1)],
        24 => &[Skip(8), FIELDS_WITH_TTL],
        25 => &[Skip(8), Strings(1)],
        _ => return None,
    })
}

/// Whether fields of a value of type `kind` may expire, so that the key vanishes in the end though it has no TTL.
pub(super) fn fields_expire(kind: u8) -> bool {
    matches!(kind, 22..=25)
}

/// The nine characters that a module's id stands for.
pub(super) fn module_name(id: u64) -> String {
    const CHARACTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let at = |n: u32| {
        let index = usize::try_from(id >> (10 + 6 * n) & 63).unwrap_or(0);
        CHARACTERS.get(index).copied().map_or('?', char::from)
    };
    (0..9).rev().map(at).collect()
}
