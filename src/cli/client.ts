import { Client, ClientError } from '../client/index.ts'
import { CommandError } from './command.ts'
import { connectionFor } from './connection.ts'

export function clientFor(flags: { 'data-dir'?: string; workspace?: string }): Client {
  return new Client(connectionFor(flags))
}

/** Runs `work`; what the platform refused becomes a message and the next command to type. */
export async function withHints<Value>(
  work: () => Promise<Value>,
  hints: Record<number, string> = {},
): Promise<Value> {
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof ClientError)) throw error
    const known: Record<number, string> = {
      0: 'hutch status',
      401: 'eval "$(hutch env)"',
      403: 'hutch workspaces list',
      ...hints,
    }
    throw new CommandError(error.message, known[error.status])
  }
}
