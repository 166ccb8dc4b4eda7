import { beforeAll, expect, test } from 'bun:test'
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { join, relative } from 'node:path'
import { CodeIndex } from './code-index.ts'

/**
 * Whether the ranking is any good, over code that nobody wrote for it: packages that are pinned by the lock file. The
 * figures that are asked for lie a little below those measured, so that a change for the worse is noticed.
 */

const modules = join(import.meta.dir, '../../../node_modules')
const roots = [
  'hono/dist',
  'jose/dist/webapi',
  '@modelcontextprotocol/sdk/dist/esm',
  '@blaxel/core/dist/esm',
  'zod/v4',
]
const fileBytesMax = 300_000

/** Questions as people ask them, and where the answer is. */
const questions: [string, RegExp][] = [
  ['where are cookies parsed from the request header', /hono\/dist\/(utils|helper)\/cookie/],
  ['basic authentication middleware', /hono\/dist\/(middleware|utils)\/basic-auth/],
  ['compress response bodies with gzip', /middleware\/compress/],
  ['how does cross origin preflight get answered', /middleware\/cors/],
  ['match urls against a trie of route patterns', /trie/],
  ['limit the size of request bodies', /middleware\/body-limit/],
  ['compute an etag for a response', /middleware\/etag/],
  ['stream server sent events to the client', /sse|streamableHttp/i],
  ['websocket upgrade', /websocket/i],
  ['verify the signature of a JWT', /jose.*(jwt\/verify|jws\/.*verify)|hono.*jwt/],
  ['encrypt content with a public key', /jose.*(jwe|encrypt)/],
  ['generate a new key pair', /jose.*generate_key_pair/],
  ['fetch remote json web key set and cache it', /jose.*jwks\/remote/],
  ['decode base64url strings', /base64/],
  ['oauth authorization code exchange', /sdk.*auth/],
  ['how are in-memory transports linked for tests', /inMemory/],
  [
    'negotiate protocol version during initialize',
    /sdk.*(server\/index|client\/index|types|validateProtocolVersion|StreamableHttp)/,
  ],
  ['spawn a child process for stdio', /client\/stdio/],
  ['validate tool output against json schema', /sdk.*(validation|client\/index|server\/mcp|ajv)/],
  ['upload a large file in parts', /blaxel.*filesystem/],
  ['create a sandbox if it does not exist yet', /blaxel.*sandbox/],
  ['watch a directory for changes', /blaxel.*(filesystem|sandbox\/client\/sdk)/],
  ['check webhook signature', /blaxel.*webhook/],
  ['refresh expired access tokens', /(blaxel.*authentication|sdk.*auth)/i],
  ['convert schema to json schema', /json-schema|zodSchema/i],
  ['email address regular expression', /zod.*regexes/],
  ['discriminated union parsing', /zod.*schemas/],
  ['secure http headers like content security policy', /secure-headers/],
  ['request id generation', /request-id/],
  ['prevent cross site request forgery', /csrf/],
  ['serve static assets from disk', /serve-static/],
  ['log requests with elapsed time', /middleware\/logger/],
  ['abort slow handlers after a deadline', /middleware\/timeout/],
  ['forward requests to another server', /helper\/proxy/],
]

const index = new CodeIndex()

beforeAll(() => {
  for (const root of roots) addBelow(join(modules, root))
})

function addBelow(directory: string): void {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name)
    if (entry.isDirectory()) {
      if (entry.name !== 'cjs') addBelow(path)
    } else if (/(?<!\.d)\.(?:m?js|ts)$/.test(entry.name) && statSync(path).size < fileBytesMax) {
      index.add(relative(modules, path), readFileSync(path, 'utf8'))
    }
  }
}

const ask = (query: string) => index.search({ query, directories: [], resultsMax: 10, perFileMax: 1 })

test('questions in plain words lead to the files that answer them', () => {
  expect(index.files).toBeGreaterThan(400)
  const ranks = questions.map(([query, answer]) => ({
    query,
    rank: ask(query).findIndex(({ path }) => answer.test(path)) + 1,
  }))
  const missed = ranks.filter(({ rank }) => rank !== 1)
  const report = JSON.stringify(missed)
  const first = ranks.filter(({ rank }) => rank === 1).length / ranks.length
  const amongFive = ranks.filter(({ rank }) => rank >= 1 && rank <= 5).length / ranks.length
  const reciprocal = ranks.reduce((sum, { rank }) => sum + (rank === 0 ? 0 : 1 / rank), 0) / ranks.length
  if (process.env.SHOW_RANKS) console.log({ first, amongFive, reciprocal }, missed)
  expect(`${reciprocal >= 0.85} ${report}`).toStartWith('true')
  expect(`${first >= 0.8} ${report}`).toStartWith('true')
  expect(`${amongFive >= 0.9} ${report}`).toStartWith('true')
})

test('an identifier leads to where it is defined, however it is spelled', () => {
  for (const query of [
    'StreamableHTTPClientTransport',
    'where is StreamableHTTPClientTransport defined',
    'streamable http client transport',
  ]) {
    expect(ask(query)[0]!.path).toBe('@modelcontextprotocol/sdk/dist/esm/client/streamableHttp.js')
  }
  const [found] = ask('createRemoteJWKSet')
  expect(found!.path).toBe('jose/dist/webapi/jwks/remote.js')
  expect(found!.symbols).toContain('createRemoteJWKSet')
})

test('a question that shares no word with the code finds nothing rather than anything', () => {
  expect(ask('zzzxq wvutsq')).toEqual([])
  expect(ask('the of and')).toEqual([])
})
