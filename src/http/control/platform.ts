import { z } from 'zod'
import { type Route, route } from '../route.ts'

export interface PlatformRouteOptions {
  /** --region, or null. */
  region: string | null
  /** Why the platform cannot serve now; null when it can. */
  notReady: () => Promise<string | null> | string | null
}

const locationAnswer = z.object({
  location: z.string(),
  region: z.string(),
  country: z.string(),
  continent: z.string(),
  status: z.string(),
  flavors: z.array(z.object({ name: z.string(), type: z.string() })),
})
const configurationAnswer = z.object({
  continents: z.array(z.object({})),
  countries: z.array(z.object({})),
  privateLocations: z.array(z.object({})),
  regions: z.array(
    z.object({
      name: z.string(),
      location: z.string(),
      drivesAvailable: z.boolean(),
      egressAvailable: z.boolean(),
    }),
  ),
})
const regionWithoutName = 'local'

/** Health, and the little about regions that clients read before they create something. */
export function platformRoutes({ region, notReady }: PlatformRouteOptions): Route[] {
  const name = region ?? regionWithoutName
  const probe = { access: 'public', errors: 'control', tag: 'platform' } as const
  const shared = { errors: 'control', access: 'read' } as const
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
    route({
      ...shared,
      method: 'GET',
      path: '/v0/locations',
      tag: 'locations',
      summary: 'List the regions that resources can run in',
      answer: z.array(locationAnswer),
      handle: () => [
        {
          location: name,
          region: name,
          country: '',
          continent: '',
          status: 'healthy',
          flavors: [{ name: 'cpu', type: 'cpu' }],
        },
      ],
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/configuration',
      tag: 'configurations',
      summary: 'Get the regions of the platform',
      answer: configurationAnswer,
      handle: () => ({
        continents: [],
        countries: [],
        privateLocations: [],
        regions: [{ name, location: name, drivesAvailable: false, egressAvailable: false }],
      }),
    }),
  ]
}
