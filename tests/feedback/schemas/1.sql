CREATE TABLE conversations (
    id TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    title TEXT NOT NULL,
    system TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    updated DOUBLE PRECISION NOT NULL
);
CREATE INDEX conversations_of_owner ON conversations (owner, updated);
CREATE TABLE messages (
    id TEXT NOT NULL PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    parent TEXT REFERENCES messages (id),
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    updated DOUBLE PRECISION NOT NULL,
    status TEXT NOT NULL
);
CREATE INDEX messages_of_conversation ON messages (conversation, created);
CREATE INDEX messages_of_parent ON messages (parent);
CREATE INDEX messages_of_status ON messages (status);
CREATE TABLE made (
    message TEXT NOT NULL PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
    model TEXT NOT NULL,
    adapter TEXT,
    sampling TEXT NOT NULL,
    seed TEXT,
    prompt_tokens BLOB NOT NULL,
    tokens BLOB NOT NULL,
    finish_reason TEXT,
    seconds DOUBLE PRECISION,
    revision TEXT
);
CREATE INDEX made_by_model ON made (model);
CREATE TABLE ratings (
    id TEXT NOT NULL PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    rater TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    consent BOOLEAN NOT NULL,
    message TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    value INTEGER NOT NULL,
    tags TEXT NOT NULL,
    comment TEXT NOT NULL,
    UNIQUE (message, rater)
);
CREATE INDEX ratings_of_conversation ON ratings (conversation);
CREATE TABLE pairs (
    id TEXT NOT NULL PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    rater TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    consent BOOLEAN NOT NULL,
    chosen TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    rejected TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    tie BOOLEAN NOT NULL,
    comment TEXT NOT NULL,
    answers TEXT NOT NULL,
    UNIQUE (answers, rater)
);
CREATE INDEX pairs_of_conversation ON pairs (conversation);
CREATE INDEX pairs_of_chosen ON pairs (chosen);
CREATE INDEX pairs_of_rejected ON pairs (rejected);
CREATE TABLE rankings (
    id TEXT NOT NULL PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    rater TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    consent BOOLEAN NOT NULL,
    answers TEXT NOT NULL,
    UNIQUE (answers, rater)
);
CREATE INDEX rankings_of_conversation ON rankings (conversation);
CREATE TABLE ranked (
    ranking TEXT NOT NULL REFERENCES rankings (id) ON DELETE CASCADE,
    message TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    PRIMARY KEY (ranking, message)
);
CREATE INDEX ranked_of_message ON ranked (message);
CREATE TABLE edits (
    id TEXT NOT NULL PRIMARY KEY,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    rater TEXT NOT NULL,
    created DOUBLE PRECISION NOT NULL,
    consent BOOLEAN NOT NULL,
    message TEXT NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    text TEXT NOT NULL,
    UNIQUE (message, rater)
);
CREATE INDEX edits_of_conversation ON edits (conversation);
CREATE TABLE chatloom_version (version INTEGER NOT NULL);
