import { expect, test } from 'bun:test'
import { failureMessage } from './failure.ts'
import { age, bytes, paint, printable, table } from './output.ts'
import { parseSide, safeName } from './sandbox-cp.ts'
import { commandLine, exitCode } from './sandbox-exec.ts'
import { shellJoin } from './shell.ts'
import { unitText } from './systemd.ts'

test('columns are as wide as their widest cell', () => {
  expect(
    table(
      ['A', 'LONG'],
      [
        ['wide cell', 'x'],
        ['y', 'z'],
      ],
    ).split('\n'),
  ).toEqual(['A          LONG', 'wide cell  x', 'y          z'])
})

test('a failure of the system names the file and the reason', () => {
  const refused = Object.assign(new Error("EACCES: permission denied, open '/x'"), {
    code: 'EACCES',
    path: '/x',
  })
  expect(failureMessage(refused)).toBe('/x: permission denied')
  expect(failureMessage(new Error('something else'))).toBe('something else')
  expect(failureMessage('a word')).toBe('a word')
})

test('control characters cannot reach the terminal', () => {
  expect(printable('a\x1b[2Jb\x9bc\n')).toBe('a\\x1b[2Jb\\x9bc\\x0a')
})

test('nothing is coloured where there is no terminal', () => {
  expect(paint('red', 'x', { isTTY: false })).toBe('x')
})

test('ages and sizes are short', () => {
  const now = Date.parse('2030-01-02T00:00:00Z')
  expect(age('2030-01-01T23:59:30Z', now)).toBe('30s')
  expect(age('2030-01-01T00:00:00Z', now)).toBe('24h')
  expect(age('2029-12-01T00:00:00Z', now)).toBe('32d')
  expect(age(undefined, now)).toBe('-')
  expect([bytes(1), bytes(1536), bytes(20 * 1024 ** 2)]).toEqual(['1 B', '1.5 KiB', '20 MiB'])
})

test('a shell reads every quoted word back as it was', async () => {
  const words = ['plain', '', 'two words', "it's", '$HOME `id`', 'a\nb', '*', '~', '-n', '\\']
  const shell = Bun.spawn(['sh', '-c', `printf '%s\\0' ${shellJoin(words)}`], { stdout: 'pipe' })
  const printed = await new Response(shell.stdout).text()
  expect(printed.split('\0').slice(0, -1)).toEqual(words)
})

test('an exit code is passed on, and a signal is told as a shell does', () => {
  const codes = [
    exitCode({ exitCode: 0, status: 'completed' }),
    exitCode({ exitCode: 7, status: 'failed' }),
    exitCode({ exitCode: -1, status: 'failed', signal: 11 }),
    exitCode({ exitCode: -1, status: 'killed' }),
    exitCode({ exitCode: -1, status: 'stopped' }),
    exitCode({ exitCode: -1, status: 'stopped', signal: 15 }, 130),
    exitCode({ exitCode: 9, status: 'stopped' }, 130),
  ]
  expect(codes).toEqual([0, 7, 139, 137, 143, 130, 9])
})

test('a program runs in the place of the shell that starts it, what shells do themselves in theirs', () => {
  expect(commandLine(['sh', '-c', 'ls | wc'])).toBe("exec sh -c 'ls | wc'")
  expect(commandLine(['/srv/my-app_1.2+x', 'a b'])).toBe("exec /srv/my-app_1.2+x 'a b'")
  expect(commandLine(['exit', '3'])).toBe('exit 3')
  expect(commandLine(['NAME=1', 'env'])).toBe('NAME=1 env')
})

test('a copy tells the sandbox side from a path of this machine', () => {
  expect(parseSide('box:/tmp/x/')).toEqual({ sandbox: 'box', path: '/tmp/x' })
  expect(parseSide('box:/')).toEqual({ sandbox: 'box', path: '/' })
  expect(parseSide('./box:/tmp')).toEqual({ sandbox: null, path: './box:/tmp' })
  expect(parseSide('/tmp/x')).toEqual({ sandbox: null, path: '/tmp/x' })
  expect(() => parseSide('box:tmp')).toThrow('begins with /')
})

test.each(['..', '.', '', 'a/b', '/etc/passwd', 'a\0b'])('a listed name %j writes nothing', (name) => {
  expect(() => safeName(name)).toThrow('nothing is written')
})

test('the unit quotes what systemd would read as something else', () => {
  const unit = unitText('/opt/my hutch/50%/hutch', '/data/$x')
  expect(unit).toContain('ExecStart="/opt/my hutch/50%%/hutch" up --keep-instances --data-dir /data/$$x')
  expect(unit).toContain('Delegate=yes')
  expect(unit).toContain('KillMode=process')
})
