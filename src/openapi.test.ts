import { afterAll, beforeAll, expect, test } from 'bun:test'
import { z } from 'zod'
import { TestReceiver } from './deliveries/test-receiver.ts'
import { createPlatform, type Platform, temporaryDataDir } from './platform.ts'
import { fakeRuntime } from './runtimes/fake/index.ts'

interface Operation {
  parameters?: object[]
  requestBody?: { required: boolean; content: Record<string, { schema: object }> }
  responses: Record<string, { content?: Record<string, { schema: object }> }>
}

interface Document {
  paths: Record<string, Record<string, Operation>>
  components: { schemas: Record<string, object>; parameters: Record<string, object> }
}

/** What no platform without a registry and layers answers with success. */
const refusedHere = new Set([
  'POST /images',
  'GET /images/{resourceType}/{imageName}',
  'DELETE /images/{resourceType}/{imageName}',
  'GET /images/{resourceType}/{imageName}/tags',
  'DELETE /images/{resourceType}/{imageName}/tags/{tagName}',
  'GET /images/{resourceType}/{imageName}/share',
  'POST /images/{resourceType}/{imageName}/share',
  'DELETE /images/{resourceType}/{imageName}/share/{targetWorkspace}',
  'POST /pending-image-shares/{pendingShareId}/accept',
  'POST /pending-image-shares/{pendingShareId}/decline',
])

let platform: Platform
let document: Document
const called = new Map<string, number[]>()

beforeAll(async () => {
  platform = await createPlatform({
    dataDir: temporaryDataDir,
    runtime: fakeRuntime(),
    port: 0,
    logLevel: 'error',
    resolveTxt: async () => [],
  })
  document = (await (await platform.request('/v0/openapi.json')).json()) as Document
})
afterAll(() => platform.close())

const schemaOf = (schema: object) => z.fromJSONSchema(schema as Parameters<typeof z.fromJSONSchema>[0])

/** Calls an operation of the document, and holds question and answer against what it says of them. */
async function call(
  operation: string,
  params: Record<string, string> = {},
  options: { json?: object; version?: string; query?: string; basic?: string } = {},
): Promise<{ status: number; body: unknown }> {
  const [method = '', template = ''] = operation.split(' ')
  const described = document.paths[template]?.[method.toLowerCase()]
  if (!described) throw new Error(`${operation} is not in the document`)
  const path = template.replace(/\{(\w+)\}/g, (_, name: string) => params[name] ?? `no-${name}`)
  const { json, version, query = '', basic } = options
  const response = await platform.request(`/v0${path}${query}`, {
    method,
    headers: {
      authorization: basic ?? `Bearer ${platform.credentials.apiKey}`,
      ...(template.startsWith('/workspaces') ? {} : { 'x-blaxel-workspace': 'main' }),
      ...(version === undefined ? {} : { 'blaxel-version': version }),
      ...(json === undefined ? {} : { 'content-type': 'application/json' }),
    },
    ...(json === undefined ? {} : { body: JSON.stringify(json) }),
  })
  const answer = described.responses[String(response.status)] ?? described.responses.default
  if (response.status === 204) {
    expect([operation, answer?.content, await response.text()]).toEqual([operation, undefined, ''])
    called.set(operation, [...(called.get(operation) ?? []), response.status])
    return { status: response.status, body: null }
  }
  const body: unknown = await response.json()
  const stated = answer?.content?.['application/json']?.schema
  if (!stated) throw new Error(`${operation} states no schema for ${response.status}`)
  const reference = (stated as { $ref?: string }).$ref?.split('/').at(-1)
  const schema = reference === undefined ? stated : document.components.schemas[reference]!
  const issues = schemaOf(schema).safeParse(body).error?.issues
  expect({ operation, version, status: response.status, issues, body }).toMatchObject({ issues: undefined })
  if (json !== undefined && response.ok) {
    const taken = described.requestBody?.content['application/json']?.schema
    expect({ operation, issues: taken && schemaOf(taken).safeParse(json).error?.issues }).toEqual({
      operation,
      issues: undefined,
    })
  }
  called.set(operation, [...(called.get(operation) ?? []), response.status])
  return { status: response.status, body }
}

