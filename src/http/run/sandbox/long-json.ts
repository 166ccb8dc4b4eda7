import { othersTurn } from '../../../lib/turns.ts'
import { streamOf } from '../bodies.ts'
import { json, type SandboxAnswer } from './call.ts'

/** Made without a pause: a millisecond or two. */
const itemsAtOnce = 2000

/** As `json`. An array in it that is long is sent in pieces, between which others have their turn. */
export function longJson(body: Record<string, unknown>): SandboxAnswer {
  if (!Object.values(body).some(isLong)) return json(body)
  return { streaming: new Response(streamOf(pieces(body)), { headers: json({}).headers }), handsOver: true }
}

function isLong(value: unknown): value is unknown[] {
  return Array.isArray(value) && value.length > itemsAtOnce
}

async function* pieces(body: Record<string, unknown>): AsyncGenerator<Uint8Array> {
  let text = '{'
  for (const [key, value] of Object.entries(body)) {
    text += `${text === '{' ? '' : ','}${JSON.stringify(key)}:`
    if (!isLong(value)) {
      text += JSON.stringify(value)
      continue
    }
    for (let at = 0; at < value.length; at += itemsAtOnce) {
      const items = JSON.stringify(value.slice(at, at + itemsAtOnce)).slice(1, -1)
      yield Buffer.from(`${text}${at === 0 ? '[' : ','}${items}`)
      text = ''
      await othersTurn()
    }
    text = ']'
  }
  yield Buffer.from(`${text}}`)
}
