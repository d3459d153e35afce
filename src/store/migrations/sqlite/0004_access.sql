-- Bindings of principals and authorizations of services, on an instance, a key ring
-- or a key. Times are microseconds since the Unix epoch.

ALTER TABLE bindings RENAME TO bindings_of_instances;

CREATE TABLE bindings (
    id         BLOB PRIMARY KEY CHECK (length(id) = 16),
    instance   TEXT NOT NULL REFERENCES instances (id),
    scope      TEXT NOT NULL,
    subject    TEXT NOT NULL,
    role       TEXT NOT NULL,
    created    INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    UNIQUE (scope, subject, role)
) STRICT, WITHOUT ROWID;

CREATE INDEX bindings_by_instance ON bindings (instance);

INSERT INTO bindings (id, instance, scope, subject, role, created, created_by)
    SELECT randomblob(16), old.instance, 'instances/' || old.instance, old.principal, old.role,
           coalesce(instances.created, 0), coalesce(instances.created_by, 'daemon')
    FROM bindings_of_instances AS old JOIN instances ON instances.id = old.instance;

DROP TABLE bindings_of_instances;

-- Bindings of the configuration that were taken over: each is, once.
CREATE TABLE configured_bindings (
    scope   TEXT NOT NULL,
    subject TEXT NOT NULL,
    role    TEXT NOT NULL,
    PRIMARY KEY (scope, subject, role)
) STRICT, WITHOUT ROWID;
