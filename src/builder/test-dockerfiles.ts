import { findDockerfileTool } from '../lib/dockerfile-tool.ts'
import { whyNot } from '../test-client.ts'

/** Why no Dockerfile is built on this host; '' where one is. */
export async function whyNoDockerfiles(): Promise<string> {
  const why = await whyNot((able) => (able.ownMounts ? '' : 'instances have no mounts of their own'))
  if (why !== '') return why
  const { tool, detail } = await findDockerfileTool(true)
  if (tool === null) console.warn(`skipped: ${detail}`)
  return tool === null ? detail : ''
}
