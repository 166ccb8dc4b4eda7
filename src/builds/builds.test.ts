import { afterEach, expect, test } from 'bun:test'
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PlatformError } from '../errors.ts'
import type { Store } from '../spec/store.ts'
import { agent, archivesIn, ends, Host, Life, partialIn, type, zip } from './test-builds.ts'

afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end()
})

const refusal = (work: Promise<unknown>) =>
  work.then(
    () => null,
    (error: unknown) => error,
  )
test('an upload starts the build, whose owner is told of each step, and the archive goes', async () => {
  const host = await Host.open()
  const life = await host.live()
  const { id, token } = await life.begin()
  expect(token).toMatch(/^[\w-]{43}$/)
  expect(await life.builds.get('main', id)).toMatchObject({
    status: 'uploading',
    owner: agent,
    uploadedAt: null,
  })
  await life.put(token)
  const { request, end } = await life.jobOf('rev-1')
  expect(request).toMatchObject({
    workspace: 'main',
    kind: 'agent',
    name: 'greeter',
    tag: 'rev-1',
    archiveType: 'zip',
    redact: ['hunter2'],
  })
  expect(readFileSync(request.archivePath).equals(zip)).toBe(true)
  expect(statSync(request.archivePath).mode & 0o777).toBe(0o600)
  expect(await life.builds.get('main', id)).toMatchObject({ status: 'building', endedAt: null })
  request.onLine('Installing', 'stdout')
  host.clock.advance(2500)
  end()
  await life.until(() => life.told.length === 2)
  expect(life.told).toEqual(['greeter:rev-1 building', 'greeter:rev-1 built agent/greeter:rev-1'])
  expect(life.logged).toEqual([
    'agents/greeter Installing',
    'agents/greeter Built agent/greeter:rev-1 in 2.5 s',
  ])
  await life.builds.close()
  expect(await life.builds.get('main', id)).toMatchObject({ status: 'built', image: 'agent/greeter:rev-1' })
  expect(archivesIn(host)).toEqual([])
})

test('the address is kept nowhere', async () => {
  const host = await Host.open()
  const life = await host.live()
  const { token } = await life.begin()
  await life.put(token)
  await life.jobOf('rev-1')
  for (const name of readdirSync(host.dir, { recursive: true }) as string[]) {
    const path = join(host.dir, name)
    if (statSync(path).isFile()) expect(readFileSync(path).includes(token)).toBe(false)
  }
})

test('an address takes one archive, and says why it takes no second', async () => {
  const host = await Host.open()
  const life = await host.live()
  const { token } = await life.begin()
  const at = (wanted: string) => life.put(wanted)
  expect(await refusal(at(`${token.slice(0, -2)}xx`))).toMatchObject({ code: 'not_found' })
  await at(token)
  expect(await refusal(at(token))).toMatchObject({
    code: 'conflict',
    message: expect.stringContaining('was used already'),
  })
  ;(await life.jobOf('rev-1')).end()
  await life.until(() => life.told.length === 2)
  expect(await refusal(at(token))).toMatchObject({ code: 'conflict' })
  const unused = await life.begin({ ...agent, tag: 'rev-2' })
  const newer = await life.begin({ ...agent, tag: 'rev-3' })
  expect(await refusal(at(unused.token))).toMatchObject({ code: 'gone' })
  await life.until(() => life.told.length === 3)
  expect(life.told[2]).toBe('greeter:rev-2 failed a newer build took the place of this one')
  // After a connection that was lost the same archive comes again.
  await at(newer.token)
  expect((await life.jobOf('rev-3')).request.tag).toBe('rev-3')
})

test('of many uploads to one address at once one is taken, and it is whole', async () => {
  const host = await Host.open()
  const life = await host.live()
  const { token } = await life.begin()
  const bodies = Array.from({ length: 6 }, (_, at) => Buffer.concat([zip, Buffer.alloc(200_000, at)]))
  const results = await Promise.allSettled(bodies.map((body) => life.put(token, body)))
  const taken = results.flatMap(({ status }, at) => (status === 'fulfilled' ? [at] : []))
  expect(taken).toHaveLength(1)
  for (const result of results)
    if (result.status === 'rejected') expect(result.reason).toMatchObject({ code: 'conflict' })
  const { request } = await life.jobOf('rev-1')
  expect(readFileSync(request.archivePath).equals(bodies[taken[0]!]!)).toBe(true)
  expect(partialIn(host)).toEqual([])
})

