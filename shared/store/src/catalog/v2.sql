-- Version 2: what survival asks for.

-- segment.stored: 0 the hub lacks it; 1 the hub has it; 2 the hub has settled it without its bytes.
ALTER TABLE segment ADD COLUMN lost_reason INTEGER;                    -- edge: why, where stored = 2
ALTER TABLE segment ADD COLUMN arrived_ms INTEGER NOT NULL DEFAULT 0;  -- by our own clock, when it became *here*
ALTER TABLE segment ADD COLUMN checked_ms INTEGER NOT NULL DEFAULT 0;  -- when its file was last hashed
-- Edge, live sources: where it began on the clock that no step moves, so that its wall time can be corrected.
ALTER TABLE segment ADD COLUMN boot INTEGER;                           -- which boot of this machine; NULL: not ours to correct
ALTER TABLE segment ADD COLUMN boot_ms INTEGER;                        -- milliseconds since that boot

-- Which store this is, and whether it can be written: a disk that was away and is back is known by it.
CREATE TABLE store (id BLOB NOT NULL, tried INTEGER NOT NULL DEFAULT 0);
INSERT INTO store (id) VALUES (randomblob(16));

-- Edge: recorded from a source that can wait (a file): held back, never evicted before the hub has it.
ALTER TABLE run ADD COLUMN waits INTEGER NOT NULL DEFAULT 0;
CREATE INDEX segment_lost ON segment (stream, number) WHERE state = 1 AND stored = 2;
