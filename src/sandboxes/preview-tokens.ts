import { PlatformError } from '../errors.ts'
import type { Clock } from '../lib/clock.ts'
import { parseDateMs } from '../lib/date.ts'
import { randomSecret } from '../lib/ids.ts'
import type { SecretBox } from '../lib/secret-box.ts'
import type { PreviewTokenInput, PreviewTokenView } from './preview-schema.ts'
import type { PreviewBody, PreviewTargets, StoredPreview, TokenRecord } from './preview-targets.ts'

export const tokensPerPreviewMax = 100
const tokenLifetimeMsDefault = 24 * 60 * 60_000
const nameCharsMax = 128

/** The tokens that open a preview which is not public: a part of its record, their values sealed. */
export class PreviewTokens {
  readonly #secrets: SecretBox
  readonly #clock: Clock
  readonly #hashOf: (value: string) => string

  constructor(options: { secrets: SecretBox; clock: Clock; targets: PreviewTargets }) {
    this.#secrets = options.secrets
    this.#clock = options.clock
    this.#hashOf = (value) => options.targets.hashOf(value)
  }

  /** A new one, that opens nothing yet. @throws bad_request */
  make({ body }: StoredPreview, input: PreviewTokenInput): TokenRecord {
    const now = this.#clock.now()
    const text = input.spec?.expiresAt
    const expiresAt = text ? parseDateMs(text) : now + tokenLifetimeMsDefault
    if (expiresAt === null) {
      throw new PlatformError(
        'bad_request',
        `spec.expiresAt: ${JSON.stringify(text?.slice(0, 80))} is not a date like 2030-12-31T23:59:59Z`,
      )
    }
    const value = randomSecret()
    return {
      hash: this.#hashOf(value),
      name: (input.metadata?.name ?? `token-${now}`).slice(0, nameCharsMax),
      sealed: this.#secrets.seal(value, purpose(body)),
      expiresAt,
    }
  }

  /** The preview with one more. @throws conflict */
  added(body: PreviewBody, token: TokenRecord): PreviewBody {
    const now = this.#clock.now()
    // Those that ended make room; otherwise a client that makes one for each visit would be shut out for good.
    const tokens =
      body.tokens.length < tokensPerPreviewMax
        ? body.tokens
        : body.tokens.filter((old) => old.expiresAt > now)
    if (tokens.length >= tokensPerPreviewMax) {
      throw new PlatformError(
        'conflict',
        `the preview "${body.name}" has ${tokensPerPreviewMax} tokens, the most allowed: delete one first`,
      )
    }
    return { ...body, tokens: [token, ...tokens] }
  }

  /** The preview without the one of this value. @throws not_found */
  removed(body: PreviewBody, value: string): PreviewBody {
    const hash = this.#hashOf(value)
    const tokens = body.tokens.filter((token) => token.hash !== hash)
    if (tokens.length === body.tokens.length) {
      throw new PlatformError(
        'not_found',
        `the preview "${body.name}" has no such token; give the token's value`,
      )
    }
    return { ...body, tokens }
  }

  view({ workspace, body }: StoredPreview, token: TokenRecord): PreviewTokenView {
    return {
      metadata: {
        name: token.name,
        previewName: body.name,
        resourceName: body.sandbox,
        resourceType: 'sandbox',
        workspace,
      },
      spec: {
        token: this.#secrets.open(token.sealed, purpose(body)),
        expiresAt: new Date(token.expiresAt).toISOString(),
        expired: token.expiresAt <= this.#clock.now(),
      },
    }
  }
}

const purpose = ({ id }: PreviewBody) => `preview:${id}:token`