test('an address is over after an hour, also when its archive is on its way', async () => {
  const host = await Host.open()
  const life = await host.live()
  const late = await life.begin()
  const slow = await life.begin({ ...agent, name: 'slow' })
  const uploading = life.builds.receive(
    slow.token,
    new ReadableStream({ pull: () => new Promise(() => {}) }),
    type,
    null,
  )
  uploading.catch(() => {})
  await host.clock.turn(3_600_000)
  await life.until(() => life.told.length === 2)
  expect(life.told.sort()).toEqual([
    'greeter:rev-1 failed no archive was uploaded within 60 minutes',
    'slow:rev-1 failed no archive was uploaded within 60 minutes',
  ])
  expect(await refusal(uploading)).toMatchObject({ code: 'gone' })
  expect(await refusal(life.put(late.token))).toMatchObject({ code: 'gone' })
  expect(archivesIn(host)).toEqual([])
})

test('of a broken upload nothing is kept, and the address takes a whole one', async () => {
  const host = await Host.open()
  const life = await host.live({ archiveBytesMax: 100_000 })
  const { token } = await life.begin()
  const broken = new ReadableStream({
    start: (controller) => {
      controller.enqueue(zip)
      controller.error(new Error('connection lost'))
    },
  })
  const large = Buffer.concat([zip, Buffer.alloc(100_000)])
  const attempts: [() => Promise<void>, string][] = [
    [() => life.builds.receive(token, broken, type, 100), 'bad_gateway'],
    [() => life.builds.receive(token, null, type, null), 'bad_request'],
    [() => life.put(token, zip, { length: zip.length + 1 }), 'bad_request'],
    [() => life.put(token, zip, { length: zip.length - 1 }), 'bad_request'],
    [() => life.put(token, zip, { length: 100_001 }), 'body_too_large'],
    [() => life.put(token, large, { length: null }), 'body_too_large'],
    [() => life.put(token, Buffer.from('<html>')), 'bad_request'],
    [() => life.put(token, Buffer.from('PK')), 'bad_request'],
    [() => life.put(token, zip, { type: 'text/plain' }), 'unsupported_media_type'],
    [() => life.put(token, zip, { type: '' }), 'unsupported_media_type'],
  ]
  for (const [attempt, code] of attempts) expect(await refusal(attempt())).toMatchObject({ code })
  expect(archivesIn(host)).toEqual([])
  await life.put(token, Buffer.from('a tar'), { type: 'application/x-tar; charset=binary' })
  expect((await life.jobOf('rev-1')).request.archiveType).toBe('tar')
})

test('a few are built at once, and a workspace with many waits for its own', async () => {
  const host = await Host.open()
  const life = await host.live()
  const tags = ['a', 'b', 'c', 'd']
  for (const name of tags) await life.upload({ ...agent, name, tag: name })
  await life.upload({ ...agent, workspace: 'other', name: 'e', tag: 'e' })
  await life.until(() => life.told.length === 5 && life.jobs.length === 2)
  const order = ['a', 'b', 'e', 'c', 'd']
  for (let at = 0; at < order.length; at++) (await life.jobOf(order[at]!)).end()
  await life.until(() => life.told.length === 10)
  expect(life.jobs.map(({ request }) => request.tag)).toEqual(order)
})

test('a newer build of the same owner calls off the one that is built, and no other', async () => {
  const host = await Host.open()
  const life = await host.live()
  await life.upload()
  await life.upload({ ...agent, kind: 'function' })
  await life.until(() => life.jobs.length === 2)
  await life.upload({ ...agent, tag: 'rev-2' })
  await life.until(() => life.told.some((line) => line.includes('failed')))
  expect(life.told).toContain('greeter:rev-1 failed a newer build took the place of this one')
  const job = await life.jobOf('rev-2')
  job.end()
  life.jobs.find(({ request }) => request.kind === 'function')?.end()
  await life.until(() => life.told.filter((line) => line.includes('built')).length === 2)
})

