const baseUrl = process.env.OPENAI_BASE_URL ?? 'https://api.openai.com/v1'

/** Asks a model of an API that speaks OpenAI's, and hands on its answer as it comes. */
export async function* askModel(
  input: string,
  options: { apiKey: string; model: string },
): AsyncGenerator<string> {
  const response = await fetch(`${baseUrl}/chat/completions`, {
    method: 'POST',
    headers: { authorization: `Bearer ${options.apiKey}`, 'content-type': 'application/json' },
    body: JSON.stringify({
      model: options.model,
      stream: true,
      messages: [
        { role: 'system', content: 'You are a helpful assistant.' },
        { role: 'user', content: input },
      ],
    }),
  })
  if (!response.ok || response.body === null) {
    throw new Error(`the model answered ${response.status}: ${(await response.text()).slice(0, 500)}`)
  }
  let held = ''
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (held + text).split('\n')
    held = lines.pop() ?? ''
    for (const line of lines) {
      const data = line.startsWith('data:') ? line.slice(5).trim() : ''
      if (data === '' || data === '[DONE]') continue
      const { choices } = JSON.parse(data) as { choices: { delta?: { content?: string } }[] }
      yield choices[0]?.delta?.content ?? ''
    }
  }
}
