import { buildIfStale } from './build.ts'

/** `npm start`: the built executable's `up`, with whatever arguments follow. */
const executable = await buildIfStale()
const child = Bun.spawn([executable, 'up', ...process.argv.slice(2)], {
  stdio: ['inherit', 'inherit', 'inherit'],
})
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  // Ctrl-C in a terminal reaches the child by itself.
  process.on(signal, () => (signal === 'SIGINT' && process.stdin.isTTY) || child.kill(signal))
}
process.exit(await child.exited)
