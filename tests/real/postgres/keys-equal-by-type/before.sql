INSERT INTO by_numeric VALUES (1.0, 1), (2.00, 2), (3, 3), (0, 0);
INSERT INTO by_float VALUES ('-0', 1), (1, 2), ('NaN', 3);
INSERT INTO by_char VALUES ('a', 1), ('b  ', 2);
INSERT INTO by_interval VALUES ('1 day', 1), ('1 mon', 2), ('48:00', 3);
INSERT INTO by_timetz VALUES ('2026-01-01 00:00+00', 1), ('infinity', 2);
INSERT INTO by_jsonb VALUES ('{"a": 1.0}', 1), ('[1, 2]', 2);
INSERT INTO whole VALUES (1.0, '1 day', 1), (1.00, '24:00', 2), (1.0, '1 day', 1);
