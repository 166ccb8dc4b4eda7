import { z } from 'zod'
import { apiVersionDefault, pagedListsVersion } from './list.ts'
import { type Route, route } from './route.ts'

interface Operation {
  operationId: string
  summary: string
  tags: string[]
  security?: object[]
  parameters?: object[]
  requestBody?: object
  responses: Record<string, object>
}

const errorSchema = {
  type: 'object',
  required: ['error', 'code', 'message'],
  properties: {
    error: { type: 'string', description: 'What kind of failure, for programs' },
    code: { type: 'integer', description: 'The HTTP status' },
    message: { type: 'string', description: 'What was wrong, for people' },
  },
}

const creationErrorSchema = {
  type: 'object',
  required: ['error', 'code', 'message', 'status_code', 'timestamp'],
  properties: {
    error: { type: 'string', description: 'What kind of failure, for programs' },
    code: {
      anyOf: [{ type: 'string' }, { type: 'integer', enum: [409] }],
      description: 'What kind of failure, such as INVALID_IMAGE; 409 where the name is taken',
    },
    message: { type: 'string', description: 'What was wrong, for people' },
    status_code: { type: 'integer', description: 'The HTTP status' },
    timestamp: { type: 'string', format: 'date-time' },
    details: { type: 'object', description: 'Of INVALID_IMAGE: requested_image and supported_images' },
  },
}

const oauthErrorSchema = {
  type: 'object',
  required: ['error', 'error_description'],
  properties: {
    error: { type: 'string', description: 'A code of RFC 6749' },
    error_description: { type: 'string', description: 'What was wrong, for people' },
  },
}

const headerParameters = {
  workspace: {
    name: 'x-blaxel-workspace',
    in: 'header',
    required: false,
    description: 'The workspace to act in; not needed by a credential that has one only',
    schema: { type: 'string' },
  },
  version: {
    name: 'Blaxel-Version',
    in: 'header',
    required: false,
    description: `A date. From ${pagedListsVersion} on lists are pages, before it bare arrays`,
    schema: { type: 'string', format: 'date', default: apiVersionDefault },
  },
}

/** `GET /v0/openapi.json`: made once, from the schemas that validate. */
export function openapiRoutes(routes: () => Route[], version: string): Route[] {
  let document: string | null = null
  return [
    route({
      method: 'GET',
      path: '/v0/openapi.json',
      access: 'public',
      errors: 'control',
      summary: 'Get this document',
      tag: 'platform',
      handle() {
        document ??= JSON.stringify(openapiDocument(routes(), version))
        return new Response(document, { headers: { 'content-type': 'application/json' } })
      },
    }),
  ]
}

/** OpenAPI 3.1 of the control plane's routes. */
function openapiDocument(routes: Route[], version: string): object {
  const paths: Record<string, Record<string, Operation>> = {}
  for (const route of routes) {
    if (!route.path.startsWith('/v0/') || route.method === 'ALL') continue
    const path = route.path.slice('/v0'.length)
    paths[path] = { ...paths[path], [route.method.toLowerCase()]: operation(route, path) }
  }
  return {
    openapi: '3.1.0',
    info: { title: 'Hutch control plane', version },
    servers: [{ url: '/v0' }],
    security: [{ apiKey: [] }, { oauth: [] }],
    paths,
    components: {
      schemas: { Error: errorSchema, CreationError: creationErrorSchema, OauthError: oauthErrorSchema },
      parameters: headerParameters,
      securitySchemes: {
        apiKey: { type: 'http', scheme: 'bearer', description: 'An API key' },
        oauth: {
          type: 'oauth2',
          flows: { clientCredentials: { tokenUrl: '/v0/oauth/token', scopes: {} } },
        },
      },
    },
  }
}

function operation(route: Route, path: string): Operation {
  const isPublic = route.access === 'public' || route.access === 'capability'
  const headers = isPublic ? [] : headersOf(route)
  const parameters = [...pathParameters(path), ...queryParameters(route.query), ...headers]
  const body = bodyOf(route)
  return {
    operationId: operationId(route.method, path),
    summary: route.summary,
    tags: [route.tag],
    ...(isPublic && { security: [] }),
    ...(parameters.length > 0 && { parameters }),
    ...(body !== null && { requestBody: body }),
    responses: {
      [String(route.successStatus ?? 200)]: {
        description: 'Success',
        ...(route.answer !== undefined && {
          content: { 'application/json': { schema: schemaOf(route.answer, 'output') } },
        }),
      },
      ...(route.acceptedAnswer !== undefined && {
        '202': {
          description: 'Taken up, and not done yet',
          content: { 'application/json': { schema: schemaOf(route.acceptedAnswer, 'output') } },
        },
      }),
      default: {
        description: 'Failure',
        content: { 'application/json': { schema: { $ref: `#/components/schemas/${errorsOf(route)}` } } },
      },
    },
  }
}

function errorsOf(route: Route): string {
  if (route.errors === 'creation') return 'CreationError'
  return route.errors === 'oauth' ? 'OauthError' : 'Error'
}

function bodyOf(route: Route): object | null {
  if (route.body !== undefined) {
    return {
      required: !route.body.safeParse(undefined).success,
      content: { 'application/json': { schema: schemaOf(route.body, 'input') } },
    }
  }
  if (route.readsBody === undefined) return null
  const content = Object.entries(route.readsBody).map(
    ([type, schema]) => [type, { schema: schemaOf(schema, 'input') }] as const,
  )
  return { required: true, content: Object.fromEntries(content) }
}

/** What every route takes by header, as far as it means something to this one. */
function headersOf(route: Route): object[] {
  const choosesWorkspace = route.access !== 'account' && !route.path.includes('{workspaceName}')
  return [
    ...(choosesWorkspace ? [{ $ref: '#/components/parameters/workspace' }] : []),
    { $ref: '#/components/parameters/version' },
  ]
}

function pathParameters(path: string): object[] {
  return [...path.matchAll(/\{([^}*]+)\*?\}/g)].map((match) => ({
    name: match[1],
    in: 'path',
    required: true,
    schema: { type: 'string' },
  }))
}

function queryParameters(query: z.ZodType | undefined): object[] {
  if (query === undefined) return []
  const schema = schemaOf(query, 'input') as { properties?: Record<string, object>; required?: string[] }
  return Object.entries(schema.properties ?? {}).map(([name, property]) => ({
    name,
    in: 'query',
    required: schema.required?.includes(name) ?? false,
    schema: property,
  }))
}

function schemaOf(schema: z.ZodType, io: 'input' | 'output'): object {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: 'any' })
  return rest
}

/** `GET /sandboxes/{sandboxName}/previews` is `getSandboxesBySandboxNamePreviews`: unique, and stable. */
function operationId(method: string, path: string): string {
  const words = path
    .replace(/\{([^}*]+)\*?\}/g, (_, name: string) => `by_${name.charAt(0).toUpperCase()}${name.slice(1)}`)
    .split(/[^A-Za-z0-9]+/)
    .filter((word) => word !== '')
  return method.toLowerCase() + words.map((word) => word.charAt(0).toUpperCase() + word.slice(1)).join('')
}
