/** What people see. Colours only on a terminal, and never with NO_COLOR. */

type Style = 'bold' | 'dim' | 'red' | 'green' | 'yellow'
const codes: Record<Style, number> = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33 }

export function paint(style: Style, text: string, stream: { isTTY?: boolean } = process.stdout): string {
  if (!stream.isTTY || process.env.NO_COLOR) return text
  return `\x1b[${codes[style]}m${text}\x1b[0m`
}

export function print(text: string): void {
  process.stdout.write(`${text}\n`)
}

export function printJson(value: unknown): void {
  print(JSON.stringify(value, null, 2))
}

/** For people, on stderr: it never mixes with what a program reads. */
export function note(text: string): void {
  process.stderr.write(`${text}\n`)
}

/** Something a person should look at, and that stops nothing. */
export function warn(text: string): void {
  note(`${paint('yellow', 'warning:', process.stderr)} ${text}`)
}

/** Columns aligned, the last one as wide as it is. Control characters of values cannot reach the terminal. */
export function table(header: string[], rows: string[][]): string {
  const clean = rows.map((row) => row.map(printable))
  const widths = header.map((title, column) =>
    Math.max(title.length, ...clean.map((row) => (row[column] ?? '').length)),
  )
  const line = (cells: string[]) =>
    cells
      .map((cell, column) => (column === cells.length - 1 ? cell : cell.padEnd(widths[column]!)))
      .join('  ')
      .trimEnd()
  return [paint('bold', line(header)), ...clean.map(line)].join('\n')
}

/** Names and messages may come from sandboxed code: a terminal must not obey them. */
export function printable(text: string): string {
  return text.replace(
    /\p{Cc}/gu,
    (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`,
  )
}

/** `name=value` each, what is not there left out. */
export function fieldsText(record: object): string {
  return Object.entries(record)
    .filter(([, value]) => value !== null && value !== undefined && value !== '')
    .map(([key, value]) => `${key}=${typeof value === 'object' ? JSON.stringify(value) : String(value)}`)
    .join(', ')
}

export function age(time: string | number | undefined, now = Date.now()): string {
  const at = typeof time === 'number' ? time : Date.parse(time ?? '')
  if (!Number.isFinite(at)) return '-'
  return span(Math.max(0, Math.round((now - at) / 1000)))
}

/** Whole seconds in the largest unit that says enough. */
export function span(seconds: number): string {
  if (seconds < 120) return `${seconds}s`
  if (seconds < 2 * 3600) return `${Math.floor(seconds / 60)}m`
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)}h`
  return `${Math.floor(seconds / 86_400)}d`
}

export function bytes(count: number): string {
  if (count < 1024) return `${count} B`
  const units = ['KiB', 'MiB', 'GiB', 'TiB']
  let value = count
  let unit = -1
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return `${value.toFixed(value < 10 ? 1 : 0)} ${units[unit]}`
}
