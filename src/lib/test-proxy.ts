const names = ['HTTP_PROXY', 'http_proxy', 'NO_PROXY', 'no_proxy']

/** For tests: while it lives the environment names it as the proxy of every request without encryption. */
export class TestProxy implements Disposable {
  /** Addresses of the requests that came here. */
  readonly asked: string[] = []
  readonly #before = names.map((name) => [name, process.env[name]] as const)
  readonly #server = Bun.serve({
    port: 0,
    hostname: '127.0.0.1',
    fetch: ({ url }) => {
      this.asked.push(url)
      return new Response('of the proxy', { status: 502 })
    },
  })

  constructor() {
    for (const name of names) delete process.env[name]
    process.env.HTTP_PROXY = `http://127.0.0.1:${this.#server.port}`
  }

  [Symbol.dispose](): void {
    for (const [name, value] of this.#before) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
    void this.#server.stop(true)
  }
}
