import { Glob } from 'bun'

/** The library's own doors: whoever uses them is not here. */
const doors = new Set(['src/index.ts', 'src/testing.ts'])

/** Values that a file exports and no other file so much as names, each as `file: name`. */
export function unusedExports(files: ReadonlyMap<string, string>): string[] {
  const namedIn = new Map<string, number>()
  for (const text of files.values()) {
    for (const word of new Set(text.match(/\w+/g))) namedIn.set(word, (namedIn.get(word) ?? 0) + 1)
  }
  const declaration = /^export (?:async )?(?:abstract )?(?:function\*?|class|const|let|enum) (\w+)/gm
  return [...files].flatMap(([file, text]) => {
    if (doors.has(file)) return []
    const names = [...text.matchAll(declaration)].map((match) => match[1]!)
    return names.filter((name) => namedIn.get(name) === 1).map((name) => `${file}: ${name}`)
  })
}

/** The sources by their path in the project. */
export async function readSources(root: string): Promise<Map<string, string>> {
  const files = new Map<string, string>()
  for await (const file of new Glob('{src,scripts,plugins,fixtures}/**/*.{ts,mjs}').scan(root)) {
    if (!file.includes('node_modules/')) files.set(file, await Bun.file(`${root}/${file}`).text())
  }
  return files
}
