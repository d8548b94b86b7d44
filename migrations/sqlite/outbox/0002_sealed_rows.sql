-- What earlier versions wrote in plain. The notifier seals it at its start, then these tables go.
ALTER TABLE entry RENAME TO plain_entry;
ALTER TABLE marks RENAME TO plain_marks;

-- Wakeups that no provider has answered yet. A row goes when the answer is there.
CREATE TABLE entry (
    -- Ascending; AUTOINCREMENT keeps the floor, so that no number is used twice, even after the last row went.
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The day on which it is worthless at the latest: days since 1970-01-01, UTC.
    expires_day INTEGER NOT NULL,
    -- Which key of row_key_file seals "head" and "row".
    key_id      INTEGER NOT NULL,
    -- Service, class, deadline, attempts, form and the provider's name for it, sealed for this id, day and key: 104 bytes.
    head        BLOB    NOT NULL,
    -- Token and ciphertext, sealed for this id, day and key: 908 or 3,820 bytes, few more.
    row         BLOB    NOT NULL
);
INSERT INTO sqlite_sequence (name, seq) SELECT 'entry', seq FROM sqlite_sequence WHERE name = 'plain_entry';

-- Messages seen, so that a restart sends nothing twice. One row for each commit.
CREATE TABLE marks (
    id          INTEGER PRIMARY KEY,
    -- The day of the commit: days since 1970-01-01, UTC.
    expires_day INTEGER NOT NULL,
    key_id      INTEGER NOT NULL,
    -- The time of the commit and 16 bytes for each mark, sealed for this day and key.
    marks       BLOB    NOT NULL
);

-- The keys that rows of this file may be under.
CREATE TABLE sealing_key (id INTEGER NOT NULL PRIMARY KEY);
