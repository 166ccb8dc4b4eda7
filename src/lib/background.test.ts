import { expect, test } from 'bun:test'
import { Background } from './background.ts'

test('is settled once work ended, also work that was begun meanwhile', async () => {
  const background = new Background(() => {})
  const ended: string[] = []
  const later = Promise.withResolvers<void>()
  background.run(
    Promise.resolve().then(() => {
      background.run(later.promise.then(() => ended.push('later')))
      ended.push('first')
    }),
  )
  const settled = background.settled().then(() => ended.push('settled'))
  await Promise.resolve()
  later.resolve()
  await settled
  expect(ended).toEqual(['first', 'later', 'settled'])
})

test('tells the failure of work that nobody waits for, and leaves the other to who does', async () => {
  const told: unknown[] = []
  const background = new Background((error) => told.push(error))
  background.run(Promise.reject(new Error('alone')))
  await expect(background.track(Promise.reject(new Error('awaited')))).rejects.toThrow('awaited')
  await background.settled()
  expect(told).toEqual([new Error('alone')])
})

test('refuses and calls off with one error, from close on', () => {
  const background = new Background(() => {})
  background.refuseWhenClosing()
  background.close()
  background.close()
  expect(() => background.refuseWhenClosing()).toThrow('the platform is stopping')
  expect(background.closing.reason).toMatchObject({ code: 'unavailable' })
})
