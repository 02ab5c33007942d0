INSERT INTO computed (id, a, b) SELECT i, i, 'b' || i FROM generate_series(1, 50) i;
INSERT INTO checked (id, a) SELECT i, i FROM generate_series(1, 20) i;
INSERT INTO parted (id, at) SELECT i, date '2026-01-01' + i * 5 FROM generate_series(1, 60) i;
