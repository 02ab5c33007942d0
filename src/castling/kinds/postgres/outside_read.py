"""Reads what stands outside of a database's schema and no log or event trigger shows: roles, memberships,
settings of the database and of roles, tablespaces, extensions, and the server's settings that decide how an
application's statements behave.

Passwords are not read. A role that the target lacks is made there without one. The role that looks is left
out: it is Castling's own, and what it needs on each side is another thing.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from castling.kinds.postgres.definitions import Thing
from castling.kinds.postgres.statements import quoted

__all__ = ["read_available_extensions", "read_outside", "read_roles_needed"]

#: an application that runs well with the source's may not with other ones
_SERVER = (
    "TimeZone",
    "DateStyle",
    "IntervalStyle",
    "array_nulls",
    "backslash_quote",
    "bytea_output",
    "client_encoding",
    "default_tablespace",
    "default_text_search_config",
    "default_toast_compression",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "lc_messages",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "lock_timeout",
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "password_encryption",
    "quote_all_identifiers",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "standard_conforming_strings",
    "statement_timeout",
    "transform_null_equals",
    "wal_level",
    "xmlbinary",
    "xmloption",
)

_OUTSIDE = """
SELECT 'role', pg_catalog.quote_ident(r.rolname), attributes.text,
       pg_catalog.format('CREATE ROLE %I %s', r.rolname, attributes.text)
  FROM pg_catalog.pg_roles r
 CROSS JOIN LATERAL (SELECT pg_catalog.concat_ws(' ',
           CASE WHEN r.rolsuper THEN 'SUPERUSER' ELSE 'NOSUPERUSER' END,
           CASE WHEN r.rolinherit THEN 'INHERIT' ELSE 'NOINHERIT' END,
           CASE WHEN r.rolcreaterole THEN 'CREATEROLE' ELSE 'NOCREATEROLE' END,
           CASE WHEN r.rolcreatedb THEN 'CREATEDB' ELSE 'NOCREATEDB' END,
           CASE WHEN r.rolcanlogin THEN 'LOGIN' ELSE 'NOLOGIN' END,
           CASE WHEN r.rolreplication THEN 'REPLICATION' ELSE 'NOREPLICATION' END,
           CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' ELSE 'NOBYPASSRLS' END,
           'CONNECTION LIMIT ' || r.rolconnlimit,
           'VALID UNTIL ' || pg_catalog.quote_literal(r.rolvaliduntil::text)) AS text) attributes
 WHERE r.oid >= 16384 AND r.rolname <> current_user
UNION ALL
SELECT 'member', pg_catalog.format('%I in %I', m.rolname, g.rolname),
       CASE WHEN pg_catalog.bool_or(a.admin_option) THEN 'WITH ADMIN OPTION' ELSE 'member' END,
       pg_catalog.format('GRANT %I TO %I%s', g.rolname, m.rolname,
                         CASE WHEN pg_catalog.bool_or(a.admin_option) THEN ' WITH ADMIN OPTION' END)
  FROM pg_catalog.pg_auth_members a
  JOIN pg_catalog.pg_roles m ON m.oid = a.member JOIN pg_catalog.pg_roles g ON g.oid = a.roleid
 WHERE m.oid >= 16384 AND m.rolname <> current_user GROUP BY m.rolname, g.rolname
UNION ALL
SELECT 'setting', pg_catalog.format('%s%s of %s', CASE WHEN s.setdatabase <> 0 THEN 'database, ' END,
           COALESCE('role ' || pg_catalog.quote_ident(r.rolname), 'all roles'), one.name),
       one.value,
       CASE WHEN r.rolname IS NULL
            THEN pg_catalog.format('ALTER DATABASE {database} SET %s = %s', one.name, one.written)
            ELSE pg_catalog.format('ALTER ROLE %I%s SET %s = %s', r.rolname,
                     CASE WHEN s.setdatabase <> 0
                          THEN ' IN DATABASE {database}' END, one.name, one.written)
       END
  FROM pg_catalog.pg_db_role_setting s
  LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
 CROSS JOIN LATERAL (SELECT pair.name, pair.value,
                            -- the value of these is a list whose parts are quoted already
                            CASE WHEN pg_catalog.lower(pair.name) IN
                                      ('search_path', 'temp_tablespaces', 'local_preload_libraries',
                                       'session_preload_libraries', 'shared_preload_libraries')
                                 THEN pair.value ELSE pg_catalog.quote_literal(pair.value) END AS written
                       FROM (SELECT pg_catalog.split_part(c, '=', 1) AS name,
                                    pg_catalog.substr(c, pg_catalog.strpos(c, '=') + 1) AS value
                               FROM pg_catalog.unnest(s.setconfig) c) pair) one
 WHERE s.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database
                              WHERE datname = pg_catalog.current_database()))
   AND r.rolname IS DISTINCT FROM current_user
