INSERT INTO priced SELECT i % 10, daterange(date '2026-01-01' + i / 10 * 30, date '2026-01-01' + (i / 10 + 1) * 30), i FROM generate_series(0, 99) i;
INSERT INTO booked SELECT i, i, daterange('2026-01-10', '2026-03-10') FROM generate_series(0, 9) i;
INSERT INTO shifts SELECT 'w' || i, tstzmultirange(tstzrange('2026-01-01 00:00+00', '2026-01-01 08:00+00')), 'n' FROM generate_series(1, 5) i;
