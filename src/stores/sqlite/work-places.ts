import type { Database } from 'bun:sqlite'

/** What a change of one piece of work means to the counts of its key and target. */
export interface PlaceChange {
  ready?: number
  waiting?: number
  busy?: number
  held?: number
  open?: number
}

interface KeyRow {
  id: number
  target_id: number
  running_max: number
  ready: number
  busy: number
  open: number
}

/**
 * Turns and room: which target is next, and which of its keys. Counts instead of searches, so that a claim costs the same
 * whoever waits, and however much.
 */
export class WorkPlaces {
  readonly #statements
  #turn: number | null = null

  constructor(database: Database) {
    this.#statements = {
      lastTurn: database.prepare<{ turn: number }, []>(
        'SELECT max(coalesce((SELECT max(turn) FROM work_targets), 0), coalesce((SELECT max(turn) FROM work_keys), 0)) AS turn',
      ),
      target: database.prepare<{ id: number }, [string, string, string, number, number]>(
        `INSERT INTO work_targets (queue, workspace, target, running_max, claimable, busy, held, waiting, open, turn)
         VALUES (?, ?, ?, ?, 0, 0, 0, 0, 0, ?)
         ON CONFLICT (queue, workspace, target) DO UPDATE SET running_max = excluded.running_max RETURNING id`,
      ),
      findKey: database.prepare<KeyRow, [number, string]>(
        'SELECT id, target_id, running_max, ready, busy, open FROM work_keys WHERE target_id = ? AND name = ?',
      ),
      findTarget: database.prepare<{ id: number }, [string, string, string]>(
        'SELECT id FROM work_targets WHERE queue = ? AND workspace = ? AND target = ?',
      ),
      addKey: database.prepare<{ id: number }, [number, string, number, number]>(
        `INSERT INTO work_keys (target_id, name, running_max, ready, busy, open, turn) VALUES (?, ?, ?, 0, 0, 0, ?)
         RETURNING id`,
      ),
      key: database.prepare<KeyRow, [number]>(
        'SELECT id, target_id, running_max, ready, busy, open FROM work_keys WHERE id = ?',
      ),
      changeKey: database.prepare<null, [number, number, number, number, number]>(
        'UPDATE work_keys SET ready = ?, busy = ?, open = ?, running_max = ? WHERE id = ?',
      ),
      removeKey: database.prepare<null, [number]>('DELETE FROM work_keys WHERE id = ?'),
      changeTarget: database.prepare<{ open: number }, [number, number, number, number, number, number]>(
        `UPDATE work_targets SET claimable = claimable + ?, busy = busy + ?, held = held + ?, waiting = waiting + ?,
         open = open + ? WHERE id = ? RETURNING open`,
      ),
      removeTarget: database.prepare<null, [number]>('DELETE FROM work_targets WHERE id = ?'),
      nextTarget: database.prepare<{ id: number }, [string]>(
        `SELECT id FROM work_targets WHERE queue = ? AND claimable > 0 AND busy < running_max ORDER BY turn LIMIT 1`,
      ),
      nextOtherTarget: database.prepare<{ id: number }, [string, string]>(
        `SELECT id FROM work_targets WHERE queue = ? AND claimable > 0 AND busy < running_max
         AND id NOT IN (SELECT value FROM json_each(?)) ORDER BY turn LIMIT 1`,
      ),
      nextKey: database.prepare<{ id: number }, [number]>(
        `SELECT id FROM work_keys WHERE target_id = ? AND ready > 0 AND busy < running_max ORDER BY turn LIMIT 1`,
      ),
      turnTarget: database.prepare<null, [number, number]>('UPDATE work_targets SET turn = ? WHERE id = ?'),
      turnKey: database.prepare<null, [number, number]>('UPDATE work_keys SET turn = ? WHERE id = ?'),
    }
  }

  /** The key's id, with the limits as they are given now; whoever comes new is behind all others. */
  enter(place: {
    queue: string
    workspace: string
    target: string
    targetMax: number
    key: string
    keyMax: number
  }): number {
    const { queue, workspace, target, targetMax, key, keyMax } = place
    const { id: targetId } = this.#statements.target.get(queue, workspace, target, targetMax, this.#next())!
    const known = this.#statements.findKey.get(targetId, key)
    if (!known) return this.#statements.addKey.get(targetId, key, keyMax, this.#next())!.id
    if (known.running_max !== keyMax) this.#change(known, {}, keyMax)
    return known.id
  }

  /** How many of a key may run from now on; nothing when nothing of it is open. */
  limit(queue: string, workspace: string, target: string, key: string, max: number): void {
    const found = this.#statements.findTarget.get(queue, workspace, target)
    const known = found && this.#statements.findKey.get(found.id, key)
    if (known) this.#change(known, {}, max)
  }

  change(keyId: number, change: PlaceChange): void {
    const key = this.#statements.key.get(keyId)
    if (key) this.#change(key, change, key.running_max)
  }

  /** The key whose turn it is, of no target that is passed over; it goes behind all others by that. Null: nothing is ready that has room. */
  take(queue: string, passedOver: readonly number[]): { keyId: number; targetId: number } | null {
    const target =
      passedOver.length === 0
        ? this.#statements.nextTarget.get(queue)
        : this.#statements.nextOtherTarget.get(queue, JSON.stringify(passedOver))
    const key = target && this.#statements.nextKey.get(target.id)
    if (!target || !key) return null
    this.#statements.turnTarget.run(this.#next(), target.id)
    this.#statements.turnKey.run(this.#next(), key.id)
    return { keyId: key.id, targetId: target.id }
  }

  finalize(): void {
    for (const statement of Object.values(this.#statements)) statement.finalize()
  }

  #change(key: KeyRow, change: PlaceChange, runningMax: number): void {
    const { ready = 0, waiting = 0, busy = 0, held = 0, open = 0 } = change
    const before = claimable(key.ready, key.busy, key.running_max)
    const after = claimable(key.ready + ready, key.busy + busy, runningMax)
    if (key.open + open <= 0 && open < 0) this.#statements.removeKey.run(key.id)
    else {
      this.#statements.changeKey.run(key.ready + ready, key.busy + busy, key.open + open, runningMax, key.id)
    }
    const target = this.#statements.changeTarget.get(after - before, busy, held, waiting, open, key.target_id)
    if (target && target.open <= 0 && open < 0) this.#statements.removeTarget.run(key.target_id)
  }

  #next(): number {
    this.#turn ??= this.#statements.lastTurn.get()?.turn ?? 0
    this.#turn += 1
    return this.#turn
  }
}

function claimable(ready: number, busy: number, runningMax: number): number {
  return busy < runningMax ? ready : 0
}
