INSERT INTO heap SELECT i % 3, NULLIF(i % 4, 0)::text, CASE WHEN i % 5 = 0 THEN NULL ELSE ARRAY[i % 2, NULL] END FROM generate_series(1, 60) i;
INSERT INTO heap VALUES (NULL, NULL, NULL), (NULL, NULL, NULL);
INSERT INTO by_index SELECT i, 'b' || i % 5, NULL FROM generate_series(1, 50) i;
INSERT INTO one_column SELECT NULLIF(i % 2, 0)::text FROM generate_series(1, 20) i;
