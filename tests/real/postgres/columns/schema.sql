CREATE TABLE generated (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, name text DEFAULT 'unnamed', at timestamptz DEFAULT now());
CREATE TABLE dropped (gone int, id int PRIMARY KEY, also_gone text, v text, w int);
INSERT INTO dropped VALUES (1, 1, 'x', 'v', 1);
ALTER TABLE dropped DROP gone, DROP also_gone;
ALTER TABLE dropped ADD gone text DEFAULT 'again', ADD late int[] DEFAULT '{1,2}';
CREATE TABLE reordered (id int PRIMARY KEY, a int, b text, c numeric);
CREATE TABLE extended_there (id int PRIMARY KEY, a int);
CREATE TABLE only_key (id int PRIMARY KEY);
CREATE TABLE four_keys (a int, b text, c date, d numeric, PRIMARY KEY (d, b, a, c));
