import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from '../lib/test-eventually.ts'
import { readProcess } from './codec.ts'
import { FrameType, FrameWriter } from './frame.ts'
import { PayloadReader } from './payload.ts'
import { TestConnection, TestGuest } from './test-guest.ts'

const running = 1
const flag = { stdin: 1, pty: 2 }
const sigterm = 15
const sigkill = 9
const esrch = 'errno 3 '

setDefaultTimeout(120_000)

let guest: TestGuest
let control: TestConnection
let lastId = 0
const nextId = () => ++lastId

beforeAll(async () => {
  guest = await TestGuest.start()
  control = await guest.control()
})
afterAll(() => guest[Symbol.asyncDispose]())

const signal = (id: number, number: number, scope: number) =>
  new FrameWriter(FrameType.signal, id).u32(number).u8(scope)
const forget = (id: number) => new FrameWriter(FrameType.forget, id)
const alive = (pid: number) =>
  readFile(`/proc/${pid}/stat`, 'utf8').then(
    (text) => !/\) [ZX]/.test(text),
    () => false,
  )

describe('programs', () => {
  test('stdout and stderr are told apart, and EXIT comes with the output in the log', async () => {
    const id = nextId()
    await control.shell(id, 'echo out; echo err >&2; exit 7')
    const exit = await control.exit(id)
    expect(exit).toMatchObject({ state: 'exited', code: 7 })
    expect(exit.endedMs).toBeGreaterThanOrEqual(exit.startedMs)
    expect(await guest.text(id, 1)).toBe('out\n')
    expect(await guest.text(id, 2)).toBe('err\n')
    expect(exit.endOffset).toBe(2 * 16 + 8)
  })

  test('a program that a signal ended says which', async () => {
    const id = nextId()
    await control.shell(id, 'kill -11 $$')
    expect(await control.exit(id)).toMatchObject({ state: 'signaled', code: 11 })
  })

  test('it leads a session, has no descriptor but 0-2, an empty mask and default dispositions', async () => {
    const id = nextId()
    const pid = await control.shell(
      id,
      'ls /proc/$$/fd | tr "\\n" " "; grep -E "^Sig(Blk|Ign)" /proc/self/status; cut -d" " -f5,6 /proc/$$/stat',
    )
    await control.exit(id)
    const text = await guest.text(id)
    expect(text).toStartWith('0 1 2 ')
    expect(text).toContain('SigBlk:\t0000000000000000')
    expect(text).toContain('SigIgn:\t0000000000000000')
    expect(text).toEndWith(`${pid} ${pid}\n`)
  })

  test('argv[0] is looked up in the PATH of its environment, and the environment is complete', async () => {
    const id = nextId()
    await control.spawn(id, ['env'], { env: ['PATH=/nowhere::/usr/bin', 'ONLY=this'] })
    await control.exit(id)
    expect(await guest.text(id)).toBe('PATH=/nowhere::/usr/bin\nONLY=this\n')
  })

  test('an empty working directory means the default one', async () => {
    const id = nextId()
    await control.spawn(id, ['pwd'])
    await control.exit(id)
    expect(await guest.text(id)).toBe(`${join(guest.dir, 'inside')}\n`)
  })

  test('failures before the program runs name their step and leave nothing', async () => {
    const known = (await control.list()).length
    expect(await control.spawn(nextId(), ['no-such-program'])).toStartWith('errno 2 exec: ')
    expect(await control.spawn(nextId(), ['/etc/passwd'])).toStartWith('errno 13 exec: ')
    expect(await control.spawn(nextId(), ['true'], { cwd: '/no/such' })).toStartWith('errno 2 chdir: ')
    expect(await control.spawn(nextId(), [])).toStartWith('errno 22 ')
    expect(await control.spawn(0, ['true'])).toStartWith('errno 22 ')
    expect((await control.list()).length).toBe(known)
    await expect(stat(join(guest.logDir, String(lastId)))).rejects.toThrow('ENOENT')
  })

  test('an id that is taken is refused', async () => {
    const id = nextId()
    await control.spawn(id, ['true'])
    await control.exit(id)
    expect(await control.spawn(id, ['true'])).toStartWith('errno 17 ')
  })

  const asRoot = process.getuid?.() === 0 ? test : test.skip
  asRoot('another user gets its uid and gid, no groups and no capabilities (needs root)', async () => {
    const id = nextId()
    await control.shell(id, 'id -u; id -g; id -G; grep CapEff /proc/$$/status', {
      uid: 1234,
      gid: 1235,
      cwd: '/',
    })
    await control.exit(id)
    expect(await guest.text(id)).toBe('1234\n1235\n1235\nCapEff:\t0000000000000000\n')
  })
})