const yearly = { type: 'cron', configuration: { schedule: '0 0 1 1 *' } }

/** Everything that can be done with a trigger. */
async function callTriggers(item: string, one: Record<string, string>, callsBack: boolean): Promise<void> {
  await using receiver = new TestReceiver()
  const given = callsBack
    ? { id: 'later', type: 'http-async', configuration: { callbackUrl: receiver.url } }
    : { id: 'later', ...(item.startsWith('/jobs') ? yearly : { type: 'http' }) }
  const trigger = { ...one, triggerId: 'later' }
  await call(`POST ${item}/triggers`, one, { json: given })
  expect((await call(`POST ${item}/triggers`, one, { json: given })).status).toBe(409)
  await call(`GET ${item}/triggers`, one)
  if (callsBack) await callDeliveries(receiver)
  const inside = { type: 'http-async', configuration: { callbackUrl: 'http://10.0.0.7/hook' } }
  expect((await call(`POST ${item}/triggers`, one, { json: inside })).status).toBe(400)
  const { body: read } = await call(`GET ${item}/triggers/{triggerId}`, trigger)
  await call(`PUT ${item}/triggers/{triggerId}`, trigger, { json: { ...(read as object), enabled: false } })
  if (callsBack)
    await call(`POST ${item}/triggers/{triggerId}/rotate`, trigger, { json: { overlapSeconds: 60 } })
  await call(`DELETE ${item}/triggers/{triggerId}`, trigger)
}

/** The agent does not answer here, which is told. */
async function callDeliveries(receiver: TestReceiver): Promise<void> {
  const authorization = `Bearer ${platform.credentials.apiKey}`
  const asked = await platform.request('/main/agents/one?async=true', {
    method: 'POST',
    headers: { authorization },
  })
  const executionId = asked.headers.get('x-hutch-execution') ?? ''
  const { headers } = await receiver.nth(1)
  const { body } = await call('GET /deliveries', {}, { query: `?execution=${executionId}` })
  const delivery = { deliveryId: (body as { data: { id: string }[] }).data[0]?.id ?? '' }
  expect(delivery.deliveryId).toBe(headers['webhook-id'] ?? '')
  await call('GET /deliveries/{deliveryId}', delivery)
  await call('POST /deliveries/{deliveryId}/redeliver', delivery)
  await receiver.nth(2)
  expect((await call('GET /deliveries/{deliveryId}')).status).toBe(404)
}

