import { randomText } from '../../../lib/ids.ts'

export const tag = 'agentfield'

/** As this protocol writes moments: to the second. */
export function timeText(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`
}

/** A body of what comes, as it is asked for. */
export function streamOf(chunks: AsyncGenerator<Uint8Array>): ReadableStream<Uint8Array> {
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await chunks.next()
      if (done) controller.close()
      else controller.enqueue(value)
    },
    cancel: () => void chunks.return(undefined),
  })
}

export function jsonOf(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value))
}

export function textOf(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes)
}

/** Of a list in one parameter: in lower case, without the empty ones. */
export function wordsOf(text: string | undefined): string[] {
  return (text ?? '').split(',').flatMap((word) => word.trim().toLowerCase() || [])
}

/** `exec_20301231_235959_ab12cd34` */
export function newId(prefix: 'exec' | 'run', nowMs: number): string {
  const [date, time] = new Date(nowMs).toISOString().replace(/[-:]/g, '').slice(0, 15).split('T')
  return `${prefix}_${date}_${time}_${randomText(8)}`
}
