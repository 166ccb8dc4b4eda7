import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ociArchive, programs, tar, testImage } from './images/test-image.ts'
import { type Clock, systemClock } from './lib/clock.ts'
import { eventually } from './lib/test-eventually.ts'
import { openTestClient, type TestClient, whyNot } from './test-client.ts'

/** Images that one workspace shares with another. */

setDefaultTimeout(120_000)
const directory = mkdtempSync(join(tmpdir(), 'hutch-shares-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))
const why = await whyNot()
const dayMs = 24 * 60 * 60 * 1000

describe.skipIf(why !== '')('shared images', () => {
  let client: TestClient
  /** Days that went by; real machines need a clock that goes. */
  let laterMs = 0
  const clock: Clock = {
    now: () => systemClock.now() + laterMs,
    monotonic: () => systemClock.monotonic(),
    sleep: (ms, signal) => systemClock.sleep(ms, signal),
  }
  let foreignKey: string
  let foreignAccount: string

  beforeAll(async () => {
    client = await openTestClient({
      clock,
      dataDir: join(directory, 'data'),
      imageDir: join(directory, 'host'),
      imageSource: 'live',
      imageMbMax: 64,
    })
    await call('main', '/v0/workspaces', { name: 'lab', displayName: 'Lab' })
    const stranger = await client.platform.users.create({ email: 'stranger@example.com' })
    await client.platform.workspaces.create({ name: 'theirs', ownerSub: stranger.sub })
    const made = await client.platform.access.keys.create({
      sub: stranger.sub,
      subType: 'user',
      workspace: '',
      createdBy: stranger.sub,
    })
    foreignKey = made.key
    const { body } = await call('theirs', '/v0/workspaces/theirs')
    foreignAccount = (body as { accountId: string }).accountId
  })
  afterAll(() => client?.[Symbol.asyncDispose]())

  async function call(workspace: string, path: string, json?: object, method = json ? 'POST' : 'GET') {
    const response = await client.request(path, {
      method,
      headers: {
        'x-blaxel-workspace': workspace,
        ...(workspace === 'theirs' ? { authorization: `Bearer ${foreignKey}` } : {}),
        ...(json ? { 'content-type': 'application/json' } : {}),
      },
      ...(json ? { body: JSON.stringify(json) } : {}),
    })
    const text = await response.text()
    return { status: response.status, body: (text === '' ? null : JSON.parse(text)) as unknown }
  }

  async function bring(workspace: string, name: string, tag = 'v1', said = name): Promise<void> {
    const layers = [tar(programs('sh', 'cat')), tar([{ path: 'said', content: said }])]
    const answer = await client.request(`/-/images/import?name=${name}&tag=${tag}`, {
      method: 'PUT',
      headers: {
        'x-blaxel-workspace': workspace,
        ...(workspace === 'theirs' ? { authorization: `Bearer ${foreignKey}` } : {}),
      },
      body: Buffer.from(ociArchive(testImage(layers))),
    })
    expect([answer.status, await answer.text()]).toEqual([200, expect.any(String)])
  }

  const share = (name: string) => `/v0/images/sandbox/${name}/share`
  const image = (name: string) => `/v0/images/sandboxes/${name}`

  /** What a sandbox of a workspace finds in a shared image. */
  async function said(workspace: string, reference: string): Promise<string> {
    const metadata = { name: `box-${reference.replace(/\W/g, '-')}` }
    const spec = { runtime: { image: reference, memory: 256 } }
    const made = await call(workspace, '/v0/sandboxes', { metadata, spec })
    expect([made.status, made.body]).toEqual([200, expect.any(Object)])
    const at = `/${workspace}/sandboxes/${metadata.name}`
    const ran = await call(workspace, `${at}/process`, { command: 'cat /said', waitForCompletion: true })
    await call(workspace, `/v0/sandboxes/${metadata.name}`, undefined, 'DELETE')
    return (ran.body as { stdout: string }).stdout
  }

  test('another workspace of the account has it at once, and starts sandboxes from it', async () => {
    await bring('main', 'tool')
    const shared = await call('main', share('tool'), { targetWorkspace: 'lab' })
    expect(shared).toMatchObject({ status: 200, body: { metadata: { name: 'tool', workspace: 'main' } } })
    const { body } = await call('lab', image('tool'))
    expect(body).toMatchObject({ metadata: { workspace: 'lab', sourceWorkspace: 'main', status: 'BUILT' } })
    expect((await call('main', share('tool'))).body).toEqual([
      {
        workspace: 'lab',
        workspaceDisplayName: 'Lab',
        accountId: expect.stringMatching(/^usr_/),
        status: 'active',
      },
    ])
    expect(await said('lab', 'sandbox/tool:v1')).toBe('tool')
    // A tag that comes later is theirs at once, and so is one that moves.
    await bring('main', 'tool', 'v2', 'second')
    expect(await said('lab', 'sandbox/tool:v2')).toBe('second')
    await bring('main', 'tool', 'v1', 'moved')
    expect(await said('lab', 'sandbox/tool:v1')).toBe('moved')

    // It stays as long as anybody has it.
    for (const path of [image('tool'), `${image('tool')}/tags/v2`]) {
      expect(await call('main', path, undefined, 'DELETE')).toMatchObject({
        status: 400,
        body: { message: expect.stringContaining('shared with the workspace "lab"') },
      })
    }
    expect(await call('main', '/v0/images', undefined, 'DELETE')).toMatchObject({ body: { deleted: 0 } })
    expect(await said('lab', 'sandbox/tool:v1')).toBe('moved')
    const taken = await call('main', `${share('tool')}/lab`, undefined, 'DELETE')
    expect(taken).toMatchObject({ status: 200, body: { metadata: { name: 'tool' } } })
    expect((await call('lab', image('tool'))).status).toBe(404)
    expect((await call('main', `${share('tool')}/lab`, undefined, 'DELETE')).status).toBe(404)
    await bring('main', 'tool', 'v3', 'third')
    expect((await call('lab', image('tool'))).status).toBe(404)
    expect((await call('main', image('tool'), undefined, 'DELETE')).status).toBe(200)
    const layers = () => readdirSync(join(directory, 'data', 'images', 'layers'))
    await eventually('their layers gone', () => layers().length === 0)
  })

  test('what is wrong is said, and an image of the same name is not replaced', async () => {
    await bring('main', 'same')
    await bring('lab', 'same', 'own', 'of the lab')
    const refused = async (path: string, json: object, workspace = 'main') => {
      const { status, body } = await call(workspace, path, json)
      return [status, (body as { message: string }).message]
    }
    expect(await refused(share('same'), { targetWorkspace: 'lab' })).toEqual([
      409,
      'the workspace "lab" has an image sandbox/same already',
    ])
    expect(await refused(share('none'), { targetWorkspace: 'lab' })).toEqual([
      404,
      expect.stringContaining('no image sandbox/none'),
    ])
    expect((await refused(share('same'), { targetWorkspace: 'main' }))[0]).toBe(400)
    expect((await refused(share('same'), {}))[0]).toBe(400)
    for (const targetWorkspace of ['theirs', 'nobodys']) {
      expect((await refused(share('same'), { targetWorkspace }))[0]).toBe(400)
      expect((await refused(share('same'), { targetWorkspace, targetAccountId: 'usr_other' }))[0]).toBe(404)
    }
    expect((await call('main', share('none'))).status).toBe(404)
    expect((await call('main', `${share('same')}/lab`, undefined, 'DELETE')).status).toBe(404)
    expect(await said('lab', 'sandbox/same:own')).toBe('of the lab')

    // Only its owner shares an image, and only admins do.
    await bring('main', 'passed-on')
    await call('main', share('passed-on'), { targetWorkspace: 'lab' })
    expect((await refused(share('passed-on'), { targetWorkspace: 'main' }, 'lab'))[0]).toBe(400)
    const { sub } = await client.platform.users.create({ email: 'member@example.com' })
    await client.platform.users.add('main', sub, 'member')
    const { key } = await client.platform.access.keys.create({
      sub,
      subType: 'user',
      workspace: '',
      createdBy: sub,
    })
    const asMember = await client.request(share('same'), {
      method: 'POST',
      headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
      body: JSON.stringify({ targetWorkspace: 'lab' }),
    })
    expect(asMember.status).toBe(403)
  })

  test("another account's workspace is offered it, and has it once it accepts", async () => {
    await bring('main', 'offered')
    const target = { targetWorkspace: 'theirs', targetAccountId: foreignAccount }
    const offered = await call('main', share('offered'), target)
    expect(offered).toMatchObject({
      status: 202,
      body: {
        id: expect.any(String),
        imageName: 'offered',
        sourceWorkspace: 'main',
        targetWorkspace: 'theirs',
      },
    })
    const [entry] = (await call('theirs', '/v0/pending-image-shares')).body as { id: string }[]
    expect(entry).toMatchObject({ imageName: 'offered', resourceType: 'sandbox', hasConflict: false })
    const id = entry?.id ?? ''
    expect((await call('main', '/v0/pending-image-shares')).body).toEqual([])
    expect((await call('main', '/v0/pending-image-shares?direction=outgoing')).body).toMatchObject([{ id }])
    expect((await call('main', share('offered'))).body).toMatchObject([
      { workspace: 'theirs', status: 'pending', pendingShareId: id },
    ])
    // Asked again it is the same offer, and nothing is there yet.
    expect((await call('main', share('offered'), target)).body).toMatchObject({ id })
    expect((await call('theirs', image('offered'))).status).toBe(404)
    expect((await call('main', `/v0/pending-image-shares/${id}/accept`, {})).status).toBe(404)

    const accepted = await call('theirs', `/v0/pending-image-shares/${id}/accept`, {})
    expect(accepted).toMatchObject({ status: 200, body: { metadata: { sourceWorkspace: 'main' } } })
    expect(await said('theirs', 'sandbox/offered:v1')).toBe('offered')
    expect((await call('theirs', `/v0/pending-image-shares/${id}/accept`, {})).status).toBe(404)
    expect((await call('main', share('offered'))).body).toMatchObject([{ status: 'active' }])
    await call('main', `${share('offered')}/theirs`, undefined, 'DELETE')
    expect((await call('theirs', image('offered'))).status).toBe(404)
  })

  test('an offer is declined, taken back, too late, or replaces what is there when it is forced to', async () => {
    await bring('main', 'late')
    const target = { targetWorkspace: 'theirs', targetAccountId: foreignAccount }
    const offer = async () => ((await call('main', share('late'), target)).body as { id: string }).id
    const accept = (id: string, query = '') =>
      call('theirs', `/v0/pending-image-shares/${id}/accept${query}`, {})
    const declined = await offer()
    expect(await call('theirs', `/v0/pending-image-shares/${declined}/decline`, {})).toEqual({
      status: 204,
      body: null,
    })
    expect((await accept(declined)).status).toBe(404)
    const takenBack = await offer()
    expect((await call('main', `${share('late')}/theirs`, undefined, 'DELETE')).status).toBe(200)
    expect((await accept(takenBack)).status).toBe(404)
    const late = await offer()
    laterMs = 8 * dayMs
    expect((await accept(late)).status).toBe(410)
    expect((await call('theirs', '/v0/pending-image-shares')).body).toEqual([])

    await bring('theirs', 'late', 'v1', 'of their own')
    await bring('theirs', 'late', 'own', 'of their own')
    const forced = await offer()
    expect((await call('theirs', '/v0/pending-image-shares')).body).toMatchObject([{ hasConflict: true }])
    expect((await accept(forced)).status).toBe(409)
    expect((await accept(forced, '?force=true')).status).toBe(200)
    expect(await said('theirs', 'sandbox/late:v1')).toBe('late')
    expect(await said('theirs', 'sandbox/late:own')).toBe('of their own')
    await bring('main', 'late', 'own', 'of another')
    await bring('main', 'late', 'new', 'newest')
    expect(await said('theirs', 'sandbox/late:own')).toBe('of their own')
    expect(await said('theirs', 'sandbox/late:new')).toBe('newest')
    await call('main', `${share('late')}/theirs`, undefined, 'DELETE')
    expect(await call('theirs', image('late'))).toMatchObject({ body: { spec: { tags: [{ name: 'own' }] } } })
  })
})
