CREATE TABLE times (
    id int PRIMARY KEY, d date, t time, tz timetz, ts timestamp, tstz timestamptz, i interval, ts0 timestamp(0)
);
