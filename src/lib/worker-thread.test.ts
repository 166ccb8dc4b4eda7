import { expect, test } from 'bun:test'
import { eventually } from './test-eventually.ts'
import { WorkerThread } from './worker-thread.ts'

type Said = { type: 'said'; word: string }

/** A program that says what it is sent, dies of `die` and of `throw`, and does not close while it is `stuck`. */
const program = `
  let stuck = false
  self.onmessage = ({ data }) => {
    if (data === 'die') process.exit(3)
    if (data === 'throw') throw new Error('thrown inside')
    if (data === 'stuck') stuck = true
    if (data === 'close' && !stuck) self.postMessage({ type: 'closed' })
    self.postMessage({ type: 'said', word: data })
  }`

function open() {
  const heard: string[] = []
  let begun = 0
  const thread: WorkerThread<string, Said> = new WorkerThread({
    start: () => new Worker(URL.createObjectURL(new Blob([program]))) as unknown as Bun.Worker,
    onStart: () => {
      thread.send(`hello ${++begun}`)
    },
    onMessage: ({ word }) => heard.push(word),
    onDied: (reason) => heard.push(`died: ${reason.includes('thrown inside') ? 'it threw' : reason}`),
  })
  const until = (...words: string[]) =>
    eventually(`it says ${words.join()}`, () => heard.join() === words.join())
  return { thread, until }
}

for (const [how, reason] of [
  ['die', 'it ended'],
  ['throw', 'it threw'],
] as const) {
  test(`who waits for a thread that dies of ${how} is told once, and the next message begins another`, async () => {
    const { thread, until } = open()
    expect(thread.isThere).toBe(false)
    thread.works()
    await until('hello 1')
    thread.send(how)
    await until('hello 1', `died: ${reason}`)
    expect(thread.isThere).toBe(false)
    thread.works()
    thread.send('again')
    await until('hello 1', `died: ${reason}`, 'hello 2', 'again')
    await thread.close('close')
    expect(thread.isThere).toBe(false)
  })
}

test('who waits for one to close is told when it dies instead', async () => {
  const { thread, until } = open()
  thread.works()
  thread.send('stuck')
  await until('hello 1', 'stuck')
  const closing = thread.close('close')
  thread.send('die')
  await closing
  expect(thread.isThere).toBe(false)
})

test('one that was ended says nothing more, and one that is not there closes at once', async () => {
  const { thread, until } = open()
  await thread.close('close')
  thread.works()
  thread.send('last')
  thread.end()
  thread.works()
  await until('hello 2')
  await thread.close('close')
  await until('hello 2')
})
