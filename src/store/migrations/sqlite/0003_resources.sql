-- What resources and their services need: events of keys with their deliveries,
-- rewrap campaigns, and finding registrations by where they are attached.
-- Times are microseconds since the Unix epoch, run times microseconds.

ALTER TABLE keys ADD COLUMN restored INTEGER;
ALTER TABLE keys ADD COLUMN restored_run INTEGER;
-- When services were last told of the key.
ALTER TABLE keys ADD COLUMN told INTEGER;
ALTER TABLE keys ADD COLUMN told_run INTEGER;

CREATE INDEX registrations_by_attachment ON registrations (instance, attached_to, key, resource)
    WHERE attached_to IS NOT NULL;

-- Which services have resources registered against a key.
CREATE TABLE registration_services (
    key     BLOB NOT NULL,
    service TEXT NOT NULL,
    n       INTEGER NOT NULL CHECK (n >= 0),
    PRIMARY KEY (key, service)
) STRICT, WITHOUT ROWID;

INSERT INTO registration_services (key, service, n)
    SELECT key, service, count(*) FROM registrations GROUP BY key, service;

CREATE TRIGGER registration_service_added AFTER INSERT ON registrations BEGIN
    INSERT INTO registration_services (key, service, n) VALUES (new.key, new.service, 1)
    ON CONFLICT DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER registration_service_removed AFTER DELETE ON registrations BEGIN
    UPDATE registration_services SET n = n - 1
    WHERE key = old.key AND service = old.service;
END;

CREATE TABLE key_events (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    instance     TEXT NOT NULL,
    key          BLOB NOT NULL CHECK (length(key) = 16),
    type         TEXT NOT NULL,
    time         INTEGER NOT NULL,
    run          INTEGER NOT NULL,
    state        TEXT NOT NULL,
    version      BLOB NOT NULL CHECK (length(version) = 16),
    previous     BLOB,
    registration BLOB,
    resource     TEXT
) STRICT;

-- An event that a service is to be told of, until it has acknowledged it.
CREATE TABLE deliveries (
    service      TEXT NOT NULL,
    event        INTEGER NOT NULL REFERENCES key_events (id),
    run          INTEGER NOT NULL,
    acknowledged INTEGER,
    failure      TEXT,
    overdue      INTEGER NOT NULL DEFAULT 0 CHECK (overdue IN (0, 1)),
    PRIMARY KEY (service, event)
) STRICT, WITHOUT ROWID;

CREATE INDEX deliveries_by_event ON deliveries (event);
CREATE INDEX deliveries_open ON deliveries (run) WHERE acknowledged IS NULL AND overdue = 0;

CREATE TABLE campaigns (
    key        BLOB PRIMARY KEY REFERENCES keys (id),
    target     BLOB NOT NULL CHECK (length(target) = 16),
    rate       INTEGER NOT NULL CHECK (rate > 0),
    state      TEXT NOT NULL CHECK (state IN ('running', 'paused', 'done')),
    place      TEXT NOT NULL,
    requested  INTEGER NOT NULL,
    created    INTEGER NOT NULL,
    created_by TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- When a DEK was last unwrapped under a key; written now and then.
CREATE TABLE key_use (
    key       BLOB PRIMARY KEY CHECK (length(key) = 16),
    unwrapped INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
