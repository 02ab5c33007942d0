INSERT INTO people SELECT 'Name' || i, i FROM generate_series(1, 200) i;
INSERT INTO pairs SELECT i, 'A' || i % 7, 'b' || i, 'x' FROM generate_series(1, 100) i;
INSERT INTO uniques SELECT i, 'Tag' || i FROM generate_series(1, 50) i;
INSERT INTO heap VALUES ('same', 'x1'), ('SAME', 'x1'), ('Same', 'x10'), ('same', 'x1');
INSERT INTO sorted SELECT 'item' || i, i FROM generate_series(1, 40) i;
