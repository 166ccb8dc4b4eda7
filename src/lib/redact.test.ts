import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { systemClock } from './clock.ts'
import { createLogger } from './log.ts'
import { isSecretName, redact, redactTextCharsMax } from './redact.ts'

const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
const secrets = fc
  .string({ unit: fc.constantFrom(...alphabet), minLength: 16, maxLength: 60 })
  .map((text) => `S3${text}`)
const harmless = fc.string({
  unit: fc.constantFrom(...'abcdef 0123456789/?&=:%.,;-"\'{}()\\\n'),
  maxLength: 40,
})
const parameters = [
  'token',
  'bl_preview_token',
  'api_key',
  'apiKey',
  'key',
  'access_token',
  'refresh_token',
  'client_secret',
  'password',
  'TOKEN',
  '%74oken',
  'bl%5fpreview%5Ftoken',
  'BL_API_KEY',
]

/** Every place where a secret can stand. */
const places: Record<string, (secret: string) => string> = {
  ...Object.fromEntries(
    parameters.flatMap((name) => [
      [`first parameter ${name}`, (secret: string) => `GET /main/sandboxes/a/health?${name}=${secret}`],
      [`later parameter ${name}`, (secret: string) => `http://localhost:4400/x?a=b&${name}=${secret}&c=d`],
      [`form ${name}`, (secret: string) => `${name}=${secret}`],
    ]),
  ),
  'address in an address': (secret) => `/login?next=http://localhost/?token=${secret}`,
  'encoded address in an address': (secret) =>
    `/login?next=http%3A%2F%2Flocalhost%2F%3Fa%3Db%26token%3D${secret}`,
  'authorization header': (secret) => `authorization: Bearer ${secret}`,
  'authorization header without scheme': (secret) => `Authorization: ${secret}`,
  'blaxel authorization header': (secret) => `x-blaxel-authorization: Bearer ${secret}`,
  'basic credentials': (secret) => `sent Basic ${secret} to it`,
  'key header': (secret) => `X-API-Key: ${secret}`,
  'cookie header': (secret) => `cookie: a=b; session=${secret}`,
  'preview header': (secret) => `x-blaxel-preview-token: ${secret}`,
  'API key': (secret) => `the key bl_${secret} is unknown`,
  'client secret': (secret) => `the secret bls_${secret} is unknown`,
  'refresh token': (secret) => `the token blr_${secret} was used`,
  'API key in a path': (secret) => `/x/bl_${secret}/y`,
  JWT: (secret) => `got eyJhbGciOiJI.${secret}.${secret}`,
  'unsigned JWT': (secret) => `got eyJhbGciOiJI${secret}`,
  JSON: (secret) => `{"name":"a","apiKey": "${secret}","b":1}`,
  'JSON in JSON': (secret) => JSON.stringify({ text: JSON.stringify({ client_secret: secret, other: 1 }) }),
  'JSON with a quote': (secret) => JSON.stringify({ password: `a"b${secret}` }),
  'inspected object': (secret) => `{ name: 'a', apiKey: '${secret}', b: 1 }`,
  'capability path': (secret) => `PUT /-/upload/${secret}`,
  'capability path, deep': (secret) => `http://localhost:4400/-/preview/${secret}/a/b.js?c=d`,
  'capability path, later segment': (secret) => `/-/preview/some-id/${secret}`,
  'capability path, query': (secret) => `/-/data?${secret}`,
  'capability path, encoded': (secret) => `?next=%2F-%2Fupload%2F${secret}`,
  'capability path, odd': (secret) => `/%2d//upl%6fad/${secret}`,
  'user info': (secret) => `https://user:${secret}@example.com/x`,
  proxy: (secret) => `HTTPS_PROXY=http://${secret}@proxy:3128`,
}

