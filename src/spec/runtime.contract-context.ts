import type { GuestProcess, OutputRecord, SpawnSpec } from './guest.ts'
import type { Instance, InstanceSpec, Runtime } from './runtime.ts'

export const waitMs = 60_000
export const env = { PATH: '/usr/local/bin:/usr/bin:/bin' }

/** What the parts of the suite share. */
export interface ContractContext {
  readonly runtime: Runtime
  /** The one that tests work in which need none of their own. */
  readonly instance: Instance
  readonly workingDir: string
  specOf(more?: Partial<InstanceSpec>): InstanceSpec
  /** Runs a program of `instance` to its end. */
  run(argv: string[], more?: Partial<SpawnSpec>): Promise<GuestProcess & { stdout: string; stderr: string }>
  /** Of nothing yet, inside, where files may be made. */
  path(): string
}

export async function exists(instance: Instance, path: string): Promise<boolean> {
  return await instance.guest.files.stat(path).then(
    () => true,
    () => false,
  )
}

export async function outputOf(instance: Instance, id: number, fromOffset = 0) {
  const records: OutputRecord[] = []
  for await (const batch of instance.guest.processes.output(id, { fromOffset })) records.push(...batch)
  return {
    stdout: textOf(records.filter(({ kind }) => kind === 'stdout')),
    stderr: textOf(records.filter(({ kind }) => kind === 'stderr')),
  }
}

export function textOf(records: OutputRecord[]): string {
  return Buffer.concat(records.map(({ data }) => data)).toString()
}

export async function collect<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const all: Item[] = []
  for await (const item of items) all.push(item)
  return all
}
