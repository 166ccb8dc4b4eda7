import { executablePath } from './build.ts'
import { cleanEnvironment } from './platform.ts'

/** Whether dist/hutch can isolate sandboxes on this host, by its own doctor; says on stderr why not. */
export function canIsolate(): boolean {
  const doctor = Bun.spawnSync([executablePath, 'doctor', '--json'], {
    env: cleanEnvironment(),
    stderr: 'ignore',
  })
  const { usable, findings } = JSON.parse(doctor.stdout.toString()) as {
    usable: boolean
    findings: { ok: boolean; needed: boolean; detail: string }[]
  }
  const why = findings.find(({ ok, needed }) => needed && !ok)?.detail
  if (!usable) console.warn(`skipped, since this host cannot isolate sandboxes: ${why}`)
  return usable
}
