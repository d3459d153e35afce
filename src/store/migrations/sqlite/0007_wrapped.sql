-- Root keys that are kept here, wrapped under a key of the HSM. Times are microseconds
-- since the Unix epoch.

-- The keys of the HSM that wrap them, by CKA_ID. Never deleted: what a backup of this
-- store holds may be wrapped under any of them.
CREATE TABLE master_keys (
    object  BLOB PRIMARY KEY CHECK (length(object) = 16),
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Unset where the material is an object of the token.
ALTER TABLE key_versions ADD COLUMN master BLOB REFERENCES master_keys (object);
ALTER TABLE key_versions ADD COLUMN wrapped BLOB CHECK ((wrapped IS NULL) = (master IS NULL));
