CREATE TABLE shapes (
    id int PRIMARY KEY, pt point, ln line, ls lseg, bx box, pa path, po polygon, ci circle,
    i inet, c cidr, m macaddr, m8 macaddr8, l pg_lsn, s pg_snapshot, ar point[], bs box[]
);
