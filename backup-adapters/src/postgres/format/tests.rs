//! The parsers over dumps in pieces of any size, whole, cut and changed.

use super::{Contents, DumpFormat, Parser};

const PLAIN: &str = r#"--
-- PostgreSQL database dump
--

\restrict abc

SET standard_conforming_strings = on;

CREATE FUNCTION public.f() RETURNS text
    LANGUAGE plpgsql
    AS $_$
begin
COPY public.a (i) FROM stdin;
  it's $1 "here" /* -- $$
end $_$;

COMMENT ON FUNCTION public.f() IS 'it''s "quoted" $$ -- /*
COPY public.a FROM stdin;
';

--
-- Data for Name: a; it's a comment; COPY public.a FROM stdin;
--

COPY public.a (i, t) FROM stdin;
1	x
2	\\.
3	\N
\.


COPY public."we""ird .(x" ("c;ol", "d""e") FROM stdin;
1	a\nb
\.


COPY public.empty  FROM stdin;
\.


SELECT pg_catalog.lo_open('16398', 131072);
SELECT pg_catalog.lowrite(0, '\x010203');
SELECT pg_catalog.lo_close(0);

--
-- PostgreSQL database dump complete
--

\unrestrict abc

"#;

fn parse(format: DumpFormat, bytes: &[u8], size: usize) -> Result<Contents, String> {
    let mut parser = Parser::new(format, "app");
    for chunk in bytes.chunks(size) {
        parser.update(chunk).map_err(|e| e.to_string())?;
    }
    parser.finish().map_err(|e| e.to_string())
}

fn rows(contents: &Contents) -> Vec<(&str, u64)> {
    contents.rows.iter().map(|((_, table), rows)| (table.as_str(), *rows)).collect()
}

