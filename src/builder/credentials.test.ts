import { describe, expect, test } from 'bun:test'
import { buildSecretsOf, credentialsIn, withoutCredentials, withoutSecrets } from './credentials.ts'

async function painted(pieces: string[], secrets: string[]): Promise<{ text: string; found: number }> {
  let found = 0
  const parts: Uint8Array[] = []
  const content = (async function* () {
    for (const piece of pieces) yield Buffer.from(piece)
  })()
  for await (const part of withoutSecrets(content, secrets, () => found++)) parts.push(part.slice())
  return { text: Buffer.concat(parts).toString(), found }
}

describe('what a build made', () => {
  test('has secrets painted over in their length, wherever pieces are cut', async () => {
    const text = 'a secret-token-1 and another-one-22 and secret-token-1'
    const secrets = ['secret-token-1', 'another-one-22']
    const clean = 'a ************** and ************** and **************'
    for (let cut = 0; cut <= text.length; cut++) {
      expect(await painted([text.slice(0, cut), text.slice(cut)], secrets)).toEqual({ text: clean, found: 3 })
    }
    expect((await painted([...text], secrets)).text).toBe(clean)
  })

  test('is as it was without secrets, and where they are words that everything has', async () => {
    expect(await painted(['a password and x'], [])).toEqual({ text: 'a password and x', found: 0 })
    expect(await painted(['a password and x'], ['password', 'x'])).toEqual({
      text: 'a password and x',
      found: 0,
    })
  })

  test('may show variables that frameworks put into pages', () => {
    const variables = { API_TOKEN: 'one', NEXT_PUBLIC_MAP_KEY: 'two', VITE_SECRET: 'three', MODE: 'four' }
    expect(buildSecretsOf(variables)).toEqual(['one'])
  })
})

describe('settings of package managers', () => {
  test.each([
    ['.npmrc', 'fund=false\n//a.test/:_authToken=abc-123456\n_auth = "eHg6eXk="\n', 'fund=false\n'],
    ['sub/.npmrc', '//a.test/:_password=abc-123456\n//a.test/:username=me', ''],
    ['.yarnrc.yml', 'nodeLinker: pnp\nnpmAuthToken: "abc-123456"\n', 'nodeLinker: pnp\n'],
    [
      'bunfig.toml',
      'registry = { url = "https://a.test", token = "abc-123456" }',
      'registry = { url = "https://a.test", token = "" }',
    ],
    [
      'requirements.txt',
      '--index-url https://me:abc-123456@a.test/simple\nx==1',
      '--index-url https://a.test/simple\nx==1',
    ],
    [
      'package.json',
      '{"dependencies":{"a":"git+https://abc-123456@a.test/a.git"}}',
      '{"dependencies":{"a":"git+https://a.test/a.git"}}',
    ],
  ])('lose their credentials: %s', (path, text, clean) => {
    const content = Buffer.from(text)
    expect(Buffer.from(withoutCredentials(path, content)!).toString()).toBe(clean)
    expect(credentialsIn(path, content).join()).toMatch(/abc-123456/)
  })

  test.each([
    ['.npmrc', `//a.test/:_authToken=\${NPM_TOKEN}\nfund=false`],
    ['package.json', '{"dependencies":{"a":"git+ssh://git@a.test/a.git"}}'],
    ['src/index.ts', 'fetch("https://me:abc-123456@a.test")'],
  ])(
    'are as they were where they name variables or nobody, and what is no such file is left alone: %s',
    (path, text) => {
      expect(withoutCredentials(path, Buffer.from(text))).toBeNull()
      expect(credentialsIn(path, Buffer.from(text))).toEqual([])
    },
  )
})