describe('stdin', () => {
  test('what is written arrives, and closing it ends the reader', async () => {
    const id = nextId()
    await control.spawn(id, ['cat'], { flags: flag.stdin })
    const stdin = (text: string) => new FrameWriter(FrameType.stdin, id).raw(Buffer.from(text))
    expect(await control.request(stdin('hello '), id)).toBe('OK')
    expect(await control.request(stdin('there'), id)).toBe('OK')
    expect(await control.request(new FrameWriter(FrameType.closeStdin, id), id)).toBe('OK')
    expect(await control.request(new FrameWriter(FrameType.closeStdin, id), id)).toBe('OK')
    expect(await control.request(stdin('late'), id)).toStartWith('errno 32 ')
    await control.exit(id)
    expect(await guest.text(id)).toBe('hello there')
  })

  test('without the flag it is /dev/null, and writing says so', async () => {
    const id = nextId()
    await control.spawn(id, ['cat'])
    expect(await control.request(new FrameWriter(FrameType.stdin, id), id)).toStartWith('errno 9 ')
    expect(await control.request(new FrameWriter(FrameType.closeStdin, id), id)).toStartWith('errno 9 ')
    expect(await control.exit(id)).toMatchObject({ code: 0 })
  })

  test('a full pipe holds the answer back, and another request does not wait for it', async () => {
    const id = nextId()
    await control.spawn(id, ['sleep', '60'], { flags: flag.stdin })
    const chunk = new FrameWriter(FrameType.stdin, id).raw(new Uint8Array(65_536)).finish()
    expect(await control.send(chunk).answer(id)).toBe('OK')
    control.send(chunk).send(new FrameWriter(FrameType.ping, 77))
    await control.next((frame) => frame.type === FrameType.pong && frame.id === 77)
    control.send(signal(id, sigkill, 0))
    expect(await control.answer(id)).toBe('OK')
    expect(await control.answer(id)).toBe('OK')
    expect(await control.exit(id)).toMatchObject({ state: 'signaled', code: sigkill })
  })

  test('pending bytes are refused when the program ends without reading them', async () => {
    const id = nextId()
    const mayEnd = join(guest.dir, 'inside/may-end')
    await control.shell(id, `while [ ! -e ${mayEnd} ]; do sleep 0.02; done`, { flags: flag.stdin })
    const chunk = new FrameWriter(FrameType.stdin, id).raw(new Uint8Array(65_536)).finish()
    expect(await control.send(chunk).answer(id)).toBe('OK')
    const pending = control.send(chunk)
    await writeFile(mayEnd, '')
    expect(await pending.answer(id)).toStartWith('errno 32 ')
  })

  test('a megabyte goes through unchanged', async () => {
    const id = nextId()
    await control.shell(id, 'sha256sum', { flags: flag.stdin })
    const data = crypto.getRandomValues(new Uint8Array(65_536))
    const hash = new Bun.CryptoHasher('sha256')
    for (let i = 0; i < 16; i++) {
      hash.update(data)
      expect(await control.request(new FrameWriter(FrameType.stdin, id).raw(data), id)).toBe('OK')
    }
    control.send(new FrameWriter(FrameType.closeStdin, id))
    await control.exit(id)
    expect(await guest.text(id)).toStartWith(hash.digest('hex'))
  })
})