#[test]
fn a_plain_dump_is_counted_in_pieces_of_any_size() {
    for size in (1..40).chain([PLAIN.len()]) {
        let contents = parse(DumpFormat::Plain, PLAIN.as_bytes(), size).unwrap();
        assert_eq!(rows(&contents), [("a", 3), ("empty", 0), (r#"we"ird .(x"#, 1)], "in pieces of {size}");
        assert_eq!(contents.large_objects, 1);
        assert!(contents.counted);
    }
}

#[test]
fn no_part_of_a_plain_dump_passes() {
    let trailer = PLAIN.find("dump complete\n").unwrap() + "dump complete\n".len();
    for end in 0..trailer {
        assert!(parse(DumpFormat::Plain, &PLAIN.as_bytes()[..end], 64).is_err(), "cut at {end}");
    }
    let e = parse(DumpFormat::Plain, &PLAIN.as_bytes()[..PLAIN.find("3\t").unwrap()], 64).unwrap_err();
    assert!(e.contains("within the rows of table public.a"), "{e}");
}

#[test]
fn the_trailer_as_a_value_proves_nothing() {
    let cut = PLAIN.find("2\t").unwrap();
    let fake = format!("{}2\n-- PostgreSQL database dump complete\n", PLAIN.get(..cut).unwrap());
    assert!(parse(DumpFormat::Plain, fake.as_bytes(), 64).unwrap_err().contains("is cut"));
}

/// As of a dump by the scripts before this program.
fn confined(text: &str, size: usize) -> Result<Contents, String> {
    let mut parser = Parser::new(DumpFormat::Plain, "app").confined();
    for chunk in text.as_bytes().chunks(size) {
        parser.update(chunk).map_err(|e| e.to_string())?;
    }
    parser.finish().map_err(|e| e.to_string())
}

#[test]
fn a_confined_dump_has_no_commands_of_psql() {
    for size in [1, 7, PLAIN.len()] {
        assert_eq!(confined(PLAIN, size).unwrap(), parse(DumpFormat::Plain, PLAIN.as_bytes(), size).unwrap());
        for (before, command) in [
            ("SET standard", "\\connect live\nSET standard"),
            ("SET standard", "\\c\nSET standard"),
            ("SET standard", "  \\! rm -r /\nSET standard"),
            ("SET standard", "SELECT 1 \\gexec\nSET standard"),
            ("SET standard", "\\restricted x\nSET standard"),
            ("\\unrestrict abc", "\\connect live"),
            ("\\unrestrict abc\n\n", "\\connect live"),
        ] {
            let text = PLAIN.replacen(before, command, 1);
            assert_ne!(text, PLAIN, "{command}");
            let e = confined(&text, size).unwrap_err();
            assert!(e.contains("psql command"), "{command} in pieces of {size}: {e}");
        }
        let cluster = PLAIN.replace("PostgreSQL database", "PostgreSQL database cluster");
        assert!(confined(&cluster, size).unwrap_err().contains("whole cluster"));
    }
}

#[test]
fn other_text_is_no_dump() {
    assert!(parse(DumpFormat::Plain, "hello\n".repeat(500).as_bytes(), 64).is_err());
    assert!(parse(DumpFormat::Custom, PLAIN.as_bytes(), 64).is_err());
    assert!(parse(DumpFormat::Plain, b"", 1).is_err());
    assert!(parse(DumpFormat::Custom, b"", 1).is_err());
}

/// Writes archives as pg_dump 15 does.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn int(&mut self, n: i32) -> &mut Self {
        self.0.push(u8::from(n < 0));
        self.0.extend(n.unsigned_abs().to_le_bytes());
        self
    }

    fn string(&mut self, text: &str) -> &mut Self {
        self.int(i32::try_from(text.len()).unwrap());
        self.0.extend(text.as_bytes());
        self
    }

    fn entry(&mut self, id: i32, kind: &str, tag: &str, state: u8) -> &mut Self {
        self.int(id).int(1).string("1").string("2").string(tag).string(kind).int(3);
        self.string("defn").string("").string("COPY").string("public").int(-1).string("heap");
        self.string("owner").string("false").string("214").int(-1);
        self.0.push(state);
        self.0.extend([0; 8]);
        self
    }

    fn rows(&mut self, id: i32, lines: &[&str]) -> &mut Self {
        self.0.push(1);
        self.int(id);
        for line in lines {
            self.string(line);
        }
        self.string("\\.\n\n\n").int(0)
    }

    fn sample() -> Vec<u8> {
        let mut a = Self::default();
        a.0.extend(b"PGDMP\x01\x0e\x00\x04\x08\x01");
        // Not compressed, made at some time.
        a.int(0);
        for _ in 0..7 {
            a.int(1);
        }
        a.string("app").string("15.20").string("15.20").int(4);
        a.entry(10, "TABLE", "a", 3).entry(11, "TABLE DATA", "a", 1).entry(12, "TABLE DATA", "e", 1);
        a.entry(13, "BLOBS", "BLOBS", 1);
        a.rows(11, &["1\tx\n", "2\t\\\\.\n"]).rows(12, &[]);
        a.0.push(3);
        a.int(13).int(16398).string("\u{1}\u{2}").int(0).int(0);
        a.0
    }
}

#[test]
fn an_archive_is_counted_in_pieces_of_any_size() {
    let archive = Archive::sample();
    for size in (1..100).chain([archive.len()]) {
        let contents = parse(DumpFormat::Custom, &archive, size).unwrap();
        assert_eq!(rows(&contents), [("a", 2), ("e", 0)], "in pieces of {size}");
        assert_eq!(contents.large_objects, 1);
    }
}

#[test]
fn no_part_of_an_archive_passes() {
    let archive = Archive::sample();
    for end in 0..archive.len() {
        let e = parse(DumpFormat::Custom, &archive[..end], 16).unwrap_err();
        assert!(e.contains("is cut") || e.contains("is empty"), "cut at {end}: {e}");
    }
}

/// The files of a directory as `pg_dump -Fd` writes them.
fn directory() -> Vec<(&'static str, Vec<u8>)> {
    let mut a = Archive::default();
    a.0.extend(b"PGDMP\x01\x0e\x00\x04\x08\x03");
    a.int(0);
    for _ in 0..7 {
        a.int(1);
    }
    a.string("app").string("15.20").string("15.20").int(3);
    for (id, kind, tag, file) in
        [(10, "TABLE", "a", ""), (11, "TABLE DATA", "a", "11.dat"), (13, "BLOBS", "BLOBS", "blobs.toc")]
    {
        a.int(id).int(1).string("1").string("2").string(tag).string(kind).int(3);
        a.string("defn").string("").string("COPY a FROM stdin").string("public").int(-1).string("heap");
        a.string("owner").string("false").string("214").int(-1).string(file);
    }
    vec![
        ("dump/11.dat", b"1\tx\n2\t\\\\.\n\\.\n\n\n".to_vec()),
        ("dump/blob_16398.dat", b"\x01\x02".to_vec()),
        ("dump/blobs.toc", b"16398 blob_16398.dat\n".to_vec()),
        ("dump/toc.dat", a.0),
    ]
}

fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_directory_is_counted_in_pieces_of_any_size() {
    let archive = archive(&directory());
    for size in [1, 7, 100, 512, archive.len()] {
        let contents = parse(DumpFormat::Directory, &archive, size).unwrap();
        assert_eq!((rows(&contents), contents.large_objects), (vec![("a", 2)], 1), "in pieces of {size}");
    }
}

#[test]
fn no_part_of_a_directory_passes() {
    let whole = archive(&directory());
    for end in (0..whole.len() - 512).step_by(61) {
        assert!(parse(DumpFormat::Directory, &whole[..end], 512).is_err(), "cut at {end}");
    }
    for n in 0..directory().len() {
        let mut files = directory();
        let (gone, _) = files.remove(n);
        let e = parse(DumpFormat::Directory, &archive(&files), 512).unwrap_err();
        assert!(e.contains("is cut"), "without {gone}: {e}");
        let mut files = directory();
        let (cut, content) = &mut files[n];
        content.truncate(content.len() - 9.min(content.len()));
        let cut = *cut;
        let parsed = parse(DumpFormat::Directory, &archive(&files), 512);
        // What a large object is long only its table says.
        assert_eq!(parsed.is_ok(), cut.starts_with("dump/blob_"), "{cut} is cut");
    }
}

#[test]
fn a_directory_holds_files_of_dumps_only() {
    for name in ["dump/sub/11.dat", "dump/toc.dat"] {
        let mut files = directory();
        files.push((name, b"x".to_vec()));
        assert!(parse(DumpFormat::Directory, &archive(&files), 512).is_err(), "{name}");
    }
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "dump", "/etc").unwrap();
    assert!(parse(DumpFormat::Directory, &tar.into_inner().unwrap(), 512).unwrap_err().contains("damaged"));
}

#[test]
fn what_follows_an_archive_is_damage() {
    let mut archive = Archive::sample();
    archive.extend(b"\x01\x00\x0b\x00\x00\x00");
    assert!(parse(DumpFormat::Custom, &archive, 16).is_err());
}
