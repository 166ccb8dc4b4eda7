export interface Captured {
  code: number
  stdout: string
  stderr: string
}

/** Runs a program to its end and answers what it printed. */
export async function capture(
  argv: string[],
  options: {
    cwd?: string
    env?: Record<string, string | undefined>
    stdin?: string
    timeoutMs?: number
  } = {},
): Promise<Captured> {
  const child = Bun.spawn(argv, {
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.env === undefined ? {} : { env: options.env }),
    stdin: options.stdin === undefined ? 'ignore' : new TextEncoder().encode(options.stdin),
    stdout: 'pipe',
    stderr: 'pipe',
    timeout: options.timeoutMs ?? 120_000,
  })
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  return { code, stdout, stderr }
}