describe('a pseudo terminal', () => {
  test('is the controlling terminal, has the asked size and can be resized', async () => {
    const id = nextId()
    const script =
      'stty size; test -t 0 && test -t 2 && echo tty; read line; stty size; echo "$line" > /dev/tty'
    await control.shell(id, script, { flags: flag.pty, cols: 100, rows: 30 })
    await eventually(async () => (await guest.text(id)).includes('tty'))
    expect(await control.request(new FrameWriter(FrameType.resize, id).u16(120).u16(40), id)).toBe('OK')
    expect(await control.request(new FrameWriter(FrameType.stdin, id).raw(Buffer.from('typed\n')), id)).toBe(
      'OK',
    )
    expect(await control.exit(id)).toMatchObject({ code: 0 })
    const text = await guest.text(id)
    expect(text).toContain('30 100\r\ntty\r\n')
    expect(text).toContain('40 120\r\ntyped\r\n')
  })

  test('passes on control characters, and closing stdin types the end of file', async () => {
    const id = nextId()
    await control.spawn(id, ['cat'], { flags: flag.pty })
    await control.request(new FrameWriter(FrameType.stdin, id).raw(Buffer.from('x\n')), id)
    await eventually(async () => (await guest.text(id)) === 'x\r\nx\r\n')
    expect(await control.request(new FrameWriter(FrameType.closeStdin, id), id)).toBe('OK')
    expect(await control.exit(id)).toMatchObject({ state: 'exited', code: 0 })
    const interrupted = nextId()
    await control.shell(interrupted, 'echo ready; sleep 60', { flags: flag.pty })
    await eventually(async () => (await guest.text(interrupted)).includes('ready'))
    await control.request(new FrameWriter(FrameType.stdin, interrupted).raw(Uint8Array.of(3)), interrupted)
    expect(await control.exit(interrupted)).toMatchObject({ state: 'signaled', code: 2 })
  })

  test('a program that closes it before it exits does not die of SIGHUP', async () => {
    const id = nextId()
    const script = 'exec 0<&- 1>&- 2>&-; sleep 0.1; (echo again > /dev/tty); exit 5'
    await control.shell(id, script, { flags: flag.pty })
    expect(await control.exit(id)).toMatchObject({ state: 'exited', code: 5 })
    expect(await guest.text(id)).toBe('again\r\n')
  })

  test('loses nothing of a long output', async () => {
    const id = nextId()
    await control.shell(id, 'seq 1 20000', { flags: flag.pty })
    await control.exit(id)
    expect((await guest.text(id)).trimEnd().split('\r\n').at(-1)).toBe('20000')
    expect((await guest.text(id)).length).toBe(108_894 + 20_000)
  })

  test('a process without one cannot be resized', async () => {
    const id = nextId()
    await control.spawn(id, ['sleep', '60'])
    expect(await control.request(new FrameWriter(FrameType.resize, id).u16(1).u16(1), id)).toStartWith(
      'errno 25 ',
    )
    await control.request(signal(id, sigkill, 0), id)
  })
})

describe('signals', () => {
  test('reach the process, its group, or everything below it', async () => {
    const id = nextId()
    await control.shell(
      id,
      'setsid sh -c "sleep 60; :" & sleep 60 & echo $(pgrep -f "sleep 6" | wc -l); wait',
    )
    const pids = async () => (await guest.text(id)).length > 0
    await eventually(pids)
    const leader = (await control.list()).find((item) => item.id === id)?.pid ?? 0
    const children = async (pid: number): Promise<number[]> => {
      const text = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8').catch(() => '')
      const direct = text.split(' ').filter(Boolean).map(Number)
      return [...direct, ...(await Promise.all(direct.map(children))).flat()]
    }
    await eventually(async () => (await children(leader)).length === 3)
    const below = await children(leader)
    expect(await control.request(signal(id, sigkill, 2), id)).toBe('OK')
    expect(await control.exit(id)).toMatchObject({ state: 'signaled', code: sigkill })
    await eventually(async () => !(await Promise.all(below.map(alive))).some(Boolean))
  })

  test('the group gets it, a session of its own does not', async () => {
    const id = nextId()
    await control.shell(id, 'setsid sleep 60 & echo $!; sleep 61 & echo $!; wait')
    await eventually(async () => (await guest.text(id)).split('\n').length === 3)
    const [apart = 0, together = 0] = (await guest.text(id)).split('\n').map(Number)
    await eventually(
      async () => (await readFile(`/proc/${apart}/stat`, 'utf8')).split(' ')[5] === String(apart),
    )
    expect(await control.request(signal(id, sigterm, 1), id)).toBe('OK')
    expect(await control.exit(id)).toMatchObject({ state: 'signaled', code: sigterm })
    await eventually(async () => !(await alive(together)))
    expect(await alive(apart)).toBe(true)
    process.kill(apart, 'SIGKILL')
  })

  test('an ended or unknown process and bad numbers are errors', async () => {
    const id = nextId()
    await control.spawn(id, ['true'])
    await control.exit(id)
    expect(await control.request(signal(id, sigterm, 0), id)).toStartWith(esrch)
    expect(await control.request(signal(999_999, sigterm, 0), 999_999)).toStartWith(esrch)
    const live = nextId()
    await control.spawn(live, ['sleep', '60'])
    expect(await control.request(signal(live, 65, 0), live)).toStartWith('errno 22 ')
    expect(await control.request(signal(live, 9, 3), live)).toStartWith('errno 22 ')
    expect(await control.request(forget(live), live)).toStartWith('errno 16 ')
    expect(await control.request(signal(live, 9, 0), live)).toBe('OK')
  })
})