describe('redact', () => {
  test.each(Object.keys(places))('hides a secret as %s, whatever stands around it', (place) => {
    fc.assert(
      fc.property(secrets, harmless, harmless, (secret, before, after) => {
        expect(redact(places[place]!(secret))).not.toContain(secret)
        // On a line of its own after something else, and before something else.
        expect(redact(`${before}\n${places[place]!(secret)} ${after}`)).not.toContain(secret)
      }),
      { numRuns: 60 },
    )
  })

  test('hides a secret in an encoded address that could be the name of a field', () => {
    expect(redact('/login?next=http%3A%2F%2Flocalhost%2F%3Fa%3Db%26token%3DS3AAAAAAAAAAAAAAAA :"')).toBe(
      '/login?next=http%3A%2F%2Flocalhost%2F%3Fa%3Db%26token%3D[redacted] :"',
    )
  })

  test('hides no more than it must', () => {
    expect(redact('http://localhost:4400/x?a=b&token=abc&c=d')).toBe(
      'http://localhost:4400/x?a=b&token=[redacted]&c=d',
    )
    expect(redact('/-/preview/abc/index.html?x=1 took 3 ms')).toBe('/-/preview/[redacted] took 3 ms')
    expect(redact('{"name":"a","token":"x","b":1}')).toBe('{"name":"a","token":"[redacted]","b":1}')
    expect(redact('bl_preview_token=abc')).toBe('bl_preview_token=[redacted]')
    for (const text of [
      '',
      'GET /v0/sandboxes/a 200',
      '/main/sandboxes/a-b/port/3000/-x',
      'exit code=1 a:b',
      'http://localhost:4400/',
    ]) {
      expect(redact(text)).toBe(text)
    }
  })

  test('is the same when done twice', () => {
    for (const place of Object.values(places)) {
      const once = redact(place('S3cretS3cretS3cret'))
      expect(redact(once)).toBe(once)
    }
  })

  test('cuts what is too long', () => {
    const long = redact('x'.repeat(redactTextCharsMax + 100))
    expect(long.length).toBeLessThan(redactTextCharsMax + 40)
    expect(long).toContain('100 more characters')
  })

  test('costs little for any text, however it is made', () => {
    const patterns = [
      '/-',
      '/-/',
      '%2f-%2f',
      '://',
      'authorization',
      '"a":"',
      '\\"token\\":\\"',
      "a: '",
      'abcdefgh',
      'ab:',
      'token=',
      '&',
      '?',
      'eyJ',
      'bl_',
      'bearer ',
      '%3f',
      'a=',
      '"',
      '\\',
      'cookie: ',
      ' ',
      'token',
      '%',
    ]
    for (const pattern of [
      ...patterns,
      ...patterns.map((one, index) => one + patterns[(index * 7 + 3) % patterns.length]!),
    ]) {
      const text = pattern.repeat(Math.ceil(redactTextCharsMax / pattern.length)).slice(0, redactTextCharsMax)
      // Linear cost is well below 5 ms each; quadratic cost on 8 Ki characters is far above, whenever it is measured.
      let ms = Number.POSITIVE_INFINITY
      for (let attempt = 0; attempt < 20 && ms >= 250; attempt++) {
        const started = performance.now()
        for (let round = 0; round < 5; round++) redact(text)
        ms = performance.now() - started
      }
      expect(ms).toBeLessThan(250)
    }
  })

  test('knows secret names', () => {
    for (const name of [
      'token',
      'apiKey',
      'API_KEY',
      'clientSecret',
      'authorization',
      'Cookie',
      'preview_token',
    ]) {
      expect(isSecretName(name)).toBe(true)
    }
    for (const name of ['name', 'tokens', 'keyword', 'status', '']) expect(isSecretName(name)).toBe(false)
  })
})

