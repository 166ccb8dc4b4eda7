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

const urlDefault = 'https://api.morphllm.com/v1'
const modelDefault = 'morph-v2'
const bestModel = 'morph-v3-large'
const rankModelDefault = 'morph-rerank-v4'

/** https://docs.morphllm.com/api-reference: chat completions with three tags in one message, and a ranking of its own. */
export class MorphProvider implements CodegenProvider {
  readonly name = 'Morph'

  constructor(
    private readonly key: string,
    private readonly env: Environment,
    private readonly dialer: ProviderDialer,
  ) {}

  async apply({ code, edit, instructions, model, best, signal }: Edit): Promise<string> {
    const instruction = instructions ? `<instruction>${instructions}</instruction>\n` : ''
    const content = `${instruction}<code>${code}</code>\n<update>${edit}</update>`
    const body = {
      model: model || (best ? bestModel : this.env.MORPH_MODEL || modelDefault),
      messages: [{ role: 'user', content }],
      stream: false,
    }
    const answer = await this.ask('chat/completions', body, signal)
    const choice = Array.isArray(answer.choices) ? (answer.choices[0] as unknown) : null
    const { message, finish_reason: finish } = (choice ?? {}) as {
      message?: { content?: unknown }
      finish_reason?: unknown
    }
    // Half a file must not take the place of a whole one.
    if (finish === 'length') {
      throw new PlatformError(
        'unprocessable',
        'Morph broke off before the end: the file is too long for its model',
      )
    }
    return checkedMerge(this.name, code, message?.content)
  }

  async rank(
    query: string,
    files: SourceText[],
    { signal }: { tokens: number; signal: AbortSignal },
  ): Promise<RankedFile[]> {
    const body = {
      model: this.env.MORPH_RERANK_MODEL || rankModelDefault,
      query,
      documents: files.map(({ path, content }) => `${path}\n${content}`),
      top_n: files.length,
    }
    const { results } = await this.ask('rerank', body, signal)
    if (!Array.isArray(results)) throw new PlatformError('unprocessable', 'Morph answered without a ranking')
    const ranked = (results as unknown[]).flatMap((result) => {
      const { index, relevance_score: score } = (result ?? {}) as {
        index?: unknown
        relevance_score?: unknown
      }
      const file = typeof index === 'number' ? files[index] : undefined
      return file && typeof score === 'number' ? [{ path: file.path, score }] : []
    })
    return ranked.sort((a, b) => b.score - a.score)
  }

  private ask(path: string, body: object, signal: AbortSignal): Promise<Record<string, unknown>> {
    const url = `${baseUrl(this.env.MORPH_BASE_URL, urlDefault)}/${path}`
    return ask(this.dialer, { what: this.name, variable: 'MORPH_API_KEY', key: this.key, url, body, signal })
  }
}
