INSERT INTO "Ünïcode ""quoted"" таблица" SELECT i, 'x', 'y', i, i FROM generate_series(1, 10) i;
INSERT INTO "   " VALUES (1, ' '), (2, NULL);
INSERT INTO "sixty-three bytes of name, and not a single one of them is less!" VALUES (1, 1), (2, 2);
INSERT INTO "COPY" VALUES (1, '\.'), (2, 'x');
INSERT INTO "日本" VALUES ('a,b', '{"a,b","\"","\\"}'), ('"', '{}');
