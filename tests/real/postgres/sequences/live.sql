INSERT INTO numbered (v) SELECT 'live' FROM generate_series(1, 500);
INSERT INTO uses (v) SELECT 'live' FROM generate_series(1, 500);
SELECT nextval('"Down, by seven"'), nextval('round') FROM generate_series(1, 98);
SELECT setval('alone', 1000000);
INSERT INTO uses (v) VALUES ('after setval');
BEGIN; SELECT nextval('numbered_id_seq') FROM generate_series(1, 40); ROLLBACK;
UPDATE numbered SET self = DEFAULT WHERE id < 5;
