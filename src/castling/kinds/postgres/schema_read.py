"""Reads the definitions of a group's schema from a server's catalogs, as things to compare.

Texts come from PostgreSQL's own functions with an empty search path, so every name in them is qualified. What
differs by the server's version alone is left out: NOT NULL constraints as rows, the privilege MAINTAIN.
What members of extensions are is the extension's affair. Not read: casts, operators and their classes,
text search objects, collations, publications, foreign servers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from psycopg import AsyncConnection

from castling.config import GroupSettings
from castling.kinds.postgres.definitions import Thing, is_in_group
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.naming_definitions import named_as_on_target, with_belongings

__all__ = ["read_schema"]

#: rows fetched at once: the stream that runs beside must not wait for many
_AT_ONCE = 500

#: relations, and what belongs to them, with the table to choose them by
_RELATIONS = """
WITH relation AS MATERIALIZED (
    SELECT c.*, n.nspname, pg_catalog.format('%I.%I', n.nspname, c.relname) AS name,
           (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(an.nspname, a.relname))
              FROM (SELECT c.oid UNION SELECT relid FROM pg_catalog.pg_partition_ancestors(c.oid)) up
              JOIN pg_catalog.pg_class a ON a.oid = up.oid
              JOIN pg_catalog.pg_namespace an ON an.oid = a.relnamespace) AS chosen_by
      FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'castling', 'castling_ddl')
       AND n.nspname NOT LIKE 'pg\\_toast%'
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
                          AND d.deptype = 'e')
)
SELECT 'table', r.nspname, r.chosen_by, r.name,
       pg_catalog.concat_ws(' ',
           CASE r.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'v' THEN 'view'
                          WHEN 'm' THEN 'materialized view' ELSE 'foreign table' END,
           CASE r.relpersistence WHEN 'u' THEN 'unlogged' END,
           CASE WHEN r.relrowsecurity THEN 'row security' END,
           CASE WHEN r.relforcerowsecurity THEN 'forced' END,
           pg_catalog.pg_get_partkeydef(r.oid), pg_catalog.pg_get_expr(r.relpartbound, r.oid),
           (SELECT 'inherits ' || pg_catalog.string_agg(h.inhparent::regclass::text, ', ' ORDER BY h.inhseqno)
              FROM pg_catalog.pg_inherits h WHERE h.inhrelid = r.oid),
           (SELECT pg_catalog.string_agg(o, ', ' ORDER BY o) FROM pg_catalog.unnest(r.reloptions) o),
           CASE WHEN r.relkind IN ('v', 'm') THEN pg_catalog.pg_get_viewdef(r.oid) END),
       ''
  FROM relation r
UNION ALL
SELECT 'column', r.nspname, r.chosen_by, r.name || pg_catalog.format('.%I', a.attname),
       pg_catalog.concat_ws(' ',
           pg_catalog.format_type(a.atttypid, a.atttypmod),
           CASE WHEN a.attcollation <> t.typcollation
                THEN (SELECT pg_catalog.format('COLLATE %I', k.collname) FROM pg_catalog.pg_collation k
                       WHERE k.oid = a.attcollation) END,
           CASE WHEN a.attnotnull THEN 'NOT NULL' END,
           CASE a.attidentity WHEN 'a' THEN 'IDENTITY ALWAYS' WHEN 'd' THEN 'IDENTITY BY DEFAULT' END,
           CASE a.attgenerated WHEN 's' THEN 'STORED' WHEN 'v' THEN 'VIRTUAL' END,
           'DEFAULT ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid),
           'STATISTICS ' || NULLIF(a.attstattarget, -1),
           CASE WHEN a.attstorage <> t.typstorage THEN 'STORAGE ' || a.attstorage::text END,
           CASE WHEN a.attcompression <> '' THEN 'COMPRESSION ' || a.attcompression::text END,
           a.attoptions::text),
       CASE WHEN r.relkind IN ('r', 'p') THEN
           pg_catalog.format('ALTER TABLE %s ADD COLUMN %I %s', r.name, a.attname,
                             pg_catalog.format_type(a.atttypid, a.atttypmod)) ELSE '' END
  FROM relation r
  JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
