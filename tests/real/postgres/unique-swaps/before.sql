INSERT INTO swaps SELECT i, i, i, 't' || i FROM generate_series(1, 40) i;
INSERT INTO keyswaps SELECT i, i FROM generate_series(1, 10) i;
INSERT INTO ring SELECT i, i % 10 + 1 FROM generate_series(1, 10) i;
INSERT INTO partial SELECT i, i % 10, i <= 10 FROM generate_series(1, 30) i;
INSERT INTO excluded SELECT i, int4range(i * 10, i * 10 + 10) FROM generate_series(1, 10) i;
