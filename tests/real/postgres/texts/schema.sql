CREATE TABLE texts (
    id int PRIMARY KEY, t text, v varchar(10), c char(5), q "char", n name, b bytea, bit5 bit(5), vb bit varying(70), u uuid
);
