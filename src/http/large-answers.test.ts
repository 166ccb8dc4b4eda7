import { expect, test } from 'bun:test'
import { FakeClock } from '../lib/test-clock.ts'
import { eventually } from '../lib/test-eventually.ts'
import { LargeAnswers } from './large-answers.ts'

const mib = 1024 * 1024
const piece = new Uint8Array(mib)

/** An answer that says `first` pieces, and ends when it is told to. */
function answerOf(first: number, headers: Record<string, string> = {}) {
  const end = Promise.withResolvers<void>()
  let given = 0
  let isLeft = false
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        if (given++ < first) return controller.enqueue(piece)
        await end.promise
        if (!isLeft) controller.close()
      },
      cancel() {
        isLeft = true
        end.resolve()
      },
    },
    { highWaterMark: 0 },
  )
  const response = new Response(body, { headers })
  return { response, end: () => end.resolve(), given: () => given, isLeft: () => isLeft }
}

const clock = new FakeClock()
const reading = (answers: LargeAnswers, response: Response, program: string, signal?: AbortSignal) => {
  const kept = { bytesMax: 32 * mib, program, signal: signal ?? new AbortController().signal }
  const state = { read: '' }
  const done = (async () => {
    let bytes = 0
    for await (const chunk of answers.kept(response, kept).body ?? []) bytes += chunk.byteLength
    return `${bytes / mib} MiB`
  })().catch((error) => String(error.message ?? error))
  void done.then((read) => {
    state.read = read
  })
  return { done, state }
}

test('large answers wait for room, of which a program leaves some, and small ones do not', async () => {
  const answers = new LargeAnswers(clock)
  const [one, more, other, third] = [answerOf(2), answerOf(2), answerOf(2), answerOf(2)]
  const first = reading(answers, one.response, 'a')
  await eventually('it is read to its end', () => one.given() === 3)
  const second = reading(answers, more.response, 'a')
  await eventually('it waits', () => more.given() === 1)
  const elsewhere = reading(answers, other.response, 'b')
  await eventually('another program has room', () => other.given() === 3)
  const last = reading(answers, third.response, 'c')
  await eventually('it waits', () => third.given() === 1)
  expect(await reading(answers, new Response(new Uint8Array(1024)), 'c').done).toBe('0.0009765625 MiB')
  expect([first.state.read, more.given(), third.given()]).toEqual(['', 1, 1])
  one.end()
  expect(await first.done).toBe('2 MiB')
  await eventually('whoever waited for that is read', () => more.given() + third.given() === 4)
  for (const { end } of [more, other, third]) end()
  expect(await Promise.all([second, elsewhere, last].map(({ done }) => done))).toEqual(
    Array.from({ length: 3 }, () => '2 MiB'),
  )
})

test('an answer that says how long it is has room for that, before anything of it is read', async () => {
  const answers = new LargeAnswers(clock)
  const short = { 'content-length': String(2 * mib) }
  const many = Array.from({ length: 8 }, () => answerOf(2, short))
  const read = many.map(({ response }, at) => reading(answers, response, `p${at % 4}`))
  await eventually('all are read', () => many.every(({ given }) => given() === 3))
  for (const { end } of many) end()
  for (const { done } of read) expect(await done).toBe('2 MiB')
})

test('one that comes slowly while others wait is given up, and so is the wait of one that is called off', async () => {
  const answers = new LargeAnswers(clock)
  const [hangs, alsoHangs, waits, leaves] = [answerOf(2), answerOf(2), answerOf(2), answerOf(2)]
  const hung = reading(answers, hangs.response, 'a')
  await eventually('it is read', () => hangs.given() === 3)
  const alone = reading(answers, alsoHangs.response, 'b')
  await eventually('it is read', () => alsoHangs.given() === 3)
  await clock.turn(120_000)
  // Nobody waits.
  expect([hung.state.read, alone.state.read]).toEqual(['', ''])
  const stop = new AbortController()
  const left = reading(answers, leaves.response, 'c', stop.signal)
  await eventually('it waits', () => leaves.given() === 1)
  stop.abort(new Error('called off'))
  expect(await left.done).toBe('called off')
  expect(leaves.isLeft()).toBeTrue()
  const waited = reading(answers, waits.response, 'd')
  await eventually('it waits', () => waits.given() === 1)
  await eventually('one of them is given up', async () => {
    await clock.turn(1000)
    return hung.state.read !== '' || alone.state.read !== ''
  })
  const given = hung.state.read === '' ? { ...alone.state, ...alsoHangs } : { ...hung.state, ...hangs }
  expect([given.read, given.isLeft()]).toEqual([
    'the answer came slowly, and others waited to be heard',
    true,
  ])
  await eventually('there is room', () => waits.given() === 3)
  waits.end()
  expect(await waited.done).toBe('2 MiB')
  for (const { end } of [hangs, alsoHangs]) end()
})
