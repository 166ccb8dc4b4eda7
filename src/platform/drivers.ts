/** The one file that names concrete drivers. */
import { join } from 'node:path'
import type { Config, RuntimeName } from '../config.ts'
import { HelperLayers } from '../guest/index.ts'
import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/log.ts'
import { extractHelper } from '../runtimes/helper-binary.ts'
import { openNamespaceRuntime } from '../runtimes/namespace/index.ts'
import { openProcessRuntime } from '../runtimes/process/index.ts'
import type { Egress } from '../spec/egress.ts'
import type { Layers } from '../spec/layers.ts'
import type { Runtime } from '../spec/runtime.ts'
import { openSqliteStore } from '../stores/sqlite/index.ts'

/** The helper, taken out of the executable into a data directory. */
export async function helperPathIn(dataDir: string): Promise<string> {
  const { helperSource } = await import('../runtimes/embedded-helper.ts')
  return await extractHelper(Bun.file(helperSource), join(dataDir, 'bin'))
}

/** @throws unavailable when it cannot work here */
export async function openRuntime(
  driver: RuntimeName,
  config: Config,
  helperPath: string,
  egress: Egress,
  { clock, log, temporary }: { clock: Clock; log: Logger; temporary: boolean },
): Promise<Runtime> {
  const options = { instancesDir: join(config.dataDir, 'instances'), helperPath, log, clock }
  return driver === 'process'
    ? await openProcessRuntime(options)
    : await openNamespaceRuntime({ ...options, egress, temporary, criuPath: config.criu })
}

/** With the queue in it. `makeRoom` is asked on a full disk, whether there is room now. @throws conflict for a database of a newer version */
export function openStore(
  dataDir: string,
  options: { clock: Clock; log: Logger; makeRoom: () => boolean },
): ReturnType<typeof openSqliteStore> {
  return openSqliteStore({ path: join(dataDir, 'hutch.db'), ...options })
}

/** Null where instances start from no layers: runtimes other than `namespace` start programs of the host. */
export function layersFor(driver: RuntimeName | Runtime, helperPath: string | null): Layers | null {
  return helperPath !== null && driver === 'namespace' ? new HelperLayers(helperPath) : null
}