UNION ALL
SELECT 'database', property.name, property.value, ''
  FROM pg_catalog.pg_database d
 CROSS JOIN LATERAL (VALUES ('encoding', pg_catalog.pg_encoding_to_char(d.encoding)::text),
                            ('collation', d.datcollate::text), ('character type', d.datctype::text),
                            ('connection limit', d.datconnlimit::text)) property(name, value)
 WHERE d.datname = pg_catalog.current_database()
UNION ALL
SELECT 'tablespace', pg_catalog.quote_ident(t.spcname), 'tablespace', ''
  FROM pg_catalog.pg_tablespace t
 WHERE t.oid >= 16384
   AND (EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.reltablespace = t.oid)
        OR t.spcname = pg_catalog.current_setting('default_tablespace'))
UNION ALL
SELECT 'extension', pg_catalog.quote_ident(e.extname), e.extversion,
       pg_catalog.format('CREATE EXTENSION %I SCHEMA %I VERSION %L', e.extname, n.nspname, e.extversion)
  FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
 WHERE e.extname <> 'plpgsql'
UNION ALL
SELECT 'server setting', s.name, s.reset_val,
       pg_catalog.format('ALTER SYSTEM SET %s = %L', s.name, s.reset_val)
  FROM pg_catalog.pg_settings s WHERE s.name = ANY(%s)
"""

#: roles that own or may do something in this database, and whether a policy names them; nothing is noted
#: to depend on the role that the server was made with
_NEEDED = """
SELECT pg_catalog.quote_ident(r.rolname), pg_catalog.bool_or(d.deptype = 'r')
  FROM pg_catalog.pg_shdepend d JOIN pg_catalog.pg_roles r ON r.oid = d.refobjid
 WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass AND r.oid >= 16384
   AND d.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
 GROUP BY r.rolname
 UNION ALL
SELECT pg_catalog.quote_ident(r.rolname), false FROM pg_catalog.pg_roles r
 WHERE r.oid = 10
   AND EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid >= 16384 AND relowner = r.oid UNION ALL
               SELECT FROM pg_catalog.pg_proc WHERE oid >= 16384 AND proowner = r.oid UNION ALL
               SELECT FROM pg_catalog.pg_namespace WHERE oid >= 16384 AND nspowner = r.oid)
"""


async def read_outside(connection: AsyncConnection[Any], *, target_database: str) -> list[Thing]:
    """`target_database`: what the database is called in the statements that would mend the target.

    The server's settings are those that a new session of this user has.
    """
    question = _OUTSIDE.replace("%", "%%").replace("ANY(%%s)", "ANY(%s)")
    cursor = await connection.execute(question.encode(), (list(_SERVER),))
    database = quoted(target_database)
    rows = await cursor.fetchall()
    return [
        Thing(kind, name, text or "", (make or "").replace("{database}", database))
        for kind, name, text, make in rows
    ]


async def read_available_extensions(connection: AsyncConnection[Any]) -> dict[str, set[str]]:
    """The versions of each extension that the server could install."""
    cursor = await connection.execute("SELECT name, version FROM pg_catalog.pg_available_extension_versions")
    found: dict[str, set[str]] = {}
    for name, version in await cursor.fetchall():
        found.setdefault(name, set()).add(version)
    return found


async def read_roles_needed(connection: AsyncConnection[Any], *, owners: bool) -> list[str]:
    """Roles, quoted, that this database's definitions need; with `owners`, also for owners and grants."""
    cursor = await connection.execute(_NEEDED.encode())
    return [name for name, in_policy in await cursor.fetchall() if owners or in_policy]
