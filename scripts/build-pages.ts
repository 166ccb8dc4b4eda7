import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** Makes dist/terminal.html: one document with its styles, its script and the terminal emulator inside. */

const root = join(import.meta.dir, '..')
const source = join(root, 'src', 'http', 'run', 'sandbox', 'terminal-page')
const terminalPagePath = join(root, 'dist', 'terminal.html')

export async function buildPages(): Promise<void> {
  const bundle = await Bun.build({
    entrypoints: [join(source, 'page.ts')],
    target: 'browser',
    format: 'iife',
    minify: true,
  })
  const [output] = bundle.outputs
  if (!bundle.success || output === undefined)
    throw new AggregateError(bundle.logs, 'the terminal page was not built')
  const read = (path: string) => readFileSync(path, 'utf8')
  const styles = read(join(root, 'node_modules/@xterm/xterm/css/xterm.css')) + read(join(source, 'page.css'))
  const script = (await output.text()).replaceAll('</script', '<\\/script')
  const page = read(join(source, 'page.html'))
    .replace('/*styles*/', () => withoutComments(styles))
    .replace('/*script*/', () => script)
  mkdirSync(join(root, 'dist'), { recursive: true })
  const made = `${terminalPagePath}.${process.pid}`
  writeFileSync(made, page)
  renameSync(made, terminalPagePath)
}

function withoutComments(styles: string): string {
  return styles
    .replace(/\/\*.*?\*\//gs, '')
    .replace(/\n\s+/g, '\n')
    .trim()
}

if (import.meta.main) {
  await buildPages()
  console.log(terminalPagePath)
}
