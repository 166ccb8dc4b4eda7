import { expect, test } from 'bun:test'
import { longJson } from './long-json.ts'

async function textOf(body: Record<string, unknown>): Promise<{ text: string; chunks: number }> {
  const answer = longJson(body)
  const response = answer instanceof Response ? answer : answer.streaming
  expect(response.headers.get('content-type')).toBe('application/json; charset=utf-8')
  const decoder = new TextDecoder()
  let text = ''
  let chunks = 0
  for await (const chunk of response.body ?? []) {
    text += decoder.decode(chunk, { stream: true })
    chunks++
  }
  return { text, chunks }
}

const numbers = (length: number) => Array.from({ length }, (_, at) => ({ at, name: `"${at}" ü` }))

test.each([
  { a: 1, list: [1, 2, 3], none: [], last: 'x' },
  { first: numbers(2001) },
  { path: '/"', files: numbers(5000), between: null, subdirectories: numbers(4001), total: 9001 },
])('what is sent in pieces is what is sent at once', async (body) => {
  expect((await textOf(body)).text).toBe(JSON.stringify(body))
})

test('what is long comes in pieces, with turns of others between them', async () => {
  let turns = 0
  const count = setInterval(() => turns++, 0)
  try {
    const { chunks } = await textOf({ files: numbers(20_000) })
    expect(chunks).toBeGreaterThan(9)
    expect(turns).toBeGreaterThan(0)
  } finally {
    clearInterval(count)
  }
})
