import { UsageError } from './command.ts'

/** `NAME=VALUE` arguments of a repeatable flag. @throws UsageError */
export function pairs(flag: string, given: string[] | undefined): Record<string, string> {
  const result: Record<string, string> = {}
  for (const pair of given ?? []) {
    const equals = pair.indexOf('=')
    if (equals < 1) throw new UsageError(`--${flag}: ${JSON.stringify(pair)} is not NAME=VALUE`)
    result[pair.slice(0, equals)] = pair.slice(equals + 1)
  }
  return result
}
