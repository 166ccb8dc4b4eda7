import { networkInterfaces } from 'node:os'
import { z } from 'zod'
import { isPublicAddress } from '../../lib/addresses.ts'
import { type Route, route } from '../route.ts'

const location = z.lazy(() =>
  z.object({
    location: z.string(),
    region: z.string(),
    country: z.string(),
    continent: z.string(),
    status: z.string(),
    flavors: z.array(z.object({ name: z.string(), type: z.string() })),
  }),
)
const named = z.lazy(() => z.object({ name: z.string(), displayName: z.string() }))
const configuration = z.lazy(() =>
  z.object({
    continents: z.array(named),
    countries: z.array(named),
    privateLocations: z.array(z.object({})),
    regions: z.array(
      z.object({
        name: z.string(),
        location: z.string(),
        country: z.string(),
        continent: z.string(),
        infoGeneration: z.string(),
        mk31Available: z.boolean(),
        drivesAvailable: z.boolean(),
        egressAvailable: z.boolean(),
        proxyAvailable: z.boolean(),
      }),
    ),
  }),
)
const publicIps = z.lazy(() =>
  z.record(
    z.string(),
    z.object({
      description: z.string(),
      ipv4Cidrs: z.array(z.string()),
      ipv6Cidrs: z.array(z.string()),
    }),
  ),
)

interface RegionFacts {
  name: string
  location: string
  country: string
  continent: string
}

/** Names that clients and manifests of the cloud use: a node takes every one of them, and runs what names it. */
const cloudRegions: RegionFacts[] = [
  { name: 'us-pdx-1', location: 'Oregon', country: 'US', continent: 'NA' },
  { name: 'us-was-1', location: 'North Virginia', country: 'US', continent: 'NA' },
  { name: 'eu-lon-1', location: 'London', country: 'GB', continent: 'EU' },
  { name: 'eu-fra-1', location: 'Frankfurt', country: 'DE', continent: 'EU' },
]
const countries = [
  { name: 'US', displayName: 'United States' },
  { name: 'GB', displayName: 'United Kingdom' },
  { name: 'DE', displayName: 'Germany' },
]
const continents = [
  { name: 'NA', displayName: 'North America' },
  { name: 'EU', displayName: 'Europe' },
]
const regionWithoutName = 'local'

/** What clients read of regions before they create something. This node is the one that there is, whatever it is called. */
export function regionRoutes(options: { region: string | null }): Route[] {
  const own = options.region ?? regionWithoutName
  const regions: RegionFacts[] = [
    cloudRegions.find(({ name }) => name === own) ?? {
      name: own,
      location: own,
      country: '',
      continent: '',
    },
    ...cloudRegions.filter(({ name }) => name !== own),
  ]
  const shared = { errors: 'control', access: 'read' } as const
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v0/locations',
      tag: 'locations',
      summary: 'List the regions that resources can name: all of them are this node, which comes first',
      answer: z.array(location),
      handle: () =>
        regions.map(({ name, ...place }) => ({
          ...place,
          region: name,
          status: 'healthy',
          flavors: [{ name: 'cpu', type: 'cpu' }],
        })),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/configuration',
      tag: 'configurations',
      summary: 'Get the regions of the platform, its countries and continents',
      answer: configuration,
      handle: () => ({
        continents,
        countries,
        privateLocations: [],
        regions: regions.map((region) => ({
          ...region,
          infoGeneration: 'mk3',
          mk31Available: true,
          drivesAvailable: false,
          egressAvailable: false,
          proxyAvailable: false,
        })),
      }),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/publicIps',
      tag: 'publicips',
      summary: 'List the public addresses of this host, which requests of deployments come from',
      query: z.object({ region: z.string().max(100).optional() }),
      answer: publicIps,
      handle: ({ query }) => {
        const wanted = query.region || own
        if (!regions.some(({ name }) => name === wanted)) return {}
        return { [wanted]: { description: 'This host', ...publicCidrs() } }
      },
    }),
  ]
}

function publicCidrs(): { ipv4Cidrs: string[]; ipv6Cidrs: string[] } {
  const addresses = Object.values(networkInterfaces())
    .flatMap((entries) => entries ?? [])
    .filter(({ internal, address }) => !internal && isPublicAddress(address))
  const of = (family: string, bits: number) =>
    addresses.filter((entry) => entry.family === family).map(({ address }) => `${address}/${bits}`)
  return { ipv4Cidrs: of('IPv4', 32), ipv6Cidrs: of('IPv6', 128) }
}
