UPDATE priced SET price = price + 0.50 WHERE item < 5;
UPDATE priced SET during = daterange(lower(during), upper(during) - 1) WHERE item = 7 AND lower(during) > '2026-06-01';
BEGIN; DELETE FROM booked WHERE item = 9; DELETE FROM priced WHERE item = 9; INSERT INTO priced VALUES (9, '[2026-01-01,2026-02-01)', 1), (9, '[2026-02-01,2027-01-01)', 2); INSERT INTO booked VALUES (90, 9, '[2026-01-20,2026-02-20)'); COMMIT;
BEGIN; UPDATE priced SET during = '[2027-05-01,2027-06-01)' WHERE item = 3 AND during @> date '2026-10-01'; INSERT INTO priced VALUES (3, '[2026-10-01,2026-10-05)', 7); COMMIT;
UPDATE booked SET during = '[2026-01-11,2026-02-11)' WHERE id < 5;
DELETE FROM priced WHERE item = 8 AND lower(during) > '2026-04-01';
UPDATE shifts SET at = at + tstzmultirange(tstzrange('2026-01-02 00:00+00', '2026-01-02 08:00+00')) WHERE who < 'w3'; DELETE FROM shifts WHERE who = 'w5';
