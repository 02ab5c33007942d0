INSERT INTO animals SELECT i, 'a' || i FROM generate_series(1, 10) i;
INSERT INTO dogs SELECT i, 'd' || i, 'b' FROM generate_series(1, 10) i;
INSERT INTO poodles SELECT i, 'p' || i, 'b', i FROM generate_series(1, 10) i;
