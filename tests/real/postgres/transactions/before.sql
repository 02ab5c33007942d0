INSERT INTO tx SELECT i, 'before' FROM generate_series(1, 100) i;
