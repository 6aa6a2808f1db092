use super::*;

/// A short string.
fn s(text: &str) -> Vec<u8> {
    let mut out = vec![u8::try_from(text.len()).unwrap()];
    out.extend_from_slice(text.as_bytes());
    out
}

fn aux(name: &str, value: &[u8]) -> Vec<u8> {
    [&[250], s(name).as_slice(), value].concat()
}

/// A file of `entries`, with its end mark and checksum.
fn file(magic: &[u8; 9], entries: &[Vec<u8>]) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.extend(entries.concat());
    out.push(255);
    let checksum = crc_fast::checksum(CrcAlgorithm::Crc64Redis, &out);
    out.extend(checksum.to_le_bytes());
    out
}

fn walk(bytes: &[u8], step: usize) -> Result<Summary, AdapterError> {
    let mut walker = Walker::new();
    for piece in bytes.chunks(step) {
        walker.update(piece)?;
    }
    walker.finish()
}

/// The summary, the same however the bytes are cut.
fn walked(bytes: &[u8]) -> Summary {
    let whole = walk(bytes, usize::MAX).unwrap();
    for step in [1, 2, 3, 5, 8, 13] {
        assert_eq!(walk(bytes, step).unwrap(), whole, "in pieces of {step}");
    }
    whole
}

/// A key of `kind` with `value`.
fn key(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind], s("key").as_slice(), value].concat()
}

#[test]
fn the_checksum_is_that_of_redis() {
    // The value that `crc64.c` of Redis names in its self-test.
    assert_eq!(crc_fast::checksum(CrcAlgorithm::Crc64Redis, b"123456789"), 0xe9c6_d914_c4b8_d9ca);
}

#[test]
fn every_type_is_walked() {
    let pending = [[7; 24].as_slice(), &[1]].concat();
    let consumer = |stamps: usize| [s("alice"), vec![9; stamps], vec![1], vec![7; 16]].concat();
    let group = |lens: usize, stamps: usize| {
        [s("group"), vec![5; lens], vec![1], pending.clone(), vec![1], consumer(stamps)].concat()
    };
    let stream = |lens: usize, group_lens: usize, stamps: usize| {
        [vec![1], s("0123456789abcdef"), s("listpack"), vec![1; lens], vec![1], group(group_lens, stamps)]
            .concat()
    };
    let module = [
        // The id of `ReJSON-RL`, version 3, then one item of each sort.
        vec![0x81, 0x45, 0xe2, 0x52, 0x38, 0xfb, 0xe4, 0x4b, 0x03],
        vec![2, 5, 1, 0x40, 0xff, 3, 1, 2, 3, 4, 4, 1, 2, 3, 4, 5, 6, 7, 8, 5],
        s("text"),
        vec![0],
    ]
    .concat();
    let values: Vec<(u8, Vec<u8>)> = vec![
        (0, s("plain")),
        (0, vec![0xc0, 1]),
        (0, vec![0xc1, 1, 2]),
        (0, vec![0xc2, 1, 2, 3, 4]),
        (0, vec![0xc3, 3, 0x41, 0x00, b'a', b'b', b'c']),
        (0, [vec![0x80, 0, 0, 1, 0], vec![b'x'; 256]].concat()),
        (0, [vec![0x81, 0, 0, 0, 0, 0, 0, 0, 2], vec![b'x'; 2]].concat()),
        (1, [vec![2], s("a"), s("b")].concat()),
        (2, [vec![1], s("a")].concat()),
        (3, [vec![4], s("a"), s("1.5"), s("b"), vec![253], s("c"), vec![254], s("d"), vec![255]].concat()),
        (4, [vec![1], s("f"), s("v")].concat()),
        (5, [vec![1], s("a"), vec![0; 8]].concat()),
        (7, module),
        (9, s("zipmap")),
        (10, s("ziplist")),
        (11, s("intset")),
        (12, s("ziplist")),
        (13, s("ziplist")),
        (14, [vec![2], s("ziplist"), s("ziplist")].concat()),
        (15, stream(3, 2, 8)),
        (16, s("listpack")),
        (17, s("listpack")),
        (18, [vec![2, 1], s("large"), vec![2], s("listpack")].concat()),
        (19, stream(8, 3, 8)),
        (20, s("listpack")),
        (21, stream(8, 3, 16)),
        (22, [vec![1, 0], s("f"), s("v")].concat()),
        (23, s("listpack")),
        (24, [vec![0; 8], vec![1, 5], s("f"), s("v")].concat()),
        (25, [vec![0; 8], s("listpack")].concat()),
    ];
    let entries: Vec<_> = values.iter().map(|(kind, value)| key(*kind, value)).collect();
    let summary = walked(&file(b"REDIS0012", &entries));
    let expected = Keys { all: values.len().try_into().unwrap(), with_ttl: 0, expired: 0, fields_expire: 4 };
    assert_eq!(summary.unknown, None);
    assert_eq!(summary.databases, BTreeMap::from([(0, expected)]));
    assert_eq!(summary.modules.len(), 1);
    assert!(summary.checksum);

    // Valkey writes its own hashes under a number that Redis uses otherwise.
    let hash = key(22, &[vec![1], s("f"), s("v"), vec![0xff; 8]].concat());
    let summary = walked(&file(b"VALKEY080", &[hash, key(0, &s("x"))]));
    assert_eq!((summary.databases[&0].all, summary.version, summary.valkey), (2, 80, true));
}

