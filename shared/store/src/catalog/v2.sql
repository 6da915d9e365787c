-- Version 2: what survival asks for.

-- segment.stored: 0 the hub lacks it; 1 the hub has it; 2 the hub has settled it without its bytes.
ALTER TABLE segment ADD COLUMN lost_reason INTEGER;                    -- edge: why, where stored = 2
ALTER TABLE segment ADD COLUMN arrived_ms INTEGER NOT NULL DEFAULT 0;  -- by our own clock, when it became *here*
ALTER TABLE segment ADD COLUMN checked_ms INTEGER NOT NULL DEFAULT 0;  -- when its file was last hashed
-- Edge, live sources: where it began on the clock that no step moves, so that its wall time can be corrected.
ALTER TABLE segment ADD COLUMN boot INTEGER;                           -- which boot of this machine; NULL: not ours to correct
ALTER TABLE segment ADD COLUMN boot_ms INTEGER;                        -- milliseconds since that boot

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