test('who is gone has its builds ended without a word, uploads included', async () => {
  const host = await Host.open()
  const life = await host.live()
  const id = await life.upload()
  const { request } = await life.jobOf('rev-1')
  const { token } = await life.begin({ ...agent, tag: 'rev-2' })
  const uploading = life.builds.receive(
    token,
    new ReadableStream({ pull: () => new Promise(() => {}) }),
    type,
    null,
  )
  uploading.catch(() => {})
  await life.builds.cancel({ workspace: 'main', kind: 'agent', name: 'greeter', tag: 'rev-1' })
  expect(request.signal.aborted).toBe(true)
  expect(await life.builds.get('main', id)).toBeNull()
  await life.builds.cancel({ workspace: 'main', kind: 'agent', name: 'greeter' })
  expect(await refusal(uploading)).toMatchObject({ code: 'gone' })
  expect(await refusal(life.put(token))).toMatchObject({ code: 'not_found' })
  await life.builds.close()
  expect(life.told).toEqual(['greeter:rev-1 building'])
  expect(archivesIn(host)).toEqual([])
})

test('a build that fails says why, and what is wrong with the platform is told to nobody else', async () => {
  const host = await Host.open()
  const life = await host.live()
  const id = await life.upload()
  const message = 'npm ci failed:\nnpm error 404'
  ;(await life.jobOf('rev-1')).end(new PlatformError('unprocessable', message))
  await life.until(() => life.told.length === 2)
  expect(life.told[1]).toBe(`greeter:rev-1 failed ${message}`)
  expect(life.logged).toEqual(['agents/greeter ERROR: npm ci failed:'])
  await life.upload({ ...agent, tag: 'rev-2' })
  ;(await life.jobOf('rev-2')).end(new TypeError('x is undefined, secret hunter2'))
  await life.until(() => life.told.length === 4)
  expect(life.told[3]).toContain('the platform failed to build this')
  await life.builds.close()
  expect(await life.builds.get('main', id)).toMatchObject({ status: 'failed', error: message, image: null })
  expect(archivesIn(host)).toEqual([])
})

test('what its owner says against the image is how the build failed', async () => {
  const host = await Host.open()
  const life = await host.live()
  life.gate = (what) => {
    if (what.startsWith('built')) throw new PlatformError('unprocessable', 'it did not listen')
  }
  await life.upload()
  ;(await life.jobOf('rev-1')).end()
  await life.until(() => life.told.length === 2)
  expect(life.told[1]).toBe('greeter:rev-1 failed it did not listen')
})

test('a platform that stops leaves a build to the next, which goes on from the archive', async () => {
  const host = await Host.open()
  for (let round = 0; round < 5; round++) {
    const life = await host.live()
    if (round === 0) await life.upload()
    await life.jobOf('rev-1')
    await life.builds.close()
    expect(life.told).toEqual(['greeter:rev-1 building'])
  }
  const life = await host.live()
  ;(await life.jobOf('rev-1')).end()
  await life.until(() => life.told.length === 2)
  expect(life.told[1]).toContain('built')
})

test('a build that takes the platform down does so three times', async () => {
  const host = await Host.open()
  for (let round = 0; round < 3; round++) {
    const life = await host.live()
    if (round === 0) await life.upload()
    await life.jobOf('rev-1')
  }
  const life = await host.live()
  await life.until(() => life.told.length === 2)
  expect(life.told[1]).toBe('greeter:rev-1 failed the platform ended 3 times while this was built')
})

test('after a crash the newest upload of an owner is built, and leftovers of uploads are gone', async () => {
  const host = await Host.open()
  const first = await host.live()
  // Nothing of this life goes on: the builder never answers.
  await first.upload()
  await first.jobOf('rev-1')
  await first.upload({ ...agent, name: 'other', tag: 'o' })
  const open = await first.begin({ ...agent, name: 'later', tag: 'l' })
  writeFileSync(join(host.dir, 'builds', 'stray.archive'), 'x')
  writeFileSync(join(host.dir, 'builds/partial', 'half'), 'x')
  const second = await host.live()
  await second.until(() => second.jobs.length === 2)
  expect(archivesIn(host)).toHaveLength(2)
  for (const job of second.jobs) job.end()
  await second.until(() => second.told.length === 4)
  // An address of before the crash is good.
  await second.put(open.token)
  ;(await second.jobOf('l')).end()
  await second.until(() => second.told.length === 6)
})

