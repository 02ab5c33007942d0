UPDATE wide SET c2 = 2, c777 = id WHERE id % 2 = 0;
INSERT INTO wide (id, c1000) SELECT i, i FROM generate_series(100, 150) i;
DELETE FROM wide WHERE id = 7;
UPDATE long_rows SET b = 'short' WHERE id = 1;
INSERT INTO long_rows SELECT 10, repeat(md5('x'), 60000), NULL;
DELETE FROM long_rows WHERE id = 2;