UNION ALL
SELECT 'constraint', r.nspname, r.chosen_by, r.name || pg_catalog.format('.%I', k.conname),
       pg_catalog.pg_get_constraintdef(k.oid),
       pg_catalog.format('ALTER TABLE %s ADD CONSTRAINT %I %s', r.name, k.conname,
                         pg_catalog.pg_get_constraintdef(k.oid))
  FROM relation r JOIN pg_catalog.pg_constraint k ON k.conrelid = r.oid AND k.contype NOT IN ('n', 't')
UNION ALL
SELECT 'index', r.nspname, r.chosen_by, pg_catalog.format('%I.%I', r.nspname, i.relname),
       pg_catalog.concat_ws(' ', pg_catalog.pg_get_indexdef(i.oid),
                            CASE WHEN NOT x.indisvalid THEN 'INVALID' END),
       pg_catalog.pg_get_indexdef(i.oid)
  FROM relation r JOIN pg_catalog.pg_index x ON x.indrelid = r.oid
  JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k
                    WHERE k.conindid = x.indexrelid AND k.conrelid = r.oid AND k.contype IN ('p', 'u', 'x'))
UNION ALL
SELECT 'trigger', r.nspname, r.chosen_by, r.name || pg_catalog.format('.%I', g.tgname),
       pg_catalog.concat_ws(' ', pg_catalog.pg_get_triggerdef(g.oid), NULLIF(g.tgenabled, 'O')),
       pg_catalog.pg_get_triggerdef(g.oid)
  FROM relation r JOIN pg_catalog.pg_trigger g ON g.tgrelid = r.oid AND NOT g.tgisinternal
  JOIN pg_catalog.pg_proc f ON f.oid = g.tgfoid
 WHERE f.pronamespace <> COALESCE(pg_catalog.to_regnamespace('castling'), 0)
UNION ALL
SELECT 'rule', r.nspname, r.chosen_by, r.name || pg_catalog.format('.%I', u.rulename),
       pg_catalog.pg_get_ruledef(u.oid), pg_catalog.pg_get_ruledef(u.oid)
  FROM relation r JOIN pg_catalog.pg_rewrite u ON u.ev_class = r.oid AND u.rulename <> '_RETURN'
UNION ALL
SELECT 'policy', r.nspname, r.chosen_by, r.name || pg_catalog.format('.%I', p.polname),
       pg_catalog.concat_ws(' ', p.polcmd::text, CASE WHEN p.polpermissive THEN 'permissive' END,
           'for ' || (SELECT pg_catalog.string_agg(COALESCE(o.rolname, 'public'), ', ' ORDER BY o.rolname)
                        FROM pg_catalog.unnest(p.polroles) role
                        LEFT JOIN pg_catalog.pg_roles o ON o.oid = role),
           'using ' || pg_catalog.pg_get_expr(p.polqual, p.polrelid),
           'check ' || pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)),
       ''
  FROM relation r JOIN pg_catalog.pg_policy p ON p.polrelid = r.oid
UNION ALL
SELECT 'statistics', r.nspname, r.chosen_by, pg_catalog.format('%I.%I', sn.nspname, s.stxname),
       pg_catalog.concat_ws(' ', pg_catalog.pg_get_statisticsobjdef(s.oid),
                            'STATISTICS ' || NULLIF(s.stxstattarget, -1)),
       pg_catalog.pg_get_statisticsobjdef(s.oid)
  FROM relation r JOIN pg_catalog.pg_statistic_ext s ON s.stxrelid = r.oid
  JOIN pg_catalog.pg_namespace sn ON sn.oid = s.stxnamespace
