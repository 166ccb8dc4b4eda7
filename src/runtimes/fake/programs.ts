import { PlatformError } from '../../errors.ts'
import type { FakeFiles } from './files.ts'

/** What a program of the fake runtime can do. It ends with the exit code it answers. */
export interface FakeProgramContext {
  argv: string[]
  env: Record<string, string>
  workingDir: string
  files: FakeFiles
  stdout(text: string | Uint8Array): Promise<void>
  stderr(text: string): Promise<void>
  /** Until it is closed, or the process is signalled. */
  stdin(): AsyncIterable<Uint8Array>
  /** Rejects when the process is signalled. */
  sleep(ms: number): Promise<void>
  /** Serves HTTP on a port of the instance until the process ends. */
  serve(port: number, handler: (request: Request) => Response | Promise<Response>): void
  /** Aborted when the process is signalled. */
  signal: AbortSignal
}

export type FakeProgram = (context: FakeProgramContext) => Promise<number> | number

/** Programs that are there without being scripted: just enough of what their names promise. */
export const builtInPrograms: Record<string, FakeProgram> = {
  true: () => 0,
  false: () => 1,
  async echo({ argv, stdout }) {
    await stdout(`${argv.slice(1).join(' ')}\n`)
    return 0
  },
  async pwd({ workingDir, stdout }) {
    await stdout(`${workingDir}\n`)
    return 0
  },
  async env({ env, stdout }) {
    for (const [name, value] of Object.entries(env)) await stdout(`${name}=${value}\n`)
    return 0
  },
  async sleep({ argv, sleep }) {
    await sleep(Number(argv[1]) * 1000)
    return 0
  },
  async cat({ argv, files, stdout, stderr, stdin }) {
    if (argv.length === 1) {
      for await (const chunk of stdin()) await stdout(chunk)
      return 0
    }
    for (const path of argv.slice(1)) {
      try {
        const { body } = await files.read(path)
        await stdout(new Uint8Array(await new Response(body).arrayBuffer()))
      } catch (error) {
        await stderr(`cat: ${PlatformError.is(error) ? error.message : String(error)}\n`)
        return 1
      }
    }
    return 0
  },
  async head({ argv, stdout }) {
    // head -c COUNT /dev/zero
    const chunk = new Uint8Array(32 * 1024)
    for (let left = Number(argv[2]); left > 0; left -= chunk.length) {
      await stdout(chunk.subarray(0, Math.min(left, chunk.length)))
    }
    return 0
  },
  ln({ argv, files }) {
    // ln -s TARGET PATH
    files.link(argv[2] ?? '', argv[3] ?? '')
    return 0
  },
  async python3({ argv, serve, signal }) {
    // python3 -m http.server PORT
    serve(Number(argv[3]), () => new Response('served from inside'))
    await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
    return 0
  },
  sh({ argv }) {
    // sh -c 'exit CODE'
    const code = /^exit (\d+)$/.exec(argv[2] ?? '')?.[1]
    return code === undefined ? 127 : Number(code)
  },
}
