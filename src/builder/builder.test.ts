import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { PlatformError } from '../errors.ts'
import type { TestEntry } from '../images/test-image.ts'
import { HurriedClock } from '../lib/test-clock.ts'
import { whyNot } from '../test-client.ts'
import { openTestBuilder, type TestBuilder } from './test-builder.ts'

setDefaultTimeout(120_000)
const why = await whyNot()
const hasNpm = why === '' && existsSync('/usr/bin/npm')
if (why === '' && !hasNpm) console.warn('skipped: workspaces: this host has no npm')

/** Everything a project has, by its manifest and its files. */
function project(manifest: object, files: Record<string, string> = {}): TestEntry[] {
  return [
    { path: 'package.json', content: JSON.stringify(manifest) },
    ...Object.entries(files).map(([path, content]) => ({ path, content })),
  ]
}

async function failure(work: Promise<unknown>): Promise<PlatformError & { log: string[] }> {
  try {
    await work
  } catch (error) {
    if (PlatformError.is(error)) return error as PlatformError & { log: string[] }
    throw error
  }
  throw new Error('it was built')
}

describe.skipIf(why !== '')('a project without a Dockerfile', () => {
  const clock = new HurriedClock()
  let site: TestBuilder
  beforeAll(async () => {
    site = await openTestBuilder({ builder: { clock } })
  })
  afterAll(() => site?.[Symbol.asyncDispose]())

  test('becomes an image of its files alone where it has nothing to install or build', async () => {
    const { image, language, settings } = await site.build([
      ...project({ name: 'mine', version: '1.2.3', scripts: { start: 'node src/index.js' } }),
      { path: 'src/index.js', content: 'console.log("runs in", process.cwd())' },
      { path: 'run.sh', content: '#!/bin/sh\necho ran\n', mode: 0o755 },
      { path: 'blaxel.toml', content: 'public = true\n[env]\nCITY = "Rome"' },
    ])
    expect({ image, language }).toEqual({ image: 'agent/hello:t1', language: 'typescript' })
    expect(settings).toMatchObject({ public: true, env: { CITY: 'Rome' } })
    using resolved = await site.images.resolve('main', image)
    expect(resolved).toMatchObject({
      workingDir: '/blaxel',
      entrypoint: ['node', 'src/index.js'],
      command: [],
      user: '',
      env: { NODE_ENV: 'production', npm_package_name: 'mine', npm_package_version: '1.2.3' },
    })
    expect(await site.inside(image, 'node src/index.js; ./run.sh; stat -c "%u %a" run.sh')).toBe(
      'runs in /blaxel\nran\n0 755\n',
    )
  })

  test('has what its build made, changed and removed, and no variables of the build', async () => {
    const build = [
      'mkdir dist',
      'echo "$VERSION $TOKEN" | wc -c > dist/size',
      'echo changed > kept',
      'rm gone',
      'rm -r old',
      'echo S=1 > .env.local',
    ].join(' && ')
    const { image, log } = await site.build([
      ...project({ scripts: { build, start: 'node dist/index.js' } }),
      ...['kept', 'gone', 'old/one', 'old/two'].map((path) => ({ path, content: path })),
      { path: '.env', content: 'SECRET=in-the-archive' },
      { path: '.env.build', content: 'TOKEN=only-for-the-build' },
      { path: 'blaxel.toml', content: '[build.args]\nVERSION = "12"\nTOKEN = "not this"' },
    ])
    expect(log).toContain('==> npm run build')
    expect(await site.inside(image, 'ls -A . dist; cat dist/size kept; env | grep -c TOKEN')).toBe(
      '.:\nblaxel.toml\ndist\nkept\npackage.json\n\ndist:\nsize\n22\nchanged\n0\n',
    )
  })

  test('that does not build says at which step, with its last lines and without secrets', async () => {
    const build = 'echo first; echo "with $TOKEN" >&2; echo last; exit 3'
    const error = await failure(
      site.build([
        ...project({ scripts: { build, start: 'node index.js' } }),
        { path: '.env.build', content: 'TOKEN=only-for-the-build' },
      ]),
    )
    expect(error.code).toBe('unprocessable')
    expect(error.message).toStartWith('the build failed at "npm run build": exit code 3\n')
    for (const text of ['first', 'with [redacted]', 'last']) expect(error.message).toContain(text)
    expect(error.log.join('\n')).not.toContain('only-for-the-build')
    expect(site.instances.owned('build')).toEqual([])
  })

  test('is given up when its build is called off, with everything that ran', async () => {
    const stop = new AbortController()
    const error = await site
      .build(project({ scripts: { build: 'sleep 1000 & echo waiting; wait', start: 'node index.js' } }), {
        signal: stop.signal,
        onLine: (line) => line === 'waiting' && stop.abort(new Error('called off')),
      })
      .catch((reason) => reason as Error)
    expect((error as Error).message).toBe('called off')
    expect(site.instances.owned('build')).toEqual([])
  })

  test('is given up after a quarter of an hour, and says what it was at', async () => {
    const error = await failure(
      site.build(project({ scripts: { build: 'sleep 1000 & echo waiting; wait', start: 'node index.js' } }), {
        onLine: (line) => line === 'waiting' && clock.advance(15 * 60_000),
      }),
    )
    expect(error.message).toBe('the build failed at "npm run build": not done after 15m\nwaiting')
    expect(site.instances.owned('build')).toEqual([])
  })

  test('of a repository of several is the folder whose blaxel.toml stands at the root as well', async () => {
    const settings = 'type = "agent"\nname = "two"\n'
    const entry = (name: string) => `console.log("${name}", require("../../shared/text.js"))`
    const { image, log } = await site.build([
      ...project({ scripts: { start: 'node nothing.js' } }),
      { path: 'blaxel.toml', content: 'name = "all"' },
      { path: 'shared/text.js', content: 'module.exports = "shared"' },
      ...['one', 'two'].flatMap((name) => [
        {
          path: `apps/${name}/package.json`,
          content: JSON.stringify({ scripts: { start: 'node index.js' } }),
        },
        { path: `apps/${name}/index.js`, content: entry(name) },
        { path: `apps/${name}/blaxel.toml`, content: settings.replace('two', name) },
      ]),
      { path: 'blaxel.toml', content: settings },
    ])
    expect(log).toContain('The project is in apps/two')
    using resolved = await site.images.resolve('main', image)
    expect(resolved).toMatchObject({ workingDir: '/blaxel/apps/two', entrypoint: ['node', 'index.js'] })
    expect(await site.inside(image, 'node index.js')).toBe('two shared\n')
  })

  test.skipIf(!hasNpm)('of a workspace is installed with all of it, and built where it is', async () => {
    const settings = 'name = "web"\n'
    const { image } = await site.build([
      ...project({ private: true, workspaces: ['packages/*'] }),
      {
        path: 'packages/lib/package.json',
        content: JSON.stringify({ name: 'lib', version: '1.0.0', main: 'lib.js' }),
      },
      { path: 'packages/lib/lib.js', content: 'module.exports = "of the library"' },
      {
        path: 'packages/web/package.json',
        content: JSON.stringify({
          name: 'web',
          version: '1.0.0',
          dependencies: { lib: '1.0.0' },
          scripts: { build: 'pwd > where', start: 'node index.js' },
        }),
      },
      { path: 'packages/web/index.js', content: 'console.log(require("lib"))' },
      { path: 'packages/web/blaxel.toml', content: settings },
      { path: 'blaxel.toml', content: settings },
    ])
    expect(await site.inside(image, 'node index.js; cat where')).toBe(
      'of the library\n/blaxel/packages/web\n',
    )
  })

  test.each([
    ['nothing in it', [], 'there is nothing here that could be built'],
    [
      'a wrong blaxel.toml',
      [...project({}), { path: 'blaxel.toml', content: 'port = "x"' }],
      'blaxel.toml: port is "x"',
    ],
    ['a broken package.json', [{ path: 'package.json', content: '{' }], 'package.json is not JSON'],
    ['nothing to start', project({ scripts: { build: 'true' } }), 'nothing says how the project is started'],
  ] as [string, TestEntry[], string][])(
    'with %s is refused, saying what is missing',
    async (_, files, message) => {
      const error = await failure(site.build(files))
      expect(error.code).toBe('unprocessable')
      expect(error.message).toContain(message)
    },
  )
})
