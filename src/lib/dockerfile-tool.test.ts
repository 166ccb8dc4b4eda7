import { afterAll, expect, test } from 'bun:test'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { findDockerfileTool } from './dockerfile-tool.ts'

const dir = mkdtempSync(join(tmpdir(), 'hutch-tools-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

function programs(name: string, add: (path: string) => void): string {
  const path = join(dir, name)
  mkdirSync(path)
  add(path)
  return path
}

test('a tool that instances have is found, wherever its name leads', async () => {
  // Any program of /usr does.
  const path = programs('linked', (at) => symlinkSync('/usr/bin/env', join(at, 'podman')))
  expect(await findDockerfileTool(true, path)).toEqual({
    tool: 'podman',
    detail: 'built by podman, inside an instance',
  })
})

test('without one each is told of with its reason, and with what helps', async () => {
  const path = programs('elsewhere', (at) => {
    writeFileSync(join(at, 'buildah'), '#!/bin/sh\n')
    chmodSync(join(at, 'buildah'), 0o755)
  })
  const found = await findDockerfileTool(true, path)
  expect(found.tool).toBeNull()
  expect(found.detail).toBe(
    `buildah is at ${path}/buildah, which instances do not have; no podman; no docker`,
  )
  expect(found.remedy).toContain('apt-get install')
  expect((await findDockerfileTool(false, path)).detail).toContain('mounts of their own')
})