test('whenever the platform is killed, what was answered with success is built, and told', async () => {
  let crashes = 0
  for (let step = 0; ; step++) {
    const host = await Host.open()
    let left = step >> 1
    const dead = () => new Promise<never>(() => {})
    let died = () => {}
    const death = new Promise<'died'>((resolve) => {
      died = () => resolve('died')
    })
    /** From some call on the platform is no more, the call itself made or not. */
    const mortal = new Proxy(host.store, {
      get(store, name: keyof Store) {
        const method = store[name]
        if (typeof method !== 'function') return method
        return async (...args: unknown[]) => {
          if (left-- > 0) return await (method as (...args: unknown[]) => unknown).apply(store, args)
          if (left === -1 && step % 2 === 0)
            await (method as (...args: unknown[]) => unknown).apply(store, args)
          died()
          return await dead()
        }
      },
    })
    let answered = false
    const scenario = async () => {
      const life = new Life(host, { store: mortal })
      await life.builds.open()
      const { token } = await life.begin()
      await life.put(token)
      answered = true
      ;(await life.jobOf('rev-1')).end()
      await life.until(() => life.told.length === 2)
      while ((await host.store.page({ kind: 'build', where: { over: 'true' } })).data.length === 0)
        await new Promise(setImmediate)
      return 'whole' as const
    }
    const outcome = await Promise.race([scenario(), death])
    // Lives of the dead are not closed: they would wait for ever.
    ends.pop()
    const next = await host.live()
    const { data } = await host.store.page<{ status: string }>({ kind: 'build' })
    if (answered || data[0]?.body.status === 'building') {
      if (data[0]?.body.status === 'building') {
        ;(await next.jobOf('rev-1')).end()
        await next.until(() => next.told.some((line) => line.includes('built')))
      }
      await next.builds.close()
      expect((await host.store.page<{ status: string }>({ kind: 'build' })).data[0]?.body.status).toBe(
        'built',
      )
      expect(archivesIn(host)).toEqual([])
    }
    if (outcome === 'whole') break
    crashes++
  }
  expect(crashes).toBeGreaterThan(7)
})

test('builds under way are bounded, of a workspace and uploads of it', async () => {
  const host = await Host.open()
  const life = await host.live()
  for (let at = 0; at < 100; at++) await life.begin({ ...agent, name: `a${at}` })
  expect(await refusal(life.begin({ ...agent, name: 'more' }))).toMatchObject({ code: 'too_many_requests' })
  const tokens = [
    await life.begin({ ...agent, name: 'a0' }),
    await life.begin({ ...agent, workspace: 'other' }),
  ]
  expect(tokens).toHaveLength(2)
  const never = () => new ReadableStream<Uint8Array>({ pull: () => new Promise(() => {}) })
  const open: Promise<void>[] = []
  for (let at = 1; at <= 16; at++) {
    const { token } = await life.begin({ ...agent, name: `a${at}` })
    open.push(life.builds.receive(token, never(), type, null))
    open.at(-1)!.catch(() => {})
  }
  expect(await refusal(life.put(tokens[0]!.token))).toMatchObject({ code: 'too_many_requests' })
  await life.put(tokens[1]!.token)
  await life.builds.removal('main')
  for (const upload of open) expect(await refusal(upload)).toMatchObject({ code: 'gone' })
})

test('of builds that are over a few are remembered', async () => {
  const host = await Host.open()
  const life = await host.live()
  const ids: string[] = []
  for (let at = 0; at < 7; at++) {
    ids.push(await life.upload({ ...agent, tag: `rev-${at}` }))
    ;(await life.jobOf(`rev-${at}`)).end()
    await life.until(() => life.told.length === 2 * (at + 1))
  }
  await life.builds.close()
  const kept = await Promise.all(ids.map((id) => life.builds.get('main', id)))
  expect(kept.map((view) => view?.status ?? null)).toEqual([null, null, ...Array(5).fill('built')])
  expect(await life.builds.newest(agent)).toMatchObject({ owner: { tag: 'rev-6' } })
})
