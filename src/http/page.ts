/** Documents of the platform itself, which may do what no page out of a sandbox may on the platform's origin. */
const ownPages = new WeakSet<Response>()

export interface PageOptions {
  status?: number
  headers?: Record<string, string>
  /** Its scripts open WebSockets to where it came from. */
  connects?: boolean
  /** It has a form, which goes to where it came from. */
  submits?: boolean
}

/**
 * Serves a document that brings everything along. It runs its own scripts and no others, loads nothing, and has an
 * origin of its own, so that it can do nothing in the name of whatever else is served here.
 */
export function ownPage(document: string, options: PageOptions = {}): Response {
  const page = new Response(document, {
    status: options.status ?? 200,
    headers: {
      ...options.headers,
      'content-type': 'text/html; charset=utf-8',
      'content-security-policy': policyOf(document, options),
      'referrer-policy': 'no-referrer',
      'x-content-type-options': 'nosniff',
    },
  })
  ownPages.add(page)
  return page
}

/** Text as it stands in a document, between tags and in attributes alike. */
export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`)
}

export function isOwnPage(response: Response): boolean {
  return ownPages.has(response)
}

function policyOf(document: string, { connects = false, submits = false }: PageOptions): string {
  const scripts = [...document.matchAll(/<script[^>]*>(.*?)<\/script>/gs)].map(
    ([, script = '']) => `'sha256-${new Bun.CryptoHasher('sha256').update(script).digest('base64')}'`,
  )
  return [
    "default-src 'none'",
    "style-src 'unsafe-inline'",
    'img-src data:',
    ...(scripts.length > 0 ? [`script-src ${scripts.join(' ')}`] : []),
    ...(connects ? ["connect-src 'self'"] : []),
    "base-uri 'none'",
    // What is typed into a form must not be typed into a page around it.
    ...(submits ? ["form-action 'self'", "frame-ancestors 'none'"] : ["form-action 'none'"]),
    // Of which a page without scripts needs what comes along: to load itself anew.
    `sandbox allow-scripts${submits ? ' allow-forms' : ''}`,
  ].join('; ')
}
