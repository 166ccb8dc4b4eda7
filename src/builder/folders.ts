/** Which folder of an archive is the project, and how a folder is looked at as if it were all there is. */
import { detectProject } from '../lib/project.ts'
import type { ProjectSettings } from '../lib/project-settings.ts'
import type { Survey } from './tree.ts'

const settingsName = 'blaxel.toml'

/** The files of one folder, by their path below it. */
export interface FolderView {
  files: ReadonlyMap<string, number>
  noticed: ReadonlyMap<string, Uint8Array>
  has(path: string): boolean
  read(path: string): string | null
}

export function viewOf({ files, noticed }: Survey, folder: string): FolderView {
  const below = <Value>(all: ReadonlyMap<string, Value>): ReadonlyMap<string, Value> => {
    if (folder === '') return all
    const prefix = `${folder}/`
    return new Map(
      [...all]
        .filter(([path]) => path.startsWith(prefix))
        .map(([path, value]) => [path.slice(prefix.length), value]),
    )
  }
  const own = { files: below(files), noticed: below(noticed) }
  return {
    ...own,
    has: (path) => own.files.has(path),
    read: (path) => {
      const content = own.noticed.get(path)
      return content === undefined ? null : Buffer.from(content).toString('utf8')
    },
  }
}

/**
 * Clients that deploy a folder of a repository send all of the repository, with the folder's blaxel.toml once more at the
 * root: the one folder that has the same file is meant, where the root has none of its own or is no project to start.
 */
export function folderMeant(found: Survey, settings: ProjectSettings, root: FolderView): string {
  const own = found.noticed.get(settingsName)
  if (own === undefined) return ''
  const same = [...found.noticed].filter(
    ([path, content]) => path.endsWith(`/${settingsName}`) && Buffer.compare(content, own) === 0,
  )
  if (same.length !== 1) return ''
  const folder = same[0]![0].slice(0, -`/${settingsName}`.length)
  if (detectProject(viewOf(found, folder), settings.entrypoint) === null) return ''
  const startsItself = detectProject(root) !== null && detectProject(root)?.prod !== null
  return found.repeated.has(settingsName) || isWorkspace(root) || !startsItself ? folder : ''
}

/** Whether its packages are installed together. */
export function isWorkspace(root: FolderView): boolean {
  if (root.has('pnpm-workspace.yaml')) return true
  try {
    const manifest: unknown = JSON.parse(root.read('package.json') ?? '{}')
    return typeof manifest === 'object' && manifest !== null && 'workspaces' in manifest
  } catch {
    return false
  }
}
