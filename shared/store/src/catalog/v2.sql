-- Version 2: what survival asks for.

-- segment.stored: 0 the hub lacks it; 1 the hub has it; 2 the hub has settled it without its bytes.
ALTER TABLE segment ADD COLUMN lost_reason INTEGER;                    -- edge: why, where stored = 2
ALTER TABLE segment ADD COLUMN arrived_ms INTEGER NOT NULL DEFAULT 0;  -- by our own clock, when it became *here*
ALTER TABLE segment ADD COLUMN checked_ms INTEGER NOT NULL DEFAULT 0;  -- when its file was last hashed
-- Edge, live sources: where it began on the clock that no step moves, so that its wall time can be corrected.
ALTER TABLE segment ADD COLUMN boot INTEGER;                           -- which boot of this machine; NULL: not ours to correct
ALTER TABLE segment ADD COLUMN boot_ms INTEGER;                        -- milliseconds since that boot

-- Corrections of the clock. `restamped`: edge, the hub may know the segment by another wall time.
ALTER TABLE segment ADD COLUMN restamped INTEGER NOT NULL DEFAULT 0;
CREATE INDEX segment_restamped ON segment (stream, number) WHERE restamped = 1 AND state = 1 AND stored = 1;
-- Edge: when this machine's boot began by the corrected clock; one row, for the newest boot.
CREATE TABLE boot_clock (
    boot    INTEGER PRIMARY KEY,
    zero_ms INTEGER NOT NULL,
    by_hub  INTEGER NOT NULL,              -- 1: the hub has said or confirmed it
    done    INTEGER NOT NULL               -- 1: every segment of the boot goes by it
) WITHOUT ROWID;
-- Where a run's first listed segment stood on the live list: all others of it stand by that (see live.rs).
ALTER TABLE run ADD COLUMN live_wall_ms INTEGER;
ALTER TABLE run ADD COLUMN live_media_90k INTEGER;

-- Edge: `run` records it, and ends it when its configuration drops it.
ALTER TABLE stream ADD COLUMN recorded INTEGER NOT NULL DEFAULT 0;

-- Edge: files of watched folders, and how far each is in the store. By the stream's name: a file may be
-- refused before its stream has a row.
CREATE TABLE taken (
    stream      TEXT NOT NULL,
    name        BLOB NOT NULL,                 -- in its folder
    size        INTEGER NOT NULL,
    mtime_ns    INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,                 -- of its first and last bytes
    target_ms   INTEGER NOT NULL,              -- the target duration it is cut with
    state       INTEGER NOT NULL,              -- 0 being taken, 1 interrupted, 2 taken whole, 3 refused
    segments    INTEGER NOT NULL DEFAULT 0,    -- of its segments, so many are here whole
    bytes       INTEGER NOT NULL DEFAULT 0,    -- and so much of the next one, under a number of its own
    run         INTEGER,                       -- of the last of them
    first       INTEGER,                       -- lowest and highest number, as recorded
    last        INTEGER,
    void        INTEGER NOT NULL DEFAULT 0,    -- numbers between that hold nothing of it
    reason      TEXT,                          -- why it was refused
    PRIMARY KEY (stream, name)
) WITHOUT ROWID;
CREATE INDEX taken_now ON taken (stream) WHERE state = 0;

-- Edge: what the hub settled without its bytes goes after what it has, before what it lacks.
CREATE INDEX segment_given_up ON segment (stream, number, lost_reason) WHERE state = 1 AND stored = 2;

-- Edge: a renumbering that is not finished: unconfirmed segments from `first` to below `base` move to `next` on.
CREATE TABLE renumbering (
    stream INTEGER PRIMARY KEY REFERENCES stream(id) ON DELETE CASCADE,
    first  INTEGER NOT NULL,
    base   INTEGER NOT NULL,
    next   INTEGER NOT NULL
);
-- Edge: what became of segments' numbers: first to last are `becomes` and what follows it.
CREATE TABLE renumbered (
    stream  INTEGER NOT NULL REFERENCES stream(id) ON DELETE CASCADE,
    first   INTEGER NOT NULL,
    last    INTEGER NOT NULL,
    becomes INTEGER NOT NULL,
    PRIMARY KEY (stream, first)
) WITHOUT ROWID;
-- Edge: the run that later segments of a run belong to.
CREATE TABLE run_becomes (
    stream  INTEGER NOT NULL REFERENCES stream(id) ON DELETE CASCADE,
    run     INTEGER NOT NULL,
    becomes INTEGER NOT NULL,
    PRIMARY KEY (stream, run)
) WITHOUT ROWID;

-- Which store this is, and whether it can be written: a disk that was away and is back is known by it.
CREATE TABLE store (id BLOB NOT NULL, tried INTEGER NOT NULL DEFAULT 0);
INSERT INTO store (id) VALUES (randomblob(16));

-- Edge: recorded from a source that can wait (a file): held back, never evicted before the hub has it.
ALTER TABLE run ADD COLUMN waits INTEGER NOT NULL DEFAULT 0;
