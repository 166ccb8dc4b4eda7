import type { InstanceLease } from '../../instances/index.ts'
import type { Instance } from '../../spec/runtime.ts'
import type { Member } from './member.ts'
import type { RevisionLease, RevisionProgram } from './run.ts'

/** An instance of a revision, in use by one request or connection. */
export class MemberLease implements RevisionLease {
  readonly instance: Instance
  readonly port: number
  readonly program: RevisionProgram
  readonly #member: Member
  readonly #lease: InstanceLease
  #lender: { letGo(member: Member): void } | null

  /** Takes ownership of `lease`. The lender hears once that the member has one less. */
  constructor(member: Member, lease: InstanceLease, lender: { letGo(member: Member): void }) {
    this.instance = lease.instance
    this.port = member.run.port
    this.program = member.program
    this.#member = member
    this.#lease = lease
    this.#lender = lender
  }

  get ended(): Promise<unknown> {
    return this.#member.ended
  }

  asConnection(): { touch(): void } {
    return this.#lease.asConnection()
  }

  [Symbol.dispose](): void {
    const lender = this.#lender
    this.#lender = null
    this.#lease[Symbol.dispose]()
    lender?.letGo(this.#member)
  }
}
