import type { ResolvedImage } from '../../images/index.ts'
import type { RevisionRun } from './index.ts'

export function testImage(): ResolvedImage {
  return {
    reference: 'agent/hello:one',
    root: { digest: 'sha256:test', layers: ['/layer'], mounts: [] },
    env: { PATH: '/bin', FROM_IMAGE: 'yes', BL_WORKSPACE: 'not this' },
    workingDir: '/app',
    user: '',
    entrypoint: ['server'],
    command: ['--quick'],
    ports: [],
    [Symbol.dispose]() {},
  }
}

export function testRun(more: Partial<RevisionRun> = {}): RevisionRun {
  return {
    id: 'rev-one',
    workspace: 'main',
    kind: 'agent',
    name: 'hello',
    labels: { team: 'a' },
    image: 'agent/hello:one',
    env: { FROM_OWNER: 'yes', PORT: '1', BL_API_KEY: 'not this' },
    memoryMb: 1024,
    port: 3000,
    minScale: 0,
    maxScale: 3,
    ...more,
  }
}
