-- How far the audit log had come when this was written: at start the log must hold that
-- record, and no change behind it that is not here. One row.
CREATE TABLE audit_position (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    records INTEGER NOT NULL,
    hash    BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT, WITHOUT ROWID;

-- One row, in a backup and in a store that was restored from one and not accepted yet.
-- The time is seconds since the Unix epoch; checkpoint and key are empty if there was none.
CREATE TABLE backup (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    time       INTEGER NOT NULL,
    checkpoint TEXT NOT NULL,
    public_key TEXT NOT NULL
) STRICT, WITHOUT ROWID;