"""

#: what belongs to a schema and to no table; and what stands beside any object: owner, rights, comment, label
_OTHERS = """
WITH ours AS MATERIALIZED (
    SELECT n.oid, n.nspname FROM pg_catalog.pg_namespace n
     WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'castling', 'castling_ddl')
       AND n.nspname NOT LIKE 'pg\\_%'
), of_extension AS MATERIALIZED (
    SELECT classid, objid FROM pg_catalog.pg_depend WHERE deptype = 'e'
), object AS MATERIALIZED (
    SELECT o.*, i.type, i.identity FROM (
        SELECT 'pg_catalog.pg_class'::regclass AS class, c.oid, n.nspname, c.relowner AS owner,
               COALESCE(c.relacl, pg_catalog.acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char",
                                                        c.relowner)) AS acl,
               c.relname AS relation
          FROM pg_catalog.pg_class c JOIN ours n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't'
        UNION ALL
        SELECT 'pg_catalog.pg_proc'::regclass, p.oid, n.nspname, p.proowner,
               COALESCE(p.proacl, pg_catalog.acldefault('f', p.proowner)), NULL
          FROM pg_catalog.pg_proc p JOIN ours n ON n.oid = p.pronamespace
        UNION ALL
        SELECT 'pg_catalog.pg_type'::regclass, t.oid, n.nspname, t.typowner,
               COALESCE(t.typacl, pg_catalog.acldefault('T', t.typowner)), NULL
          FROM pg_catalog.pg_type t JOIN ours n ON n.oid = t.typnamespace
         WHERE t.typtype IN ('e', 'd', 'r')
            OR t.typtype = 'c' AND EXISTS (SELECT FROM pg_catalog.pg_class c
                                            WHERE c.oid = t.typrelid AND c.relkind = 'c')
        UNION ALL
        SELECT 'pg_catalog.pg_namespace'::regclass, n.oid, n.nspname, s.nspowner,
               COALESCE(s.nspacl, pg_catalog.acldefault('n', s.nspowner)), NULL
          FROM ours n JOIN pg_catalog.pg_namespace s ON s.oid = n.oid
    ) o
    CROSS JOIN LATERAL pg_catalog.pg_identify_object(o.class, o.oid, 0) i
    WHERE (o.class, o.oid) NOT IN (SELECT classid, objid FROM of_extension)
)
SELECT 'schema', o.nspname, NULL::jsonb, o.identity, 'schema', 'CREATE SCHEMA ' || o.identity
  FROM object o WHERE o.class = 'pg_catalog.pg_namespace'::regclass
UNION ALL
SELECT 'function', o.nspname, NULL, o.identity, pg_catalog.pg_get_functiondef(o.oid),
       pg_catalog.pg_get_functiondef(o.oid)
  FROM object o JOIN pg_catalog.pg_proc p ON p.oid = o.oid AND p.prokind IN ('f', 'p', 'w')
 WHERE o.class = 'pg_catalog.pg_proc'::regclass
