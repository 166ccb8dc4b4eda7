import type { InstanceChange, InstanceOwner, Instances } from '../instances/index.ts'
import type { Clock } from '../lib/clock.ts'
import type { SandboxLeases } from './leases.ts'
import { failed, type SandboxBody, withEvent } from './record.ts'
import type { SandboxRecords } from './records.ts'

const memoryNoteEveryMs = 60_000

/** What happens to a sandbox's machine without anybody asking, told by its record. */
export class SandboxInstanceNotes {
  readonly #instances: Instances
  readonly #records: SandboxRecords
  readonly #leases: SandboxLeases
  readonly #clock: Clock

  constructor(options: {
    instances: Instances
    records: SandboxRecords
    leases: SandboxLeases
    clock: Clock
  }) {
    this.#instances = options.instances
    this.#records = options.records
    this.#leases = options.leases
    this.#clock = options.clock
  }

  async change(owner: InstanceOwner, instanceId: string, change: InstanceChange): Promise<void> {
    const sandbox = await this.#records.get(owner.workspace, owner.name)
    if (!sandbox || sandbox.body.instanceId !== instanceId) return
    if (change.type === 'failed') this.#leases.forget(sandbox.workspace, sandbox.name)
    if (change.type === 'restarted') this.#leases.warm(sandbox.workspace, sandbox.name)
    await this.#records.change(sandbox, (current) => {
      if (current.instanceId !== instanceId) return null
      if (current.status !== 'DEPLOYED' && current.status !== 'FAILED') return null
      if (change.type === 'failed') return failed(current, this.#clock.now(), change.reason)
      const message =
        change.type === 'restarted'
          ? 'Started again from its files'
          : `Ended unexpectedly (${change.exit.reason.replaceAll('_', ' ')})`
      const status = change.type === 'restarted' ? 'DEPLOYED' : current.status
      return withEvent(current, this.#clock.now(), { type: 'instance', status, message })
    })
  }

  /** The sandbox can be used all the same, so its status stays; its owner finds the reason among the events. */
  async programFailed(instanceId: string, reason: string): Promise<void> {
    const owner = this.#instances.ownerOf(instanceId)
    const sandbox = owner && (await this.#records.get(owner.workspace, owner.name))
    if (!sandbox) return
    await this.#records.change(sandbox, (current) =>
      current.instanceId === instanceId
        ? withEvent(current, this.#clock.now(), {
            type: 'instance',
            status: current.status,
            message: `The image's own program (ENTRYPOINT and CMD) did not start: ${reason}`,
          })
        : null,
    )
  }

  /** Of programs that end so over and over one is told of a minute, or nothing else would be left among the events. */
  async endedForMemory(instanceId: string, processName: string): Promise<void> {
    const owner = this.#instances.ownerOf(instanceId)
    const sandbox = owner && (await this.#records.get(owner.workspace, owner.name))
    if (!sandbox) return
    const now = this.#clock.now()
    await this.#records.change(sandbox, (current) => {
      const last = current.events.findLast(({ message }) => message?.endsWith(memoryNote(current)))
      if (current.instanceId !== instanceId) return null
      if (last !== undefined && now - Date.parse(last.time) < memoryNoteEveryMs) return null
      const message = `The process ${JSON.stringify(processName)} was ended by the kernel${memoryNote(current)}`
      return withEvent(current, now, { type: 'instance', status: current.status, message })
    })
  }
}

function memoryNote({ spec }: SandboxBody): string {
  return ` for want of memory: this sandbox has ${spec.memoryMb} MB`
}
