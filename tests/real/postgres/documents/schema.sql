CREATE TABLE documents (id int PRIMARY KEY, j json, b jsonb, v tsvector, q tsquery, p jsonpath);
