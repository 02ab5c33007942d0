SET TimeZone = 'Australia/Lord_Howe';
SET IntervalStyle = iso_8601;
SET DateStyle = 'German, DMY';
INSERT INTO times (id, d, tstz, i, tz) VALUES
    (10, '29.02.2024', '2026-04-05 01:45:00', 'P1Y2M3DT4H5M6.789S', '02:00'),
    (11, '01.01.0001', '2026-10-04 02:15:00+10:30', 'P-1D', '02:00-03:30');
UPDATE times SET i = i * 2 WHERE id > 9;
UPDATE times SET tstz = tstz - interval '1 month', ts = 'infinity' WHERE id > 9;
UPDATE times SET d = '-infinity', tstz = '-infinity' WHERE id = 1;
DELETE FROM times WHERE id = 2;
