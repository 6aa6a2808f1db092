-- The roles that the seeded databases refer to. The password is `reader of seeds`, hashed beforehand: a server would salt
-- it anew each time.
\set ON_ERROR_STOP on
CREATE ROLE seed_owner NOLOGIN;
CREATE ROLE seed_reader LOGIN PASSWORD 'SCRAM-SHA-256$4096:Gz78ad4jzWztkJ+qO1pvDg==$8czrusfreLQb0EPSwBZMpJVYZdpV99ZoQZbRGtu6iJQ=:TEOV5nPCndjRdWwYYM+VDxFys1i0C05Ds9CPtZ/e794=' CONNECTION LIMIT 50;
CREATE ROLE "Seed ""odd"" role" NOLOGIN IN ROLE seed_reader;
ALTER ROLE seed_reader SET statement_timeout = '1h';
