-- What is installed on the source so that schema changes are told in order with the rows. Repeatable.
--
-- Event triggers call ended, which runs as whoever gave the statement and so knows role and search path;
-- it hands them to tell, which runs as Castling's user and writes the message. Users need no right but
-- USAGE on the schema.
--
-- Any function that is called while a statement is under way can call tell too. It looks at the call
-- stack: only a call in exactly the words of ended is answered, so the role is always the caller's own.
-- What is written is sealed with a key that only Castling's user can read, because PostgreSQL lets everybody
-- write logical messages; what bears no seal does not reach the journal (see ddl_message.py).
--
-- Nothing here may make a user's own statement fail: what goes wrong is caught and told as a statement that
-- could not be told, which is loud on the target.

CREATE SCHEMA IF NOT EXISTS castling_ddl;
GRANT USAGE ON SCHEMA castling_ddl TO PUBLIC;

CREATE TABLE IF NOT EXISTS castling_ddl.key (key bytea NOT NULL);
INSERT INTO castling_ddl.key
SELECT pg_catalog.uuid_send(pg_catalog.gen_random_uuid()) OPERATOR(pg_catalog.||)
       pg_catalog.uuid_send(pg_catalog.gen_random_uuid())
 WHERE NOT EXISTS (SELECT FROM castling_ddl.key);

-- the streams that want to be told, and regular expressions of the names of their tables
CREATE TABLE IF NOT EXISTS castling_ddl.stream (
    publication name PRIMARY KEY,
    include text[] NOT NULL,
    exclude text[] NOT NULL
);
-- how each table was when it was last looked at; attributes: how many columns it had ever had
CREATE TABLE IF NOT EXISTS castling_ddl.table (
    relation oid PRIMARY KEY,
    schema name NOT NULL,
    name name NOT NULL,
    attributes int NOT NULL,
    whole_by_us boolean NOT NULL DEFAULT false
);
-- which tables a stream publishes; covered: by itself or through a root; listed: by itself;
-- number: in which order that changed
CREATE SEQUENCE IF NOT EXISTS castling_ddl.number;
CREATE TABLE IF NOT EXISTS castling_ddl.member (
    publication name NOT NULL,
    relation oid NOT NULL,
    covered boolean NOT NULL,
    listed boolean NOT NULL,
    number bigint NOT NULL DEFAULT pg_catalog.nextval('castling_ddl.number'),
    PRIMARY KEY (publication, relation)
);

-- a table as the settings name it: a part that holds a dot or a quote is quoted
CREATE OR REPLACE FUNCTION castling_ddl.name(schema name, name name) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $castling$
    SELECT CASE WHEN schema ~ '[."]' THEN '"' || replace(schema, '"', '""') || '"' ELSE schema::text END || '.'
        || CASE WHEN name ~ '[."]' THEN '"' || replace(name, '"', '""') || '"' ELSE name::text END
$castling$;

