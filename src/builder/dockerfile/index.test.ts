import { afterAll, describe, expect, test } from 'bun:test'
import { programs, type TestEntry, type TestImageOptions, tar, testImage } from '../../images/test-image.ts'
import { TestRegistry } from '../../images/test-registry.ts'
import type { BuildRequest } from '../index.ts'
import { openTestBuilder } from '../test-builder.ts'
import { whyNoDockerfiles } from '../test-dockerfiles.ts'

const why = await whyNoDockerfiles()
const suite = why ? describe.skip : describe
const timeoutMs = 180_000

/** Awaited as it is: what a matcher awaits keeps the store's thread from being heard. */
function failureOf(work: Promise<unknown>): Promise<string> {
  return work.then(
    () => '',
    (error: Error) => error.message,
  )
}

/** A builder, and a registry with images of programs of this host. */
async function openBench(carriedEnv: Record<string, string> = {}) {
  await using opened = new AsyncDisposableStack()
  const registry = opened.use(new TestRegistry())
  const carried = {
    ...{ names: [], addresses: [], env: carriedEnv, withoutCredential: [] },
    installations: { env: {}, npmrc: '', secrets: [] },
  }
  const builder = opened.use(await openTestBuilder({ registries: [registry.host], carried }))
  const parts = opened.move()
  return {
    ...builder,
    registry,
    push(
      name: string,
      options: TestImageOptions & { programs?: string[]; entries?: TestEntry[] } = {},
    ): string {
      const { programs: names = ['sh', 'cat', 'ls', 'id', 'env', 'mkdir', 'rm'], entries = [] } = options
      const tree = [
        { path: 'etc/', type: '5' },
        { path: 'tmp/', type: '5', mode: 0o1777 },
        { path: 'etc/passwd', content: 'root:x:0:0:root:/root:/bin/sh\n' },
        ...programs(...names),
        ...entries,
      ]
      registry.push(name, 'latest', testImage([tar(tree)], options))
      return `${registry.host}/${name}:latest`
    },
    dockerfile: (text: string, files: Record<string, string> = {}, request: Partial<BuildRequest> = {}) =>
      builder.build(
        Object.entries({ Dockerfile: text, ...files }).map(([path, content]) => ({ path, content })),
        request,
      ),
    [Symbol.asyncDispose]: () => parts.disposeAsync(),
  }
}

