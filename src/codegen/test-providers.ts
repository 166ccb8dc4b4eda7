/** Morph and Relace as their public documentation describes them, on loopback, answering what a test wants. */
export class ScriptedProviders implements AsyncDisposable {
  readonly requests: { path: string; authorization: string | null; body: Record<string, unknown> }[] = []
  /** The merged text, of what was sent. */
  merge: (code: string, edit: string) => string = (code, edit) => `${code}${edit}\n`
  /** The score of a document. */
  score: (content: string) => number = () => 0
  /** Answers instead, when it answers something. */
  fail: ((path: string) => Response | null | Promise<Response | null>) | null = null
  finishReason = 'stop'
  readonly #server = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    fetch: (request) => this.#answer(request),
  })

  get target(): string {
    return `127.0.0.1:${this.#server.port}`
  }

  /** What a sandbox's environment needs to reach them. */
  env(provider: 'Morph' | 'Relace'): Record<string, string> {
    const url = `http://${this.target}`
    return provider === 'Morph'
      ? { MORPH_API_KEY: 'sk-morph-secret', MORPH_BASE_URL: `${url}/v1/` }
      : { RELACE_API_KEY: 'rlc-relace-secret', RELACE_BASE_URL: url }
  }

  async #answer(request: Request): Promise<Response> {
    const path = new URL(request.url).pathname
    const body = (await request.json()) as Record<string, unknown>
    const authorization = request.headers.get('authorization')
    this.requests.push({ path, authorization, body })
    const failure = await this.fail?.(path)
    if (failure) return failure
    const morph = authorization === 'Bearer sk-morph-secret'
    const relace = authorization === 'Bearer rlc-relace-secret'
    if (!morph && !relace) return Response.json({ error: 'Unauthorized' }, { status: 401 })
    if (relace && path === '/v1/code/apply') {
      const { initial_code: code, edit_snippet: edit, stream } = body as Record<string, string>
      if (typeof code !== 'string' || typeof edit !== 'string' || stream) return badRequest('initial_code')
      return Response.json({
        mergedCode: this.merge(code, edit),
        usage: { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 },
      })
    }
    if (relace && path === '/v2/code/rank') {
      const codebase = body.codebase as { filename: string; content: string }[]
      if (typeof body.token_limit !== 'number' || typeof body.query !== 'string')
        return badRequest('token_limit')
      const results = codebase.map(({ filename, content }) => ({ filename, score: this.score(content) }))
      results.sort((a, b) => b.score - a.score)
      return Response.json({ results, usage: { total_tokens: 1 } })
    }
    if (morph && path === '/v1/chat/completions') {
      const [{ content } = { content: '' }] = body.messages as { role: string; content: string }[]
      const parts = /^(?:<instruction>.*<\/instruction>\n)?<code>(.*)<\/code>\n<update>(.*)<\/update>$/s.exec(
        content,
      )
      if (!parts || typeof body.model !== 'string') return badRequest('messages')
      const message = { role: 'assistant', content: this.merge(parts[1]!, parts[2]!) }
      return Response.json({
        id: 'chatcmpl-1',
        object: 'chat.completion',
        model: body.model,
        choices: [{ index: 0, message, finish_reason: this.finishReason }],
        usage: { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 },
      })
    }
    if (morph && path === '/v1/rerank') {
      const documents = body.documents as string[]
      if (typeof body.model !== 'string' || typeof body.query !== 'string') return badRequest('query')
      const results = documents.map((text, index) => ({ index, relevance_score: this.score(text) }))
      return Response.json({ id: 'rerank-1', model: body.model, results })
    }
    return Response.json({ error: { message: `no such endpoint: ${path}` } }, { status: 404 })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.stop(true)
  }
}

function badRequest(field: string): Response {
  return Response.json({ error: { message: `missing or wrong: ${field}` } }, { status: 400 })
}
