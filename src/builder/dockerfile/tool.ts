/** buildah and podman, run inside a machine: how they are called, and what their lines mean. */
import type { DockerfileTool } from '../../lib/dockerfile-tool.ts'
import type { Steps } from '../steps.ts'

/** The machine's own disk, where the tool keeps its layers; the rest of what a build needs lies beside. */
export const toolDir = '/var/lib/containers'
export const workDir = `${toolDir}/work`
/** Below it: the files of the project. */
export const contextName = 'context'
const contextDir = `${workDir}/${contextName}`
/** Where the files of the host image lie as a whole, for Dockerfiles that build on them. */
export const hostDir = '/hutch-host'
export const bunPath = '/opt/hutch/bun'

/** Where the tool keeps the files of a layer that is the lowest of its image. */
export function layerDir(diffId: string): string {
  return `${toolDir}/storage/overlay/${diffId.slice('sha256:'.length)}/diff`
}

export const baseDir = `${workDir}/base`
export const builtDir = `${workDir}/built`
const builtName = 'localhost/hutch-built:latest'

/** Made before either runs; podman looks at control groups, of which a machine has none to show. */
export const toolDirs: readonly string[] = [`${toolDir}/tmp`, '/sys/fs/cgroup']

/** Files of the machine that both tools read. Images are never fetched from inside: those that are needed are put there. */
export const toolFiles: readonly [path: string, content: string][] = [
  ['/etc/containers/policy.json', '{"default":[{"type":"insecureAcceptAnything"}]}\n'],
  [
    '/etc/containers/registries.conf',
    'unqualified-search-registries = ["docker.io"]\nshort-name-mode = "permissive"\n',
  ],
  [
    '/etc/containers/storage.conf',
    `[storage]\ndriver = "overlay"\ngraphroot = "${toolDir}/storage"\nrunroot = "${toolDir}/run"\n`,
  ],
]

/** Variables of the tool itself. Proxies reach what it runs, and are not in the image. */
export function toolEnv(proxies: Readonly<Record<string, string>>): Record<string, string> {
  return {
    PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    HOME: '/root',
    LANG: 'C.UTF-8',
    TMPDIR: `${toolDir}/tmp`,
    BUILDAH_ISOLATION: 'chroot',
    STORAGE_DRIVER: 'overlay',
    ...proxies,
  }
}

/** Settings of this host, for what is run and for no image. */
export interface Carried {
  /** The tool hands them on by itself. */
  proxies: Record<string, string>
  /** Variables that are taken out of the image again. */
  env: Record<string, string>
  /** Certificates of the machine, to be copied to where everything that runs sees them, and no layer has them. */
  certificates: { from: string; to: string } | null
}

const certificates = '/etc/ssl/certs/ca-certificates.crt'
/** What runs shares `/dev` with the machine. */
const certificatesInside = '/dev/shm/hutch-certificates.crt'

/**
 * What programs of a build need to reach package registries as this host does. Base images have certificates of their own:
 * only a host that says which ones to use has its own put beside them.
 */
export function carriedSettings(
  hostEnv: Readonly<Record<string, string>>,
  exists: (path: string) => boolean,
): Carried {
  const carried: Carried = { proxies: {}, env: {}, certificates: null }
  for (const [name, value] of Object.entries(hostEnv)) {
    if (['PATH', 'HOME', 'LANG'].includes(name)) continue
    if (/^(?:https?|all|ftp|no)_proxy$/i.test(name)) carried.proxies[name] = value
    else if (!value.startsWith('/')) carried.env[name] = value
    else if (value === certificates && exists(certificates)) {
      carried.env[name] = certificatesInside
      carried.certificates = { from: certificates, to: certificatesInside }
    }
  }
  return carried
}

/** An image by what names it in the Dockerfile, word by word, and by what names it in the tool's store. */
export interface LocalBase {
  written: string
  /** With its variables filled in. */
  text: string
  local: string
}

export interface BuildArguments extends Pick<Carried, 'env'> {
  /** Its path in the project. */
  dockerfile: string
  buildArgs: Readonly<Record<string, string>>
  bases: readonly LocalBase[]
}

/** What the tool says and what it runs says come by one pipe: by two, which was first would be a matter of luck. */
const inOrder = ['/bin/sh', '-c', 'exec "$@" 2>&1', 'sh']

