INSERT INTO generated (a) SELECT i FROM generate_series(1, 20) i;
INSERT INTO dropped SELECT i, 'v' || i, i, NULL, ARRAY[i] FROM generate_series(2, 20) i;
INSERT INTO reordered SELECT i, i, 'b' || i, i / 7.0 FROM generate_series(1, 20) i;
INSERT INTO extended_there SELECT i, i FROM generate_series(1, 20) i;
INSERT INTO only_key SELECT generate_series(1, 20);
INSERT INTO four_keys SELECT i, 'b' || i, date '2026-01-01' + i, i / 3.0 FROM generate_series(1, 20) i;