suite(`builds with a Dockerfile${why ? ` (skipped: ${why})` : ''}`, () => {
  let opened: ReturnType<typeof openBench> | null = null
  const bench = () => (opened ??= openBench())
  afterAll(async () => await (await opened)?.[Symbol.asyncDispose]())

  const check = (name: string, run: (here: Awaited<ReturnType<typeof openBench>>) => Promise<void>) =>
    test(name, async () => run(await bench()), timeoutMs)

  check('stages, arguments and files come together in an image that runs', async (here) => {
    const base = here.push('base', { config: { Env: ['FROM_BASE=1', 'PATH=/bin'] } })
    const { image, language, log } = await here.dockerfile(
      `ARG BASE
FROM \${BASE} AS one
ARG GREETING=none
WORKDIR /project
COPY . .
RUN echo "$GREETING from $(cat name.txt)" > said.txt && ls -A
FROM ${base}
COPY --from=one /project/said.txt /app/said.txt
COPY --from=ghcr.io/blaxel-ai/sandbox:latest /sandbox-api /usr/local/bin/sandbox-api
ENV MODE=fast
WORKDIR /app
EXPOSE 3000
CMD ["cat", "/app/said.txt"]
`,
      {
        'name.txt': 'a file',
        '.dockerignore': 'left-out\n',
        'left-out/file': 'x',
        '.env': 'SECRET=1',
        '.env.build': 'GREETING=hello',
        'blaxel.toml': `[build.args]\nGREETING = "overruled"\nBASE = "${base}"\n`,
      },
    )
    expect([image, language]).toEqual(['agent/hello:t1', 'docker'])
    expect(log).toContain(`==> stage 1/2 1/5 FROM ${base} AS one`)
    const listed = log.indexOf(
      '==> stage 1/2 5/5 RUN echo "$GREETING from $(cat name.txt)" > said.txt && ls -A',
    )
    expect(log.slice(listed + 1, listed + 6).sort()).toEqual([
      '.dockerignore',
      'Dockerfile',
      'blaxel.toml',
      'name.txt',
      'said.txt',
    ])
    using resolved = await here.images.resolve('main', image)
    expect(resolved).toMatchObject({
      workingDir: '/app',
      command: ['cat', '/app/said.txt'],
      ports: [{ target: 3000 }],
    })
    expect(resolved.env).toMatchObject({ FROM_BASE: '1', MODE: 'fast' })
    expect(resolved.root.mounts.map(({ target }) => target)).toEqual(['/usr/local/bin/sandbox-api'])
    expect(await here.inside(image, 'cat /app/said.txt')).toBe('hello from a file\n')
  })

  check(
    'a failed step is named with its code and last lines, and those before it are not done again',
    async (here) => {
      const base = here.push('base')
      // Each line in one piece: the tool says by itself how a step ended, between any two pieces of what it wrote.
      const text = `FROM ${base}\nRUN echo first > /first && printf done\nRUN echo "Error: so far" && printf "no more" && exit 7\nRUN echo never\n`
      const failed = await here.dockerfile(text, {}, { name: 'fails' }).then(
        () => '',
        (error: Error) => error.message,
      )
      expect(failed).toBe(
        'the build failed at "3/4 RUN echo "Error: so far" && printf "no more" && exit 7": exit code 7\nError: so far\nno more',
      )
      const mended = text.replace(' && exit 7', '')
      const { image, log } = await here.dockerfile(mended, {}, { name: 'fails' })
      expect(log[log.indexOf('==> 2/4 RUN echo first > /first && printf done') + 1]).toBe('(from the cache)')
      expect(await here.inside(image, 'cat /first')).toBe('first\n')
    },
  )

  check(
    'what a file has in it decides whether its step is done again, not when it was written',
    async (here) => {
      const base = here.push('base')
      const text = `FROM ${base}\nCOPY file /file\nRUN cat /file\n`
      const step = '==> 3/3 RUN cat /file'
      const outcome = async (content: string, mtime: number) => {
        const files = [
          { path: 'Dockerfile', content: text, mtime },
          { path: 'file', content, mtime },
        ]
        const { log } = await here.build(files, { name: 'copies' })
        return log[log.indexOf(step) + 1]
      }
      expect(await outcome('one\n', 1_700_000_000)).toBe('one')
      expect(await outcome('one\n', 1_700_000_100)).toBe('(from the cache)')
      expect(await outcome('two\n', 1_700_000_100)).toBe('two')
    },
  )

  check('the file that blaxel.toml names is built, with what is ignored for it alone', async (here) => {
    const base = here.push('base')
    const files = {
      'blaxel.toml': '[build]\ndockerfile = "docker/own.Dockerfile"\n',
      'docker/own.Dockerfile': `FROM ${base}\nCOPY . /app\n`,
      'docker/own.Dockerfile.dockerignore': 'left-out\n',
      'left-out': 'x',
      taken: 'y',
    }
    const { image } = await here.dockerfile('FROM nothing\n', files)
    expect((await here.inside(image, 'ls /app')).trim().split('\n').sort()).toEqual([
      'Dockerfile',
      'blaxel.toml',
      'docker',
      'taken',
    ])
    const missing = { 'blaxel.toml': '[build]\ndockerfile = "no.Dockerfile"\n' }
    const failed = await here.dockerfile('FROM nothing\n', missing).catch((error: Error) => error.message)
    expect(failed).toContain('build.dockerfile of blaxel.toml names "no.Dockerfile", which was not sent')
  })

  check('the layers of one thing are not for another, though it is built the same', async (here) => {
    const text = `FROM ${here.push('base')}\nRUN echo of its own\n`
    for (const name of ['one', 'two'])
      expect((await here.dockerfile(text, {}, { name })).log).toContain('of its own')
  })

  check('what runs has no power over the machine, and none of it reaches the host', async (here) => {
    const base = here.push('tools', {
      programs: ['sh', 'cat', 'grep', 'mount', 'unshare', 'mknod', 'ls', 'id'],
    })
    const { log } = await here.dockerfile(
      `FROM ${base}
RUN id -u; cat /proc/self/uid_map
RUN mount -t tmpfs t /tmp || echo no mount
RUN unshare -m true || echo no namespace
RUN (mknod /disk b 8 0 && cat /disk) || echo no device
RUN ls /proc/1/root/ || echo no root
RUN kill -9 1; echo still here
RUN grep CapEff /proc/self/status
RUN cat /proc/net/dev
`,
      {},
      { name: 'hostile' },
    )
    for (const said of ['no mount', 'no namespace', 'no device', 'no root', 'still here'])
      expect(log.join('\n')).toContain(said)
    const text = log.join('\n')
    // Of a range of ids of its own: root in it is nobody on the host.
    expect(Number(/^\s*0\s+(\d+)\s+65536$/m.exec(text)?.[1])).toBeGreaterThan(0)
    const effective = BigInt(`0x${/CapEff:\s*([0-9a-f]+)/.exec(text)?.[1]}`)
    const [netAdmin, sysAdmin] = [12n, 21n]
    expect(effective & ((1n << netAdmin) | (1n << sysAdmin))).toBe(0n)
    const interfaces = [...text.matchAll(/^ *([\w.]+): +\d+ +\d+ /gm)].map(([, name]) => name)
    expect(interfaces).toEqual(['lo'])
  })

  check(
    'base images come by the rules of the platform, with credentials that no build sees',
    async (here) => {
      const base = here.push('private')
      here.registry.behaviour.auth = 'bearer'
      try {
        const { username, password } = here.registry.behaviour
        const text = `FROM ${base}\nRUN env; for one in /proc/[0-9]*; do cat $one/environ $one/cmdline; done; true\n`
        expect(await failureOf(here.dockerfile(text))).toStartWith(
          `line 1 of the Dockerfile names the image "${base}": the registry`,
        )
        const auth = Buffer.from(`${username}:${password}`).toString('base64')
        const config = JSON.stringify({ auths: { [here.registry.host]: { auth } } })
        const { log } = await here.dockerfile(text, { '.docker/config.json': config })
        expect(log.join('\n')).toContain('HOME=/root')
        for (const secret of [password, auth]) expect(log.join('\n')).not.toContain(secret)
        expect(await failureOf(here.dockerfile('FROM quay.example/app:1'))).toStartWith(
          'line 1 of the Dockerfile names the image "quay.example/app:1": the registry quay.example is not allowed',
        )
      } finally {
        here.registry.behaviour.auth = 'none'
      }
    },
  )

  check('the host image is built on by its names, its /usr included', async (here) => {
    const text = `FROM blaxel/base-image:latest AS one
RUN python3 --version && id -u && pwd && bun --version
RUN echo '#!/bin/sh' > /usr/bin/made-here && echo 'echo "$0 runs"' >> /usr/bin/made-here && chmod +x /usr/bin/made-here
RUN rm /usr/bin/git && mkdir -p /blaxel/app && mv /usr/share/zoneinfo/Europe /usr/share/zoneinfo/Elsewhere
FROM docker.io/blaxel/py-app AS two
COPY --from=one /usr/bin/made-here /usr/local/bin/copied
COPY file /blaxel/file
RUN copied && ls /usr/bin/git
FROM one
COPY --from=two /blaxel/file /blaxel/file
CMD ["made-here"]
`
    const { image, log } = await here.dockerfile(text, { file: 'of the project' }, { name: 'on-host' })
    expect(log.some((line) => /^Python 3/.test(line))).toBe(true)
    expect(log).toContain('/usr/local/bin/copied runs')
    using resolved = await here.images.resolve('main', image)
    expect(resolved.env.PATH).toContain('/opt/hutch/bin')
    const said = await here.inside(
      image,
      'made-here; cat file; echo; ls /usr/bin/git; ls /usr/share/zoneinfo | grep E; python3 -c "print(6 * 7)"; ls / | tr "\\n" " "',
    )
    expect(said).toStartWith('/usr/bin/made-here runs\nof the project\n')
    expect(said).toContain("cannot access '/usr/bin/git'")
    expect(said).toContain('Elsewhere')
    expect(said).not.toContain('Europe')
    expect(said).toContain('42')
    // Nothing of /usr, or of the machine, at the top.
    const names = said.trim().split('\n').at(-1)?.split(' ') ?? []
    expect(names).toContain('usr')
    for (const name of ['share', 'include', 'libexec', 'hutch-host']) expect(names).not.toContain(name)
  })

  check('what a step leaves running is not there for the next build', async (here) => {
    const base = here.push('busy', { programs: ['sh', 'sleep', 'cat', 'ls'] })
    const text = (after: string) =>
      `FROM ${base}\nRUN (trap '' TERM HUP; while :; do sleep 1000; done) > /dev/null 2>&1 & echo begun\n${after}`
    await here.dockerfile(text(''), {}, { name: 'daemon' })
    const { log } = await here.dockerfile(
      text('RUN for one in /proc/[0-9]*; do cat $one/cmdline 2>/dev/null; echo; done\n'),
      {},
      { name: 'daemon' },
    )
    expect(log[log.findIndex((line) => line.includes('echo begun')) + 1]).toBe('(from the cache)')
    expect(log.some((line) => line.startsWith('sleep'))).toBe(false)
  })

  check('a build that is called off ends at once, with its machine', async (here) => {
    const base = here.push('sleepy', { programs: ['sh', 'sleep'] })
    const stop = new AbortController()
    const build = here.dockerfile(
      `FROM ${base}\nRUN echo begun && sleep 3600\n`,
      {},
      {
        name: 'called-off',
        signal: stop.signal,
        onLine(line) {
          if (line === 'begun') stop.abort(new Error('called off'))
        },
      },
    )
    expect(await failureOf(build)).toBe('called off')
    expect(here.instances.owned('build').some(({ owner }) => owner.name === 'called-off')).toBe(false)
  })

  test(
    'build arguments and settings of the host are in no image and no log',
    async () => {
      const settings = {
        NPM_CONFIG_REGISTRY: 'http://registry.example/',
        HTTPS_PROXY: 'http://proxy.example:3128',
      }
      await using here = await openBench({
        ...settings,
        NODE_EXTRA_CA_CERTS: '/etc/ssl/certs/ca-certificates.crt',
      })
      const base = here.push('base')
      const { image, log } = await here.dockerfile(
        `FROM ${base}
ARG API_TOKEN
RUN echo "$NPM_CONFIG_REGISTRY $HTTPS_PROXY $API_TOKEN" && cat "$NODE_EXTRA_CA_CERTS" > /dev/null
ENV KEPT=1
CMD ["env"]
`,
        { '.env.build': 'API_TOKEN=very-secret-token' },
      )
      expect(log).toContain('http://registry.example/ http://proxy.example:3128 [redacted]')
      using resolved = await here.images.resolve('main', image)
      expect(resolved.env).toMatchObject({ KEPT: '1' })
      for (const name of [...Object.keys(settings), 'NODE_EXTRA_CA_CERTS', 'API_TOKEN'])
        expect(resolved.env).not.toHaveProperty(name)
      expect(await here.inside(image, 'ls -R /run /etc /root /dev/shm 2>&1')).not.toContain('certificates')
      const { stdout } = Bun.spawnSync([
        'grep',
        '-rl',
        'very-secret-token',
        `${here.dir}/images`,
        `${here.dir}/hutch.db`,
      ])
      expect(stdout.toString()).toBe('')
    },
    timeoutMs,
  )
})
