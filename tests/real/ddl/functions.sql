-- statements that a function gives: their text is in the call stack alone
DO $do$
BEGIN
    CREATE TABLE from_do (id int PRIMARY KEY, v text DEFAULT 'x; y');
    INSERT INTO from_do VALUES (1);
    FOR i IN 1..3 LOOP
        EXECUTE format('CREATE TABLE %I (id int PRIMARY KEY, "odd ""column""" text)', 'made ' || i);
        EXECUTE format('INSERT INTO %I VALUES (%s, %L)', 'made ' || i, i, 'row');
        EXECUTE format('ALTER TABLE %I ADD c%s int DEFAULT %s', 'made ' || i, i, i);
    END LOOP;
    ALTER TABLE from_do ADD w int;
    UPDATE from_do SET w = 3;
    DROP TABLE "made 2";
    CREATE TEMP TABLE only_here (id int);
    DROP TABLE only_here;
END
$do$;
CREATE FUNCTION make(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'CREATE TABLE ' || quote_ident(name) || ' (id int PRIMARY KEY)';
    EXECUTE 'CREATE INDEX ON ' || quote_ident(name) || ' (id) WHERE id > 5';
END $$;
SELECT make('by_function'), make('By Function 2');
INSERT INTO by_function VALUES (1);
CREATE FUNCTION outer_make() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM make('deeper'); END $$;
SELECT outer_make();
INSERT INTO deeper VALUES (7);
CREATE PROCEDURE proc() LANGUAGE plpgsql AS $$ BEGIN CREATE TABLE by_procedure AS SELECT 5 AS five; END $$;
CALL proc();
INSERT INTO by_procedure VALUES (6);
DO $$ BEGIN
    BEGIN
        CREATE TABLE undone (id int);
        RAISE division_by_zero;
    EXCEPTION WHEN division_by_zero THEN
        CREATE TABLE done_instead (id int PRIMARY KEY);
    END;
END $$;
INSERT INTO done_instead VALUES (1);
