-- One line for each thing in this database that a restore must bring back: tables with their rows, sequences, large
-- objects, and the definitions of everything else. The schema `writer` is left out.
--
-- A table's sum is over the MD5 of its rows as text; it does not depend on their order.
\set ON_ERROR_STOP on
\pset format unaligned
\pset tuples_only on
\pset fieldsep ' '
\set QUIET on
SET datestyle = 'ISO, YMD';
SET timezone = 'UTC';
SET intervalstyle = 'postgres';
SET extra_float_digits = 1;
SET bytea_output = 'hex';
SET search_path = '';
SET row_security = off;
SET default_transaction_read_only = on;

SELECT 'tables', count(*) FROM pg_catalog.pg_tables WHERE schemaname !~ '^(pg_|information_schema$|writer$)';

SELECT pg_catalog.format(
    $$SELECT 'table', %L, count(*), coalesce(sum(('x' || left(h, 16))::bit(64)::bigint::numeric), 0),
        coalesce(sum(('x' || right(h, 16))::bit(64)::bigint::numeric), 0)
      FROM (SELECT pg_catalog.md5((the_row.*)::text) AS h FROM ONLY %I.%I AS the_row OFFSET 0) AS hashed$$,
    pg_catalog.format('%I.%I', n.nspname, c.relname), n.nspname, c.relname)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND n.nspname !~ '^(pg_|information_schema$|writer$)'
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
\gexec

SELECT pg_catalog.format($$SELECT 'sequence', %L, last_value, is_called FROM %I.%I$$,
    pg_catalog.format('%I.%I', n.nspname, c.relname), n.nspname, c.relname)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'S' AND n.nspname !~ '^(pg_|information_schema$|writer$)'
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
\gexec

-- YSQL has no large objects.
SELECT CASE WHEN pg_catalog.version() !~ '-YB-' THEN
    $$SELECT 'large objects', count(*), pg_catalog.md5(coalesce(pg_catalog.string_agg(
        oid || ' ' || pg_catalog.pg_get_userbyid(lomowner) || ' ' || coalesce(lomacl::text, '') || ' '
        || coalesce(pg_catalog.obj_description(oid, 'pg_largeobject'), '') || ' '
        || pg_catalog.md5(pg_catalog.lo_get(oid)), ',' ORDER BY oid), '')) FROM pg_catalog.pg_largeobject_metadata$$
    ELSE $$SELECT 'large objects', 0, pg_catalog.md5('')$$ END
\gexec

WITH spaces AS (
    SELECT oid, nspname FROM pg_catalog.pg_namespace WHERE nspname !~ '^(pg_|information_schema$|writer$)'
), definitions (kind, definition) AS (
    SELECT 'schema', pg_catalog.concat_ws(' ', s.nspname, pg_catalog.pg_get_userbyid(n.nspowner), n.nspacl::text,
        pg_catalog.obj_description(n.oid, 'pg_namespace'))
    FROM spaces AS s JOIN pg_catalog.pg_namespace AS n USING (oid)
    UNION ALL
    SELECT 'relation', pg_catalog.concat_ws(' ', s.nspname, c.relname, c.relkind, c.relpersistence, pg_catalog.pg_get_userbyid(c.relowner), c.relacl::text,
        c.relrowsecurity::text, c.reloptions::text, pg_catalog.pg_get_expr(c.relpartbound, c.oid), pg_catalog.obj_description(c.oid, 'pg_class'))
    FROM pg_catalog.pg_class AS c JOIN spaces AS s ON s.oid = c.relnamespace
    UNION ALL
    SELECT 'column', pg_catalog.concat_ws(' ', s.nspname, c.relname, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull,
        a.attidentity, a.attgenerated, a.attacl::text, pg_catalog.pg_get_expr(d.adbin, d.adrelid))
    FROM pg_catalog.pg_attribute AS a
    JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    JOIN spaces AS s ON s.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT 'constraint', pg_catalog.concat_ws(' ', s.nspname, c.conrelid::regclass::text, c.conname, c.convalidated, pg_catalog.pg_get_constraintdef(c.oid))
    FROM pg_catalog.pg_constraint AS c JOIN spaces AS s ON s.oid = c.connamespace
    UNION ALL
    SELECT 'index', pg_catalog.concat_ws(' ', i.indisvalid, pg_catalog.pg_get_indexdef(i.indexrelid))
    FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid JOIN spaces AS s ON s.oid = c.relnamespace
    UNION ALL
    SELECT 'view', pg_catalog.concat_ws(' ', s.nspname, c.relname, pg_catalog.pg_get_viewdef(c.oid))
    FROM pg_catalog.pg_class AS c JOIN spaces AS s ON s.oid = c.relnamespace WHERE c.relkind IN ('v', 'm')
    UNION ALL
    SELECT 'function', pg_catalog.concat_ws(' ', pg_catalog.pg_get_userbyid(p.proowner), p.proacl::text, pg_catalog.pg_get_functiondef(p.oid))
    FROM pg_catalog.pg_proc AS p JOIN spaces AS s ON s.oid = p.pronamespace WHERE p.prokind IN ('f', 'p')
    UNION ALL
    SELECT 'trigger', pg_catalog.concat_ws(' ', t.tgenabled, pg_catalog.pg_get_triggerdef(t.oid))
    FROM pg_catalog.pg_trigger AS t WHERE NOT t.tgisinternal
    UNION ALL
    SELECT 'policy', pg_catalog.concat_ws(' ', schemaname, tablename, policyname, roles::text, cmd, qual, with_check) FROM pg_catalog.pg_policies
    UNION ALL
    SELECT 'sequence', pg_catalog.concat_ws(' ', schemaname, sequencename, data_type::text, start_value, min_value, max_value, increment_by, cycle)
    FROM pg_catalog.pg_sequences WHERE schemaname <> 'writer'
    UNION ALL
    SELECT 'type', pg_catalog.concat_ws(' ', s.nspname, t.typname, t.typtype, pg_catalog.format_type(t.typbasetype, t.typtypmod),
        (SELECT pg_catalog.string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum AS e WHERE e.enumtypid = t.oid))
    FROM pg_catalog.pg_type AS t JOIN spaces AS s ON s.oid = t.typnamespace
    UNION ALL
    SELECT 'privileges', pg_catalog.concat_ws(' ', s.nspname, d.defaclobjtype, d.defaclacl::text)
    FROM pg_catalog.pg_default_acl AS d LEFT JOIN spaces AS s ON s.oid = d.defaclnamespace
    UNION ALL
    SELECT 'extension', pg_catalog.concat_ws(' ', extname, extversion) FROM pg_catalog.pg_extension
)
SELECT 'definitions', kind, count(*), pg_catalog.md5(pg_catalog.string_agg(definition, E'\n' ORDER BY definition COLLATE "C"))
FROM definitions GROUP BY kind ORDER BY kind COLLATE "C";
