-- Which run of the daemon has the store. Every transaction looks at it.
CREATE TABLE owner (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    run  BLOB NOT NULL CHECK (length(run) = 16)
) STRICT;
