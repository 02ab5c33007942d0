ALTER TABLE reordered RENAME TO was;
CREATE TABLE reordered (c numeric, b text, id int PRIMARY KEY, a int);
INSERT INTO reordered (id, a, b, c) SELECT id, a, b, c FROM was;
DROP TABLE was;
ALTER TABLE extended_there ADD extra text NOT NULL DEFAULT 'ours', ADD counted int GENERATED ALWAYS AS (a + 1) STORED;
