import { readFileSync } from 'node:fs'
import { libc } from './libc.ts'

const dontNeed = 4
const mapping = /^([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ \d+ +(\/.*)$/

/**
 * Lets go of what this process has mapped of its own program's code: most of it was needed for the start alone. The
 * kernel keeps it among its cached files, so that what is needed again is there at once, and memory that is short can
 * be had back without asking here. Answers the bytes of code mapped, needed or not; 0 where it cannot be done.
 */
export function releaseProgramPages(): number {
  let bytes = 0
  for (const { from, length } of programMappings()) {
    if (libc()?.madvise(from, length, dontNeed) === 0) bytes += length
  }
  return bytes
}

/** Code is never written to, so that nothing of these is anywhere but in the file. */
function programMappings(): { from: number; length: number }[] {
  let maps: string
  try {
    maps = readFileSync('/proc/self/maps', 'utf8')
  } catch {
    return []
  }
  return maps.split('\n').flatMap((line) => {
    const [, from, to, path] = mapping.exec(line) ?? []
    if (from === undefined || to === undefined || path !== process.execPath) return []
    const start = Number.parseInt(from, 16)
    return [{ from: start, length: Number.parseInt(to, 16) - start }]
  })
}
