CREATE TABLE tx (id int PRIMARY KEY, v text);
CREATE FUNCTION nest(n int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tx VALUES (10000 + n, 'nested');
    IF n > 0 THEN
        BEGIN
            PERFORM nest(n - 1);
            IF n % 3 = 0 THEN RAISE 'undo'; END IF;
        EXCEPTION WHEN raise_exception THEN
            INSERT INTO tx VALUES (20000 + n, 'undone below');
        END;
    END IF;
END $$;
SET search_path = pg_catalog;
