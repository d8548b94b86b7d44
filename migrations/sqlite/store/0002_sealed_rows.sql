-- Rows of earlier versions, in plain. The notifier seals them at its start, then this table goes.
ALTER TABLE subscription RENAME TO plain_subscription;

-- One row for each device of each account, and one for each signer who binds. Nothing here says which is which, or whose.
CREATE TABLE subscription (
    -- The first 63 bits of BLAKE2b-256 of (account, service, token), or of the signer, under the key in lookup_key_file.
    -- Rows lie in the order of this hash, so that their places do not tell which of them came together, and it needs no index.
    lookup      INTEGER NOT NULL PRIMARY KEY,
    -- The day after which the signature is void: days since 1970-01-01, UTC.
    expires_day INTEGER NOT NULL,
    -- Which key of row_key_file seals "row".
    key_id      INTEGER NOT NULL,
    -- Sealed for this lookup, day and key: 556 bytes, some 1,068, a few more.
    row         BLOB    NOT NULL
);

-- The keys that rows of this file may be under.
CREATE TABLE sealing_key (id INTEGER NOT NULL PRIMARY KEY);
