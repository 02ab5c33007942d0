INSERT INTO secured SELECT i, 'x', 'v' FROM generate_series(1, 20) i;
