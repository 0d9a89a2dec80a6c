-- The roles of outbox-saga on MariaDB and MySQL: each may do what its program does, and nothing
-- else.
--
-- Run it as a user who may create roles and grant rights on the tables, and again after each
-- `outbox-saga db upgrade`. It can be run as often as you like.
--
-- Give the roles to users, and make them their default:
--   GRANT {prefix}_relay TO relay_of_orders;
--   SET DEFAULT ROLE {prefix}_relay FOR relay_of_orders;   (MySQL: … TO relay_of_orders)
-- Migrations are for none of these: let a user with all rights on the database run them.
{in_schema}
CREATE ROLE IF NOT EXISTS {prefix}_service;
CREATE ROLE IF NOT EXISTS {prefix}_consumer;
CREATE ROLE IF NOT EXISTS {prefix}_orchestrator;
CREATE ROLE IF NOT EXISTS {prefix}_relay;
CREATE ROLE IF NOT EXISTS {prefix}_operator;
CREATE ROLE IF NOT EXISTS {prefix}_observer;

-- A table on which a user has no right at all does not exist for that user, and each program looks
-- for all of them when it starts. REFERENCES lets it see them, and nothing else: it is of use only
-- to those who may also create tables.
GRANT REFERENCES ON outbox_saga_outbox TO {everybody};
GRANT REFERENCES ON outbox_saga_delayed TO {everybody};
GRANT REFERENCES ON outbox_saga_archive TO {everybody};
GRANT REFERENCES ON outbox_saga_key_lock TO {everybody};
GRANT REFERENCES ON outbox_saga_blocked_key TO {everybody};
GRANT REFERENCES ON outbox_saga_dead_letter TO {everybody};
GRANT REFERENCES ON outbox_saga_partition_lease TO {everybody};
GRANT REFERENCES ON outbox_saga_inbox TO {everybody};
GRANT REFERENCES ON outbox_saga_inbox_waiting TO {everybody};
GRANT REFERENCES ON outbox_saga_inbox_claim TO {everybody};
GRANT REFERENCES ON outbox_saga_barrier TO {everybody};
GRANT REFERENCES ON outbox_saga_reply TO {everybody};
GRANT REFERENCES ON outbox_saga_breaker TO {everybody};
GRANT REFERENCES ON outbox_saga_saga TO {everybody};
GRANT REFERENCES ON outbox_saga_saga_history TO {everybody};
GRANT REFERENCES ON outbox_saga_process TO {everybody};
GRANT REFERENCES ON outbox_saga_operator_action TO {everybody};

-- Business code: publishes and starts sagas, in its own transactions.
-- Messages: written, and never read again. Its position is the database's to give.
GRANT SELECT (id), INSERT (id, `partition`, topic, `key`, headers, body, created_at)
  ON outbox_saga_outbox TO {prefix}_service;
GRANT SELECT (id), INSERT ON outbox_saga_delayed TO {prefix}_service;
-- What became of a COMMIT whose answer was lost: whether these ids are somewhere.
GRANT SELECT (id) ON outbox_saga_archive TO {prefix}_service;
GRANT SELECT (id) ON outbox_saga_dead_letter TO {prefix}_service;
-- Writers of one key wait for each other.
GRANT SELECT{locking} ON outbox_saga_key_lock TO {prefix}_service;
-- A saga that was started before is locked, so that its data can be compared: a locking read
-- needs UPDATE of some column, and this one decides nothing.
GRANT SELECT (id, input_hash), INSERT, UPDATE (updated_at)
  ON outbox_saga_saga TO {prefix}_service;
GRANT INSERT ON outbox_saga_saga_history TO {prefix}_service;
-- What others answered to its requests.
GRANT SELECT ON outbox_saga_reply TO {prefix}_service;
GRANT SELECT ON outbox_saga_version TO {prefix}_service;

-- `consume`: handles messages once, and publishes.
-- Messages: written, and never read again. Its position is the database's to give.
GRANT SELECT (id), INSERT (id, `partition`, topic, `key`, headers, body, created_at)
  ON outbox_saga_outbox TO {prefix}_consumer;
GRANT SELECT (id), INSERT ON outbox_saga_delayed TO {prefix}_consumer;
-- What became of a COMMIT whose answer was lost: whether these ids are somewhere.
GRANT SELECT (id) ON outbox_saga_archive TO {prefix}_consumer;
GRANT SELECT (id) ON outbox_saga_dead_letter TO {prefix}_consumer;
-- Writers of one key wait for each other.
GRANT SELECT{locking} ON outbox_saga_key_lock TO {prefix}_consumer;
-- A saga that was started before is locked, so that its data can be compared: a locking read
-- needs UPDATE of some column, and this one decides nothing.
GRANT SELECT (id, input_hash), INSERT, UPDATE (updated_at)
  ON outbox_saga_saga TO {prefix}_consumer;
