import { describe, expect, test } from 'bun:test'
import { silentLogger } from '../../lib/log.ts'
import { FakeClock } from '../../lib/test-clock.ts'
import { LogFolding } from './log-folding.ts'
import type { FromFolder, ToFolder } from './protocol.ts'

/** A thread that folds as much as the test says, when it says so. */
class ScriptedThread extends EventTarget {
  readonly asked: ToFolder['type'][] = []
  onerror: unknown = null

  postMessage({ type }: ToFolder): void {
    this.asked.push(type)
  }

  answer(data: FromFolder): void {
    this.dispatchEvent(new MessageEvent('message', { data }))
  }

  ref(): void {}
  unref(): void {}
  terminate(): void {}
}

function folding() {
  const clock = new FakeClock()
  const threads: ScriptedThread[] = []
  let freed = 0
  const folding = new LogFolding({
    ...{ path: 'unused', clock, log: silentLogger },
    startWorker: () => {
      threads.push(new ScriptedThread())
      return threads.at(-1) as unknown as Bun.Worker
    },
    onFree: () => freed++,
  })
  const commit = (pages: number) => {
    folding.commitBegins()
    folding.commitEnds(pages)
  }
  return { clock, folding, commit, thread: () => threads.at(-1)!, threads, freed: () => freed }
}

describe('folding the log', () => {
  test('begins once it is long, with a thread of its own that is not there before', () => {
    const { commit, threads, thread, folding: log } = folding()
    commit(8191)
    expect(threads).toHaveLength(0)
    commit(8192)
    expect(thread().asked).toEqual(['fold'])
    // Commits go on meanwhile, and one that is over asks for nothing more.
    commit(8300)
    expect(thread().asked).toEqual(['fold'])
    expect(log.commitsWait).toBe(false)
  })

  test('is done when nothing is left', () => {
    const { commit, thread, folding: log } = folding()
    commit(9000)
    thread().answer({ type: 'folded', left: 0 })
    expect(log.commitsWait).toBe(false)
    expect(thread().asked).toEqual(['fold'])
    commit(9000)
    expect(thread().asked).toEqual(['fold', 'fold'])
  })

  test('lets commits wait for the little that they added, after the one that is under way', () => {
    const { commit, thread, folding: log, freed } = folding()
    commit(9000)
    log.commitBegins()
    thread().answer({ type: 'folded', left: 40 })
    expect(log.commitsWait).toBe(true)
    expect(thread().asked).toEqual(['fold'])
    log.commitEnds(9050)
    expect(thread().asked).toEqual(['fold', 'fold'])
    thread().answer({ type: 'folded', left: 0 })
    expect(log.commitsWait).toBe(false)
    expect(freed()).toBe(1)
  })

  test('goes on beside the commits while they add much, and then rests', () => {
    const { commit, clock, thread, folding: log } = folding()
    commit(9000)
    for (let pass = 1; pass <= 4; pass++) {
      expect(thread().asked).toHaveLength(pass)
      thread().answer({ type: 'folded', left: 3000 })
    }
    expect(log.commitsWait).toBe(false)
    commit(11_000)
    expect(thread().asked).toHaveLength(4)
    // Once there is more of it, or some time went by.
    commit(11_048)
    expect(thread().asked).toHaveLength(5)
    for (let pass = 1; pass <= 4; pass++) thread().answer({ type: 'folded', left: 3000 })
    clock.advance(1000)
    commit(11_050)
    expect(thread().asked).toHaveLength(9)
  })

  test('lets commits wait when the log is too long, however much is left', () => {
    const { commit, thread, folding: log, freed } = folding()
    commit(32_768)
    thread().answer({ type: 'folded', left: 30_000 })
    expect(log.commitsWait).toBe(true)
    expect(thread().asked).toEqual(['fold', 'fold'])
    // Somebody else reads: nobody waits for him.
    thread().answer({ type: 'folded', left: 30_000 })
    expect(log.commitsWait).toBe(false)
    expect(freed()).toBe(1)
    commit(32_769)
    expect(thread().asked).toHaveLength(2)
  })

  test('that fails is tried again after a while, and keeps nobody waiting', () => {
    const { commit, clock, threads, thread, folding: log, freed } = folding()
    commit(9000)
    thread().answer({ type: 'folded', left: 10 })
    thread().answer({ type: 'failed', detail: 'the disk is full' })
    expect(log.commitsWait).toBe(false)
    expect(freed()).toBe(1)
    commit(9001)
    expect(thread().asked).toHaveLength(2)
    clock.advance(1000)
    commit(9002)
    expect(thread().asked).toHaveLength(3)
    // So is one whose thread ends.
    thread().dispatchEvent(new Event('close'))
    clock.advance(1000)
    commit(9003)
    expect(threads).toHaveLength(2)
    expect(thread().asked).toEqual(['fold'])
  })

  test('is waited for at the end, and its thread ends', async () => {
    const { commit, thread, folding: log } = folding()
    commit(9000)
    const closed = log.close()
    expect(thread().asked).toEqual(['fold'])
    thread().answer({ type: 'folded', left: 500 })
    await Promise.resolve()
    expect(thread().asked).toEqual(['fold', 'close'])
    thread().answer({ type: 'closed' })
    await closed
    commit(9001)
    expect(thread().asked).toEqual(['fold', 'close'])
  })
})
