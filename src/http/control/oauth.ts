import { z } from 'zod'
import type { Access, TokenRequest } from '../../access/index.ts'
import { PlatformError } from '../../errors.ts'
import { parseJson, readText } from '../body.ts'
import { type Route, route } from '../route.ts'

const tokenBodyBytesMax = 16 * 1024
/** Of a login that somebody approves in a browser (RFC 8628). */
const deviceGrantType = 'urn:ietf:params:oauth:grant-type:device_code'
const noStore = { 'cache-control': 'no-store' }

const tokenInput = z.lazy(() =>
  z.object({
    grant_type: z.enum(['client_credentials', 'refresh_token', deviceGrantType]),
    client_id: z.string().optional().meta({ description: 'Unless it comes in a Basic Authorization header' }),
    client_secret: z.string().optional(),
    refresh_token: z.string().optional(),
    device_code: z.string().optional(),
  }),
)
const tokenAnswer = z.lazy(() =>
  z.object({
    access_token: z.string().meta({ description: 'A JWT with iat and exp' }),
    refresh_token: z.string(),
    token_type: z.literal('Bearer'),
    expires_in: z.int().meta({ description: 'Seconds' }),
  }),
)
const discoveryAnswer = z.lazy(() =>
  z.object({
    issuer: z.string(),
    token_endpoint: z.string(),
    device_authorization_endpoint: z.string(),
    jwks_uri: z.string(),
    grant_types_supported: z.array(z.string()),
    response_types_supported: z.array(z.string()),
    subject_types_supported: z.array(z.string()),
    id_token_signing_alg_values_supported: z.array(z.string()),
    token_endpoint_auth_methods_supported: z.array(z.string()),
  }),
)
const keysAnswer = z.lazy(() =>
  z.object({ keys: z.array(z.looseObject({ kty: z.string(), kid: z.string() })) }),
)

/** The token endpoint, discovery and public keys; each with and without /v0, since clients resolve both. */
export function oauthRoutes(access: Access): Route[] {
  return ['', '/v0'].flatMap((prefix) => [
    route({
      method: 'POST',
      path: `${prefix}/oauth/token`,
      access: 'public',
      errors: 'oauth',
      tag: 'oauth',
      summary: 'Exchange client credentials, an approved login or a refresh token for an access token',
      readsBody: { 'application/json': tokenInput, 'application/x-www-form-urlencoded': tokenInput },
      answer: tokenAnswer,
      async handle({ request, origin }) {
        const grant = await access.oauth.grant(await readTokenRequest(request, origin))
        return Response.json(grant, { headers: noStore })
      },
    }),
    route({
      method: 'GET',
      path: `${prefix}/.well-known/openid-configuration`,
      access: 'public',
      errors: 'control',
      tag: 'oauth',
      summary: 'Discover the token endpoint',
      answer: discoveryAnswer,
      handle: ({ origin }) => ({
        issuer: origin,
        token_endpoint: `${origin}/v0/oauth/token`,
        device_authorization_endpoint: `${origin}/v0/login/device`,
        jwks_uri: `${origin}/v0/.well-known/jwks.json`,
        grant_types_supported: ['client_credentials', 'refresh_token', deviceGrantType],
        response_types_supported: ['token'],
        subject_types_supported: ['public'],
        id_token_signing_alg_values_supported: ['EdDSA'],
        token_endpoint_auth_methods_supported: ['client_secret_basic', 'client_secret_post'],
      }),
    }),
    route({
      method: 'GET',
      path: `${prefix}/.well-known/jwks.json`,
      access: 'public',
      errors: 'control',
      tag: 'oauth',
      summary: 'Get the public keys that access tokens are signed with',
      answer: keysAnswer,
      handle: () => access.jwks(),
    }),
  ])
}

/** Parameters from a form or JSON body; client credentials from Basic before those of the body. */
async function readTokenRequest(request: Request, issuer: string): Promise<TokenRequest> {
  const parameters = await readParameters(request)
  const basic = readBasic(request.headers.get('authorization'))
  return {
    grantType: parameters.grant_type,
    clientId: basic?.clientId ?? parameters.client_id,
    clientSecret: basic?.clientSecret ?? parameters.client_secret,
    refreshToken: parameters.refresh_token,
    deviceCode: parameters.device_code,
    issuer,
  }
}

async function readParameters(request: Request): Promise<Record<string, string | undefined>> {
  const text = await readText(request, tokenBodyBytesMax)
  const type = request.headers.get('content-type') ?? ''
  if (/^application\/x-www-form-urlencoded/i.test(type)) return Object.fromEntries(new URLSearchParams(text))
  if (text.trim() === '') return {}
  const body = parseJson(text)
  if (typeof body !== 'object' || body === null || Array.isArray(body)) {
    throw new PlatformError('bad_request', 'The body must be a JSON object or a form')
  }
  for (const [name, value] of Object.entries(body)) {
    if (name in parameterNames && typeof value !== 'string') {
      throw new PlatformError('bad_request', `${name}: must be a string`)
    }
  }
  return body as Record<string, string | undefined>
}

const parameterNames = { grant_type: 1, client_id: 1, client_secret: 1, refresh_token: 1, device_code: 1 }

function readBasic(header: string | null): { clientId: string; clientSecret: string } | null {
  if (header === null) return null
  const match = /^basic +([A-Za-z0-9+/=_-]+) *$/i.exec(header)
  const text = match === null ? '' : Buffer.from(match[1]!, 'base64').toString('utf8')
  const colon = text.indexOf(':')
  if (colon === -1) {
    throw new PlatformError(
      'bad_request',
      'Authorization: must be "Basic" and base64 of client_id:client_secret',
    )
  }
  return { clientId: text.slice(0, colon), clientSecret: text.slice(colon + 1) }
}
