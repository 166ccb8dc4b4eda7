import { existsSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'

const { HUTCH_PYTHON_CLIENTS, XDG_CACHE_HOME } = process.env
const place =
  HUTCH_PYTHON_CLIENTS ?? join(XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'hutch', 'python-clients')

/** The Python that has the packages of other platforms; null where scripts/python-clients.sh did not install them. */
export const pythonClients = existsSync(join(place, 'installed')) ? join(place, 'bin', 'python') : null

/** For the names of tests that are skipped for want of them. */
export const whyNoPythonClients = `skipped, since the Python clients are not installed: scripts/python-clients.sh gets them where PyPI can be reached`
