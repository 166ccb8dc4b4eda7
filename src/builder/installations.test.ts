import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { capture } from '../../scripts/capture.ts'
import { PlatformError } from '../errors.ts'
import type { TestEntry } from '../images/test-image.ts'
import { hostRegistries } from '../network/index.ts'
import { whyNot } from '../test-client.ts'
import { openTestBuilder, type TestBuilder } from './test-builder.ts'
import { TestRegistries } from './test-registries.ts'

setDefaultTimeout(180_000)
const why = await whyNot()
const python = why || lacks('/usr/bin/python3', '-m', 'pip', '--version')
const npm = why || lacks('/usr/bin/npm', '--version')

/** Why a program of the host image is not there; '' when it is. */
function lacks(...argv: string[]): string {
  const works = Bun.which(argv[0]!) !== null && Bun.spawnSync(argv, { stderr: 'ignore' }).exitCode === 0
  const reason = works ? '' : `this host has no ${argv.slice(0, 3).join(' ')}`
  if (reason) console.warn(`skipped: ${reason}`)
  return reason
}

describe.skipIf(why !== '')('dependencies', () => {
  const registries = new TestRegistries()
  const home = mkdtempSync(join(tmpdir(), 'hutch-home-'))
  let site: TestBuilder
  beforeAll(async () => {
    // Packages run scripts, which look for what they could tell others.
    const script = 'env > found; cat /root/.npmrc >> found; cat found >&2; node make.js'
    registries.publish('greeting', {
      version: '1.0.0',
      files: { 'index.js': 'module.exports = "hello"', 'cli.js': '#!/usr/bin/env node\nconsole.log("cli")' },
      manifest: { bin: { greet: 'cli.js' } },
    })
    registries.publish('nosy', {
      version: '2.0.0',
      manifest: { scripts: { postinstall: script } },
      files: { 'index.js': '', 'make.js': 'require("fs").writeFileSync("made", "by its script")' },
    })
    // Stands for the real one, which takes the internet: it makes one file of one file.
    const esbuild = `const { readFileSync } = require('fs')
exports.build = async ({ absWorkingDir, entryPoints: [entry], outfile }) => {
  const text = readFileSync(absWorkingDir + '/' + entry, 'utf8').replaceAll(': string', '')
  const imports = [...text.matchAll(/from "([^"]+)"/g)].map(([, path]) => ({ path, external: true }))
  const outputFiles = [{ path: outfile, text, contents: Buffer.from(text) }]
  return { warnings: [], outputFiles, metafile: { inputs: { [entry]: {} }, outputs: { [outfile]: { imports } } } }
}`
    registries.publish('esbuild', { version: '1.0.0', files: { 'index.js': esbuild } })
    registries.publish('tsx', { version: '1.0.0', manifest: { dependencies: { esbuild: '1.0.0' } } })
    registries.publishWheel('greetings', '1.5', 'text = "ciao"\n')
    mkdirSync(home, { recursive: true })
    writeFileSync(join(home, '.npmrc'), registries.npmrc)
    const carried = hostRegistries({ env: registries.pipEnv, home, root: home })
    // As on a host: what is written there is below its root.
    const fromHome = hostRegistries({ env: registries.pipEnv, home: '/', root: home })
    site = await openTestBuilder({
      carried: { ...fromHome, names: carried.names },
      builder: { registries: fromHome.installations },
    })
  })
  afterAll(async () => {
    await site?.[Symbol.asyncDispose]()
    registries[Symbol.dispose]()
    rmSync(home, { recursive: true, force: true })
  })

  const manifest = {
    name: 'mine',
    scripts: { start: 'node index.js' },
    dependencies: { greeting: '1.0.0', nosy: '2.0.0' },
  }
  const source = 'console.log(require("greeting"))'
  const files = (more: TestEntry[] = [], text = source): TestEntry[] => [
    { path: 'package.json', content: JSON.stringify(manifest) },
    { path: 'index.js', content: text },
    ...more,
  ]

  /** As bun writes it, with the address that builds have the registry at. */
  async function bunLock(manifest: string): Promise<string> {
    const folder = mkdtempSync(join(home, 'lock-'))
    writeFileSync(join(folder, 'package.json'), manifest)
    writeFileSync(join(folder, '.npmrc'), registries.npmrc)
    const made = await capture([process.execPath, 'install', '--lockfile-only'], {
      cwd: folder,
      env: { HOME: folder },
    })
    if (made.code !== 0) throw new Error(made.stderr)
    return readFileSync(join(folder, 'bun.lock'), 'utf8').replaceAll('127.0.0.1', 'host.hutch.internal')
  }

  /** Whether anything that is kept of builds has a text in it. */
  function keeps(text: string): string[] {
    const found: string[] = []
    const look = (path: string) => {
      for (const entry of readdirSync(path, { withFileTypes: true })) {
        const child = join(path, entry.name)
        if (entry.isDirectory()) look(child)
        else if (entry.isFile() && readFileSync(child).includes(text)) found.push(child)
      }
    }
    look(join(site.dir, 'images'))
    for (const name of ['hutch.db', 'hutch.db-wal'])
      if (readFileSync(join(site.dir, name)).includes(text)) found.push(name)
    return found
  }

  test.skipIf(npm !== '')(
    'come from the registry of the host by its credential, which is in no image and no log',
    async () => {
      const { image, log } = await site.build(files())
      expect(registries.unauthorized).toEqual([])
      expect(registries.requests).toContain('/npm/greeting')
      expect(
        await site.inside(image, 'node index.js; node_modules/.bin/greet; cat node_modules/nosy/made'),
      ).toBe('hello\ncli\nby its script')
      expect(log).toContain('A program of the build wrote a credential down: it is painted over')
      expect(log.join('\n')).not.toContain(registries.token)
      expect(keeps(registries.token)).toEqual([])
    },
  )

  test.skipIf(npm !== '')(
    'are installed once for as long as they are the same, whatever else changes',
    async () => {
      await site.build(files())
      const before = registries.requests.length
      const { image, log } = await site.build(files([], 'console.log("other", require("greeting"))'))
      expect(registries.requests.length).toBe(before)
      expect(log).toContain('The dependencies are as they were: nothing is installed')
      expect(await site.inside(image, 'node index.js')).toBe('other hello\n')
    },
  )

  test.skipIf(npm !== '')('that a build changes are changed in its image alone', async () => {
    const build =
      'echo "module.exports = \\"generated\\"" > node_modules/greeting/index.js; mkdir node_modules/.client; echo x > node_modules/.client/schema; rm -r node_modules/nosy'
    const built = {
      ...manifest,
      scripts: { ...manifest.scripts, build, postinstall: 'cp index.js copied.js' },
    }
    const { image } = await site.build([
      { path: 'package.json', content: JSON.stringify(built) },
      files()[1]!,
    ])
    expect(
      await site.inside(image, 'node index.js; cat node_modules/.client/schema; ls node_modules copied.js'),
    ).toBe('generated\nx\ncopied.js\n\nnode_modules:\ngreeting\n')
    expect(await site.inside((await site.build(files())).image, 'node index.js; ls node_modules')).toBe(
      'hello\ngreeting\nnosy\n',
    )
  })

  test.skipIf(npm !== '')(
    'of a project with a credential of its own leave that out of the image',
    async () => {
      const own = 'token-of-the-project'
      const { image, log } = await site.build(
        files([
          {
            path: '.npmrc',
            content: `//elsewhere.test/:_authToken=${own}\nfund=false\n//other.test/:_authToken=\${NPM_TOKEN}\n`,
          },
          { path: '.env.build', content: `NPM_TOKEN=${own}-two` },
        ]),
      )
      expect(
        await site.inside(
          image,
          'cat .npmrc; grep -rl token-of-the-project / --include=* -s --exclude-dir=proc --exclude-dir=sys --exclude-dir=usr; node index.js',
        ),
      ).toBe(`fund=false\n//other.test/:_authToken=\${NPM_TOKEN}\nhello\n`)
      expect(log.join('\n')).not.toContain(own)
      expect(keeps(own)).toEqual([])
    },
  )

  test('come by the executable itself where the project or the host has no other way', async () => {
    const { image, log } = await site.build([
      {
        path: 'package.json',
        content: JSON.stringify({
          name: 'mine',
          packageManager: 'bun@1.2.0',
          scripts: { start: 'bun src/index.ts' },
          dependencies: { greeting: '1.0.0' },
        }),
      },
      {
        path: 'src/index.ts',
        content: 'import text from "greeting"\nconst said: string = text\nconsole.log(said)',
      },
    ])
    expect(log).toContain('==> bun install')
    const script = 'bun src/index.ts; /opt/hutch/as-node/node node_modules/greeting/cli.js'
    expect(await site.inside(image, script)).toBe('hello\ncli\n')
    expect(keeps(registries.token)).toEqual([])
  })

  test.skipIf(npm !== '')(
    'with a loader of TypeScript are needed no longer to start it, where a bundle is the same',
    async () => {
      const build = (source: string) =>
        site.build([
          {
            path: 'package.json',
            content: JSON.stringify({
              type: 'module',
              scripts: { start: 'tsx src/index.ts --loud' },
              dependencies: { tsx: '1.0.0', greeting: '1.0.0' },
            }),
          },
          { path: 'src/index.ts', content: source },
        ])
      const source = 'import text from "greeting";\nconst said: string = text\nconsole.log(said)'
      const { image } = await build(source)
      using resolved = await site.images.resolve('main', image)
      expect(resolved.entrypoint).toEqual(['node', '--enable-source-maps', 'src/index.bundle.mjs', '--loud'])
      expect(await site.inside(image, 'node src/index.bundle.mjs')).toBe('hello\n')
      for (const [other, reason] of [
        [`${source}\nconsole.log(import.meta.url)`, 'src/index.ts has import.meta'],
        [source.replace('text from', '{ absent as text } from'), 'greeting has no absent for node'],
        ['import text from "@/paths"', '@/paths is no package here'],
      ] as const) {
        const { image, log } = await build(other)
        expect(log).toContain(`It is started from its sources: ${reason}`)
        using asItWas = await site.images.resolve('main', image)
        expect(asItWas.entrypoint).toEqual(['tsx', 'src/index.ts', '--loud'])
      }
    },
  )

  test.skipIf(npm !== '')(
    'for development only are in no image of a bundle that needs none of them, unless it is said to be',
    async () => {
      const files = (source: string, more: TestEntry[] = []) => [
        {
          path: 'package.json',
          content: JSON.stringify({
            type: 'module',
            scripts: { start: 'tsx src/index.ts', build: 'node_modules/.bin/greet > built' },
            dependencies: { greeting: '1.0.0' },
            devDependencies: { tsx: '1.0.0', nosy: '2.0.0' },
          }),
        },
        { path: 'src/index.ts', content: source },
        ...more,
      ]
      const source = 'import text from "greeting";\nconst said: string = text\nconsole.log(said)'
      const here = async (image: string) =>
        (await site.inside(image, 'ls node_modules built; $(echo node) src/index*.mjs')).trim().split('\n')
      const { image, log } = await site.build(files(source))
      expect(log).toContain('==> npm prune --omit=dev --ignore-scripts --loglevel=error')
      expect(await here(image)).toEqual(['built', '', 'node_modules:', 'greeting', 'hello'])
      const again = await site.build(files(`${source}\n`))
      expect(again.log.filter((line) => line.startsWith('==> npm'))).toEqual(['==> npm run build'])
      expect(await here(again.image)).toEqual(['built', '', 'node_modules:', 'greeting', 'hello'])
      const manifest = JSON.stringify({
        scripts: { start: 'node src/index.js' },
        dependencies: { greeting: '1.0.0' },
        devDependencies: { nosy: '2.0.0' },
      })
      for (const lock of [[], [{ path: 'bun.lock', content: await bunLock(manifest) }]]) {
        const plain = await site.build([
          ...lock,
          { path: 'package.json', content: manifest },
          { path: 'src/index.js', content: 'console.log(require("./said"))' },
          { path: 'src/said.js', content: 'module.exports = require("greeting")' },
        ])
        expect((await site.inside(plain.image, 'ls node_modules; node src/index.js')).split('\n')).toEqual([
          'greeting',
          'hello',
          '',
        ])
      }
      const whole = ['esbuild', 'greeting', 'nosy', 'tsx']
      for (const other of [
        files(source, [{ path: 'blaxel.toml', content: '[build]\nslim = false' }]),
        files(`import nosy from "nosy"\n${source}`),
        files(`import child from "node:child_process"\n${source}`),
        files(`${source}\nconsole.log(import.meta.url)`),
      ]) {
        const { image: all } = await site.build(other)
        expect((await site.inside(all, 'ls node_modules')).trim().split('\n')).toEqual(whole)
      }
    },
  )

  test.skipIf(npm !== '')(
    'that are not to be had say so, with the last lines of who looked for them',
    async () => {
      const wrong = { ...manifest, dependencies: { 'no-such-package': '1.0.0' } }
      const error = await site
        .build([{ path: 'package.json', content: JSON.stringify(wrong) }, files()[1]!])
        .catch((reason) => reason as Error)
      if (!PlatformError.is(error)) throw new Error('it was built')
      expect(error.message).toStartWith('the build failed at "npm install')
      expect(error.message).toContain('no-such-package')
    },
  )

  test.skipIf(npm !== '')('with a lock file are exactly those of it', async () => {
    const lock = {
      name: 'mine',
      lockfileVersion: 3,
      packages: { '': { name: 'mine', dependencies: { greeting: '1.0.0' } } },
    }
    const error = await site
      .build(files([{ path: 'package-lock.json', content: JSON.stringify(lock) }]))
      .catch((reason) => reason as Error)
    if (!PlatformError.is(error)) throw new Error('it was built')
    expect(error.message).toStartWith('the build failed at "npm ci')
  })

  test.skipIf(python !== '')('of Python are in an environment of the project', async () => {
    const python: TestEntry[] = [
      { path: 'requirements.txt', content: 'greetings==1.5\n' },
      {
        path: 'main.py',
        content: 'import sys, greetings\nif __name__ == "__main__": print(greetings.text, sys.prefix)',
      },
    ]
    const { image, language, log } = await site.build(python)
    expect(language).toBe('python')
    expect(
      await site.inside(image, 'eval $(echo $PROGRAM | tr -d "[]\\"" | tr , " "); ls __pycache__'),
    ).toMatch(/^ciao \/blaxel\/\.venv\nmain\..*pyc\n$/)
    expect(log.join('\n')).not.toContain(registries.token)
    expect(keeps(registries.token)).toEqual([])
    const again = await site.build(python)
    expect(again.log).toContain('The dependencies are as they were: nothing is installed')
  })

  test.skipIf(python !== '')('of a pyproject are of the versions that uv.lock has', async () => {
    const { image } = await site.build([
      {
        path: 'pyproject.toml',
        content: '[project]\nname = "mine"\nversion = "1"\ndependencies = ["greetings>=1"]\n',
      },
      {
        path: 'uv.lock',
        content:
          'version = 1\n[[package]]\nname = "mine"\nversion = "1"\nsource = { virtual = "." }\n[[package]]\nname = "greetings"\nversion = "1.5"\nsource = { registry = "https://pypi.org/simple" }\n',
      },
      { path: 'src/main.py', content: 'import greetings\nif __name__ == "__main__": print(greetings.text)' },
    ])
    expect(await site.inside(image, 'python src/main.py; ls .venv/lib/python3*/site-packages')).toContain(
      'ciao\n',
    )
  })
})
