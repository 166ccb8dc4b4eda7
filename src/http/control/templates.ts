import { z } from 'zod'
import { PlatformError } from '../../errors.ts'
import { type Route, route } from '../route.ts'

const template = z.lazy(() =>
  z.object({
    name: z.string(),
    description: z.string(),
    topics: z.array(z.string()),
  }),
)
type Template = z.output<typeof template>

const languages = { ts: 'typescript', py: 'python' }
const kinds = {
  agent: 'An agent that answers requests and streams',
  mcp: 'An MCP server over streamable HTTP',
  sandbox: 'An image for sandboxes, with a server that begins with it',
  job: 'A job, whose program is run once for each task',
}
/** They are in the executable: `hutch new` writes them, and nothing is cloned from anywhere. */
const templates: Template[] = Object.entries(kinds).flatMap(([kind, description]) =>
  Object.entries(languages).map(([suffix, language]) => ({
    name: `${kind}-${suffix}`,
    description: `${description}, in ${language === 'python' ? 'Python' : 'TypeScript'} (hutch new)`,
    topics: [kind, language],
  })),
)

/** What there is to begin from, and the servers of others that could be deployed as they are: none. */
export function templateRoutes(): Route[] {
  const shared = { errors: 'control', access: 'read' } as const
  return [
    route({
      ...shared,
      method: 'GET',
      path: '/v0/templates',
      tag: 'templates',
      summary: 'List the projects that hutch new makes',
      answer: z.array(template),
      handle: () => Response.json(templates),
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/templates/{templateName}',
      tag: 'templates',
      summary: 'Get one of them',
      answer: template,
      handle({ params }) {
        const found = templates.find(({ name }) => name === params.templateName)
        if (found) return found
        throw new PlatformError(
          'not_found',
          `there is no template "${params.templateName.slice(0, 64)}"; there are ${templates.map(({ name }) => name).join(', ')}`,
        )
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: '/v0/mcp/hub',
      tag: 'mcphub',
      summary: 'List MCP servers that come with the platform: there are none, deploy your own',
      answer: z.lazy(() => z.array(z.object({ name: z.string() }))),
      handle: () => Response.json([]),
    }),
  ]
}
