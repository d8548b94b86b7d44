-- Wakeups that no provider has answered yet. A row goes when the answer is there.
CREATE TABLE entry (
    -- Ascending; AUTOINCREMENT keeps the floor, so that no number is used twice, even after the last row went.
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    -- 1 = apns, 2 = apns-sandbox, 3 = firebase.
    service     INTEGER NOT NULL,
    -- 1 = call, 2 = visible, 3 = quiet, 4 = too long.
    class       INTEGER NOT NULL,
    -- Unix milliseconds.
    deadline_ms INTEGER NOT NULL,
    -- How many times a provider was asked.
    attempt     INTEGER NOT NULL,
    -- The provider's name for this wakeup, the same on each attempt: 16 bytes.
    push_id     BLOB    NOT NULL CHECK (length(push_id) = 16),
    -- 1 = the provider refused the full form, the short one is sent.
    fallback    INTEGER NOT NULL,
    -- Which key seals "row": 0 = none beyond the wakeup's own encryption.
    key_id      INTEGER NOT NULL,
    -- The wakeup, as notifier-core writes it: 0.6 to 4 kilobytes.
    row         BLOB    NOT NULL
);

-- Messages seen, so that a restart sends nothing twice. One row for each commit.
CREATE TABLE marks (
    id    INTEGER PRIMARY KEY,
    -- Unix milliseconds of the commit.
    at_ms INTEGER NOT NULL,
    -- 16 bytes for each mark, one after the other.
    marks BLOB    NOT NULL
);
