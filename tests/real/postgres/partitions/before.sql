INSERT INTO parts SELECT i, date '2026-01-01' + i % 100, 'v' || i FROM generate_series(1, 200) i;
INSERT INTO listed VALUES ('x', 1), ('y', 2), ('z', 3);
INSERT INTO part_heap SELECT i % 200, i FROM generate_series(1, 300) i;
