import type { Database } from 'bun:sqlite'
import { isOpenState as isOpen, largeInputBytes } from '../../spec/queue.ts'
import { LargeInputs } from './large-inputs.ts'
import { type PlaceChange, WorkPlaces } from './work-places.ts'
import type {
  AddedWork,
  ChangedColumns,
  RemovedWork,
  WorkRefusal,
  WorkRow,
  WorkStep,
  WorkStepResult,
} from './work-protocol.ts'

/** How many a claim makes ready that came due; more come with the next one. */
const dueAtOnceMax = 1000
/** Targets that one claim passes over; the next one begins with others. */
const passedOverMax = 64

type StepOf<Op extends WorkStep['op']> = Extract<WorkStep, { op: Op }>

/** Carries out steps about work, inside the transaction of the group that they came with. */
export class WorkWriter {
  readonly #places: WorkPlaces
  readonly #statements
  #lastToken = 0

  constructor(database: Database) {
    this.#places = new WorkPlaces(database)
    this.#statements = prepare(database)
  }

  apply(step: WorkStep): WorkStepResult | WorkRefusal {
    switch (step.op) {
      case 'work-add':
        return this.#add(step.work, step.now)
      case 'work-claim':
        return { op: 'work-claim', claimed: this.#claim(step) }
      case 'work-change':
        return this.#change(step)
      case 'work-release':
        return { op: 'work-release', count: this.#release(step) }
      case 'work-limit':
        this.#places.limit(step.queue, step.workspace, step.target, step.key, step.max)
        return { op: 'work-limit' }
      case 'work-prune':
        return { op: 'work-prune', ...this.#prune(step) }
      case 'work-remove': {
        const row = this.#statements.byId.get(step.id)
        return { op: 'work-remove', removed: row ? [this.#remove(row)] : [] }
      }
      case 'work-remove-some': {
        const rows = this.#statements.ofWorkspace.all(step.workspace, step.limit)
        if (rows.length < step.limit) this.#statements.removeRequests.run(step.workspace)
        return { op: 'work-remove-some', removed: rows.map((row) => this.#remove(row)) }
      }
    }
  }

  finalize(): void {
    this.#places.finalize()
    for (const statement of Object.values(this.#statements)) statement.finalize()
  }

  #add(work: AddedWork, now: number): Extract<WorkStepResult, { op: 'work-add' }> | WorkRefusal {
    const { id, queue, workspace, target, key, priority, runAt, state, request } = work
    if (request) {
      const seen = this.#statements.request.get(workspace, request.key, now)
      const row = seen && this.#statements.byId.get(seen.id)
      // One whose work is gone is forgotten: there is nothing to answer with.
      if (seen && row) {
        if (seen.digest !== request.digest) return { reason: 'other_request', name: request.key }
        return { op: 'work-add', row, existing: true }
      }
    }
    if (this.#statements.byId.get(id)) return { reason: 'work_exists', name: id }
    const waits = state === 'waiting'
    const ready = waits && runAt <= now
    const keyId = waits ? this.#places.enter(work) : null
    const row = this.#statements.insert.get(
      ...([id, queue, workspace, target, key, keyId, priority, runAt, state, ready ? 1 : 0] as const),
      ...([
        work.leaseMs,
        work.until,
        work.group,
        work.position,
        work.parts,
        work.labels,
        work.body,
        now,
      ] as const),
    )!
    if (keyId !== null) this.#places.change(keyId, { open: 1, waiting: 1, ready: ready ? 1 : 0 })
    this.#addLabels(row)
    if (work.input) this.#statements.addInput.run(row.seq, work.input)
    if (request)
      this.#statements.addRequest.run(workspace, request.key, request.digest, id, request.expiresAt)
    return { op: 'work-add', row, existing: false }
  }

  #claim({ now, queue, limit, room }: StepOf<'work-claim'>): { row: WorkRow; input: Uint8Array | null }[] {
    for (const { seq, key_id } of this.#statements.due.all(now, dueAtOnceMax)) {
      this.#statements.makeReady.run(seq)
      if (key_id !== null) this.#places.change(key_id, { ready: 1 })
    }
    const claimed: { row: WorkRow; input: Uint8Array | null }[] = []
    const large = new LargeInputs(room)
    /** Targets whose next input has no room. */
    const passedOver: number[] = []
    let smallBytes = 0
    while (claimed.length < limit && smallBytes < room.smallBytes && passedOver.length < passedOverMax) {
      const place = this.#places.take(queue, passedOver)
      const first = place && this.#statements.first.get(place.keyId)
      if (!place || !first) break
      const bytes = this.#statements.inputBytes.get(first.seq)?.bytes ?? 0
      if (bytes < largeInputBytes) smallBytes += bytes
      else if (!large.take(first, bytes)) {
        passedOver.push(place.targetId)
        continue
      }
      const { keyId } = place
      this.#lastToken = Math.max(this.#lastToken + 1, now * 1000, first.token + 1)
      const row = this.#statements.claim.get(this.#lastToken, now, first.seq)!
      this.#places.change(keyId, { ready: -1, waiting: -1, busy: 1 })
      if (row.group_id !== null) this.#statements.partStarted.run(now, row.group_id)
      claimed.push({ row, input: this.#statements.input.get(row.seq)?.bytes ?? null })
    }
    return claimed
  }

  #change(step: StepOf<'work-change'>): WorkStepResult | WorkRefusal {
    const { now, id, expect, set, result, follow } = step
    const old = this.#statements.byId.get(id)
    if (!old || !holds(old, expect)) return { op: 'work-change', changed: null }
    const changed = { ...old, ...columnsOf(set), version: old.version + 1 }
    if (old.ended_at !== null && isOpen(changed.state)) return { op: 'work-change', changed: null }
    const ends = old.ended_at === null && !isOpen(changed.state)
    if (ends) changed.ended_at = now
    if (changed.state === 'waiting') changed.ready = changed.run_at <= now ? 1 : 0
    else changed.ready = 0
    if (changed.state === 'waiting' || changed.ended_at !== null) changed.until = null
    if (result) {
      changed.result_bytes = result.byteLength
      this.#statements.setResult.run(old.seq, result)
    }
    if (changed.labels !== old.labels) {
      this.#removeLabels(old)
      this.#addLabels(changed)
    }
    this.#statements.update.run(
      changed.state,
      changed.ready,
      changed.body,
      changed.labels,
      changed.run_at,
      changed.until,
      changed.attempts,
      changed.ended_at,
      changed.result_bytes,
      changed.version,
      old.seq,
    )
    if (old.key_id !== null && old.state !== changed.state) {
      this.#places.change(old.key_id, difference(countsOf(old), countsOf(changed)))
    } else if (old.key_id !== null && old.ready !== changed.ready) {
      this.#places.change(old.key_id, { ready: changed.ready - old.ready })
    }
    const group = ends && old.group_id !== null ? this.#statements.partEnded.get(old.group_id) : null
    const followed: WorkRow[] = []
    for (const work of follow) {
      const added = this.#add(work, now)
      if ('reason' in added) return added
      followed.push(added.row)
    }
    return {
      op: 'work-change',
      changed: {
        row: changed,
        previousState: old.state,
        groupPartsLeft: group?.parts_left ?? null,
        followed,
      },
    }
  }

  #release({ now, queue }: StepOf<'work-release'>): number {
    const rows = this.#statements.running.all(queue)
    for (const row of rows) {
      this.#statements.unclaim.run(row.run_at <= now ? 1 : 0, row.seq)
      if (row.key_id === null) continue
      this.#places.change(row.key_id, { busy: -1, waiting: 1, ready: row.run_at <= now ? 1 : 0 })
    }
    return rows.length
  }

  #prune({ now, endedBefore, keptMax, limit }: StepOf<'work-prune'>): {
    removed: RemovedWork[]
    expiredRequests: number
  } {
    const { changes: expiredRequests } = this.#statements.expireRequests.run(now, limit)
    const removed: RemovedWork[] = []
    for (const { workspace, count } of this.#statements.endedCounts.all()) {
      const room = limit - removed.length
      if (room === 0) break
      const old = this.#statements.endedBefore.all(workspace, endedBefore, room)
      removed.push(...old.map((row) => this.#remove(row)))
      const over = Math.min(count - old.length - keptMax, room - old.length)
      if (over <= 0) continue
      removed.push(...this.#statements.oldestEnded.all(workspace, over).map((row) => this.#remove(row)))
    }
    return { removed, expiredRequests }
  }

  #remove(row: WorkRow): RemovedWork {
    this.#removeLabels(row)
    this.#statements.removeInput.run(row.seq)
    this.#statements.removeResult.run(row.seq)
    this.#statements.remove.run(row.seq)
    if (row.key_id !== null) this.#places.change(row.key_id, difference(countsOf(row), {}))
    return { queue: row.queue, state: row.state }
  }

  #addLabels({ labels, workspace, seq }: WorkRow): void {
    if (labels === '{}') return
    for (const [name, value] of Object.entries(JSON.parse(labels) as Record<string, string>)) {
      this.#statements.addLabel.run(workspace, name, value, seq)
    }
  }

  #removeLabels({ labels, workspace, seq }: WorkRow): void {
    if (labels === '{}') return
    for (const [name, value] of Object.entries(JSON.parse(labels) as Record<string, string>)) {
      this.#statements.removeLabel.run(workspace, name, value, seq)
    }
  }
}

function holds(row: WorkRow, { token, version, states }: StepOf<'work-change'>['expect']): boolean {
  if (token !== undefined && row.token !== token) return false
  if (version !== undefined && row.version !== version) return false
  return states === undefined || states.includes(row.state)
}

function columnsOf(set: ChangedColumns): Partial<WorkRow> {
  return {
    ...(set.state === undefined ? {} : { state: set.state }),
    ...(set.body === undefined ? {} : { body: set.body }),
    ...(set.labels === undefined ? {} : { labels: set.labels }),
    ...(set.runAt === undefined ? {} : { run_at: set.runAt }),
    ...(set.until === undefined ? {} : { until: set.until }),
    ...(set.attempts === undefined ? {} : { attempts: set.attempts }),
  }
}

/** What one piece of work is counted as. */
function countsOf({ state, ready }: WorkRow): PlaceChange {
  if (state === 'waiting') return { open: 1, waiting: 1, ready }
  if (state === 'running') return { open: 1, busy: 1 }
  if (state === 'held') return { open: 1, busy: 1, held: 1 }
  return {}
}

function difference(from: PlaceChange, to: PlaceChange): PlaceChange {
  const of = (name: keyof PlaceChange) => (to[name] ?? 0) - (from[name] ?? 0)
  return { ready: of('ready'), waiting: of('waiting'), busy: of('busy'), held: of('held'), open: of('open') }
}

/** Of a group that goes on nothing is pruned: it is counted by its parts. */
const groupOver =
  '(group_id IS NULL OR NOT EXISTS (SELECT 1 FROM work parent WHERE parent.id = work.group_id AND parent.ended_at IS NULL))'

function prepare(database: Database) {
  return {
    byId: database.prepare<WorkRow, [string]>('SELECT * FROM work WHERE id = ?'),
    insert: database.prepare<WorkRow, (string | number | null)[]>(
      `INSERT INTO work (id, queue, workspace, target, key, key_id, priority, run_at, state, ready, lease_ms, until,
       group_id, position, parts, parts_left, labels, body, version, token, attempts, created_at, result_bytes)
       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?15, ?16, ?17, 1, 0, 0, ?18, 0)
       RETURNING *`,
    ),
    addLabel: database.prepare<null, [string, string, string, number]>(
      'INSERT OR IGNORE INTO work_labels (workspace, name, value, seq) VALUES (?, ?, ?, ?)',
    ),
    removeLabel: database.prepare<null, [string, string, string, number]>(
      'DELETE FROM work_labels WHERE workspace = ? AND name = ? AND value = ? AND seq = ?',
    ),
    addInput: database.prepare<null, [number, Uint8Array]>(
      'INSERT INTO work_inputs (seq, bytes) VALUES (?, ?)',
    ),
    input: database.prepare<{ bytes: Uint8Array }, [number]>('SELECT bytes FROM work_inputs WHERE seq = ?'),
    // SQLite knows the length of a blob without reading it.
    inputBytes: database.prepare<{ bytes: number }, [number]>(
      'SELECT length(bytes) AS bytes FROM work_inputs WHERE seq = ?',
    ),
    setResult: database.prepare<null, [number, Uint8Array]>(
      'INSERT OR REPLACE INTO work_results (seq, bytes) VALUES (?, ?)',
    ),
    request: database.prepare<{ digest: string; id: string }, [string, string, number]>(
      'SELECT digest, id FROM work_requests WHERE workspace = ? AND key = ? AND expires_at > ?',
    ),
    addRequest: database.prepare<null, [string, string, string, string, number]>(
      'INSERT OR REPLACE INTO work_requests (workspace, key, digest, id, expires_at) VALUES (?, ?, ?, ?, ?)',
    ),
    expireRequests: database.prepare<null, [number, number]>(
      `DELETE FROM work_requests WHERE (workspace, key) IN
       (SELECT workspace, key FROM work_requests WHERE expires_at <= ? LIMIT ?)`,
    ),
    removeRequests: database.prepare<null, [string]>('DELETE FROM work_requests WHERE workspace = ?'),
    due: database.prepare<{ seq: number; key_id: number | null }, [number, number]>(
      `SELECT seq, key_id FROM work WHERE state = 'waiting' AND ready = 0 AND run_at <= ? ORDER BY run_at LIMIT ?`,
    ),
    makeReady: database.prepare<null, [number]>('UPDATE work SET ready = 1 WHERE seq = ?'),
    first: database.prepare<{ seq: number; token: number; workspace: string; target: string }, [number]>(
      `SELECT seq, token, workspace, target FROM work WHERE key_id = ? AND state = 'waiting' AND ready = 1
       ORDER BY priority DESC, run_at, seq LIMIT 1`,
    ),
    claim: database.prepare<WorkRow, [number, number, number]>(
      `UPDATE work SET state = 'running', ready = 0, token = ?1, until = ?2 + lease_ms, attempts = attempts + 1,
       started_at = coalesce(started_at, ?2), version = version + 1 WHERE seq = ?3 RETURNING *`,
    ),
    partStarted: database.prepare<null, [number, string]>(
      'UPDATE work SET started_at = ?, version = version + 1 WHERE id = ? AND started_at IS NULL',
    ),
    update: database.prepare<
      null,
      [string, number, string, string, number, number | null, number, number | null, number, number, number]
    >(
      `UPDATE work SET state = ?, ready = ?, body = ?, labels = ?, run_at = ?, until = ?, attempts = ?, ended_at = ?,
       result_bytes = ?, version = ? WHERE seq = ?`,
    ),
    partEnded: database.prepare<{ parts_left: number | null }, [string]>(
      'UPDATE work SET parts_left = parts_left - 1 WHERE id = ? RETURNING parts_left',
    ),
    running: database.prepare<WorkRow, [string]>(
      `SELECT * FROM work WHERE ended_at IS NULL AND state = 'running' AND queue = ?`,
    ),
    unclaim: database.prepare<null, [number, number]>(
      `UPDATE work SET state = 'waiting', ready = ?, until = NULL, attempts = attempts - 1, version = version + 1
       WHERE seq = ?`,
    ),
    endedBefore: database.prepare<WorkRow, [string, number, number]>(
      `SELECT * FROM work WHERE workspace = ? AND ended_at IS NOT NULL AND ended_at < ? AND ${groupOver} ORDER BY ended_at LIMIT ?`,
    ),
    endedCounts: database.prepare<{ workspace: string; count: number }, []>(
      'SELECT workspace, count(*) AS count FROM work WHERE ended_at IS NOT NULL GROUP BY workspace',
    ),
    oldestEnded: database.prepare<WorkRow, [string, number]>(
      `SELECT * FROM work WHERE workspace = ? AND ended_at IS NOT NULL AND ${groupOver} ORDER BY ended_at LIMIT ?`,
    ),
    ofWorkspace: database.prepare<WorkRow, [string, number]>(
      'SELECT * FROM work WHERE workspace = ? LIMIT ?',
    ),
    remove: database.prepare<null, [number]>('DELETE FROM work WHERE seq = ?'),
    removeInput: database.prepare<null, [number]>('DELETE FROM work_inputs WHERE seq = ?'),
    removeResult: database.prepare<null, [number]>('DELETE FROM work_results WHERE seq = ?'),
  }
}