UNION ALL
SELECT 'type', o.nspname, NULL, o.identity,
       pg_catalog.concat_ws(' ', t.typtype::text,
           (SELECT pg_catalog.string_agg(pg_catalog.quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
              FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid),
           (SELECT pg_catalog.string_agg(pg_catalog.format('%I %s', a.attname,
                       pg_catalog.format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
              FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.typrelid AND t.typtype = 'c'
               AND a.attnum > 0 AND NOT a.attisdropped),
           CASE WHEN t.typtype = 'd' THEN pg_catalog.format_type(t.typbasetype, t.typtypmod) END,
           CASE WHEN t.typnotnull THEN 'NOT NULL' END, 'DEFAULT ' || t.typdefault,
           (SELECT pg_catalog.string_agg(pg_catalog.pg_get_constraintdef(k.oid), ' ' ORDER BY k.conname)
              FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'),
           (SELECT pg_catalog.format_type(g.rngsubtype, NULL) FROM pg_catalog.pg_range g
             WHERE g.rngtypid = t.oid)),
       ''
  FROM object o JOIN pg_catalog.pg_type t ON t.oid = o.oid WHERE o.class = 'pg_catalog.pg_type'::regclass
UNION ALL
SELECT 'sequence', o.nspname, NULL, o.identity,
       pg_catalog.format('%s increment %s from %s to %s start %s cache %s%s',
                         pg_catalog.format_type(s.seqtypid, NULL), s.seqincrement, s.seqmin, s.seqmax,
                         s.seqstart, s.seqcache, CASE WHEN s.seqcycle THEN ' cycle' END),
       pg_catalog.format('CREATE SEQUENCE %s AS %s INCREMENT %s MINVALUE %s MAXVALUE %s START %s CACHE %s%s',
                         o.identity, pg_catalog.format_type(s.seqtypid, NULL), s.seqincrement, s.seqmin,
                         s.seqmax, s.seqstart, s.seqcache, CASE WHEN s.seqcycle THEN ' CYCLE' END)
  FROM object o JOIN pg_catalog.pg_sequence s ON s.seqrelid = o.oid
UNION ALL
SELECT 'owner', o.nspname, CASE WHEN o.relation IS NOT NULL
           THEN pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_array(o.nspname, o.relation)) END,
       o.identity, w.rolname, pg_catalog.format('ALTER %s %s OWNER TO %I', o.type, o.identity, w.rolname)
  FROM object o JOIN pg_catalog.pg_roles w ON w.oid = o.owner
UNION ALL
SELECT 'grant', o.nspname, CASE WHEN o.relation IS NOT NULL
           THEN pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_array(o.nspname, o.relation)) END,
       pg_catalog.format('%s to %s', o.identity, COALESCE(pg_catalog.quote_ident(g.rolname), 'PUBLIC')),
       pg_catalog.string_agg(a.privilege_type || CASE WHEN a.is_grantable THEN '*' ELSE '' END, ', '
                             ORDER BY a.privilege_type),
       pg_catalog.format('GRANT %s ON %s %s TO %s', pg_catalog.string_agg(a.privilege_type, ', '
                             ORDER BY a.privilege_type),
                         CASE WHEN o.type IN ('view', 'materialized view', 'foreign table') THEN 'table'
                              ELSE o.type END,
                         o.identity, COALESCE(pg_catalog.quote_ident(g.rolname), 'PUBLIC'))
  FROM object o CROSS JOIN LATERAL pg_catalog.aclexplode(o.acl) a
  LEFT JOIN pg_catalog.pg_roles g ON g.oid = a.grantee
 WHERE a.privilege_type <> 'MAINTAIN' AND a.grantee <> o.owner
 GROUP BY o.nspname, o.relation, o.identity, o.type, g.rolname
UNION ALL
SELECT 'grant', n.nspname, pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_array(n.nspname, c.relname)),
       pg_catalog.format('%I.%I.%I to %s', n.nspname, c.relname, a.attname,
                         COALESCE(pg_catalog.quote_ident(g.rolname), 'PUBLIC')),
       pg_catalog.string_agg(x.privilege_type || CASE WHEN x.is_grantable THEN '*' ELSE '' END, ', '
                             ORDER BY x.privilege_type),
       ''
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
  JOIN ours n ON n.oid = c.relnamespace CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) x
  LEFT JOIN pg_catalog.pg_roles g ON g.oid = x.grantee
 WHERE NOT a.attisdropped GROUP BY n.nspname, c.relname, a.attname, g.rolname
UNION ALL
SELECT 'default privileges', COALESCE(n.nspname, '*'), NULL,
       pg_catalog.format('%s of %I in %s', d.defaclobjtype, w.rolname, COALESCE(n.nspname, 'all schemas')),
       (SELECT pg_catalog.string_agg(pg_catalog.format('%s %s%s', COALESCE(g.rolname, 'PUBLIC'),
                   a.privilege_type, CASE WHEN a.is_grantable THEN '*' END), ', '
                   ORDER BY g.rolname, a.privilege_type)
          FROM pg_catalog.aclexplode(d.defaclacl) a LEFT JOIN pg_catalog.pg_roles g ON g.oid = a.grantee
         WHERE a.privilege_type <> 'MAINTAIN'),
       ''
  FROM pg_catalog.pg_default_acl d JOIN pg_catalog.pg_roles w ON w.oid = d.defaclrole
  LEFT JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace
