import { askModel } from './model.ts'

/** Answers a message, piece by piece. This is the file to make your own. */
export async function* agent(input: string): AsyncGenerator<string> {
  const { OPENAI_API_KEY: apiKey, MODEL: model } = process.env
  if (apiKey && model) return yield* askModel(input, { apiKey, model })

  const tool = tools.find(({ asked }) => asked.test(input))
  const answer = tool?.run(input) ?? `${process.env.GREETING ?? 'Hello'}! You said: ${input}`
  for (const word of answer.split(/(?<= )/)) {
    yield word
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  yield '\n'
}

interface Tool {
  /** What a model would be told; as long as there is none, a pattern of the question decides. */
  asked: RegExp
  run(input: string): string
}

const sum = /(-?\d+(?:\.\d+)?)\s*([-+*/])\s*(-?\d+(?:\.\d+)?)/

const tools: Tool[] = [
  { asked: /\b(time|date|day)\b/i, run: () => `It is ${new Date().toUTCString()}.` },
  {
    asked: sum,
    run(input) {
      const [, left = '', operator = '', right = ''] = sum.exec(input) ?? []
      const [a, b] = [Number(left), Number(right)]
      const result = { '+': a + b, '-': a - b, '*': a * b, '/': a / b }[operator]
      return `${left} ${operator} ${right} = ${result}`
    },
  },
]
