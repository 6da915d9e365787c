-- Version 1. Times are Unix milliseconds (wall) or 90 kHz ticks (media); names say which.

CREATE TABLE device (
    name         TEXT PRIMARY KEY,
    key          BLOB UNIQUE,             -- X25519 public key; NULL: removed or not enrolled yet
    enabled      INTEGER NOT NULL DEFAULT 1,
    enrolled_ms  INTEGER,
    last_seen_ms INTEGER,
    last_address TEXT
) WITHOUT ROWID;

CREATE TABLE token (
    hash       BLOB PRIMARY KEY,          -- BLAKE3 of the token: the catalog can't enrol anybody
    device     TEXT NOT NULL,
    expires_ms INTEGER NOT NULL,
    used_by    BLOB                       -- the key that enrolled with it
) WITHOUT ROWID;

CREATE TABLE stream (
    id             INTEGER PRIMARY KEY,
    name           TEXT NOT NULL UNIQUE,
    title          TEXT,
    owner          TEXT,                  -- device; NULL on an edge
    created_ms     INTEGER NOT NULL,
    told_to_end    INTEGER NOT NULL DEFAULT 0,
    ending         INTEGER,               -- last number when told to end; NULL: it ends empty
    ended_on_hub   INTEGER NOT NULL DEFAULT 0,
    stretch_first  INTEGER NOT NULL DEFAULT 0, -- first number since the stream last began anew
    floor          INTEGER NOT NULL DEFAULT 0  -- lowest number never used
);

CREATE TABLE run (
    stream            INTEGER NOT NULL REFERENCES stream(id) ON DELETE CASCADE,
    run               INTEGER NOT NULL,
    codecs            TEXT NOT NULL,
    width             INTEGER,
    height            INTEGER,
    target_duration_s INTEGER NOT NULL,
    PRIMARY KEY (stream, run)
) WITHOUT ROWID;

-- The ledger: every segment that is here, being written, or known to exist at the edge.
CREATE TABLE segment (
    stream       INTEGER NOT NULL REFERENCES stream(id) ON DELETE CASCADE,
    number       INTEGER NOT NULL,
    run          INTEGER NOT NULL,
    state        INTEGER NOT NULL,        -- 0 open, 1 here, 2 announced
    wall_ms      INTEGER NOT NULL,
    media_90k    INTEGER NOT NULL,
    duration_90k INTEGER NOT NULL DEFAULT 0,
    bytes        INTEGER NOT NULL DEFAULT 0,
    hash         BLOB,
    independent  INTEGER NOT NULL,
    stored       INTEGER NOT NULL DEFAULT 0, -- edge: the hub has settled it
    failures     INTEGER NOT NULL DEFAULT 0, -- hub: how often its bytes failed their hash
    PRIMARY KEY (stream, number)
) WITHOUT ROWID;
CREATE INDEX segment_by_wall ON segment (stream, wall_ms);
CREATE INDEX segment_not_here ON segment (stream, number) WHERE state <> 1;
CREATE INDEX segment_open ON segment (stream, number) WHERE state = 0;
-- With their bytes: a month of them is counted often. The janitor takes from both.
CREATE INDEX segment_unshipped ON segment (stream, number, bytes) WHERE state = 1 AND stored = 0;
CREATE INDEX segment_shipped ON segment (stream, number) WHERE state = 1 AND stored = 1;

-- Recorded ranges: stretches of segments that are here and follow one another.
CREATE TABLE span (
    stream   INTEGER NOT NULL REFERENCES stream(id) ON DELETE CASCADE,
    first    INTEGER NOT NULL,
    last     INTEGER NOT NULL,
    from_ms  INTEGER NOT NULL,
    to_ms    INTEGER NOT NULL,
    segments INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,
    PRIMARY KEY (stream, first)
) WITHOUT ROWID;

-- Ranges of numbers that will never be here (again).
CREATE TABLE tombstone (
    stream INTEGER NOT NULL REFERENCES stream(id) ON DELETE CASCADE,
    first  INTEGER NOT NULL,
    last   INTEGER NOT NULL,
    reason INTEGER NOT NULL,
    PRIMARY KEY (stream, first)
) WITHOUT ROWID;

CREATE TABLE live_list (
    stream                 INTEGER PRIMARY KEY REFERENCES stream(id) ON DELETE CASCADE,
    next_msn               INTEGER NOT NULL,
    first_msn              INTEGER NOT NULL,
    discontinuity_sequence INTEGER NOT NULL,
    target_duration_s      INTEGER,        -- NULL: nothing listed yet
    state                  INTEGER NOT NULL, -- 0 live, 1 broken by a hole, 2 ended
    last_number            INTEGER,        -- the highest number that was listed
    looked_to              INTEGER,        -- the highest number that was listed or stepped over
    changed_ms             INTEGER NOT NULL
);

CREATE TABLE live_entry (
    stream        INTEGER NOT NULL REFERENCES stream(id) ON DELETE CASCADE,
    msn           INTEGER NOT NULL,
    number        INTEGER,                 -- NULL: EXT-X-GAP
    run           INTEGER,
    duration_90k  INTEGER NOT NULL,
    wall_ms       INTEGER NOT NULL,
    discontinuity INTEGER NOT NULL,
    independent   INTEGER NOT NULL,
    PRIMARY KEY (stream, msn)
) WITHOUT ROWID;

-- Segments that left a live list and stay on disk for those who still read it.
CREATE TABLE live_retired (
    stream        INTEGER NOT NULL REFERENCES stream(id) ON DELETE CASCADE,
    number        INTEGER NOT NULL,
    keep_until_ms INTEGER NOT NULL,
    PRIMARY KEY (stream, number)
) WITHOUT ROWID;
