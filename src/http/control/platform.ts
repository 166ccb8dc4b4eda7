import { type Route, route } from '../route.ts'

export interface PlatformRouteOptions {
  /** Why the platform cannot serve now; null when it can. */
  notReady: () => Promise<string | null> | string | null
}

/** Health. */
export function platformRoutes({ notReady }: PlatformRouteOptions): Route[] {
  const probe = { access: 'public', errors: 'control', tag: 'platform' } as const
  return [
    route({
      ...probe,
      method: 'GET',
      path: '/healthz',
      summary: 'Say whether the process answers',
      handle: () => ({ status: 'ok' }),
    }),
    route({
      ...probe,
      method: 'GET',
      path: '/readyz',
      summary: 'Say whether the platform can do its work',
      async handle() {
        const reason = await notReady()
        if (reason === null) return { status: 'ready' }
        return Response.json({ status: 'not ready', reason }, { status: 503 })
      },
    }),
  ]
}
