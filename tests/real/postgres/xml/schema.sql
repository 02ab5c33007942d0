CREATE TABLE papers (id int PRIMARY KEY, body xml, parts xml[]);
CREATE TABLE loose_papers (body xml);
ALTER TABLE loose_papers REPLICA IDENTITY FULL;