GRANT INSERT ON outbox_saga_saga_history TO {prefix}_consumer;
-- What was handled is never taken back.
GRANT SELECT, INSERT ON outbox_saga_inbox TO {prefix}_consumer;
-- What waits for its handler, and whom it waits for.
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_saga_inbox_waiting TO {prefix}_consumer;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_saga_inbox_claim TO {prefix}_consumer;
-- What sagas have commanded, and what came of it.
GRANT SELECT, INSERT, UPDATE (state, answer, updated_at)
  ON outbox_saga_barrier TO {prefix}_consumer;
-- What others answered to requests. An answer that came stays.
GRANT SELECT, INSERT, UPDATE (outcome, answer, answered_at)
  ON outbox_saga_reply TO {prefix}_consumer;
-- That it is alive.
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_saga_process TO {prefix}_consumer;
GRANT SELECT ON outbox_saga_version TO {prefix}_consumer;

-- `orchestrate`: carries sagas on, and publishes. What a saga was started as stays.
-- Messages: written, and never read again. Its position is the database's to give.
GRANT SELECT (id), INSERT (id, `partition`, topic, `key`, headers, body, created_at)
  ON outbox_saga_outbox TO {prefix}_orchestrator;
GRANT SELECT (id), INSERT ON outbox_saga_delayed TO {prefix}_orchestrator;
-- What became of a COMMIT whose answer was lost: whether these ids are somewhere.
GRANT SELECT (id) ON outbox_saga_archive TO {prefix}_orchestrator;
GRANT SELECT (id) ON outbox_saga_dead_letter TO {prefix}_orchestrator;
-- Writers of one key wait for each other.
GRANT SELECT{locking} ON outbox_saga_key_lock TO {prefix}_orchestrator;
GRANT SELECT, INSERT, UPDATE (version, shape, state, revision, data, progress, reason, due_at, owner,
    lease_until, epoch, updated_at, ended_at, deaths)
  ON outbox_saga_saga TO {prefix}_orchestrator;
-- Appended to, never changed.
GRANT SELECT, INSERT ON outbox_saga_saga_history TO {prefix}_orchestrator;
-- Breakers, which all orchestrators share; each row has to be made sure of, which MariaDB lets only
-- those do who may update its key.
GRANT SELECT, INSERT, UPDATE ON outbox_saga_breaker TO {prefix}_orchestrator;
-- That it is alive.
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_saga_process TO {prefix}_orchestrator;
GRANT SELECT ON outbox_saga_version TO {prefix}_orchestrator;

-- `relay`: publishes what was committed and removes it; delayed messages; retention.
-- A delayed message that is due is locked, goes in, and is gone from where it waited.
-- No row of the outbox is changed; one of which a failure is stored is locked.
GRANT SELECT, INSERT (id, `partition`, topic, `key`, headers, body, created_at),
  UPDATE (created_at), DELETE
  ON outbox_saga_outbox TO {prefix}_relay;
GRANT SELECT, UPDATE (due_at), DELETE ON outbox_saga_delayed TO {prefix}_relay;
GRANT SELECT, INSERT, DELETE ON outbox_saga_archive TO {prefix}_relay;
-- It buries; what was buried is a person's to decide about.
GRANT SELECT (id), INSERT ON outbox_saga_dead_letter TO {prefix}_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_saga_blocked_key TO {prefix}_relay;
GRANT SELECT, UPDATE (owner, epoch, until, revisit)
  ON outbox_saga_partition_lease TO {prefix}_relay;
GRANT SELECT{locking} ON outbox_saga_key_lock TO {prefix}_relay;
-- Retention.
GRANT SELECT, DELETE ON outbox_saga_inbox TO {prefix}_relay;
GRANT SELECT, DELETE ON outbox_saga_reply TO {prefix}_relay;
-- Of sagas it sees whether and when they ended, and their keys; of commands when; no data.
GRANT SELECT (id, business_key, state, ended_at), DELETE ON outbox_saga_saga TO {prefix}_relay;
GRANT SELECT (saga_id), DELETE ON outbox_saga_saga_history TO {prefix}_relay;
GRANT SELECT (saga_id, step, generation, updated_at), DELETE
  ON outbox_saga_barrier TO {prefix}_relay;
-- That it is alive.
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_saga_process TO {prefix}_relay;
GRANT SELECT ON outbox_saga_version TO {prefix}_relay;

