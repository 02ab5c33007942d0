CREATE TABLE numbers (
    id int PRIMARY KEY, s smallint, b bigint, n numeric, n2 numeric(12, 4), n_neg numeric(3, -2),
    r real, d double precision, m money, o oid, x xid8
);
