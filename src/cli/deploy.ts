import { type Client, ClientError, type Resource } from '../client/index.ts'
import { applyManifest, checkAppliable, placeOf } from './applying.ts'
import { type ArchiveContent, type ArchivedFile, packed } from './archive.ts'
import { clientFor, withHints } from './client.ts'
import { CommandError, command, sameTarget, type Target, UsageError } from './command.ts'
import { type DeployInput, type Deployment, plan, sourceFlags, timeoutOf } from './deploy-plan.ts'
import { environmentFlags } from './environment.ts'
import { follow } from './following.ts'
import { Interruption } from './interruption.ts'
import { at } from './kinds.ts'
import { noteNext } from './next.ts'
import { bytes, note, paint, print, printJson } from './output.ts'
import { Progress, seconds } from './progress.ts'
import { formatOf } from './resource-output.ts'
import { upload } from './uploading.ts'

const apiVersion = 'blaxel.ai/v1alpha1'
const dryRunFilesShown = 1000

export const deploy = command({
  name: 'deploy',
  summary: 'Builds the code of this folder and serves it; a job is there to be run.',
  flags: {
    ...sourceFlags,
    ...environmentFlags,
    traffic: {
      kind: 'number',
      value: 'PERCENT',
      about: 'of requests that the new revision gets; 0: none yet (100, if the newest one serves now)',
    },
    recursive: { kind: 'boolean', short: 'r', about: 'the packages that blaxel.toml names, too (true)' },
    dryrun: { kind: 'boolean', about: 'print what would be sent, and send nothing' },
    detach: { kind: 'boolean', about: 'do not wait for the build' },
    experimental: { kind: 'boolean', about: 'label it so that experimental features count' },
  },
  notes: [
    'What is built is in blaxel.toml (type, name, entrypoint, env, runtime, ...) or seen from its files: package.json,',
    'pyproject.toml, requirements.txt, Dockerfile. .blaxelignore names what is not sent. Manifests in .blaxel are applied',
    'first. Variables of .env (-e) and of -s are secrets of the program: encrypted here, in no image.',
  ],
  async run({ flags }) {
    const startedAt = performance.now()
    if (flags.traffic !== undefined && flags.traffic > 100)
      throw new UsageError(`--traffic ${flags.traffic} is no percentage: 0 to 100`)
    // What is mistyped is told before anything is sent.
    timeoutOf(flags)
    const structured = ['json', 'yaml'].includes(formatOf(flags) ?? '')
    const deployments = await plan(flags)
    checkAppliable(deployments.flatMap(({ beside }) => beside))
    if (flags.dryrun) return await dryRun(deployments, formatOf(flags) === 'json')
    const results: DeployResult[] = []
    for (const deployment of deployments) {
      try {
        results.push(await deployOne(flags, deployment, structured))
      } catch (error) {
        if (!(error instanceof CommandError) || (deployments.length === 1 && !structured)) throw error
        results.push({ kind: deployment.type, name: deployment.name, status: 'FAILED', error: error.message })
        if (!structured)
          note(`${paint('red', 'error:', process.stderr)} ${deployment.name}: ${error.message}`)
      }
    }
    const failed = results.filter(({ error }) => error !== undefined)
    if (structured) {
      const total = seconds(performance.now() - startedAt)
      const answer = { resources: results, success: failed.length === 0, totalDuration: total }
      if (flags.output === 'yaml') print(Bun.YAML.stringify(answer, null, 2))
      else printJson(answer)
      return failed.length === 0 ? 0 : 1
    }
    if (failed.length === 0) return 0
    throw new CommandError(`${failed.length} of ${results.length} could not be deployed`)
  },
})

interface DeployResult {
  kind: string
  name: string
  status: string
  url?: string
  revision?: string
  /** By trigger; told this once. */
  callbackSecrets?: Record<string, string>
  error?: string
}

/** Manifests, and as comments behind each what is sent of its code. */
async function dryRun(deployments: Deployment[], asJson: boolean): Promise<number> {
  const all: object[] = []
  for (const { manifest, beside, content } of deployments) {
    for (const { kind, metadata, spec } of [...beside, manifest]) {
      const shown = { apiVersion, kind, metadata, spec: masked(spec) }
      if (!asJson) print(`---\n${Bun.YAML.stringify(shown, null, 2)}`)
      all.push({
        ...shown,
        ...(asJson && kind === manifest.kind && content !== null ? await sent(content) : {}),
      })
    }
    if (content === null || asJson) continue
    const { files, size } = await sent(content)
    print(`# ${files.length} files, ${bytes(size)} packed`)
    for (const { path, bytes: length } of files.slice(0, dryRunFilesShown))
      print(`# ${bytes(length).padStart(9)}  ${path}`)
    if (files.length > dryRunFilesShown) print(`# and ${files.length - dryRunFilesShown} more`)
  }
  if (asJson) printJson(all)
  return 0
}

async function sent(content: ArchiveContent): Promise<{ files: ArchivedFile[]; size: number }> {
  return await packed(content, async ({ files, bytes: size }) => ({ files, size }))
}

