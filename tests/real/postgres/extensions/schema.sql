CREATE TABLE extended (id int PRIMARY KEY, h public.hstore, c public.citext, l public.ltree, ls public.ltree[], q public.lquery,
    cu public.cube, s public.seg, i public.isbn13, hs public.hstore[]);
CREATE TABLE by_citext (c public.citext PRIMARY KEY, n int);
CREATE TABLE by_ltree (l public.ltree PRIMARY KEY, n int);
