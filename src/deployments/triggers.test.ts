import { afterEach, beforeEach, expect, test } from 'bun:test'
import { PlatformError } from '../errors.ts'
import { type TriggerInput, workloadView } from './index.ts'
import type { WorkloadView } from './schema.ts'
import { TestDeployments } from './test-host.ts'

let host: TestDeployments
const origin = 'http://localhost:4400'
const masked = '********'
const callbackUrl = 'https://example.com/hook'

beforeEach(async () => {
  host = await TestDeployments.open()
})
afterEach(() => host[Symbol.asyncDispose]())

const of = { workspace: 'main', kind: 'agent', name: 'one', actor: 'ada' } as const
const asked = (triggers: TriggerInput[] | undefined, image?: string) => ({
  ...of,
  input: {
    spec: { ...(triggers ? { triggers } : {}), ...(image === undefined ? {} : { runtime: { image } }) },
  },
  upload: false,
  origin,
})
const create = (triggers: TriggerInput[] = []) => host.deployments.create(asked(triggers, 'sandbox/app:v1'))
const later = (configuration: Record<string, unknown> = {}, rest: TriggerInput = {}): TriggerInput => ({
  id: 'later',
  type: 'http-async',
  ...rest,
  configuration,
})
/** As answered, by trigger: what is shown of its secret. */
function shown(
  deployment: Awaited<ReturnType<typeof read>>,
  options: { showSecrets?: boolean; revealed?: readonly string[] } = {},
): unknown[] {
  const view = workloadView(deployment, host.deployments.viewOptions(deployment, origin, options))
  return (view.spec.triggers ?? []).map(({ configuration }) => configuration?.callbackSecret)
}
const read = () => host.deployments.get('main', 'agent', 'one')
const refusal = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'nothing was refused',
    (error) => (PlatformError.is(error) ? `${error.code} ${error.message}` : String(error)),
  )

test('the secret of a callback is told once, by the answer that made it', async () => {
  const { deployment, revealed } = await create([later({ callbackUrl }), { type: 'http' }])
  expect(revealed).toEqual(['later'])
  expect(shown(deployment, { revealed })).toEqual(['secret-1', undefined])
  expect(shown(await read())).toEqual([masked, undefined])
  expect(shown(await read(), { showSecrets: true })).toEqual(['secret-1', undefined])
  expect(host.callbacks.checked).toEqual([`spec.triggers[0].configuration.callbackUrl ${callbackUrl}`])
  expect(JSON.stringify((await read()).body)).not.toContain('secret-1')

  // Who sends back what he read changes nothing.
  const { metadata, spec } = viewOf(await read())
  const again = await host.deployments.update({ ...asked(undefined), input: { metadata, spec } })
  expect(again.revealed).toEqual([])
  expect(shown(again.deployment, { showSecrets: true })).toEqual(['secret-1', undefined])
  expect(host.callbacks.checked).toHaveLength(1)

  // Another address is told in the same name; without one there is no secret.
  const moved = await host.deployments.update(asked([later({ callbackUrl: 'https://example.com/other' })]))
  expect([moved.revealed, shown(moved.deployment, { showSecrets: true })]).toEqual([[], ['secret-1']])
  const none = await host.deployments.update(asked([later()]))
  expect(shown(none.deployment, { showSecrets: true })).toEqual([undefined])
  const back = await host.deployments.update(asked([later({ callbackUrl })]))
  expect(shown(back.deployment, { revealed: back.revealed })).toEqual(['secret-2'])
})

test('a secret that was replaced holds for a while more', async () => {
  const { deployment } = await create([later({ callbackUrl })])
  const { triggers } = host.deployments
  const { uid } = deployment.body
  const secrets = (id = 'later') => triggers.secrets({ ...of, uid }, id)
  const rotated = await triggers.rotate(of, 'later', 60_000)
  expect(shown(rotated.deployment, rotated)).toEqual(['secret-2'])
  expect(await secrets()).toEqual(['secret-2', 'secret-1'])
  host.clock.advance(30_000)
  await triggers.rotate(of, 'later', 60_000)
  expect(await secrets()).toEqual(['secret-3', 'secret-2', 'secret-1'])
  host.clock.advance(30_000)
  expect(await secrets()).toEqual(['secret-3', 'secret-2'])
  await triggers.rotate(of, 'later', 0)
  expect(await secrets()).toEqual(['secret-4'])
  await host.restart()
  expect(await host.deployments.triggers.secrets({ ...of, uid }, 'later')).toEqual(['secret-4'])
  expect(await host.deployments.triggers.secrets({ ...of, uid: 'another' }, 'later')).toBeNull()
  expect(await refusal(triggers.rotate(of, 'none', 0))).toContain('not_found')
})

