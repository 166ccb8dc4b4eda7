import { mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** Makes dist/templates.packed: by template, what `hutch new` writes. */

const root = join(import.meta.dir, '..')
const source = join(root, 'templates')
const packedPath = join(root, 'dist', 'templates.packed')

/** Stored without the dot that would make our own tools obey them. */
const dotted = new Set(['gitignore', 'env.example'])

export function buildTemplates(): void {
  const packed: Record<string, Record<string, { text: string; mode: number }>> = {}
  for (const template of readdirSync(source).sort()) {
    const files: Record<string, { text: string; mode: number }> = {}
    for (const path of filesIn(join(source, template))) {
      const name = dotted.has(path) ? `.${path}` : path
      files[name] = {
        text: readFileSync(join(source, template, path), 'utf8'),
        mode: path.endsWith('.sh') ? 0o755 : 0o644,
      }
    }
    packed[template] = files
  }
  mkdirSync(join(root, 'dist'), { recursive: true })
  const made = `${packedPath}.${process.pid}`
  writeFileSync(made, JSON.stringify(packed))
  renameSync(made, packedPath)
}

/** What somebody who tried a template left in it is not part of it. */
const leftOver = new Set(['node_modules', 'dist', '.venv', '__pycache__', 'package-lock.json'])

function filesIn(directory: string, below = ''): string[] {
  return readdirSync(join(directory, below))
    .sort()
    .flatMap((name) => {
      if (leftOver.has(name)) return []
      const path = join(below, name)
      return statSync(join(directory, path)).isDirectory() ? filesIn(directory, path) : [path]
    })
}

if (import.meta.main) {
  buildTemplates()
  console.log(packedPath)
}
