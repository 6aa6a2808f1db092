MATCH (n) WHERE NOT n:Writer CALL { WITH n UNWIND keys(n) AS k WITH n, k ORDER BY k RETURN collect([k, n[k]]) AS pairs } CALL { WITH n UNWIND labels(n) AS l WITH l ORDER BY l RETURN collect(l) AS names } RETURN 'node' AS what, names, pairs;
MATCH (a)-[r]->(b) WHERE NOT a:Writer AND NOT b:Writer CALL { WITH r UNWIND keys(r) AS k WITH r, k ORDER BY k RETURN collect([k, r[k]]) AS pairs } RETURN 'relationship' AS what, type(r) AS name, pairs, labels(a) AS la, a.key AS ka, labels(b) AS lb, b.key AS kb;
SHOW INDEXES YIELD name, type, labelsOrTypes, properties RETURN 'index' AS what, name, type, labelsOrTypes, properties;
SHOW CONSTRAINTS YIELD name, type, labelsOrTypes, properties RETURN 'constraint' AS what, name, type, labelsOrTypes, properties;
SHOW USERS YIELD user RETURN 'user' AS what, user;
