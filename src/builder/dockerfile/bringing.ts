/** How files and base images come into the machine that a Dockerfile is built in. */
import { PlatformError } from '../../errors.ts'
import type { DockerfileTool } from '../../lib/dockerfile-tool.ts'
import type { BuildMachine } from '../machine.ts'
import { type BaseImage, hostMarkDiffId } from './base-images.ts'
import { baseDir, bunPath, contextName, hostDir, layerDir, toolEnv, workDir } from './tool.ts'

/** A tar archive of the files, everything of it below `context/`; what was there before goes. */
export async function bringContext(
  machine: BuildMachine,
  context: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): Promise<void> {
  const { files } = machine.instance.guest
  await files.remove(workDir, { recursive: true }).catch((error) => {
    if (!PlatformError.is(error) || error.code !== 'not_found') throw error
  })
  const archive = `${workDir}/context.tar`
  await files.write(archive, streamOf(context, signal))
  const argv = ['tar', '-x', '-f', archive, '-C', workDir, '--no-same-owner', '--', contextName]
  const { exitCode } = await machine.output({ argv, env: toolEnv({}), workingDir: '/' }, signal)
  if (exitCode !== 0)
    throw new PlatformError('unprocessable', 'the files of the project could not be unpacked for the build')
  await files.remove(archive)
}

/** Puts an image into the store of the tool, under a name there. */
export async function bringImage(
  machine: BuildMachine,
  tool: DockerfileTool,
  base: BaseImage,
  local: string,
  signal: AbortSignal,
): Promise<void> {
  const { files } = machine.instance.guest
  for (const [path, content] of base.documents) await files.write(`${baseDir}/${path}`, content)
  for (const [path, source] of base.files)
    await files.write(`${baseDir}/${path}`, streamOf(Bun.file(source).stream(), signal))
  const run = (argv: string[]) => machine.output({ argv, env: toolEnv({}), workingDir: '/' }, signal)
  const { stdout } = await run([tool, 'pull', '--quiet', `oci:${baseDir}`])
  const id = /^[0-9a-f]{64}$/m.exec(stdout)?.[0]
  const tagged = id === undefined ? null : await run([tool, 'tag', id, local])
  if (tagged?.exitCode !== 0)
    throw new PlatformError('unprocessable', `${tool} cannot unpack it, or has no room for it`)
  await files.remove(baseDir, { recursive: true })
}

/**
 * The files of the host image, in the place of those of its one layer. By a link, for tools mount their store anew whenever
 * they run. @throws unavailable
 */
export async function linkHost(machine: BuildMachine, signal: AbortSignal): Promise<void> {
  const dir = layerDir(hostMarkDiffId)
  await mustSucceed(machine, ['rm', '-r', '--', dir], signal)
  await mustSucceed(machine, ['ln', '-s', '--', hostDir, dir], signal)
}

/** What serves as `bun` is mounted in machines of the host image; here it has to lie among its files. */
export async function bringBun(machine: BuildMachine, signal: AbortSignal): Promise<void> {
  await mustSucceed(machine, ['cp', '-p', '--', bunPath, `${hostDir}${bunPath}`], signal)
}

async function mustSucceed(machine: BuildMachine, argv: string[], signal: AbortSignal): Promise<void> {
  const { exitCode } = await machine.output({ argv, env: toolEnv({}), workingDir: '/' }, signal)
  if (exitCode !== 0)
    throw new PlatformError('unavailable', `the host image cannot be built on here (${argv[0]} failed)`)
}

function streamOf(content: AsyncIterable<Uint8Array>, signal: AbortSignal): ReadableStream<Uint8Array> {
  const source = content[Symbol.asyncIterator]()
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      signal.throwIfAborted()
      const next = await source.next()
      if (next.done) controller.close()
      else controller.enqueue(next.value)
    },
    async cancel() {
      await source.return?.()
    },
  })
}