/** A dry run is looked at, pasted and logged: no secret is in it. */
function masked(spec: Record<string, unknown>): unknown {
  return JSON.parse(
    JSON.stringify(spec, (_, value) =>
      typeof value === 'object' && value?.secret === true ? { ...value, value: '****' } : value,
    ),
  )
}

async function deployOne(flags: DeployInput, deployment: Deployment, quiet: boolean): Promise<DeployResult> {
  const { type, name, manifest, content } = deployment
  const client = clientFor(flags)
  const title = `${type} ${name}`
  using progress = new Progress(quiet)
  using interruption = new Interruption(progress, flags)
  return await withHints(flags, async () => {
    for (const each of deployment.beside) {
      progress.start(`Applying ${each.kind} ${each.metadata.name}`)
      await applyManifest(client, each).catch((error: unknown) => {
        if (!(error instanceof ClientError)) throw error
        throw new ClientError(error.status, `${each.from}: ${error.message}`, { cause: error })
      })
    }
    const applied =
      content === null
        ? await applyManifest(client, manifest)
        : await send(client, progress, interruption, deployment, content)
    interruption.watch = `hutch get ${type} ${name} --watch`
    const { resource, revision, callbackSecrets } = applied
    const done = (status: string, now: Resource): DeployResult => ({
      kind: type,
      name,
      status,
      ...(now.metadata?.url === undefined ? {} : { url: now.metadata.url }),
      ...(revision === null ? {} : { revision }),
      ...(Object.keys(callbackSecrets).length === 0 ? {} : { callbackSecrets }),
    })
    if (flags.detach) {
      progress.done()
      if (!quiet) noteNext(`hutch get ${type} ${name} --watch`, flags)
      return done(resource.status ?? 'UPLOADING', resource)
    }
    const { kind, path } = placeOf(manifest)
    const followed = { title, path, resourceType: kind.plural, name, revision, since: sinceOf(resource) }
    const outcome = await follow(client, followed, progress, timeoutOf(flags))
    if (outcome.status !== 'DEPLOYED' && outcome.status !== 'BUILT') {
      progress.fail()
      const why = outcome.message ?? `its status is ${outcome.status}`
      const build = outcome.ofBuild ? ' --build' : ''
      throw new CommandError(
        `${title} was not deployed: ${why}`,
        sameTarget(`hutch logs ${type} ${name}${build}`, flags),
      )
    }
    progress.done(`${title} is deployed`)
    const result = done(outcome.status, outcome.resource)
    if (!quiet) tellOf(result, outcome.resource, flags)
    return result
  })
}

async function send(
  client: Client,
  progress: Progress,
  interruption: Interruption,
  { name, manifest }: Deployment,
  content: ArchiveContent,
): Promise<Awaited<ReturnType<typeof applyManifest>>> {
  progress.start(`Packing ${name}`)
  return await packed(content, async (archive) => {
    progress.done(`Packed ${archive.files.length} files, ${bytes(archive.bytes)}`)
    progress.start(`Sending ${bytes(archive.bytes)}`, `Sent ${bytes(archive.bytes)}`)
    let applied = await applyManifest(client, manifest, { upload: true })
    interruption.begun = true
    if (applied.uploadUrl === null) throw new CommandError('the platform named no address for the archive')
    await upload(
      client,
      { path: archive.path, contentType: 'application/zip' },
      applied.uploadUrl,
      async () => {
        const { callbackSecrets } = applied
        const again = await applyManifest(client, manifest, { upload: true })
        applied = { ...again, callbackSecrets: { ...callbackSecrets, ...again.callbackSecrets } }
        return applied.uploadUrl
      },
    )
    progress.done()
    return applied
  })
}

/** What a person types next, by what it is. */
function tellOf({ kind, name, url, revision }: DeployResult, resource: Resource, flags: Target): void {
  // Of an MCP server what its clients are to be given.
  if (url !== undefined) print(kind === 'function' ? `${url}/mcp` : url)
  const policies = at(resource, 'spec.policies') as string[] | undefined
  if (policies !== undefined)
    note(`policies are kept, and not applied: there are none on this platform (${policies.join(', ')})`)
  const { active, canary } = (at(resource, 'spec.revision') ?? {}) as { active?: string; canary?: string }
  if (revision !== undefined && active !== undefined && ![active, canary].includes(revision)) {
    note(
      kind === 'job'
        ? `no execution is of ${revision} yet: ${active} is run`
        : `no requests go to ${revision} yet: ${active} serves`,
    )
    noteNext(`hutch traffic ${kind} ${name} ${revision}`, flags)
    return
  }
  const next: Record<string, string> = {
    agent: `hutch run agent ${name} -d '{"inputs":"Hello"}'`,
    function: `hutch run function ${name} -d '{"jsonrpc":"2.0","id":1,"method":"tools/list"}'`,
    application: `hutch logs application ${name} -f`,
    job: `hutch run job ${name} --wait`,
    sandbox: `hutch sandbox exec ${name} -- ls`,
  }
  noteNext(next[kind] ?? `hutch get ${kind} ${name}`, flags)
}

/** When the change that was just accepted was made, by the platform's clock. */
function sinceOf({ events = [], metadata }: Resource): string {
  const times = events.map(({ time }) => time).sort()
  return times.at(-1) ?? String(metadata?.updatedAt ?? metadata?.createdAt ?? '')
}
