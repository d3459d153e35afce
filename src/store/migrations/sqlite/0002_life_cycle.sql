-- The whole life cycle: rings, dual authorization, rotation policies, purge,
-- instances, import tokens, registrations, and the run time.
-- Run times are microseconds. Where a key has none (it is from before this
-- migration) its windows begin with the first start after it.

ALTER TABLE keys ADD COLUMN ring TEXT NOT NULL DEFAULT 'default';
ALTER TABLE keys ADD COLUMN suspended_run INTEGER;
ALTER TABLE keys ADD COLUMN destroyed_run INTEGER;
ALTER TABLE keys ADD COLUMN rotated_run INTEGER;
ALTER TABLE keys ADD COLUMN purging INTEGER;
ALTER TABLE keys ADD COLUMN purging_run INTEGER;
ALTER TABLE keys ADD COLUMN expiry_noted INTEGER NOT NULL DEFAULT 0 CHECK (expiry_noted IN (0, 1));
ALTER TABLE keys ADD COLUMN rotation_days INTEGER;
ALTER TABLE keys ADD COLUMN dual_auth INTEGER NOT NULL DEFAULT 0 CHECK (dual_auth IN (0, 1));
ALTER TABLE keys ADD COLUMN authorized_by TEXT;
ALTER TABLE keys ADD COLUMN authorized INTEGER;
ALTER TABLE keys ADD COLUMN authorized_run INTEGER;

-- What is left of a key that was purged. Its ids are never used again.
CREATE TABLE tombstones (
    key          BLOB PRIMARY KEY CHECK (length(key) = 16),
    instance     TEXT NOT NULL,
    display_name TEXT NOT NULL,
    imported     INTEGER NOT NULL CHECK (imported IN (0, 1)),
    created      INTEGER NOT NULL,
    created_by   TEXT NOT NULL,
    deleted      INTEGER NOT NULL,
    purged       INTEGER NOT NULL,
    purged_by    TEXT NOT NULL,
    versions     TEXT NOT NULL CHECK (json_valid(versions))
) STRICT, WITHOUT ROWID;

CREATE TABLE instances (
    id           TEXT PRIMARY KEY,
    display_name TEXT NOT NULL,
    created      INTEGER,
    created_by   TEXT,
    deleted      INTEGER,
    policies     TEXT NOT NULL CHECK (json_valid(policies))
) STRICT, WITHOUT ROWID;

CREATE TABLE bindings (
    principal TEXT NOT NULL,
    role      TEXT NOT NULL,
    instance  TEXT NOT NULL REFERENCES instances (id),
    PRIMARY KEY (instance, principal, role)
) STRICT, WITHOUT ROWID;

CREATE TABLE key_rings (
    instance   TEXT NOT NULL REFERENCES instances (id),
    id         TEXT NOT NULL,
    created    INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (instance, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE import_tokens (
    instance    TEXT PRIMARY KEY REFERENCES instances (id),
    object      BLOB NOT NULL UNIQUE CHECK (length(object) = 16),
    public_key  BLOB NOT NULL,
    nonce       BLOB NOT NULL CHECK (length(nonce) = 12),
    created     INTEGER NOT NULL,
    created_run INTEGER NOT NULL,
    lifetime    INTEGER NOT NULL,
    retrievals  INTEGER NOT NULL,
    remaining   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How many wraps a version has been granted; never less than it has done.
CREATE TABLE wrap_grants (
    version BLOB PRIMARY KEY CHECK (length(version) = 16),
    granted INTEGER NOT NULL CHECK (granted >= 0)
) STRICT, WITHOUT ROWID;

CREATE TABLE registrations (
    id          BLOB PRIMARY KEY CHECK (length(id) = 16),
    instance    TEXT NOT NULL,
    key         BLOB NOT NULL REFERENCES keys (id),
    resource    TEXT NOT NULL,
    kind        TEXT NOT NULL,
    attached_to TEXT,
    description TEXT NOT NULL,
    prevents    INTEGER NOT NULL CHECK (prevents IN (0, 1)),
    version     BLOB NOT NULL CHECK (length(version) = 16),
    source      TEXT,
    service     TEXT NOT NULL,
    created     INTEGER NOT NULL,
    created_by  TEXT NOT NULL,
    updated     INTEGER,
    updated_by  TEXT,
    generation  INTEGER NOT NULL CHECK (generation > 0)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX registrations_by_key ON registrations (key, resource);
CREATE INDEX registrations_by_resource ON registrations (instance, resource, key);
CREATE INDEX registrations_preventing ON registrations (key, resource) WHERE prevents = 1;
CREATE INDEX registrations_preventing_in ON registrations (instance, resource, key)
    WHERE prevents = 1;

-- Registrations counted, so that a count costs the same however many there are.
CREATE TABLE registration_counts (
    key      BLOB NOT NULL,
    version  BLOB NOT NULL,
    kind     TEXT NOT NULL,
    attached INTEGER NOT NULL,
    prevents INTEGER NOT NULL,
    n        INTEGER NOT NULL CHECK (n >= 0),
    PRIMARY KEY (key, version, kind, attached, prevents)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER registration_added AFTER INSERT ON registrations BEGIN
    INSERT INTO registration_counts (key, version, kind, attached, prevents, n)
    VALUES (new.key, new.version, new.kind, new.attached_to IS NOT NULL, new.prevents, 1)
    ON CONFLICT DO UPDATE SET n = n + 1;
END;

CREATE TRIGGER registration_removed AFTER DELETE ON registrations BEGIN
    UPDATE registration_counts SET n = n - 1
    WHERE key = old.key AND version = old.version AND kind = old.kind
        AND attached = (old.attached_to IS NOT NULL) AND prevents = old.prevents;
END;

CREATE TRIGGER registration_changed AFTER UPDATE ON registrations BEGIN
    UPDATE registration_counts SET n = n - 1
    WHERE key = old.key AND version = old.version AND kind = old.kind
        AND attached = (old.attached_to IS NOT NULL) AND prevents = old.prevents;
    INSERT INTO registration_counts (key, version, kind, attached, prevents, n)
    VALUES (new.key, new.version, new.kind, new.attached_to IS NOT NULL, new.prevents, 1)
    ON CONFLICT DO UPDATE SET n = n + 1;
END;

-- One row: how long the daemon has run, and what the clocks said then.
CREATE TABLE clock (
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    run       INTEGER NOT NULL,
    time      INTEGER NOT NULL,
    boot      TEXT NOT NULL,
    boot_time INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
