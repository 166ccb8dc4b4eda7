import { PlatformError } from '../errors.ts'
import { ownPage } from './page.ts'
import { type Route, route } from './route.ts'
import { documentOf } from './run/gateway-pages.ts'

const document = documentOf({
  title: 'Hutch runs here',
  lines: [
    'This is the address of a platform for agents and their sandboxes. It is for programs; people use the command line:',
    `<code class="line">hutch sandbox create box</code>
<code class="line">hutch sandbox connect box</code>
<code class="line">hutch new agent hello</code>
<code class="line">cd hello &amp;&amp; hutch deploy</code>`,
    'Programs get their variables from <code>hutch env</code>, and what they can ask for from <code>/v0/openapi.json</code>.',
  ],
})

/** What a person sees who opens the platform's address in a browser; a program is told that there is nothing. */
export function frontPageRoutes(): Route[] {
  return [
    route({
      method: 'GET',
      path: '/',
      access: 'public',
      errors: 'gateway',
      summary: 'Say to a browser what this is',
      tag: 'platform',
      handle({ request }) {
        if ((request.headers.get('accept') ?? '').includes('text/html')) return ownPage(document)
        throw new PlatformError(
          'route_not_found',
          'GET / is not a route of this platform: see /v0/openapi.json',
        )
      },
    }),
  ]
}