describe('records', () => {
  test('LIST shows what ended while nobody was connected, until it is forgotten', async () => {
    await using alone = await TestGuest.start()
    const first = await alone.control()
    await first.shell(5, 'sleep 0.1; echo done; exit 3')
    first.close()
    await first.closed
    await eventually(
      async () => (await readFile(join(alone.logDir, '5/0000000000000000'), 'utf8').catch(() => '')) !== '',
    )
    const second = await alone.control()
    await eventually(async () => (await second.list())[0]?.state === 'exited')
    expect(await second.list()).toMatchObject([{ id: 5, code: 3, endOffset: 16 + 5 }])
    expect(await second.request(forget(5), 5)).toBe('OK')
    expect(await second.request(forget(5), 5)).toBe('OK')
    expect(await second.list()).toEqual([])
    expect(await readdir(alone.logDir)).toEqual([])
  })

  test('every control connection gets EXIT, and the ninth is refused', async () => {
    await using many = await TestGuest.start()
    const connections = await Promise.all(Array.from({ length: 8 }, () => many.control()))
    await expect(many.control()).rejects.toThrow('HELLO answered by 3')
    await connections[0]?.spawn(1, ['true'])
    for (const connection of connections) {
      expect(await connection.exit(1)).toMatchObject({ code: 0 })
      connection.close()
    }
  })

  test('a thousand quick programs leave no descriptor and no zombie', async () => {
    const before = await guest.descriptors()
    const pids = new Set<number>()
    for (let i = 0; i < 1000; i++) {
      const id = nextId()
      const pid = await control.spawn(id, ['/bin/true'])
      expect(await control.exit(id)).toMatchObject({ pid, state: 'exited', code: 0 })
      expect(await control.request(forget(id), id)).toBe('OK')
      pids.add(Number(pid))
    }
    expect(pids.size).toBe(1000)
    await eventually(async () => (await guest.descriptors()).length <= before.length)
    expect(await readFile(`/proc/${guest.pid}/task/${guest.pid}/children`, 'utf8')).not.toMatch(
      new RegExp(`\\b(${[...pids].slice(0, 50).join('|')})\\b`),
    )
  })

  test('a hundred programs at once all end with their output', async () => {
    const ids = Array.from({ length: 100 }, nextId)
    await Promise.all(ids.map((id) => control.shell(id, `echo ${id}`)))
    for (const id of ids) {
      await control.exit(id)
      expect(await guest.text(id)).toBe(`${id}\n`)
      control.send(forget(id))
    }
  })

  test('orphans are reaped', async () => {
    const id = nextId()
    await control.shell(id, '(sh -c "exit 0" & sleep 0.05 & echo $! ) ; exit 0')
    await control.exit(id)
    const orphan = Number(await guest.text(id))
    await eventually(() =>
      stat(`/proc/${orphan}`).then(
        () => false,
        () => true,
      ),
    )
  })
})

