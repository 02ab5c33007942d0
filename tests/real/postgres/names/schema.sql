CREATE TABLE "Ünïcode ""quoted"" таблица" ("select" int PRIMARY KEY, "a.b" text, "значение; --" text, "%s %(x)s" int, "$1" int);
CREATE TABLE "   " (" " int PRIMARY KEY, "  " text);
CREATE TABLE "sixty-three bytes of name, and not a single one of them is less!" (id int PRIMARY KEY, "ляляляляляляляляляляляляляляляля" int);
CREATE TABLE "COPY" ("FROM" int PRIMARY KEY, "stdin" text);
CREATE TYPE "Type, odd" AS ENUM ('a,b', '"', '\');
CREATE TABLE "日本" ("木" "Type, odd", "\" "Type, odd"[], PRIMARY KEY ("木"));
