import { TrieRouter } from 'hono/router/trie-router'
import { PlatformError } from '../errors.ts'
import { BoundedMap } from '../lib/bounded-map.ts'
import { isReservedWorkspaceName } from '../workspaces/index.ts'
import type { Method, Route } from './route.ts'

/** A route and where its parameters stand in the path. */
export interface CompiledRoute {
  route: Route
  params: { name: string; segment: number; rest: boolean }[]
  /** The path parameter that names the workspace, if the path does. */
  workspaceParam: string | null
}

const methods: Exclude<Method, 'ALL'>[] = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'HEAD', 'OPTIONS']
const rememberedPathsMax = 1024
const rememberedPathCharsMax = 256
const workspaceParams = ['workspace', 'workspaceName']

/** What was found out of a path. */
interface KnownPath {
  byMethod: Map<string, CompiledRoute>
  params: Map<CompiledRoute, Params>
}

type Params = Readonly<Record<string, string>>

/** Every route of the platform, matched by raw path; the most specific path wins, whatever the order. */
export class RouteTable {
  readonly routes: readonly Route[]
  /** Clients ask for the same paths again and again, and the search costs more than all else of a small request. */
  readonly #known = new BoundedMap<string, KnownPath>(rememberedPathsMax)
  // Hono's expressions cannot tell these routes apart, and trying them takes milliseconds of the start.
  readonly #router = new TrieRouter<CompiledRoute>()

  /** Throws for two routes of the same method and path. */
  constructor(routes: Route[]) {
    this.routes = routes
      .map((route) => ({ route, ranks: route.path.split('/').map(rank) }))
      .sort(bySpecificity)
      .map(({ route }) => route)
    const seen = new Set<string>()
    for (const route of this.routes) {
      const pattern = patternOf(route.path)
      const shape = `${route.method} ${pattern.replace(/:[^/]+/g, ':')}`
      if (seen.has(shape)) throw new Error(`two routes for ${route.method} ${route.path}`)
      seen.add(shape)
      this.#router.add(route.method, pattern, compile(route))
    }
  }

  /** Null when no route has this path. @throws method_not_allowed when only other methods do */
  match(method: string, path: string): CompiledRoute | null {
    const found = this.#find(method, path) ?? (method === 'HEAD' ? this.#find('GET', path) : null)
    if (found !== null) return found
    const allowed = this.allowed(path)
    if (allowed.length === 0) return null
    throw new PlatformError('method_not_allowed', `${method} is not possible here: ${allowed.join(', ')}`, {
      details: { allow: allowed.join(', ') },
    })
  }

  /** Values of the path's parameters: decoded, except for the rest of a path. Not to be changed. @throws bad_request */
  params(compiled: CompiledRoute, path: string): Params {
    if (path.length > rememberedPathCharsMax) return readParams(compiled, path)
    const known = this.#known.get(path)?.params.get(compiled)
    if (known !== undefined) return known
    const params = Object.freeze(readParams(compiled, path))
    this.#knownOf(path).params.set(compiled, params)
    return params
  }

  /** The methods that have a route of this path. */
  allowed(path: string): string[] {
    return methods.filter((method) => this.#find(method, path) !== null)
  }

  /** Any route of this path, to know in which shape its errors are. */
  any(path: string): CompiledRoute | null {
    for (const method of methods) {
      const found = this.#find(method, path)
      if (found !== null) return found
    }
    return null
  }

  #find(method: string, path: string): CompiledRoute | null {
    if (path.length > rememberedPathCharsMax) return this.#search(method, path)
    const known = this.#known.get(path)?.byMethod.get(method)
    if (known !== undefined) return known
    const found = this.#search(method, path)
    if (found === null) return null
    const { byMethod } = this.#knownOf(path)
    // Some routes take whatever a client calls its method.
    if (byMethod.size < methods.length) byMethod.set(method, found)
    return found
  }

  #knownOf(path: string): KnownPath {
    let known = this.#known.get(path)
    if (known === undefined) {
      known = { byMethod: new Map(), params: new Map() }
      this.#known.set(path, known)
    }
    return known
  }

  #search(method: string, path: string): CompiledRoute | null {
    const [handlers] = this.#router.match(method, path)
    // `/v0/sandboxes/x` is no path into a workspace called v0.
    const own = isReservedWorkspaceName(path.split('/', 2)[1] ?? '')
    const found = handlers.find(([{ params }]) => !(own && params[0]?.segment === 1))
    if (found !== undefined) return found[0]
    return path.length > 1 && path.endsWith('/') ? this.#find(method, path.slice(0, -1)) : null
  }
}

/** @throws bad_request */
function readParams(compiled: CompiledRoute, path: string): Record<string, string> {
  const params: Record<string, string> = {}
  if (compiled.params.length === 0) return params
  const segments = path.split('/')
  for (const { name, segment, rest } of compiled.params) {
    const raw = segments[segment] ?? ''
    if (rest) params[name] = segments.slice(segment).join('/')
    else params[name] = raw.includes('%') ? decode(raw, name) : raw
  }
  return params
}

function decode(raw: string, name: string): string {
  try {
    return decodeURIComponent(raw)
  } catch (cause) {
    throw new PlatformError('bad_request', `${name}: "${raw.slice(0, 60)}" is not valid percent-encoding`, {
      cause,
    })
  }
}

function compile(route: Route): CompiledRoute {
  const params = route.path.split('/').flatMap((text, segment) => {
    const match = /^\{([^}*]+)(\*?)\}$/.exec(text)
    return match === null ? [] : [{ name: match[1]!, segment, rest: match[2] === '*' }]
  })
  const named = params.find(({ name }) => workspaceParams.includes(name))
  return { route, params, workspaceParam: named?.name ?? null }
}

function patternOf(path: string): string {
  return path
    .split('/')
    .map((segment, at) => (segment.endsWith('*}') ? '*' : segment.startsWith('{') ? `:p${at}` : segment))
    .join('/')
}

/** Segment by segment a literal goes before a parameter, a parameter before the rest; then ALL after its methods. */
function bySpecificity(
  left: { route: Route; ranks: number[] },
  right: { route: Route; ranks: number[] },
): number {
  const [a, b] = [left.ranks, right.ranks]
  for (let at = 0; at < Math.max(a.length, b.length); at++) {
    const difference = (a[at] ?? -1) - (b[at] ?? -1)
    if (difference !== 0) return difference
  }
  return Number(left.route.method === 'ALL') - Number(right.route.method === 'ALL')
}

function rank(segment: string): number {
  if (segment.endsWith('*}')) return 2
  return segment.startsWith('{') ? 1 : 0
}
