UPDATE "Ünïcode ""quoted"" таблица" SET "a.b" = 'changed', "$1" = NULL WHERE "select" % 2 = 0;
DELETE FROM "Ünïcode ""quoted"" таблица" WHERE "select" = 5;
UPDATE "   " SET "  " = 'now' WHERE " " = 2; INSERT INTO "   " VALUES (3, '');
UPDATE "sixty-three bytes of name, and not a single one of them is less!" SET "ляляляляляляляляляляляляляляляля" = 9;
UPDATE "COPY" SET stdin = 'y' || stdin; DELETE FROM "COPY" WHERE "FROM" = 2;
UPDATE "日本" SET "木" = '\' WHERE "木" = '"'; UPDATE "日本" SET "\" = "\" || '"'::"Type, odd";
