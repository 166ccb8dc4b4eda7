/**
 * The one table of errors: every failure that leaves the platform carries one of these codes.
 * `http/` alone turns a code into a response and `cli/` alone into an exit code.
 */
export const errorTable = {
  bad_request: { status: 400, retryable: false },
  /** A limit of this platform, set by its operator. */
  usage_limit_exceeded: { status: 402, retryable: false },
  authentication_required: { status: 401, retryable: false },
  authentication_failed: { status: 401, retryable: false },
  forbidden: { status: 403, retryable: false },
  not_found: { status: 404, retryable: false },
  route_not_found: { status: 404, retryable: false },
  workload_not_found: { status: 404, retryable: false },
  workspace_not_found: { status: 404, retryable: false },
  workload_unavailable: { status: 404, retryable: true },
  method_not_allowed: { status: 405, retryable: false },
  conflict: { status: 409, retryable: false },
  already_exists: { status: 409, retryable: false },
  /** A compare-and-set lost its race: the stored version is not the expected one. */
  version_mismatch: { status: 409, retryable: true },
  /** It was there, and its time is over. */
  gone: { status: 410, retryable: false },
  body_too_large: { status: 413, retryable: false },
  unsupported_media_type: { status: 415, retryable: false },
  misdirected: { status: 421, retryable: false },
  unprocessable: { status: 422, retryable: false },
  too_many_requests: { status: 429, retryable: true },
  internal: { status: 500, retryable: false },
  not_implemented: { status: 501, retryable: false },
  /** The program inside the instance refused, reset or never answered. Not the platform's fault. */
  bad_gateway: { status: 502, retryable: true },
  unavailable: { status: 503, retryable: true },
  gateway_timeout: { status: 504, retryable: true },
  insufficient_storage: { status: 507, retryable: true },
} as const satisfies Record<string, { status: number; retryable: boolean }>

export type ErrorCode = keyof typeof errorTable

export interface PlatformErrorOptions {
  /** The private reason: logged, never sent. */
  cause?: unknown
  /** Public machine-readable extras, merged into the answer's body where its shape allows. */
  details?: Record<string, unknown>
  /** Seconds after which trying again makes sense. */
  retryAfterSeconds?: number
  /** Where its code alone would tell a program to do something unfit: what fits, and then it is not retried. */
  advice?: Advice
}

/** What a program is told to do next. */
export interface Advice {
  action: string
  doNot: string
}

const marker = Symbol.for('hutch.PlatformError')

/** A failure with a public message (`message`), a typed code and, privately, its `cause`. */
export class PlatformError extends Error {
  readonly [marker] = true
  readonly code: ErrorCode
  readonly details: Record<string, unknown> | undefined
  readonly retryAfterSeconds: number | undefined
  readonly advice: Advice | undefined

  constructor(code: ErrorCode, message: string, options: PlatformErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'PlatformError'
    this.code = code
    this.details = options.details
    this.retryAfterSeconds = options.retryAfterSeconds
    this.advice = options.advice
  }

  get status(): number {
    return errorTable[this.code].status
  }

  get retryable(): boolean {
    return this.advice === undefined && errorTable[this.code].retryable
  }

  /** Works across duplicate copies of this module, as plugins may load one. */
  static is(value: unknown): value is PlatformError {
    return typeof value === 'object' && value !== null && marker in value
  }
}
