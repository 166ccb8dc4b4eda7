import { expect, test } from 'bun:test'
import { Steps } from '../steps.ts'
import { buildCommand, carriedSettings, ToolOutput } from './tool.ts'

function said(...lines: string[]) {
  const log: string[] = []
  const steps = new Steps({ onLine: (line) => log.push(line), secrets: [] })
  const bases = [{ written: '$BASE', text: 'python:3', local: 'localhost/hutch-base-0:latest' }]
  const output = new ToolOutput(steps, bases)
  for (const line of lines) output.line(line)
  return { log, output }
}

test('lines of a tool become steps and what they say, with images named as in the file', () => {
  const { log } = said(
    '[1/2] STEP 1/2: FROM localhost/hutch-base-0:latest AS one',
    '--> 1fa60b42be0',
    '[1/2] STEP 2/2: RUN make',
    '--> Using cache 5d1cf45549ac892fc888e0033b8f0a5d2d6e9856a9270881449569a3b69be611',
    `[2/2] STEP 1/1: FROM ${'a'.repeat(64)} AS two`,
    'made',
    '[2/2] COMMIT localhost/hutch-built:latest',
    'Successfully tagged localhost/hutch-built:latest',
    'b'.repeat(64),
  )
  expect(log).toEqual([
    '==> stage 1/2 1/2 FROM python:3 AS one',
    '==> stage 1/2 2/2 RUN make',
    '(from the cache)',
    '==> stage 2/2 1/1 FROM an earlier stage AS two',
    'made',
  ])
})

test('what a program writes without ending its line is one line, and what the tool says behind it another', () => {
  const { log, output } = said(
    'STEP 2/4: RUN printf "STEP 1/2: x"; printf done',
    'doneSTEP 3/4: RUN printf a',
    'a--> 1fa60b42be0',
    'b[2/2] COMMIT localhost/hutch-built:latest',
    'oopssubprocess exited with status 3',
    'Error: building at STEP "RUN STEP 1/2: x": while running runtime: exit status 3',
  )
  expect(log).toEqual([
    '==> 2/4 RUN printf "STEP 1/2: x"; printf done',
    'done',
    '==> 3/4 RUN printf a',
    'a',
    'b',
    'oops',
  ])
  expect(output.failure({ exitCode: 125, signal: null })).toBe('exit code 3')
})

test('how a build failed is told in the words of people', () => {
  const exit = { exitCode: 125, signal: null }
  const failure = (line: string) => said(line).output.failure(exit)
  expect(failure('Error: building at STEP "RUN x": while running runtime: exit status 7')).toBe('exit code 7')
  expect(
    failure('Error: error building at STEP "RUN "a": b": error while running runtime: exit status 2'),
  ).toBe('exit code 2')
  expect(failure('Error: building at STEP "COPY a b": checking on sources: no such file')).toContain(
    'no such file',
  )
  expect(failure('Error: creating build container: localhost/hutch-base-0:latest: image not known')).toBe(
    'creating build container: python:3: image not known',
  )
  expect(said().output.failure({ exitCode: null, signal: 9 })).toBe('it was ended by signal 9')
  // Programs may say the same on their own account.
  expect(said('Error: of a program', 'which goes on').log).toEqual(['Error: of a program', 'which goes on'])
  const last = said('Error: of the last program', 'Successfully tagged localhost/hutch-built:latest')
  last.output.succeeded()
  expect(last.log).toEqual(['Error: of the last program'])
  expect(said('cp: write error: No space left on device').output.fullDisk).toBe(true)
})

test('settings of the host are handed on as far as a base image can have a use for them', () => {
  const bundle = '/etc/ssl/certs/ca-certificates.crt'
  const env = {
    PATH: '/bin',
    HOME: '/blaxel',
    NPM_CONFIG_REGISTRY: 'http://npm.example/',
    https_proxy: 'http://proxy.example:1',
    SSL_CERT_FILE: bundle,
    SSL_CERT_DIR: '/etc/ssl/certs',
  }
  const { certificates, ...carried } = carriedSettings(env, (path) => path === bundle)
  expect(carried).toEqual({
    proxies: { https_proxy: 'http://proxy.example:1' },
    env: { NPM_CONFIG_REGISTRY: 'http://npm.example/', SSL_CERT_FILE: certificates!.to },
  })
  expect(carriedSettings(env, () => false).certificates).toBeNull()
})

test('what names images, and build arguments, reach the tool as words of their own', () => {
  const argv = buildCommand('buildah', {
    dockerfile: 'Dockerfile',
    buildArgs: { 'A B': '--c $(d)' },
    env: {},
    bases: [{ written: '--volume=/:/host', text: 'x', local: 'localhost/hutch-base-0:latest' }],
  })
  expect(argv[argv.indexOf('--build-arg') + 1]).toBe('A B=--c $(d)')
  expect(argv[argv.indexOf('--build-context') + 1]).toBe(
    '--volume=/:/host=container-image://localhost/hutch-base-0:latest',
  )
  expect(argv.filter((word) => word.startsWith('--volume'))).toHaveLength(1)
})
