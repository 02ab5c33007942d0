INSERT INTO quiet SELECT i, 'v' || i FROM generate_series(1, 20) i;
