-- The roles of outbox-saga on PostgreSQL: each may do what its program does, and nothing else.
--
-- Run it as the owner of the tables (who must be allowed to create roles, the first time), and
-- again after each `outbox-saga db upgrade`. It can be run as often as you like: it ends at the
-- same rights, and programs that are running notice nothing, since it is one transaction.
--
-- The roles cannot log in. Give them to users that can:  GRANT {prefix}_relay TO relay_of_orders;
-- Migrations are for the owner of the tables, who is none of these.

BEGIN;
{in_schema}
DO $$
DECLARE
  member text;
  ours regclass;
BEGIN
  FOREACH member IN ARRAY ARRAY[
    '{prefix}_service', '{prefix}_consumer', '{prefix}_orchestrator', '{prefix}_relay',
    '{prefix}_operator', '{prefix}_observer'
  ] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = member) THEN
      EXECUTE format('CREATE ROLE %I NOLOGIN', member);
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), member);
    -- what an older version of this file granted, and this one does not
    FOR ours IN
      SELECT oid FROM pg_class
      WHERE relnamespace = quote_ident(current_schema())::regnamespace
        AND relkind IN ('r', 'p') AND starts_with(relname, 'outbox_saga_')
    LOOP
      EXECUTE format('REVOKE ALL ON %s FROM %I', ours, member);
    END LOOP;
  END LOOP;
END $$;

-- Business code: publishes and starts sagas, in its own transactions.
-- Messages: written, and never read again. Its position is the database's to give.
GRANT SELECT (id), INSERT (id, "partition", topic, "key", headers, body, created_at)
  ON outbox_saga_outbox TO {prefix}_service;
GRANT SELECT (id), INSERT ON outbox_saga_delayed TO {prefix}_service;
-- What became of a COMMIT whose answer was lost: whether these ids are somewhere.
GRANT SELECT (id) ON outbox_saga_archive TO {prefix}_service;
GRANT SELECT (id) ON outbox_saga_dead_letter TO {prefix}_service;
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
GRANT SELECT (id), INSERT (id, "partition", topic, "key", headers, body, created_at)
  ON outbox_saga_outbox TO {prefix}_consumer;
GRANT SELECT (id), INSERT ON outbox_saga_delayed TO {prefix}_consumer;
-- What became of a COMMIT whose answer was lost: whether these ids are somewhere.
GRANT SELECT (id) ON outbox_saga_archive TO {prefix}_consumer;
GRANT SELECT (id) ON outbox_saga_dead_letter TO {prefix}_consumer;
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
GRANT SELECT (id), INSERT (id, "partition", topic, "key", headers, body, created_at)
  ON outbox_saga_outbox TO {prefix}_orchestrator;
GRANT SELECT (id), INSERT ON outbox_saga_delayed TO {prefix}_orchestrator;
-- What became of a COMMIT whose answer was lost: whether these ids are somewhere.
GRANT SELECT (id) ON outbox_saga_archive TO {prefix}_orchestrator;
GRANT SELECT (id) ON outbox_saga_dead_letter TO {prefix}_orchestrator;
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
-- No row of the outbox is changed; one of which a failure is stored is locked, which takes UPDATE.
GRANT SELECT, INSERT (id, "partition", topic, "key", headers, body, created_at),
  UPDATE (created_at), DELETE
  ON outbox_saga_outbox TO {prefix}_relay;
GRANT SELECT, UPDATE (due_at), DELETE ON outbox_saga_delayed TO {prefix}_relay;
GRANT SELECT, INSERT, DELETE ON outbox_saga_archive TO {prefix}_relay;
-- It buries; what was buried is a person's to decide about.
GRANT SELECT (id), INSERT ON outbox_saga_dead_letter TO {prefix}_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_saga_blocked_key TO {prefix}_relay;
GRANT SELECT, UPDATE (owner, epoch, until, revisit)
  ON outbox_saga_partition_lease TO {prefix}_relay;
-- Retention.
GRANT SELECT, DELETE ON outbox_saga_inbox TO {prefix}_relay;
GRANT SELECT, DELETE ON outbox_saga_reply TO {prefix}_relay;
-- Of sagas it sees whether and when they ended, and their keys; of commands when; no data.
GRANT SELECT (id, business_key, state, ended_at), DELETE ON outbox_saga_saga TO {prefix}_relay;
GRANT SELECT (saga_id), DELETE ON outbox_saga_saga_history TO {prefix}_relay;
GRANT SELECT (saga_id, step, generation, updated_at), DELETE
  ON outbox_saga_barrier TO {prefix}_relay;
-- What stands in no day's partition is removed where it stands.
GRANT SELECT, DELETE ON outbox_saga_archive_rest TO {prefix}_relay;
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
GRANT SELECT ("position", id, "partition", topic, "key", created_at)
  ON outbox_saga_outbox TO {prefix}_observer;
GRANT SELECT (id, due_at, "partition", topic, "key", created_at)
  ON outbox_saga_delayed TO {prefix}_observer;
GRANT SELECT (published_at, id, "position", "partition", topic, "key", created_at)
  ON outbox_saga_archive TO {prefix}_observer;
GRANT SELECT (id, "position", "partition", topic, "key", created_at, died_at, attempts,
    error_code, error, error_class)
  ON outbox_saga_dead_letter TO {prefix}_observer;
GRANT SELECT ON outbox_saga_blocked_key TO {prefix}_observer;
GRANT SELECT ON outbox_saga_partition_lease TO {prefix}_observer;
GRANT SELECT ON outbox_saga_key_lock TO {prefix}_observer;
GRANT SELECT (consumer, message_id, handled_at) ON outbox_saga_inbox TO {prefix}_observer;
GRANT SELECT ("position", consumer, message_id, topic, "key", arrived_at, until, failed_at,
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

COMMIT;