test('triggers change without a revision, and stay when code says nothing of them', async () => {
  const { deployment } = await create()
  const { triggers } = host.deployments
  const added = await triggers.change(of, (there) => [...there, later({ callbackUrl })])
  expect(added.revealed).toEqual(['later'])
  expect(added.deployment.body.revisions).toHaveLength(deployment.body.revisions.length)
  await triggers.change(of, ([one]) => [{ ...one, enabled: false }])
  expect(await triggers.list(of)).toEqual([
    { id: 'later', type: 'http-async', enabled: false, configuration: { callbackUrl } },
  ])
  await host.deployments.update({ ...asked(undefined), upload: true })
  expect(await triggers.list(of)).toHaveLength(1)
  await host.deployments.update({ ...asked([]), upload: true })
  expect(await triggers.list(of)).toEqual([])
  expect(await refusal(triggers.change({ ...of, name: 'none' }, () => []))).toContain('not_found')
})

test('ids are made where there are none, and where two have the same', async () => {
  await create([{ type: 'cron', configuration: { schedule: '* * * * *' } }, {}, {}, { id: 'http' }])
  expect((await host.deployments.triggers.list(of)).map(({ id }) => id)).toEqual([
    'cron',
    'http',
    'http-2',
    'http-3',
  ])
})

test('what stands beside the configuration counts as in it', async () => {
  await create([
    { type: 'schedule', schedule: '0 8 * * *', timeout: 30, configuration: { timezone: 'Europe/London' } },
  ])
  expect(await host.deployments.triggers.list(of)).toEqual([
    {
      id: 'cron',
      type: 'cron',
      configuration: { schedule: '0 8 * * *', timeout: 30, timezone: 'Europe/London' },
    },
  ])
})

test.each<[string, TriggerInput]>([
  ['spec.triggers[0].id: "__proto__" cannot be an id', later({}, { id: '__proto__' })],
  ['cannot be an id', later({}, { id: 'a\ud800' })],
  ['spec.triggers[0].type: "webhook" is not one of http, http-async, cron', { type: 'webhook' }],
  ['configuration.timeout: 901 is out of range', later({ timeout: 901 })],
  ['configuration.timeout: must be a whole number', later({ timeout: '30s' })],
  ['configuration.retry: 11 is out of range', later({ retry: 11 })],
  ['configuration.authenticationType: "open" is not one of public', later({ authenticationType: 'open' })],
  ['configuration.schedule: missing', { type: 'cron' }],
  ['never comes', { type: 'cron', configuration: { schedule: '0 0 31 2 *' } }],
  ['fields instead of five', { type: 'cron', configuration: { schedule: '* * * * * *' } }],
  [
    'configuration.timezone: "Mars/Olympus" is not a time zone',
    { type: 'cron', configuration: { schedule: '* * * * *', timezone: 'Mars/Olympus' } },
  ],
  [
    'configuration.missed: "all" is not one of once, skip',
    { type: 'cron', configuration: { schedule: '* * * * *', missed: 'all' } },
  ],
  ['configuration.tasks[1]: must be an object', later({ tasks: [{}, 1] })],
  [
    'configuration.callbackUrl: only what an agent does later',
    { type: 'http', configuration: { callbackUrl } },
  ],
  ['configuration.path: must be text', later({ path: 1 })],
])('%s', async (message, trigger) => {
  expect(await refusal(create([trigger]))).toMatch(new RegExp(`^bad_request .*${escaped(message)}`))
})

test('only agents answer later', async () => {
  const input = { spec: { runtime: { image: 'sandbox/app:v1' }, triggers: [later()] } }
  const work = host.deployments.create({ ...asked([]), kind: 'function', input })
  expect(await refusal(work)).toContain('is not one of http, which functions have')
})

test('a pattern counts from when it was asked for, and again from when it is changed or switched on', async () => {
  const trigger = (schedule: string, enabled = true): TriggerInput => ({
    id: 'clock',
    type: 'cron',
    enabled,
    configuration: { schedule },
  })
  const since = async () => (await read()).body.triggerStates?.clock?.since
  const { triggers } = host.deployments
  await create([trigger('0 * * * *')])
  const first = host.clock.now()
  host.clock.advance(1000)
  await triggers.change(of, (there) => [...there, { id: 'other' }])
  expect(await since()).toBe(first)
  await triggers.change(of, () => [trigger('0 * * * *', false)])
  host.clock.advance(1000)
  await triggers.change(of, () => [trigger('0 * * * *')])
  expect(await since()).toBe(first + 2000)
})

function viewOf(deployment: Awaited<ReturnType<typeof read>>): WorkloadView {
  return workloadView(deployment, host.deployments.viewOptions(deployment, origin))
}

function escaped(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')
}
