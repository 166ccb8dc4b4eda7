import { readFileSync, renameSync, writeFileSync } from 'node:fs'
import { z } from 'zod'
import type { Logger } from '../../lib/log.ts'

const file = z.object({
  version: z.literal(1),
  terminals: z.array(z.object({ sessionId: z.string(), processId: z.number().int().positive() })),
})

export type KnownTerminal = z.infer<typeof file>['terminals'][number]

/** Which terminal session is which process of the guest. Losing it loses no work: the shells go with the sandbox. */
export class TerminalRecords {
  constructor(
    private readonly path: string,
    private readonly log: Logger,
  ) {}

  load(): KnownTerminal[] {
    try {
      return file.parse(JSON.parse(readFileSync(this.path, 'utf8'))).terminals
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
        this.log.warn('records of terminals cannot be read', { path: this.path, error: String(error) })
      return []
    }
  }

  save(terminals: KnownTerminal[]): void {
    try {
      writeFileSync(`${this.path}.new`, JSON.stringify({ version: 1, terminals }), { mode: 0o600 })
      renameSync(`${this.path}.new`, this.path)
    } catch (error) {
      // A sandbox that is being deleted has no directory for records any more.
      this.log.debug('records of terminals were not written', { path: this.path, error: String(error) })
    }
  }
}
