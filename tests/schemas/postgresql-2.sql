CREATE TABLE trio_fleet (
    id INTEGER NOT NULL,
    vouched_at TIMESTAMP WITH TIME ZONE NOT NULL,
    unbroken_since TIMESTAMP WITH TIME ZONE,
    doubtful_until TIMESTAMP WITH TIME ZONE,
    server VARCHAR(255),
    PRIMARY KEY (id)
);

CREATE TABLE trio_gone (
    incarnation VARCHAR(32) NOT NULL,
    history VARCHAR(32) DEFAULT '' NOT NULL,
    gone_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (incarnation)
);

CREATE TABLE trio_mail (
    id BIGSERIAL NOT NULL,
    incarnation VARCHAR(32) NOT NULL,
    payload TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (id)
);

CREATE INDEX ix_trio_mail_created_at ON trio_mail (created_at);

CREATE INDEX ix_trio_mail_incarnation_id ON trio_mail (incarnation, id);

ALTER TABLE trio_mail SET UNLOGGED;

CREATE TABLE trio_revoked (
    session_id VARCHAR(255) COLLATE "C" NOT NULL,
    revoked_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    reason TEXT DEFAULT '' NOT NULL,
    PRIMARY KEY (session_id)
);

CREATE INDEX ix_trio_revoked_revoked_at ON trio_revoked (revoked_at);

CREATE INDEX ix_trio_revoked_until ON trio_revoked (until);

CREATE TABLE trio_schema (
    version INTEGER NOT NULL,
    needs INTEGER NOT NULL,
    applied_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (version)
);

CREATE TABLE trio_sessions (
    session_id VARCHAR(255) COLLATE "C" NOT NULL,
    worker_id VARCHAR(255) NOT NULL,
    incarnation VARCHAR(32) DEFAULT '' NOT NULL,
    generation BIGINT DEFAULT '0' NOT NULL,
    owner VARCHAR(320),
    capabilities TEXT,
    elicitation BOOLEAN DEFAULT false NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    taken_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    last_accessed TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    data TEXT,
    PRIMARY KEY (session_id)
);

CREATE INDEX ix_trio_sessions_elicitation ON trio_sessions (session_id) WHERE elicitation;

CREATE INDEX ix_trio_sessions_incarnation ON trio_sessions (incarnation);

CREATE INDEX ix_trio_sessions_owner ON trio_sessions (owner, session_id) WHERE owner IS NOT NULL;

ALTER TABLE trio_sessions SET (fillfactor = 70);

CREATE TABLE trio_topics (
    topic VARCHAR(255) COLLATE "C" NOT NULL,
    incarnation VARCHAR(32) NOT NULL,
    PRIMARY KEY (topic, incarnation)
);

CREATE INDEX ix_trio_topics_incarnation ON trio_topics (incarnation);

CREATE TABLE trio_workers (
    incarnation VARCHAR(32) NOT NULL,
    worker_id VARCHAR(255) NOT NULL,
    history VARCHAR(32) NOT NULL,
    beat BIGINT NOT NULL,
    stamped_at TIMESTAMP WITH TIME ZONE NOT NULL,
    passed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    session_ttl DOUBLE PRECISION NOT NULL,
    cleanup_interval DOUBLE PRECISION NOT NULL,
    stamp_interval DOUBLE PRECISION NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    version VARCHAR(64) DEFAULT '' NOT NULL,
    data TEXT DEFAULT '{}' NOT NULL,
    draining BOOLEAN DEFAULT false NOT NULL,
    PRIMARY KEY (incarnation)
);

ALTER TABLE trio_workers SET (fillfactor = 10);

CREATE TABLE trio_logs (
    id BIGSERIAL NOT NULL,
    session_id VARCHAR(255) COLLATE "C" NOT NULL,
    event TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(session_id) REFERENCES trio_sessions (session_id) ON DELETE CASCADE
);

CREATE INDEX ix_trio_logs_created_at ON trio_logs (created_at);

CREATE INDEX ix_trio_logs_session_id_id ON trio_logs (session_id, id);

CREATE TABLE trio_messages (
    id BIGSERIAL NOT NULL,
    session_id VARCHAR(255) COLLATE "C" NOT NULL,
    payload TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(session_id) REFERENCES trio_sessions (session_id) ON DELETE CASCADE
);

CREATE INDEX ix_trio_messages_created_at ON trio_messages (created_at);

CREATE INDEX ix_trio_messages_session_id_id ON trio_messages (session_id, id);

INSERT INTO trio_schema (version, needs) VALUES (2, 0);
