import { existsSync } from 'node:fs'
import { realpath } from 'node:fs/promises'

/** In the order in which they are tried. */
const toolNames = ['buildah', 'podman'] as const
export type DockerfileTool = (typeof toolNames)[number]

export interface FoundTool {
  tool: DockerfileTool | null
  /** Which one it is, or why there is none. */
  detail: string
  /** What would have to be done where there is none. */
  remedy?: string
}

/**
 * Which tool builds Dockerfiles on this host.
 * @param ownMounts instances here can have mounts of their own
 * @param path where programs are looked for
 */
export async function findDockerfileTool(
  ownMounts: boolean,
  path = process.env.PATH ?? '',
): Promise<FoundTool> {
  if (!ownMounts) {
    return {
      tool: null,
      detail: 'tools that build images need mounts of their own, which instances have on a platform of root',
      remedy: 'run hutch as root, with the namespace runtime',
    }
  }
  const reasons: string[] = []
  for (const name of toolNames) {
    const found = Bun.which(name, { PATH: path })
    // What instances have of this host is its /usr, without /usr/local.
    const real = found === null ? null : await realpath(found).catch(() => found)
    if (real !== null && /^\/usr\/(?!local\/)/.test(real))
      return { tool: name, detail: `built by ${name}, inside an instance` }
    reasons.push(found === null ? `no ${name}` : `${name} is at ${found}, which instances do not have`)
  }
  reasons.push(dockerReason(path))
  const remedy = 'sudo apt-get install -y --no-install-recommends buildah'
  return { tool: null, detail: reasons.join('; '), remedy }
}

/** Its engine would run what strangers wrote outside of instances, where no rule of this platform holds. */
function dockerReason(path: string): string {
  if (Bun.which('docker', { PATH: path }) === null) return 'no docker'
  return existsSync('/var/run/docker.sock')
    ? 'docker builds in its own engine, outside of instances and of the rules for their network: it is not used'
    : 'no engine of docker here'
}