#[test]
fn everything_around_the_values_is_walked_and_counted() {
    let made_at = 1_700_000_000_u32;
    let entries = vec![
        aux("redis-ver", &s("7.0.15")),
        aux("ctime", &[&[0xc2], made_at.to_le_bytes().as_slice()].concat()),
        aux("long", &[[0x4f, 0xff].as_slice(), &[b'x'; 0xfff]].concat()),
        [&[247, 0x81, 1, 2, 3, 4, 5, 6, 7, 8, 2, 2, 5], s("x").as_slice(), &[0]].concat(),
        [&[245], s("#!lua name=a").as_slice()].concat(),
        vec![254, 0, 251, 3, 2, 244, 1, 2, 3],
        [vec![252], 1_699_999_999_999_u64.to_le_bytes().to_vec(), key(0, &s("expired"))].concat(),
        [vec![253], (made_at + 1).to_le_bytes().to_vec(), vec![248, 5, 249, 7], key(0, &s("expires"))]
            .concat(),
        key(0, &s("lasts")),
        vec![254, 0x40, 0x20],
        key(24, &[vec![0; 8], vec![0]].concat()),
    ];
    let summary = walked(&file(b"REDIS0010", &entries));
    assert_eq!(summary.made_at(), Some(made_at.into()));
    assert_eq!(summary.aux["redis-ver"], "7.0.15");
    assert!(!summary.aux.contains_key("long"));
    assert_eq!(summary.functions, 1);
    let zero = Keys { all: 3, with_ttl: 2, expired: 1, fields_expire: 0 };
    let other = Keys { all: 1, with_ttl: 0, expired: 0, fields_expire: 1 };
    assert_eq!(summary.databases, BTreeMap::from([(0, zero), (32, other)]));

    let evidence = crate::redis::check::evidence(&summary);
    let count = |name: &str| (evidence.counts[name], evidence.counts_after.get(name).copied());
    assert_eq!(count("keys"), (4, Some(1)));
    assert_eq!(count("db0.keys"), (3, Some(1)));
    assert_eq!(count("db0.keys_without_ttl"), (1, None));
    assert_eq!(count("db32.keys_without_ttl"), (1, Some(0)));
    assert_eq!(evidence.notes["keys_expired_already"], "1");
}

#[test]
fn every_cut_is_found_and_placed() {
    let whole = file(
        b"REDIS0010",
        &[aux("a", &s("b")), key(0, &s("value")), key(4, &[vec![1], s("f"), s("v")].concat())],
    );
    walked(&whole);
    for end in 0..whole.len() {
        let e = walk(&whole[..end], usize::MAX).unwrap_err().to_string();
        assert!(e.contains(&format!("byte {end},")), "cut at {end}: {e}");
    }
    let longer = [whole.as_slice(), b"x"].concat();
    assert!(
        walk(&longer, 7).unwrap_err().to_string().contains(&format!("byte {}: it should end", whole.len()))
    );
}

#[test]
fn every_flipped_bit_is_found() {
    let whole = file(b"REDIS0010", &[key(0, &s("value")), key(5, &[vec![1], s("f"), vec![1; 8]].concat())]);
    for at in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[at / 8] ^= 1 << (at % 8);
        assert!(walk(&flipped, usize::MAX).is_err(), "bit {at}");
    }
}

#[test]
fn an_unknown_type_leaves_it_to_the_checksum() {
    let mut whole = file(b"REDIS0014", &[key(0, &s("v")), key(33, &[9; 100])]);
    let summary = walked(&whole);
    assert_eq!(summary.unknown.as_deref(), Some("unknown type 33 at byte 16"));
    let evidence = crate::redis::check::evidence(&summary);
    assert!(evidence.counts.is_empty() && evidence.notes["not_counted"].contains("type 33"), "{evidence:?}");

    let last = whole.len() - 20;
    whole[last] ^= 1;
    assert!(walk(&whole, 7).unwrap_err().to_string().contains("unknown type 33 at byte 16"));
    assert!(walk(&whole[..last], 7).is_err());
}

#[test]
fn a_server_may_write_no_checksum() {
    let mut whole = file(b"REDIS0010", &[key(0, &s("v"))]);
    let at = whole.len() - 8;
    whole[at..].fill(0);
    assert!(!walked(&whole).checksum);
    // Before version 5 there was none at all.
    let old = [b"REDIS0004".as_slice(), &key(0, &s("v")), &[255]].concat();
    assert!(!walked(&old).checksum);
}

#[test]
fn what_is_no_rdb_is_refused_at_once() {
    for wrong in ["-ERR no such thing", "REDISabcd", "PK\x03\x04567890"] {
        let mut walker = Walker::new();
        assert!(walker.update(wrong.as_bytes()).unwrap_err().to_string().contains("no RDB"), "{wrong}");
    }
    // Counts that cannot be, without any memory for them.
    let huge = key(4, &[0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert!(walk(&file(b"REDIS0010", &[huge]), 7).unwrap_err().to_string().contains("impossible"));
}