-- People and their tools: dead letters, parked keys, replays, stuck sagas; all of it audited.
-- A replay gets its own position back.
GRANT SELECT, INSERT ON outbox_saga_outbox TO {prefix}_operator;
GRANT SELECT, UPDATE (attempts), DELETE ON outbox_saga_dead_letter TO {prefix}_operator;
GRANT SELECT ON outbox_saga_delayed TO {prefix}_operator;
GRANT SELECT ON outbox_saga_archive TO {prefix}_operator;
GRANT SELECT, UPDATE (until), DELETE ON outbox_saga_blocked_key TO {prefix}_operator;
-- So that the relay looks again where something was put back.
GRANT SELECT, UPDATE (revisit) ON outbox_saga_partition_lease TO {prefix}_operator;
GRANT SELECT{locking} ON outbox_saga_key_lock TO {prefix}_operator;
-- A waiting message that is discarded counts as handled, and nobody has a claim to it.
GRANT SELECT, INSERT ON outbox_saga_inbox TO {prefix}_operator;
GRANT SELECT, UPDATE, DELETE ON outbox_saga_inbox_waiting TO {prefix}_operator;
GRANT SELECT, DELETE ON outbox_saga_inbox_claim TO {prefix}_operator;
GRANT SELECT ON outbox_saga_barrier TO {prefix}_operator;
GRANT SELECT ON outbox_saga_reply TO {prefix}_operator;
GRANT SELECT, UPDATE (failures, until, probe_until, trips, opened_at, changed_at)
  ON outbox_saga_breaker TO {prefix}_operator;
GRANT SELECT, UPDATE (version, shape, state, revision, data, progress, reason, due_at, owner,
    lease_until, epoch, updated_at, ended_at, deaths)
  ON outbox_saga_saga TO {prefix}_operator;
GRANT SELECT, INSERT ON outbox_saga_saga_history TO {prefix}_operator;
GRANT SELECT, INSERT, UPDATE ON outbox_saga_process TO {prefix}_operator;
-- What was done stays on record.
GRANT SELECT, INSERT ON outbox_saga_operator_action TO {prefix}_operator;
GRANT SELECT ON outbox_saga_version TO {prefix}_operator;

-- Dashboards and `doctor`: everything but what messages, sagas and traces say.
GRANT SELECT (position, id, `partition`, topic, `key`, created_at)
  ON outbox_saga_outbox TO {prefix}_observer;
GRANT SELECT (id, due_at, `partition`, topic, `key`, created_at)
  ON outbox_saga_delayed TO {prefix}_observer;
GRANT SELECT (published_at, id, position, `partition`, topic, `key`, created_at)
  ON outbox_saga_archive TO {prefix}_observer;
GRANT SELECT (id, position, `partition`, topic, `key`, created_at, died_at, attempts, error_code,
    error, error_class)
  ON outbox_saga_dead_letter TO {prefix}_observer;
GRANT SELECT ON outbox_saga_blocked_key TO {prefix}_observer;
GRANT SELECT ON outbox_saga_partition_lease TO {prefix}_observer;
GRANT SELECT ON outbox_saga_key_lock TO {prefix}_observer;
GRANT SELECT (consumer, message_id, handled_at) ON outbox_saga_inbox TO {prefix}_observer;
GRANT SELECT (position, consumer, message_id, topic, `key`, arrived_at, until, failed_at,
    attempts, error_code, error, error_class, owner, lease_until)
  ON outbox_saga_inbox_waiting TO {prefix}_observer;
GRANT SELECT ON outbox_saga_inbox_claim TO {prefix}_observer;
GRANT SELECT (saga_id, step, generation, state, updated_at)
  ON outbox_saga_barrier TO {prefix}_observer;
GRANT SELECT (request_id, outcome, answered_at) ON outbox_saga_reply TO {prefix}_observer;
GRANT SELECT ON outbox_saga_breaker TO {prefix}_observer;
GRANT SELECT (id, source, name, version, shape, business_key, correlation_id, state, revision,
    reason, due_at, owner, lease_until, epoch, started_at, updated_at, ended_at, deaths)
  ON outbox_saga_saga TO {prefix}_observer;
GRANT SELECT ON outbox_saga_saga_history TO {prefix}_observer;
GRANT SELECT ON outbox_saga_process TO {prefix}_observer;
GRANT SELECT (id, at, operator, action, subject, reason)
  ON outbox_saga_operator_action TO {prefix}_observer;
GRANT SELECT ON outbox_saga_version TO {prefix}_observer;
