import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import bashKernel from './kernel.bash' with { type: 'text' }
import javascriptKernel from './kernel.mjs' with { type: 'text' }
import pythonKernel from './kernel.py' with { type: 'text' }
import server from './server.py' with { type: 'text' }

/** What the client's CodeInterpreter speaks with, in images of the host: its server and a kernel for each language. */
const directory = 'opt/hutch/interpreter'

/** Python and what it runs are the host's own; a language whose program is not there says so when it is asked for. */
export const interpreterProgram = { argv: ['python3', `/${directory}/server.py`], port: 8888 }

const files: [name: string, content: string][] = [
  ['server.py', server],
  ['kernel.py', pythonKernel],
  ['kernel.mjs', javascriptKernel],
  ['kernel.bash', bashKernel],
]

/** For stamps of what it is written into. */
export const interpreterText = files.map(([, content]) => content).join('\0')

export async function writeInterpreter(root: string): Promise<void> {
  await mkdir(join(root, directory), { recursive: true, mode: 0o755 })
  for (const [name, content] of files) await writeFile(join(root, directory, name), content, { mode: 0o644 })
}
