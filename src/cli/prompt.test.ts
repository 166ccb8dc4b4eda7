import { afterAll, expect, test } from 'bun:test'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const root = mkdtempSync(join(tmpdir(), 'hutch-prompt-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))

/** A command on a terminal, and somebody who reads before typing. */
class Typed {
  shown = ''
  readonly child: Bun.Subprocess
  #woken = Promise.withResolvers<void>()

  constructor(args: string[]) {
    const own = Object.fromEntries(
      Object.entries(process.env).filter(([name]) => !/^(BL_|HUTCH_|NO_COLOR)/.test(name)),
    )
    this.child = Bun.spawn([process.execPath, join(import.meta.dir, '..', 'main.ts'), ...args], {
      cwd: root,
      env: { ...own, NO_COLOR: '1', TERM: 'xterm', XDG_CONFIG_HOME: join(root, 'config') },
      terminal: {
        cols: 120,
        rows: 40,
        data: (_terminal, bytes) => {
          this.shown += new TextDecoder().decode(bytes)
          this.#woken.resolve()
          this.#woken = Promise.withResolvers()
        },
      },
    })
  }

  /** Types once `question` is asked, and has been since the last time. */
  async answer(question: string, text: string): Promise<void> {
    while (!this.shown.includes(`${question}: `)) {
      const ended = await Promise.race([this.#woken.promise, this.child.exited])
      if (ended !== undefined) throw new Error(`it ended without asking ${question}:\n${this.shown}`)
    }
    this.shown = ''
    this.child.terminal?.write(`${text}\r`)
  }
}

test('what the command line does not say is asked for, and what is no answer is asked for again', async () => {
  const typed = new Typed(['new'])
  await typed.answer('What to make (agent)', '7')
  await typed.answer('What to make (agent)', '2')
  await typed.answer('In which language (typescript)', 'Python')
  await typed.answer('Directory (my-mcp)', '')
  expect(await typed.child.exited).toBe(0)
  expect(readFileSync(join(root, 'my-mcp', 'blaxel.toml'), 'utf8')).toContain('name = "my-mcp"')
})

test('Ctrl-C in a question ends the command, and nothing was done', async () => {
  const typed = new Typed(['new', 'agent', 'given-up'])
  await typed.answer('In which language (typescript)', '\x03')
  expect(await typed.child.exited).toBe(130)
  expect(existsSync(join(root, 'given-up'))).toBe(false)
})

test('a key is asked for without showing it', async () => {
  const platform = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    fetch: ({ headers }) =>
      headers.get('x-blaxel-authorization') === 'Bearer bl_typed-key'
        ? Response.json([{ name: 'lab' }])
        : Response.json({ error: 'who are you?' }, { status: 401 }),
  })
  const typed = new Typed(['login', '--url', `http://127.0.0.1:${platform.port}`])
  await typed.answer('How to log in (browser)', 'key')
  await typed.answer('API key', 'bl_typed-key')
  expect(await typed.child.exited).toBe(0)
  expect(typed.shown).toContain('workspace lab')
  expect(typed.shown).not.toContain('bl_typed-key')
  await platform.stop(true)
})
