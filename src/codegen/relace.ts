import { PlatformError } from '../errors.ts'
import {
  ask,
  baseUrl,
  type CodegenProvider,
  checkedMerge,
  type Edit,
  type Environment,
  type ProviderDialer,
  type RankedFile,
  type SourceText,
} from './providers.ts'

const applyUrlDefault = 'https://instantapply.endpoint.relace.run'
const rankUrlDefault = 'https://ranker.endpoint.relace.run'
const modelDefault = 'relace-apply-3'

/** https://docs.relace.ai/api-reference. RELACE_BASE_URL stands for both of its hosts. */
export class RelaceProvider implements CodegenProvider {
  readonly name = 'Relace'

  constructor(
    private readonly key: string,
    private readonly env: Environment,
    private readonly dialer: ProviderDialer,
  ) {}

  async apply({ code, edit, instructions, model, signal }: Edit): Promise<string> {
    const url = `${baseUrl(this.env.RELACE_BASE_URL, applyUrlDefault)}/v1/code/apply`
    const body = {
      model: model || this.env.RELACE_MODEL || modelDefault,
      initial_code: code,
      edit_snippet: edit,
      ...(instructions ? { instruction: instructions } : {}),
      stream: false,
    }
    const { mergedCode } = await this.ask(url, body, signal)
    return checkedMerge(this.name, code, mergedCode)
  }

  async rank(
    query: string,
    files: SourceText[],
    { tokens, signal }: { tokens: number; signal: AbortSignal },
  ): Promise<RankedFile[]> {
    const url = `${baseUrl(this.env.RELACE_BASE_URL, rankUrlDefault)}/v2/code/rank`
    const codebase = files.map(({ path, content }) => ({ filename: path, content }))
    const { results } = await this.ask(url, { query, codebase, token_limit: tokens }, signal)
    if (!Array.isArray(results)) throw new PlatformError('unprocessable', 'Relace answered without a ranking')
    const known = new Set(files.map(({ path }) => path))
    return (results as unknown[]).flatMap((result) => {
      const { filename, score } = (result ?? {}) as { filename?: unknown; score?: unknown }
      const ranked = typeof filename === 'string' && known.has(filename) && typeof score === 'number'
      return ranked ? [{ path: filename, score }] : []
    })
  }

  private ask(url: string, body: object, signal: AbortSignal): Promise<Record<string, unknown>> {
    return ask(this.dialer, { what: this.name, variable: 'RELACE_API_KEY', key: this.key, url, body, signal })
  }
}
