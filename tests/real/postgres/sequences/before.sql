INSERT INTO numbered (v) SELECT 'before' FROM generate_series(1, 25);
INSERT INTO uses (v) SELECT 'before' FROM generate_series(1, 25);
SELECT nextval('"Down, by seven"'), nextval('round') FROM generate_series(1, 8);
