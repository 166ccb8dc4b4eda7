import type { Builds } from '../../builds/index.ts'
import { type Route, route } from '../route.ts'

/** Where archives are uploaded to: whoever has the address has the right, and nothing else is asked for. */
export function uploadRoutes(builds: Pick<Builds, 'receive'>): Route[] {
  return [
    route({
      method: 'PUT',
      path: '/-/uploads/{token}',
      access: 'capability',
      errors: 'control',
      tag: 'builds',
      summary: 'Upload the archive that an image is to be built from; it is the body',
      async handle({ params, request }) {
        const { headers, signal } = request
        const declared = headers.get('content-length')
        await builds.receive(
          params.token,
          request.body as ReadableStream<Uint8Array> | null,
          headers.get('content-type') ?? '',
          declared === null ? null : Number(declared),
          signal,
        )
        // Clients take exactly this for success.
        return new Response(null, { status: 200 })
      },
    }),
  ]
}
