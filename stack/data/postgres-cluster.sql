-- What belongs to the server and to no single database: roles, and how databases were made.
\set ON_ERROR_STOP on
\pset format unaligned
\pset tuples_only on
\pset fieldsep ' '
SELECT 'role', quote_ident(rolname), rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, rolconnlimit,
    md5(coalesce(rolpassword, '')), (SELECT string_agg(array_to_string(setconfig, ','), ',') FROM pg_db_role_setting WHERE setrole = a.oid AND setdatabase = 0),
    (SELECT string_agg(quote_ident(g.rolname), ',' ORDER BY g.rolname COLLATE "C") FROM pg_auth_members AS m JOIN pg_roles AS g ON g.oid = m.roleid WHERE m.member = a.oid)
FROM pg_authid AS a WHERE rolname !~ '^pg_' ORDER BY rolname COLLATE "C";
SELECT 'database', quote_ident(datname), pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype, datconnlimit, datacl
FROM pg_database WHERE NOT datistemplate ORDER BY datname COLLATE "C";
