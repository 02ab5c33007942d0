CREATE TABLE priced (item int, during daterange, price numeric, PRIMARY KEY (item, during WITHOUT OVERLAPS));
CREATE TABLE booked (id int PRIMARY KEY, item int, during daterange, FOREIGN KEY (item, PERIOD during) REFERENCES priced (item, PERIOD during));
CREATE TABLE shifts (who text, at tstzmultirange, note text, UNIQUE (who, at WITHOUT OVERLAPS));
ALTER TABLE shifts REPLICA IDENTITY FULL;
