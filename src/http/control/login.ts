import { z } from 'zod'
import { type Access, deviceLoginIntervalMs, deviceLoginLifetimeMs } from '../../access/index.ts'
import { PlatformError } from '../../errors.ts'
import { readText } from '../body.ts'
import { escapeHtml, ownPage } from '../page.ts'
import { type Route, route } from '../route.ts'
import { documentOf } from '../run/gateway-pages.ts'

const formBytesMax = 16 * 1024
const noStore = { 'cache-control': 'no-store' }

const deviceInput = z.lazy(() => z.object({ client_id: z.string().optional(), scope: z.string().optional() }))
const deviceAnswer = z.lazy(() =>
  z.object({
    device_code: z.string().meta({ description: 'What the device asks the token endpoint with' }),
    user_code: z.string().meta({ description: 'What a person types, e.g. BCDF-GHJK' }),
    verification_uri: z.string(),
    verification_uri_complete: z.string().meta({ description: 'With the code in it' }),
    expires_in: z.int().meta({ description: 'Seconds' }),
    interval: z.int().meta({ description: 'Seconds between questions' }),
  }),
)

/** Logins of a command line without a key: it shows a code, which somebody with a key approves on a page. */
export function loginRoutes(access: Access): Route[] {
  const page = { access: 'public', errors: 'gateway', tag: 'login' } as const
  return [
    ...['', '/v0'].map((prefix) =>
      route({
        method: 'POST',
        path: `${prefix}/login/device`,
        access: 'public',
        errors: 'oauth',
        tag: 'oauth',
        summary: 'Begin a login that somebody approves in a browser',
        readsBody: { 'application/json': deviceInput, 'application/x-www-form-urlencoded': deviceInput },
        answer: deviceAnswer,
        async handle({ request, origin }) {
          await readText(request, formBytesMax)
          const { deviceCode, userCode } = access.devices.begin()
          const answer = {
            device_code: deviceCode,
            user_code: userCode,
            verification_uri: `${origin}/-/login`,
            verification_uri_complete: `${origin}/-/login?user_code=${userCode}`,
            expires_in: deviceLoginLifetimeMs / 1000,
            interval: deviceLoginIntervalMs / 1000,
          }
          return Response.json(answer, { headers: noStore })
        },
      }),
    ),
    route({
      ...page,
      method: 'GET',
      path: '/-/login',
      summary: 'The page on which a login is approved',
      handle: ({ url }) => question({ userCode: url.searchParams.get('user_code') ?? '' }),
    }),
    route({
      ...page,
      method: 'POST',
      path: '/-/login',
      summary: 'Approve a login, from the form of that page',
      async handle({ request }) {
        const form = new URLSearchParams(await readText(request, formBytesMax))
        const userCode = form.get('user_code') ?? ''
        try {
          await approve(access, userCode, (form.get('api_key') ?? '').trim())
        } catch (error) {
          if (!PlatformError.is(error)) throw error
          return question({ userCode, error })
        }
        return ownPage(approved, { headers: noStore })
      },
    }),
  ]
}

async function approve(access: Access, userCode: string, key: string): Promise<void> {
  access.devices.refuseGuessing()
  try {
    access.devices.approve(userCode, await access.approver(key))
  } catch (error) {
    if (PlatformError.is(error)) access.devices.noteFailure()
    throw error
  }
}

/** The form; what was wrong with the last one stands above it. */
function question({ userCode, error }: { userCode: string; error?: PlatformError }): Response {
  const document = documentOf({
    title: 'Approve a login',
    lines: [
      ...(error === undefined ? [] : [`<strong role="alert">${escapeHtml(error.message)}</strong>`]),
      'A command line asks to act as you. Approve it only if you started it yourself just now, and it shows this code.',
    ],
    form: `<form method="post" action="/-/login">
<label>Code<input name="user_code" required maxlength="20" autocomplete="off" value="${escapeHtml(userCode.slice(0, 20))}"></label>
<label>Your API key<input name="api_key" type="password" required maxlength="200" autocomplete="current-password"></label>
<button>Approve</button>
</form>
<p class="quiet"><code>hutch env</code> prints a key of yours, <code>hutch keys create</code> makes one.</p>`,
  })
  return ownPage(document, { status: error?.status ?? 200, headers: noStore, submits: true })
}

const approved = documentOf({
  title: 'Approved',
  lines: ['The command line goes on by itself. You can close this page.'],
})
