-- Keys, their versions and aliases; unfinished changes; request ids; the outbox.
-- Times are microseconds since the Unix epoch, ids are UUIDs of 16 bytes.

CREATE TABLE keys (
    id           BLOB PRIMARY KEY CHECK (length(id) = 16),
    instance     TEXT NOT NULL,
    display_name TEXT NOT NULL,
    description  TEXT NOT NULL,
    tags         TEXT NOT NULL CHECK (json_valid(tags)),
    imported     INTEGER NOT NULL CHECK (imported IN (0, 1)),
    activated    INTEGER NOT NULL,
    expires      INTEGER,
    suspended    INTEGER,
    destroyed    INTEGER,
    created_by   TEXT NOT NULL,
    updated      INTEGER,
    rotated      INTEGER,
    generation   INTEGER NOT NULL CHECK (generation > 0)
) STRICT, WITHOUT ROWID;

CREATE TABLE aliases (
    instance TEXT NOT NULL,
    alias    TEXT NOT NULL,
    key      BLOB NOT NULL REFERENCES keys (id),
    position INTEGER NOT NULL,
    PRIMARY KEY (instance, alias),
    UNIQUE (key, position)
) STRICT, WITHOUT ROWID;

-- Never updated, never deleted: a version's material is what DEKs are wrapped under.
CREATE TABLE key_versions (
    key         BLOB NOT NULL REFERENCES keys (id),
    position    INTEGER NOT NULL CHECK (position >= 0),
    id          BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    object      BLOB NOT NULL UNIQUE CHECK (length(object) = 16),
    check_value BLOB NOT NULL,
    created     INTEGER NOT NULL,
    PRIMARY KEY (key, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE intents (
    object  BLOB PRIMARY KEY CHECK (length(object) = 16),
    key     BLOB NOT NULL CHECK (length(key) = 16),
    stage   TEXT NOT NULL CHECK (stage IN ('creating', 'destroying')),
    begun   INTEGER NOT NULL,
    purpose TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE requests (
    principal   TEXT NOT NULL,
    id          BLOB NOT NULL CHECK (length(id) = 16),
    fingerprint BLOB NOT NULL CHECK (length(fingerprint) = 32),
    key         BLOB NOT NULL CHECK (length(key) = 16),
    time        INTEGER NOT NULL,
    PRIMARY KEY (principal, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX requests_by_time ON requests (time);

-- Records of changes, on their way to the audit log.
CREATE TABLE outbox (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id    BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    event TEXT NOT NULL CHECK (json_valid(event))
) STRICT;