UNION ALL
SELECT 'comment', u.nspname, CASE WHEN c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
           THEN pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_array(u.nspname, c.relname)) END,
       pg_catalog.format('%s %s', i.type, i.identity), d.description,
       CASE WHEN i.type IN ('table', 'view', 'materialized view', 'sequence', 'index', 'schema', 'function',
                            'type')
            THEN pg_catalog.format('COMMENT ON %s %s IS %L', i.type, i.identity, d.description) ELSE '' END
  FROM pg_catalog.pg_description d
 CROSS JOIN LATERAL pg_catalog.pg_identify_object(d.classoid, d.objoid, d.objsubid) i
  JOIN ours u ON pg_catalog.quote_ident(u.nspname) = COALESCE(i.schema, i.name)
  LEFT JOIN pg_catalog.pg_class c ON d.classoid = 'pg_catalog.pg_class'::regclass AND c.oid = d.objoid
 WHERE d.objoid >= 16384
   AND (d.classoid, d.objoid) NOT IN (SELECT classid, objid FROM of_extension)
UNION ALL
SELECT 'security label', u.nspname, CASE WHEN c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
           THEN pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_array(u.nspname, c.relname)) END,
       pg_catalog.format('%s %s of %s', i.type, i.identity, l.provider), l.label,
       pg_catalog.format('SECURITY LABEL FOR %I ON %s %s IS %L', l.provider, i.type, i.identity, l.label)
  FROM pg_catalog.pg_seclabel l
 CROSS JOIN LATERAL pg_catalog.pg_identify_object(l.classoid, l.objoid, l.objsubid) i
  JOIN ours u ON pg_catalog.quote_ident(u.nspname) = i.schema
  LEFT JOIN pg_catalog.pg_class c ON l.classoid = 'pg_catalog.pg_class'::regclass AND c.oid = l.objoid
UNION ALL
SELECT 'event trigger', '*', NULL, pg_catalog.quote_ident(e.evtname),
       pg_catalog.concat_ws(' ', e.evtevent, e.evttags::text, e.evtfoid::regprocedure::text, e.evtenabled), ''
  FROM pg_catalog.pg_event_trigger e
 WHERE e.evtname NOT LIKE 'castling%'
   AND e.oid NOT IN (SELECT objid FROM of_extension
                      WHERE classid = 'pg_catalog.pg_event_trigger'::regclass)
"""


async def read_schema(
    connection: AsyncConnection[Any], settings: GroupSettings, *, is_target: bool = False
) -> AsyncIterator[Thing]:
    """Every definition of the group's schema, some at a time, by its names on the target. Must be in a
    transaction, whose search path it changes."""
    await connection.execute(b"SET LOCAL search_path = ''")
    naming = Naming(settings.rename)
    if not is_target:
        naming = await with_belongings(connection, naming)
    for question in (_RELATIONS, _OTHERS):
        async with connection.cursor(name="castling_schema") as cursor:
            cursor.itersize = _AT_ONCE
            await cursor.execute(question.encode())
            async for kind, schema, chosen_by, name, text, make in cursor:
                relations = [(one[0], one[1]) for one in chosen_by or ()]
                thing = Thing(kind, name, text or "", make or "")
                if not is_target:
                    if schema == "*" or is_in_group(schema, relations, settings):
                        yield named_as_on_target(thing, naming)
                elif schema == "*" or _is_in_group_there(schema, relations, settings, naming):
                    yield thing


def _is_in_group_there(
    schema: str, relations: list[tuple[str, str]], settings: GroupSettings, naming: Naming
) -> bool:
    """`is_in_group`, asked of what the target calls so."""
    if not naming:
        return is_in_group(schema, relations, settings)
    if relations:
        here = [name for relation in relations for name in naming.sources(*relation)]
        return bool(here) and is_in_group("", here, settings)
    return any(is_in_group(each, [], settings) for each in naming.source_schemas(schema))
