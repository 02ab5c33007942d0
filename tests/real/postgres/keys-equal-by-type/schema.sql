CREATE TABLE by_numeric (k numeric PRIMARY KEY, v int);
CREATE TABLE by_float (k double precision PRIMARY KEY, v int);
CREATE TABLE by_char (k char(5) PRIMARY KEY, v int);
CREATE TABLE by_interval (k interval PRIMARY KEY, v int);
CREATE TABLE by_timetz (k timestamptz PRIMARY KEY, v int);
CREATE TABLE by_jsonb (k jsonb PRIMARY KEY, v int);
CREATE TABLE whole (n numeric, i interval, v int);
ALTER TABLE whole REPLICA IDENTITY FULL;
