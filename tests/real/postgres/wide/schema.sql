SELECT format('CREATE TABLE wide (id int PRIMARY KEY, %s)', string_agg(format('c%s int', i), ', ')) FROM generate_series(1, 1500) i \gexec
CREATE TABLE long_rows (id int PRIMARY KEY, a text, b text);