test('what the document says of each operation is what is asked for and answered', async () => {
  const box = { sandboxName: 'box' }
  const labels = { team: 'a' }
  await call('GET /.well-known/openid-configuration')
  await call('GET /.well-known/jwks.json')
  for (const path of [
    '/locations',
    '/configuration',
    '/publicIps',
    '/templates',
    '/mcp/hub',
    '/sandbox/hub',
    '/images',
    '/users',
    '/workspaces',
    '/pending-image-shares',
  ])
    await call(`GET ${path}`)
  await call('GET /templates/{templateName}', { templateName: 'agent-ts' })
  await call('GET /observability/logs', {}, { query: '?resourceType=agents&workloadIds=a' })
  platform.executions.runner('probe', async () => ({ status: 'waiting' }), { runningMax: 2 })
  const ran: string[] = []
  for (let count = 0; count < 2; count++) {
    const { execution } = await platform.executions.accept({
      ...{ workspace: 'main', source: 'probe', target: { kind: 'agent', name: 'a' }, timeoutMs: 600_000 },
      input: new Uint8Array(),
    })
    ran.push(execution.id)
    const report = { status: 'failed', result: new Uint8Array(), type: 'text/plain' } as const
    await platform.executions.report('main', execution.id, report)
  }
  const executed = { executionId: ran[0]! }
  for (const path of ['', '/metrics', '/events']) await call(`GET /executions${path}`)
  await call('GET /agents/{agentName}/executions', { agentName: 'a' })
  for (const path of ['', '/input', '/result', '/events'])
    await call(`GET /executions/{executionId}${path}`, executed)
  const replayed = await call('POST /executions/{executionId}/replay', executed)
  await call('POST /executions/replay', {}, { json: { status: 'failed' } })
  const again = { executionId: (replayed.body as { id: string }).id }
  await call('POST /executions/{executionId}/cancel', again, { json: { reason: 'enough' } })
  await call('DELETE /executions/{executionId}', executed)
  await call('POST /workspaces', {}, { json: { name: 'lab', displayName: 'Lab', labels } })
  for (const query of ['', '?withReason=true'])
    await call('POST /workspaces/availability', {}, { json: { name: 'lab' }, query })
  for (const query of ['', '?countResources=true'])
    await call('GET /workspaces/{workspaceName}', { workspaceName: 'lab' }, { query })
  await call('PUT /workspaces/{workspaceName}', { workspaceName: 'lab' }, { json: { displayName: 'L' } })
  const left = await call('DELETE /workspaces/{workspaceName}/leave', { workspaceName: 'lab' })
  expect(left.status).toBe(409)

  const email = 'ada@example.com'
  await call('POST /users', {}, { json: { email, role: 'member' } })
  await call('PUT /users/{subOrEmail}', { subOrEmail: email }, { json: { role: 'admin' } })
  await call('DELETE /workspaces/{workspaceName}/leave', { workspaceName: 'main' })
  await platform.users.add('main', (await platform.users.getByEmail('admin@hutch.localhost'))!.sub, 'admin')
  await call('DELETE /users/{subOrEmail}', { subOrEmail: email })
  await call('DELETE /workspaces/{workspaceName}', { workspaceName: 'lab' })

  const account = await call('POST /service_accounts', {}, { json: { name: 'ci', role: 'member' } })
  const { client_id: clientId, client_secret: secret } = account.body as Record<string, string>
  const basic = `Basic ${btoa(`${clientId}:${secret}`)}`
  await call('POST /login/device', {}, { json: { client_id: 'cli' } })
  await call('POST /oauth/token', {}, { basic, json: { grant_type: 'client_credentials' } })
  expect((await call('POST /oauth/token', {}, { basic, json: { grant_type: 'other' } })).status).toBe(400)
  await call('GET /service_accounts')
  const ours = { clientId: clientId! }
  await call('PUT /service_accounts/{clientId}', ours, { json: { description: 'for builds' } })
  const key = await call('POST /service_accounts/{clientId}/api_keys', ours, {
    json: { name: 'k', expires_in: '30d' },
  })
  await call('GET /service_accounts/{clientId}/api_keys', ours)
  const { id } = key.body as { id: string }
  await call('DELETE /service_accounts/{clientId}/api_keys/{apiKeyId}', { ...ours, apiKeyId: id })
  await call('DELETE /service_accounts/{clientId}', ours)

  const image = 'blaxel/base-image:latest'
  const envs = [{ name: 'A', value: '1' }]
  const volumes = [{ name: 'scratch', type: 'ephemeral', mountPath: '/mnt/scratch', sizeMb: 100 }]
  const job = {
    runtime: { image, memory: 512, envs, timeout: 60, maxRetries: 0, maxConcurrentTasks: 2 },
    volumes,
  }
  const workload = { runtime: { image, memory: 512, envs }, triggers: [{ type: 'http' }] }
  for (const [plural, own, parameter] of [
    ['agents', workload, 'agentName'],
    ['functions', workload, 'functionName'],
    ['applications', { image, memory: 512, port: 3000, envs }, 'applicationName'],
    ['jobs', job, 'jobId'],
  ] as const) {
    const item = `/${plural}/{${parameter}}`
    const one = { [parameter]: 'one' }
    const body = { metadata: { name: 'one', labels }, spec: own }
    await call(`POST /${plural}`, {}, { json: body })
    expect((await call(`POST /${plural}`, {}, { json: body })).status).toBe(409)
    expect((await call(`PUT ${item}`, { [parameter]: 'two' }, { json: body })).status).toBe(404)
    const { body: read } = await call(`GET ${item}`, one)
    await call(`PUT ${item}`, one, { json: read as object })
    await call(`GET ${item}/revisions`, one)
    if (plural !== 'applications') await callTriggers(item, one, plural === 'agents')
    for (const version of ['2026-04-16', '2026-04-28']) await call(`GET /${plural}`, {}, { version })
    if (plural === 'applications') {
      const domain = { metadata: { name: 'app.example.com' }, spec: { type: 'applications' } }
      await call(`POST ${item}/customdomains`, one, { json: domain })
    }
    await call(`DELETE ${item}`, one)
    expect((await call(`GET ${item}`, one)).status).toBe(404)
  }

  await call('POST /jobs', {}, { json: { metadata: { name: 'work' }, spec: job } })
  const work = { jobId: 'work' }
  const isDeployed = async () =>
    ((await call('GET /jobs/{jobId}', work)).body as { status: string }).status === 'DEPLOYED'
  while (!(await isDeployed())) await new Promise((resolve) => setImmediate(resolve))
  const begun = await call('POST /jobs/{jobId}/executions', work, {
    json: { tasks: [{ name: 'a' }, { name: 'b' }], env: { A: '2' }, memory: 256, id: 'message' },
  })
  const execution = { ...work, executionId: (begun.body as { executionId: string }).executionId }
  for (const version of ['2026-04-16', '2026-04-28']) {
    await call('GET /jobs/{jobId}/executions', work, { version })
    await call('GET /jobs/{jobId}/executions/{executionId}/tasks', execution, { version })
  }
  await call('GET /jobs/{jobId}/executions/{executionId}', execution)
  await call('GET /jobs/{jobId}/executions/{executionId}/tasks/{taskName}', { ...execution, taskName: '1' })
  await call('DELETE /jobs/{jobId}/executions/{executionId}', execution)
  await call('DELETE /jobs/{jobId}', work)

  const spec = {
    runtime: {
      image: 'blaxel/base-image:latest',
      memory: 512,
      envs: [{ name: 'A', value: '1' }],
      ports: [{ name: 'web', target: 3000, protocol: 'HTTP' }],
      ttl: '2d',
    },
    lifecycle: { expirationPolicies: [{ type: 'ttl-idle', value: '1h', action: 'delete' }] },
    network: { allowedDomains: ['example.com'] },
    region: 'eu-lon-1',
  }
  const metadata = { name: 'box', externalId: 'mine', labels, displayName: 'Box' }
  await call('POST /sandboxes', {}, { json: { metadata, spec } })
  expect((await call('POST /sandboxes', {}, { json: { metadata, spec } })).status).toBe(409)
  expect((await call('POST /sandboxes', {}, { json: { metadata: 5 } })).status).toBe(400)
  const { body: found } = await call('GET /sandboxes/{sandboxName}', box)
  await call('PUT /sandboxes/{sandboxName}', box, { json: found as object })
  await call('GET /sandboxes/by-external-id/{externalId}', { externalId: 'mine' })

  const example = { domainName: 'example.com' }
  const registered = { metadata: { name: 'example.com', labels }, spec: { domainType: 'applications' } }
  await call('POST /customdomains', {}, { json: registered })
  await call('GET /customdomains')
  for (const way of ['GET', 'DELETE']) {
    if (way === 'DELETE') await call('PUT /customdomains/{domainName}', example, { json: registered })
    await call(`${way} /customdomains/{domainName}`, example)
  }
  await call('POST /customdomains', {}, { json: registered })
  await call('POST /customdomains/{domainName}/verify', example)

  const preview = { ...box, previewName: 'web' }
  const page = { port: 3000, public: false, responseHeaders: { 'X-A': 'b' } }
  await call('POST /sandboxes/{sandboxName}/previews', box, {
    json: { metadata: { name: 'web' }, spec: page },
  })
  await call('GET /sandboxes/{sandboxName}/previews', box)
  await call('GET /sandboxes/{sandboxName}/previews/{previewName}', preview)
  await call('PUT /sandboxes/{sandboxName}/previews/{previewName}', preview, {
    json: { metadata: { name: 'web' }, spec: page },
  })
  const tokens = 'sandboxes/{sandboxName}/previews/{previewName}/tokens'
  const made = await call(`POST /${tokens}`, preview, {
    json: { metadata: { name: 't' }, spec: { expiresAt: new Date(Date.now() + 3_600_000).toISOString() } },
  })
  const { token } = (made.body as { spec: { token: string } }).spec
  await call(`GET /${tokens}`, preview)
  await call(`DELETE /${tokens}/{token}`, { ...preview, token })
  await call('DELETE /sandboxes/{sandboxName}/previews/{previewName}', preview)

  const nightly = { ...box, scheduleId: 'nightly' }
  const schedule = { id: 'nightly', type: 'cron', value: '0 3 * * *', input: { command: 'true' } }
  await call('POST /sandboxes/{sandboxName}/schedules', box, { json: schedule })
  await call('GET /sandboxes/{sandboxName}/schedules/{scheduleId}', nightly)
  await call('PUT /sandboxes/{sandboxName}/schedules/{scheduleId}', nightly, { json: schedule })
  const kept = await call('POST /sandboxes/{sandboxName}/snapshots', box, { json: { name: 'kept' } })
  const { id: snapshotId = '' } = kept.body as { id?: string }
  const source = { name: 'box', kind: 'sandbox' }
  const { body: second } = await call('POST /snapshots', {}, { json: { source } })
  await call('GET /sandboxes/{sandboxName}/snapshots', box)
  await call('GET /snapshots/{snapshotName}', { snapshotName: snapshotId })
  const ofBox = { ...box, snapshotId }
  await call('POST /sandboxes/{sandboxName}/snapshots/{snapshotId}/restore', ofBox)
  const fork = { targetType: 'sandbox', port: 8000, envs: [{ name: 'A', value: '2' }] }
  await call('POST /sandboxes/{sandboxName}/fork', box, {
    json: { ...fork, targetName: 'one', snapshotId },
  })
  await call(
    'POST /snapshots/{snapshotName}/fork',
    { snapshotName: snapshotId },
    {
      json: { ...fork, targetName: 'two' },
    },
  )
  const application = { targetType: 'application', targetName: 'app' }
  expect((await call('POST /sandboxes/{sandboxName}/fork', box, { json: application })).status).toBe(400)
  await call('GET /schedules/metrics')
  for (const version of [undefined, '2026-04-16', '2026-04-28']) {
    for (const path of ['/sandboxes', '/schedules', '/schedule-executions', '/snapshots'])
      await call(`GET ${path}`, {}, { ...(version === undefined ? {} : { version }) })
    for (const path of ['schedules', 'schedule-executions'])
      await call(`GET /sandboxes/{sandboxName}/${path}`, box, {
        ...(version === undefined ? {} : { version }),
      })
  }
  await call('DELETE /sandboxes/{sandboxName}/schedules/{scheduleId}', nightly)
  await call('DELETE /sandboxes/{sandboxName}/snapshots/{snapshotId}', ofBox)
  await call('DELETE /snapshots/{snapshotName}', { snapshotName: (second as { id: string }).id })
  for (const operation of refusedHere) await call(operation, { resourceType: 'sandbox', tagName: 'latest' })
  await call('GET /images', {}, { version: '2026-09-22' })
  await call('DELETE /images')

  const statusIs = async (wanted: string) => {
    while (((await call('GET /sandboxes/{sandboxName}', box)).body as { status: string }).status !== wanted)
      await new Promise((resolve) => setImmediate(resolve))
  }
  await call('POST /sandboxes/{sandboxName}/archive', box)
  await statusIs('ARCHIVED')
  await call('POST /sandboxes/{sandboxName}/unarchive', box)
  await statusIs('DEPLOYED')
  await call('DELETE /sandboxes/{sandboxName}', box)

  const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
  )
  const answered = (operation: string) => called.get(operation)?.some((status) => status < 300) ?? false
  expect(operations.filter((operation) => !answered(operation)).sort()).toEqual([...refusedHere].sort())
})