describe('a logger', () => {
  const lines: string[] = []
  const clock = { ...systemClock, now: () => 1_800_000_000_000 }
  const log = (options: Partial<Parameters<typeof createLogger>[0]> = {}) => {
    lines.length = 0
    return createLogger({ clock, write: (line) => lines.push(line), ...options })
  }

  test('writes one line of JSON', () => {
    log().info('request', { method: 'GET', status: 200, nested: { list: [1, 'x'] } })
    expect(lines).toHaveLength(1)
    expect(lines[0]!.endsWith('\n')).toBe(true)
    expect(JSON.parse(lines[0]!)).toEqual({
      time: '2027-01-15T08:00:00.000Z',
      level: 'info',
      message: 'request',
      method: 'GET',
      status: 200,
      nested: { list: [1, 'x'] },
    })
  })

  test('writes text for people, and nothing logged can begin a line or drive a terminal', () => {
    log({ format: 'text' }).warn('a\nb\u001b[31m', { path: '/x', reason: 'two words', list: [1] })
    expect(lines).toEqual([
      '2027-01-15T08:00:00.000Z WARN  a\\u000ab\\u001b[31m path=/x reason="two words" list=[1]\n',
    ])
  })

  test('leaves out what is below its level', () => {
    const logger = log({ level: 'warn' })
    logger.debug('no')
    logger.info('no')
    logger.warn('yes')
    logger.error('yes')
    expect(lines).toHaveLength(2)
  })

  test('no secret passes, wherever it stands', () => {
    fc.assert(
      fc.property(
        secrets,
        fc.constantFrom(...Object.values(places)),
        fc.constantFrom('json', 'text'),
        (secret, place, format) => {
          const text = place(secret)
          const error = new Error(text, { cause: new Error(`inner ${text}`) })
          log({ format: format as 'json' | 'text' }).error(text, {
            text,
            error,
            url: new URL(`http://localhost/x?token=${secret}`),
            headers: new Headers({ authorization: `Bearer ${secret}`, 'x-api-key': secret }),
            token: secret,
            apiKey: { value: secret },
            deep: [{ list: [text, { clientSecret: secret }] }],
            [`?token=${secret}`]: 1,
          })
          expect(lines).toHaveLength(1)
          expect(lines[0]).not.toContain(secret)
        },
      ),
      { numRuns: 300 },
    )
  })

  test('says what an error says, and its causes', () => {
    log().error('failed', {
      error: Object.assign(new Error('outer', { cause: new TypeError('inner') }), { code: 'EIO' }),
    })
    const { error } = JSON.parse(lines[0]!)
    expect(error.code).toBe('EIO')
    expect(error.stack).toContain('outer')
    expect(error.cause.stack).toContain('TypeError: inner')
  })

  test('bounds a line and survives every value', () => {
    const circular: Record<string, unknown> = {}
    circular.self = circular
    const wide = Object.fromEntries(Array.from({ length: 10_000 }, (_, n) => [`n${n}`, 'x'.repeat(1000)]))
    const thrower = {
      get boom() {
        throw new Error('no')
      },
    }
    const values = [
      circular,
      wide,
      10n,
      Symbol('s'),
      () => 1,
      undefined,
      null,
      Number.NaN,
      new Date(Number.NaN),
      new Uint8Array(5),
      new Map([[1, 2]]),
      'x'.repeat(1_000_000),
    ]
    for (const value of values) {
      log().info('odd', { value })
      expect(lines).toHaveLength(1)
      expect(lines[0]!.length).toBeLessThan(64 * 1024)
      expect(JSON.parse(lines[0]!).message).toBe('odd')
    }
    expect(() => log().info('odd', { thrower })).not.toThrow()
    expect(() =>
      log({
        write: () => {
          throw new Error('EPIPE')
        },
      }).info('x'),
    ).not.toThrow()
  })

  test('a field cannot pose as the line’s own time, level or message', () => {
    log().info('real', { message: 'false', level: 'error', time: 'never' })
    expect(JSON.parse(lines[0]!)).toMatchObject({
      message: 'real',
      level: 'info',
      field_message: 'false',
      field_level: 'error',
    })
  })
})