describe('bad frames', () => {
  const bad: [string, Uint8Array][] = [
    ['too long', Uint8Array.of(1, 0, 16, 0, 19, 0, 0, 0, 1, 0, 0, 0)],
    ['of an unknown type', Uint8Array.of(0, 0, 0, 0, 200, 0, 0, 0, 1, 0, 0, 0)],
    ['of a type that only the guest sends', Uint8Array.of(0, 0, 0, 0, 17, 0, 0, 0, 1, 0, 0, 0)],
    ['with bytes left over', new FrameWriter(FrameType.list, 1).u8(0).finish()],
    ['too short', new FrameWriter(FrameType.signal, 1).u32(9).finish()],
    ['with reserved bytes', Uint8Array.of(0, 0, 0, 0, 19, 1, 0, 0, 1, 0, 0, 0)],
    [
      'with a list count that cannot be',
      new FrameWriter(FrameType.spawn, 1)
        .u32(0)
        .u32(0)
        .u32(0)
        .u32(0)
        .u64(0)
        .str('/')
        .u32(0xffffffff)
        .finish(),
    ],
    [
      'with NUL in a string',
      new FrameWriter(FrameType.spawn, 1)
        .u32(0)
        .u32(0)
        .u32(0)
        .u32(0)
        .u64(0)
        .str('a\0b')
        .strings([])
        .strings([])
        .finish(),
    ],
  ]
  for (const [name, bytes] of bad) {
    test(`a frame ${name} closes its connection and no other`, async () => {
      const connection = await guest.control()
      connection.send(bytes)
      await connection.closed
      expect((await control.list()).length).toBeGreaterThan(0)
    })
  }

  test('whatever is not HELLO is not answered, and another version is refused', async () => {
    const silent = await TestConnection.raw(guest.socketPath)
    silent.send(new FrameWriter(FrameType.list, 0).u32(1).u8(1).u32(0).u32(0))
    await silent.closed
    const old = await TestConnection.raw(guest.socketPath)
    old.send(new FrameWriter(FrameType.hello, 0).u32(2).u8(1).u32(0).u32(0))
    expect((await old.next()).type).toBe(FrameType.error)
    await old.closed
  })

  test('connections that say nothing do not keep others out', async () => {
    const silent = await Promise.allSettled(
      Array.from({ length: 40 }, () => TestConnection.raw(guest.socketPath)),
    )
    const connection = await guest.control()
    expect((await connection.list()).length).toBeGreaterThan(0)
    connection.close()
    for (const each of silent) if (each.status === 'fulfilled') each.value.close()
  })

  test('HELLO may come in pieces', async () => {
    const connection = await TestConnection.raw(guest.socketPath)
    for (const byte of new FrameWriter(FrameType.hello, 0).u32(1).u8(1).u32(0).u32(0).finish()) {
      connection.send(Uint8Array.of(byte))
      await Bun.sleep(1)
    }
    expect((await connection.next()).type).toBe(FrameType.helloOk)
    connection.close()
  })

  test('a connection that does not read is closed, not buffered for ever', async () => {
    const slow = await guest.control()
    slow.socket.pause()
    const before = await rssKb(guest.pid)
    const lists = Buffer.concat(
      Array.from({ length: 20_000 }, () => new FrameWriter(FrameType.list, 0).finish()),
    )
    slow.socket.write(lists)
    await control.list()
    expect(await rssKb(guest.pid)).toBeLessThan(before + 8192)
    slow.close()
  })
})

describe('the end', () => {
  test('SHUTDOWN gives SIGTERM, waits, then kills what is left and ends', async () => {
    const ending = await TestGuest.start()
    const connection = await ending.control()
    await connection.shell(1, 'trap "echo bye; exit 4" TERM; echo up; while :; do sleep 0.02; done')
    await connection.shell(2, 'trap "" TERM; echo up; while :; do sleep 0.02; done')
    await eventually(async () => (await ending.text(1)) === 'up\n' && (await ending.text(2)) === 'up\n')
    connection.send(new FrameWriter(FrameType.shutdown, 0).u32(3_000))
    expect(await connection.spawn(3, ['true'])).toStartWith('errno 108 ')
    expect(await connection.exit(1)).toMatchObject({ state: 'exited', code: 4 })
    expect(await connection.exit(2)).toMatchObject({ state: 'signaled', code: sigkill })
    await connection.closed
    expect(await ending.exited).toBe(0)
    // A shell may say on stderr that what it waited for was ended, too.
    expect(await ending.text(1, 1)).toBe('up\nbye\n')
    await ending[Symbol.asyncDispose]()
  })

  test('SIGTERM means SHUTDOWN', async () => {
    const ending = await TestGuest.start()
    const connection = await ending.control()
    await connection.spawn(1, ['sleep', '60'])
    process.kill(ending.pid, 'SIGTERM')
    expect(await connection.exit(1)).toMatchObject({ state: 'signaled', code: sigterm })
    expect(await ending.exited).toBe(0)
    await ending[Symbol.asyncDispose]()
  })
})

test('the guest is small when idle, holds few descriptors and cannot be traced', async () => {
  await using idle = await TestGuest.start()
  const connection = await idle.control()
  expect(await connection.list()).toEqual([])
  if (!process.env.HUTCH_TEST_HELPER) expect(await rssKb(idle.pid)).toBeLessThan(1024)
  expect((await idle.descriptors()).length).toBeLessThanOrEqual(10)
  const status = await stat(`/proc/${idle.pid}/fd`)
  expect(status.uid).toBe(0)
  connection.close()
})

test('PROCESS of a running program has no end', async () => {
  const id = nextId()
  const pid = await control.spawn(id, ['sleep', '60'])
  control.send(new FrameWriter(FrameType.list, 0))
  const frame = await control.next(
    (frame) => frame.type === FrameType.item && readProcess(frame.payload).id === id,
  )
  expect(new PayloadReader(frame.payload.subarray(8)).u8()).toBe(running)
  expect(readProcess(frame.payload)).toMatchObject({ pid, code: 0, endedMs: 0, endOffset: 0 })
  await control.request(signal(id, sigkill, 0), id)
})

async function rssKb(pid: number): Promise<number> {
  return Number(/VmRSS:\s+(\d+)/.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1])
}
