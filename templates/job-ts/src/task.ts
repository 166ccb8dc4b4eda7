const attemptsMax = 4

/** Runs the work of one task, and ends the process with how it went. `blStartJob` of @blaxel/core does the same. */
export function startTask<Parameters extends object>(work: (parameters: Parameters) => Promise<void>): void {
  parameters()
    .then((given) => work(given as Parameters))
    .then(
      () => process.exit(0),
      (error: unknown) => {
        console.error(error)
        process.exit(1)
      },
    )
}

/** Where it is deployed, its part of what the execution was given; elsewhere `--name value` of the command line. */
async function parameters(): Promise<object> {
  const { BL_EXECUTION_DATA_URL: address, BL_TASK_KEY: key = 'TASK_INDEX' } = process.env
  if (address === undefined) return commandLine(process.argv.slice(2))
  const response = await read(address)
  const { tasks } = (await response.json()) as { tasks: object[] }
  return tasks[Number(process.env[key] ?? 0)] ?? {}
}

function commandLine(words: string[]): object {
  const found: Record<string, string> = {}
  for (let at = 0; at < words.length; at += 2) {
    const name = words[at]?.replace(/^--/, '') ?? ''
    found[name] = words[at + 1] ?? 'true'
  }
  return found
}

async function read(address: string): Promise<Response> {
  for (let attempt = 1; ; attempt++) {
    const response = await fetch(address).catch((error: unknown) => {
      if (attempt === attemptsMax) throw error
      return null
    })
    if (response?.ok) return response
    if (attempt === attemptsMax || (response !== null && response.status < 500))
      throw new Error(`the parameters of the task cannot be read: status ${response?.status}`)
    await new Promise((resolve) => setTimeout(resolve, 1000 * attempt))
  }
}
