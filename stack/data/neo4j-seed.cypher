CREATE CONSTRAINT seed_key IF NOT EXISTS FOR (p:Page) REQUIRE p.key IS UNIQUE;
CREATE INDEX seed_at IF NOT EXISTS FOR (e:Event) ON (e.at);
CREATE INDEX seed_weight IF NOT EXISTS FOR ()-[l:LINKS]-() ON (l.weight);
CREATE FULLTEXT INDEX seed_text IF NOT EXISTS FOR (p:Page) ON EACH [p.text];
CREATE (:`Odd label, "with" quotes` {key: 'odd', smallest: -9223372036854775808, largest: 9223372036854775807, float: 1.0e-300, yes: true, no: false, empty: '', list: [1, 2, 3], texts: ['a', '', 'ü'], emptyList: [], date: date('2026-03-09'), time: datetime('2026-03-09T04:38:20.123456789+01:00'), span: duration('P1Y2M3DT4H5M6.7S'), place: point({longitude: 13.4, latitude: 52.5}), `a key, with spaces`: 'äöü€😀' + '\u0000' + '\n'});
CREATE (n {key: 'no label'}) CREATE (n)-[:SELF {n: 1}]->(n) CREATE (n)-[:SELF {n: 2}]->(n);
CREATE ();
CREATE (:Big {key: 'long', text: reduce(s = '', i IN range(1, 20000) | s + 'long text ')});