export function buildCommand(tool: DockerfileTool, options: BuildArguments): string[] {
  const { dockerfile, buildArgs, env, bases } = options
  return [
    ...inOrder,
    ...[tool, 'build', '--isolation', 'chroot', '--layers', '--format', 'oci'],
    tool === 'podman' ? '--pull=never' : '--pull-never',
    ...Object.entries(buildArgs).flatMap(([name, value]) => ['--build-arg', `${name}=${value}`]),
    ...Object.entries(env).flatMap(([name, value]) => ['--env', `${name}=${value}`]),
    ...bases.flatMap(({ written, local }) => ['--build-context', `${written}=container-image://${local}`]),
    ...['--file', `${contextDir}/${dockerfile}`, '--tag', builtName, contextDir],
  ]
}

/** Its layers as they are, each in a file named by its digest. */
export function handOutCommand(tool: DockerfileTool): string[] {
  const plain = tool === 'buildah' ? ['--disable-compression'] : []
  return [...inOrder, tool, 'push', '--quiet', ...plain, builtName, `dir:${builtDir}`]
}

const stepLine = /^(?:\[(\d+)\/(\d+)\] )?STEP (\d+)\/(\d+): (.*)$/
/** Of a stage, which is an image without a name. */
const stageId = /(?<=^FROM )[0-9a-f]{64}\b/
const cachedLine = /^--> Using cache [0-9a-f]+$/
const silentLines = [
  /^--> [0-9a-f]{6,}$/,
  /^(?:\[\d+\/\d+\] )?COMMIT\b/,
  /^Successfully tagged /,
  /^[0-9a-f]{64}$/,
  /^subprocess exited with status \d+$/,
  /^(?:error|exit status|while running runtime).*exit status \d+$/,
]
/** What a program wrote last without ending its line, and behind it what the tool said next. */
const joinedLine =
  /^(.*?[^ ].*?)((?:\[\d+\/\d+\] )?(?:STEP \d+\/\d+: |COMMIT localhost\/hutch-built).*|--> (?:Using cache )?[0-9a-f]{11,64}|subprocess exited with status \d+|Error: (?:error )?building at STEP ".*)$/s
/** Its own lines may quote what reads like another one. */
const toolsOwn = /^(?:(?:\[\d+\/\d+\] )?STEP \d+\/\d+: |Error: )/
const failureLine = /^Error: (?:building|error building) at STEP ".*": (?:.*: )?(.*)$/s
const otherFailureLine = /^Error: (.*)$/s
const fullDiskLine = /no space left on device|disk quota exceeded/i

/** Turns what the tool says into the log of a build, and keeps why it failed. */
export class ToolOutput {
  readonly #steps: Steps
  readonly #bases: readonly LocalBase[]
  /** The last line, where it may be why the tool failed: what follows it is of a program that went on. */
  #held: { line: string; failure: string } | null = null
  fullDisk = false

  constructor(steps: Steps, bases: readonly LocalBase[] = []) {
    this.#steps = steps
    this.#bases = bases
  }

  line(line: string): void {
    const isWhole = toolsOwn.test(line) || silentLines.some((pattern) => pattern.test(line))
    const [, before, own] = (!isWhole && joinedLine.exec(line)) || []
    if (before !== undefined) this.#line(before)
    this.#line(own ?? line)
  }

  #line(line: string): void {
    if (fullDiskLine.test(line)) this.fullDisk = true
    if (silentLines.some((pattern) => pattern.test(line))) return
    this.succeeded()
    const step = stepLine.exec(line)
    if (step) {
      const [, stage, stages, at, of, instruction = ''] = step
      const where = stages === undefined || stages === '1' ? '' : `stage ${stage}/${stages} `
      this.#steps.step(`${where}${at}/${of} ${this.#named(instruction)}`)
      return
    }
    if (cachedLine.test(line)) {
      this.#steps.line('(from the cache)', 'stdout')
      return
    }
    const failure = failureLine.exec(line) ?? otherFailureLine.exec(line)
    if (failure) this.#held = { line, failure: this.#named(failure[1] ?? '') }
    else this.#steps.line(line, 'stdout')
  }

  /** What looked like a failure was said by a program that went on. */
  succeeded(): void {
    if (this.#held !== null) this.#steps.line(this.#held.line, 'stdout')
    this.#held = null
  }

  /** As the Dockerfile names its images. */
  #named(text: string): string {
    let named = text.replace(stageId, 'an earlier stage')
    for (const { local, text: name } of this.#bases) named = named.replaceAll(local, name)
    return named
  }

  /** How it ended, for people. */
  failure(exit: { exitCode: number | null; signal: number | null }): string {
    const failure = this.#held?.failure ?? ''
    const status = /exit status (\d+)$/.exec(failure)?.[1]
    if (status !== undefined) return `exit code ${status}`
    if (failure !== '') return failure
    return exit.signal === null ? `exit code ${exit.exitCode}` : `it was ended by signal ${exit.signal}`
  }
}