-- the names by which a table is chosen: its own and those of its roots
CREATE OR REPLACE FUNCTION castling_ddl.names(table_ oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $castling$
    SELECT array_agg(castling_ddl.name(n.nspname, c.relname))
      FROM (SELECT table_ UNION SELECT relid FROM pg_partition_ancestors(table_)) a(oid)
      JOIN pg_class c ON c.oid = a.oid JOIN pg_namespace n ON n.oid = c.relnamespace
$castling$;

-- see that updates and deletes of a published table can be told, before it is published
CREATE OR REPLACE FUNCTION castling_ddl.identity(table_ oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $castling$
DECLARE
    identity "char"; has_key boolean; has_index boolean; by_us boolean;
BEGIN
    SELECT c.relreplident,
           EXISTS (SELECT FROM pg_index i
                    WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid AND i.indimmediate),
           EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid),
           COALESCE((SELECT t.whole_by_us FROM castling_ddl.table t WHERE t.relation = c.oid), false)
      INTO identity, has_key, has_index, by_us
      FROM pg_class c WHERE c.oid = table_ AND c.relkind = 'r';
    IF identity IS NULL THEN
        RETURN;
    ELSIF identity = 'f' AND by_us AND has_key THEN
        EXECUTE format('ALTER TABLE ONLY %s REPLICA IDENTITY DEFAULT', table_::regclass);
        UPDATE castling_ddl.table SET whole_by_us = false WHERE relation = table_;
    ELSIF identity = 'n' OR (identity = 'd' AND NOT has_key) OR (identity = 'i' AND NOT has_index) THEN
        EXECUTE format('ALTER TABLE ONLY %s REPLICA IDENTITY FULL', table_::regclass);
        UPDATE castling_ddl.table SET whole_by_us = true WHERE relation = table_;
    END IF;
END $castling$;

-- whether PostgreSQL would refuse everybody's updates of a table if it were published: generated columns are not
-- published, so no row can be told by one (as a whole since version 18)
CREATE OR REPLACE FUNCTION castling_ddl.unfit(table_ oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $castling$
    SELECT COALESCE(bool_or(CASE
               WHEN k.indrelid IS NOT NULL THEN a.attnum = ANY (k.indkey::int2[])
               ELSE current_setting('server_version_num')::int >= 180000 END), false)
      FROM pg_class c
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND a.attgenerated <> '' AND NOT a.attisdropped
      LEFT JOIN pg_index k ON k.indrelid = c.oid AND k.indisvalid AND k.indimmediate
           AND CASE c.relreplident WHEN 'i' THEN k.indisreplident ELSE k.indisprimary END
     WHERE c.oid = table_ AND c.relkind = 'r'
$castling$;

-- Publish those of tables that a stream's patterns choose, take out those that they no longer do. Answers
-- the tables whose rows from before were never told; fresh: a table never seen before has none.
CREATE OR REPLACE FUNCTION castling_ddl.join(tables oid[], fresh boolean) RETURNS oid[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $castling$
DECLARE
    stream record; one record; untold oid[] = '{}'; was boolean; has_rows boolean;
BEGIN
    FOR stream IN
        SELECT s.*, p.oid AS id FROM castling_ddl.stream s JOIN pg_publication p ON p.pubname = s.publication
         ORDER BY s.publication
    LOOP
        FOR one IN
            SELECT c.oid, c.relkind, c.relpersistence, n.nspname, c.relname,
                   EXISTS (SELECT FROM pg_publication_rel r
                            WHERE r.prpubid = stream.id AND r.prrelid = c.oid) AS listed,
                   c.relispartition AND EXISTS (
                       SELECT FROM pg_partition_ancestors(c.oid) a
                         JOIN pg_publication_rel r ON r.prrelid = a.relid AND r.prpubid = stream.id
                        WHERE a.relid <> c.oid) AS through,
                   NOT castling_ddl.unfit(c.oid)
                   AND NOT EXISTS (SELECT FROM unnest(k.names) x, unnest(stream.exclude) e WHERE x ~ e)
                   AND EXISTS (SELECT FROM unnest(k.names) x, unnest(stream.include) e WHERE x ~ e) AS chosen
              FROM unnest(tables) t(oid)
              JOIN pg_class c ON c.oid = t.oid AND c.relkind IN ('r', 'p')
              JOIN pg_namespace n ON n.oid = c.relnamespace
                   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'castling', 'castling_ddl')
             CROSS JOIN LATERAL (SELECT castling_ddl.names(c.oid) AS names) k
             WHERE NOT EXISTS (SELECT FROM pg_depend d
                                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
             ORDER BY c.relkind, c.oid  -- roots before their partitions
        LOOP
            IF one.chosen AND one.relpersistence = 'p' AND NOT one.listed AND NOT one.through THEN
                BEGIN
                    PERFORM castling_ddl.identity(one.oid);
                    EXECUTE format('ALTER PUBLICATION %I ADD TABLE %s%I.%I', stream.publication,
                                   CASE one.relkind WHEN 'r' THEN 'ONLY ' ELSE '' END, one.nspname, one.relname);
                    one.listed = true;
                EXCEPTION WHEN lock_not_available THEN
                    RAISE WARNING 'castling publishes %.% a little later', one.nspname, one.relname;
                END;
            ELSIF one.listed AND NOT one.chosen AND NOT one.through THEN
                EXECUTE format('ALTER PUBLICATION %I DROP TABLE %s%I.%I', stream.publication,
                               CASE one.relkind WHEN 'r' THEN 'ONLY ' ELSE '' END, one.nspname, one.relname);
                one.listed = false;
            END IF;
            SELECT m.covered INTO was FROM castling_ddl.member m
             WHERE m.publication = stream.publication AND m.relation = one.oid;
            IF one.relkind = 'r' AND (one.listed OR one.through) THEN
                PERFORM castling_ddl.identity(one.oid);
                IF NOT was OR (was IS NULL AND NOT fresh) THEN
                    EXECUTE format('SELECT EXISTS (SELECT FROM ONLY %I.%I)', one.nspname, one.relname)
                       INTO has_rows;
                    IF has_rows THEN
                        untold = untold || one.oid;
                    END IF;
                END IF;
            END IF;
            INSERT INTO castling_ddl.member AS m (publication, relation, covered, listed)
            VALUES (stream.publication, one.oid, one.listed OR one.through, one.listed)
                ON CONFLICT (publication, relation) DO UPDATE
               SET covered = excluded.covered, listed = excluded.listed, number = excluded.number
             WHERE (m.covered, m.listed) <> (excluded.covered, excluded.listed);
        END LOOP;
    END LOOP;
    RETURN untold;
END $castling$;

-- remember how tables are now
CREATE OR REPLACE FUNCTION castling_ddl.remember(tables oid[]) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $castling$
    INSERT INTO castling_ddl.table AS t (relation, schema, name, attributes)
    SELECT c.oid, n.nspname, c.relname, c.relnatts
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = ANY (tables) AND c.relkind IN ('r', 'p')
        ON CONFLICT (relation) DO UPDATE
       SET schema = excluded.schema, name = excluded.name, attributes = excluded.attributes
     WHERE (t.schema, t.name, t.attributes) <> (excluded.schema, excluded.name, excluded.attributes)
$castling$;

-- Write a sealed message into the log of this transaction. The server orders what a transaction and its
-- subtransactions (this runs in one: the block that catches errors) have logged by position, and counts a
-- message at its end but a row at its start: the row right behind would be told before the message as well
-- as after it. So another message, which nobody reads, stands between.
CREATE OR REPLACE FUNCTION castling_ddl.write(told jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $castling$
DECLARE
    body bytea = convert_to(told::text, 'UTF8');
    secret bytea = (SELECT key FROM castling_ddl.key);
BEGIN
    PERFORM pg_logical_emit_message(true, 'castling:ddl', sha256(secret || sha256(secret || body)) || body);
    PERFORM pg_logical_emit_message(true, 'castling.order', '');
END $castling$;

-- the table that an object belongs to: itself, or the one it is an index, trigger, policy … of
CREATE OR REPLACE FUNCTION castling_ddl.table_of(class oid, object oid) RETURNS oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $castling$
    SELECT CASE class
        WHEN 'pg_class'::regclass THEN (
            SELECT CASE WHEN c.relkind IN ('i', 'I')
                        THEN (SELECT i.indrelid FROM pg_index i WHERE i.indexrelid = c.oid)
                        WHEN c.relkind = 'S'
                        THEN (SELECT d.refobjid FROM pg_depend d
                               WHERE d.classid = class AND d.objid = c.oid AND d.refclassid = class
                                 AND d.deptype IN ('a', 'i'))
                        WHEN c.relkind <> 'c' THEN c.oid END
              FROM pg_class c WHERE c.oid = object)
        WHEN 'pg_trigger'::regclass THEN (SELECT t.tgrelid FROM pg_trigger t WHERE t.oid = object)
        WHEN 'pg_policy'::regclass THEN (SELECT t.polrelid FROM pg_policy t WHERE t.oid = object)
        WHEN 'pg_rewrite'::regclass THEN (SELECT t.ev_class FROM pg_rewrite t WHERE t.oid = object)
        WHEN 'pg_constraint'::regclass THEN (SELECT t.conrelid FROM pg_constraint t WHERE t.oid = object)
        WHEN 'pg_statistic_ext'::regclass THEN (SELECT t.stxrelid FROM pg_statistic_ext t WHERE t.oid = object)
    END
$castling$;

-- a table for the message: its name now and before, its columns, and what new ones hold in the rows from before
CREATE OR REPLACE FUNCTION castling_ddl.shape(table_ oid) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
SET DateStyle = ISO SET IntervalStyle = postgres SET TimeZone = 'UTC' SET extra_float_digits = 1
SET bytea_output = hex SET lc_monetary = 'C' AS $castling$
    SELECT jsonb_build_object(
        'schema', n.nspname, 'name', c.relname, 'kind', c.relkind,
        'was', CASE WHEN (k.schema, k.name) <> (n.nspname, c.relname)
                    THEN jsonb_build_array(k.schema, k.name) END,
        'roots', (SELECT jsonb_agg(jsonb_build_array(an.nspname, ac.relname))
                    FROM pg_partition_ancestors(c.oid) a JOIN pg_class ac ON ac.oid = a.relid
                    JOIN pg_namespace an ON an.oid = ac.relnamespace
                   WHERE c.relispartition AND a.relid <> c.oid),
        'columns', (SELECT jsonb_agg(jsonb_build_array(a.attname, format_type(a.atttypid, a.atttypmod),
                                                       a.attgenerated) ORDER BY a.attnum)
                      FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
        'filled', (SELECT jsonb_object_agg(a.attname, a.attmissingval::text) FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attnum > k.attributes AND a.atthasmissing
                      AND NOT a.attisdropped))
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN castling_ddl.table k ON k.relation = c.oid
     WHERE c.oid = table_ AND c.relkind <> 'c'
$castling$;

-- what CREATE TABLE AS and SELECT INTO have made, without its rows
CREATE OR REPLACE FUNCTION castling_ddl.bare(table_ oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $castling$
    SELECT format('CREATE %sTABLE %I.%I (%s)%s%s%s', CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED ' END,
                  n.nspname, c.relname,
                  (SELECT string_agg(format('%I %s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                                            CASE WHEN a.attcollation NOT IN (0, t.typcollation)
                                                 THEN ' COLLATE ' || a.attcollation::regcollation END),
                                     ', ' ORDER BY a.attnum)
                     FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
                    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
                  (SELECT format(' USING %I', m.amname) FROM pg_am m WHERE m.oid = c.relam),
                  ' WITH (' || array_to_string(c.reloptions, ', ') || ')',
                  (SELECT format(' TABLESPACE %I', s.spcname) FROM pg_tablespace s WHERE s.oid = c.reltablespace))
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = table_
$castling$;

-- DROP: exactly what was named, whatever the text was
CREATE OR REPLACE FUNCTION castling_ddl.dropped(tag text) RETURNS jsonb
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $castling$
    WITH dropped AS (
        SELECT *, CASE WHEN object_type IN ('table', 'view', 'materialized view', 'foreign table') THEN address_names
                       WHEN object_type IN ('trigger', 'policy', 'rule') THEN address_names[1:2] END AS of_table
          FROM pg_event_trigger_dropped_objects()
         WHERE NOT is_temporary AND schema_name IS DISTINCT FROM 'castling_ddl' AND object_identity <> 'castling_ddl'
           AND NOT (object_type = 'trigger' AND object_identity LIKE 'castling\_watch on %')
    )
    SELECT jsonb_build_object(
        'type', upper(CASE o.object_type WHEN 'statistics object' THEN 'statistics' ELSE o.object_type END),
        'cascade', EXISTS (SELECT FROM dropped WHERE NOT original AND normal),
        'objects', jsonb_agg(jsonb_build_array(o.object_identity, o.of_table)),
        'tables', (SELECT jsonb_agg(address_names) FROM dropped WHERE object_type = 'table'))
      FROM dropped o WHERE o.original AND tag LIKE 'DROP %'
     GROUP BY o.object_type LIMIT 1
$castling$;

CREATE OR REPLACE FUNCTION castling_ddl.tell(event text, tag text, role text, path name[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lc_messages = 'C' AS $castling$
DECLARE
    stack text; top boolean; seen jsonb; told jsonb; one record;
    objects jsonb = '[]'; tables oid[] = '{}'; rewritten jsonb; untold oid[]; was_any boolean = false;
BEGIN
    GET DIAGNOSTICS stack = PG_CONTEXT;
    stack = substring(stack FROM
        '^PL/pgSQL function (?:castling_ddl\.)?tell\(text,text,text,name\[\]\) line [0-9]+ at GET DIAGNOSTICS\n'
        'SQL statement "SELECT castling_ddl\.tell\(TG_EVENT, TG_TAG, current_user::pg_catalog\.text, '
        'pg_catalog\.current_schemas\(false\)\)"\n'
        'PL/pgSQL function (?:castling_ddl\.)?ended\(\) line [0-9]+ at PERFORM(.*)$');
    IF stack IS NULL THEN
        RAISE 'castling_ddl.tell is called by castling_ddl.ended only';
    END IF;
    IF stack ~ 'PL/pgSQL function (castling_ddl\.)?tell\(' THEN
        RETURN;  -- a statement of Castling's own
    END IF;
    stack = ltrim(stack, E'\n');
    top = stack = '';

    IF event = 'table_rewrite' THEN
        PERFORM set_config('castling_ddl.rewritten', (
            COALESCE(NULLIF(current_setting('castling_ddl.rewritten', true), ''), '{}')::jsonb
            || jsonb_build_object(pg_event_trigger_table_rewrite_oid()::bigint::text,
                                  pg_event_trigger_table_rewrite_reason()))::text, true);
        RETURN;
    END IF;

    told = jsonb_build_object('v', 1, 'tag', tag, 'role', role,
        'path', (SELECT string_agg(quote_ident(p), ', ' ORDER BY n) FROM unnest(path) WITH ORDINALITY u(p, n)),
        'query', CASE WHEN top THEN current_query() END, 'stack', NULLIF(stack, ''),
        'settings', (SELECT jsonb_object_agg(name, setting) FROM pg_settings WHERE name IN (
            'standard_conforming_strings', 'backslash_quote', 'DateStyle', 'IntervalStyle', 'TimeZone',
            'timezone_abbreviations', 'lc_monetary', 'lc_numeric', 'lc_time', 'xmloption', 'array_nulls',
            'transform_null_equals', 'check_function_bodies', 'default_tablespace',
            'default_table_access_method', 'default_toast_compression', 'default_text_search_config',
            'extra_float_digits', 'bytea_output')));

    IF event = 'sql_drop' THEN
        SELECT array_agg(objid) INTO tables FROM pg_event_trigger_dropped_objects()
         WHERE classid = 'pg_class'::regclass AND objsubid = 0;
        DELETE FROM castling_ddl.table WHERE relation = ANY (tables);
        UPDATE castling_ddl.member SET covered = false, listed = false, number = nextval('castling_ddl.number')
         WHERE relation = ANY (tables) AND listed;
        IF NOT (top AND current_query() ~* '^\s*(create|alter)\s+extension') THEN
            told = told || jsonb_build_object('drop', castling_ddl.dropped(tag));
            IF told -> 'drop' <> 'null' THEN
                PERFORM castling_ddl.write(told - '{query,stack}'::text[]);
            END IF;
        END IF;
        RETURN;
    END IF;

    -- which of the statements of a text this is: the n-th of its kind
    IF top THEN
        seen = COALESCE(NULLIF(current_setting('castling_ddl.seen', true), ''), '{}')::jsonb;
        IF seen ->> 'at' IS DISTINCT FROM extract(epoch FROM statement_timestamp())::text THEN
            seen = jsonb_build_object('at', extract(epoch FROM statement_timestamp())::text);
        END IF;
        seen = seen || jsonb_build_object(tag, COALESCE((seen ->> tag)::int, 0) + 1);
        PERFORM set_config('castling_ddl.seen', seen::text, false);
        told = told || jsonb_build_object('nth', seen -> tag);
    END IF;
    rewritten = COALESCE(NULLIF(current_setting('castling_ddl.rewritten', true), ''), '{}')::jsonb;
    PERFORM set_config('castling_ddl.rewritten', '', true);
    IF tag LIKE 'DROP %' AND tag <> 'DROP OWNED' OR tag IN ('REINDEX', 'IMPORT FOREIGN SCHEMA')
       OR tag ~ '(PUBLICATION|SUBSCRIPTION|EVENT TRIGGER|USER MAPPING)$' THEN
        RETURN;
    END IF;

    FOR one IN SELECT * FROM pg_event_trigger_ddl_commands() LOOP
        was_any = true;
        CONTINUE WHEN one.in_extension AND tag NOT LIKE '% EXTENSION';
        CONTINUE WHEN one.schema_name = 'pg_temp' OR one.schema_name LIKE 'pg\_temp\_%'
                   OR one.schema_name IN ('castling', 'castling_ddl')
                   OR one.object_identity IN ('castling', 'castling_ddl')
                   OR one.object_type ~ '^(publication|subscription|event trigger|user mapping)'
                   OR one.object_type = 'trigger' AND one.object_identity LIKE 'castling\_watch on %';
        objects = objects || jsonb_build_array(jsonb_build_array(one.object_type, one.object_identity,
            (SELECT jsonb_build_array(a.object_names, a.object_args)
               FROM pg_identify_object_as_address(one.classid, one.objid, one.objsubid) a
              WHERE one.objid IS NOT NULL)));
        IF one.object_type = 'schema' AND tag = 'ALTER SCHEMA' THEN
            tables = tables || ARRAY(SELECT oid FROM pg_class
                                      WHERE relnamespace = one.objid AND relkind IN ('r', 'p'));
        END IF;
        tables = tables || castling_ddl.table_of(one.classid, one.objid);
        IF one.classid = 'pg_class'::regclass AND tag IN ('CREATE TABLE AS', 'SELECT INTO') THEN
            told = told || jsonb_build_object('bare', castling_ddl.bare(one.objid));
        ELSIF one.classid = 'pg_class'::regclass AND one.object_type = 'index' AND tag = 'CREATE INDEX' THEN
            told = told || jsonb_build_object('index', (
                SELECT pg_get_indexdef(c.oid) FROM pg_class c WHERE c.oid = one.objid AND c.relkind = 'i'));
        END IF;
    END LOOP;
    IF objects = '[]' AND (was_any OR tag NOT IN ('DROP OWNED', 'REASSIGN OWNED')) THEN
        RETURN;
    END IF;

    tables = tables || ARRAY(SELECT key::oid FROM jsonb_each(rewritten));
    IF EXISTS (SELECT FROM pg_class WHERE oid = ANY (tables) AND relkind = 'p') THEN
        -- a partition that was detached is not told of, and no longer below its root
        tables = tables || ARRAY(
            SELECT m.relation FROM castling_ddl.member m JOIN pg_class c ON c.oid = m.relation
             WHERE m.covered AND NOT m.listed AND NOT c.relispartition);
    END IF;
    tables = ARRAY(
        WITH RECURSIVE below(oid) AS (
            SELECT unnest(tables) UNION
            SELECT h.inhrelid FROM below JOIN pg_inherits h ON h.inhparent = below.oid
        ) SELECT b.oid FROM below b JOIN pg_class c ON c.oid = b.oid
           WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') AND c.relpersistence <> 't' ORDER BY b.oid);
    untold = castling_ddl.join(tables, tag = 'CREATE TABLE');
    IF tag = 'ALTER SCHEMA' AND current_setting('server_version_num')::int < 160000 THEN
        -- older servers go on to tell tables by the name that their schema had; touching them mends it
        FOR one IN SELECT oid FROM pg_class WHERE oid = ANY (tables) AND relkind = 'r' LOOP
            EXECUTE format('ALTER TABLE ONLY %s RESET (castling_nothing)', one.oid::regclass);
        END LOOP;
    END IF;
    told = told || jsonb_build_object('objects', objects, 'tables', (
        SELECT jsonb_agg(castling_ddl.shape(t.oid) || jsonb_build_object(
                   'untold', t.oid = ANY (untold), 'unfit', castling_ddl.unfit(t.oid), 'rewritten', rewritten -> t.oid::bigint::text))
          FROM unnest(tables) t(oid)));
    PERFORM castling_ddl.remember(tables);
    PERFORM castling_ddl.write(jsonb_strip_nulls(told));
END $castling$;

-- for Castling itself: publish a table that no trigger could, and tell of it as if it had just come with its rows
CREATE OR REPLACE FUNCTION castling_ddl.catch_up(table_ oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $castling$
DECLARE
    untold oid[] = castling_ddl.join(ARRAY[table_], false);
BEGIN
    IF EXISTS (SELECT FROM castling_ddl.member WHERE relation = table_ AND covered) THEN
        PERFORM castling_ddl.remember(ARRAY[table_]);
        PERFORM castling_ddl.write(jsonb_strip_nulls(jsonb_build_object(
            'v', 1, 'tag', 'CREATE TABLE AS', 'bare', castling_ddl.bare(table_), 'path', 'pg_catalog',
            'role', (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = table_),
            'objects', (SELECT jsonb_build_array(jsonb_build_array(i.type, i.identity,
                                                 jsonb_build_array(a.object_names, a.object_args)))
                          FROM pg_identify_object('pg_class'::regclass, table_, 0) i,
                               pg_identify_object_as_address('pg_class'::regclass, table_, 0) a),
            'tables', jsonb_build_array(castling_ddl.shape(table_) || jsonb_build_object(
                                            'untold', table_ = ANY (untold))))));
    END IF;
END $castling$;

CREATE OR REPLACE FUNCTION castling_ddl.ended() RETURNS event_trigger LANGUAGE plpgsql AS $castling$
BEGIN
    PERFORM castling_ddl.tell(TG_EVENT, TG_TAG, current_user::pg_catalog.text, pg_catalog.current_schemas(false));
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'castling could not record this statement (%): %', TG_TAG, SQLERRM;
    PERFORM pg_catalog.pg_logical_emit_message(true, 'castling:ddl', pg_catalog.concat('untold:', TG_TAG, ': ', SQLERRM));
    PERFORM pg_catalog.pg_logical_emit_message(true, 'castling.order', '');
END $castling$;

DROP EVENT TRIGGER IF EXISTS castling_ddl_end;
DROP EVENT TRIGGER IF EXISTS castling_ddl_drop;
DROP EVENT TRIGGER IF EXISTS castling_ddl_rewrite;
CREATE EVENT TRIGGER castling_ddl_end ON ddl_command_end EXECUTE FUNCTION castling_ddl.ended();
CREATE EVENT TRIGGER castling_ddl_drop ON sql_drop EXECUTE FUNCTION castling_ddl.ended();
CREATE EVENT TRIGGER castling_ddl_rewrite ON table_rewrite EXECUTE FUNCTION castling_ddl.ended();
