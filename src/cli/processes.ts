import type { ProcessInfo } from '../client/index.ts'
import { age, note, print, table } from './output.ts'

export function processTable(processes: ProcessInfo[]): void {
  if (processes.length === 0) {
    note('no processes')
    return
  }
  const rows = processes.map((item) => [
    item.pid,
    item.name,
    item.outOfMemory ? `${item.status}, out of memory` : item.status,
    item.status === 'running' ? '-' : String(item.exitCode),
    age(item.startedAt),
    item.command,
  ])
  print(table(['PID', 'NAME', 'STATUS', 'EXIT', 'AGE', 'COMMAND'], rows))
}
