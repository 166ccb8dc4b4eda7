import { expect } from 'bun:test'
import type { SandboxInput, SandboxView } from './schema.ts'
import type { TestPlatform, TestSite } from './test-host.ts'

export const actor = 'ada'
export const origin = 'http://localhost:4400'

export function input(
  name: string | undefined,
  rest: { metadata?: object; spec?: object; runtime?: object } = {},
): SandboxInput {
  return {
    metadata: { ...(name === undefined ? {} : { name }), ...rest.metadata },
    spec: { runtime: { image: 'blaxel/base-image:latest', memory: 4096, ...rest.runtime }, ...rest.spec },
  }
}

/** What tests do over and over with sandboxes of one workspace. */
export function actionsOn({ site, platform }: { site: () => TestSite; platform: () => TestPlatform }) {
  async function create(name: string, rest?: Parameters<typeof input>[1]): Promise<SandboxView> {
    return platform().sandboxes.view(
      await platform().sandboxes.create('main', input(name, rest), { actor }),
      origin,
    )
  }

  async function get(name: string): Promise<SandboxView> {
    return platform().sandboxes.view(await platform().sandboxes.get('main', name), origin)
  }

  /** What the client does: reads the whole object, changes a part, sends it all back. */
  async function put(name: string, change: (view: SandboxView) => unknown): Promise<SandboxView> {
    const body = JSON.parse(JSON.stringify(change(await get(name)))) as SandboxInput
    return platform().sandboxes.view(
      await platform().sandboxes.update('main', name, body, { actor: 'bob' }),
      origin,
    )
  }

  async function names(query = {}): Promise<string[]> {
    return (await platform().sandboxes.list('main', query)).data.map((sandbox) => sandbox.name)
  }

  async function onlyMachine(): Promise<string> {
    await platform().sandboxes.settled()
    await platform().instances.settled()
    expect([...site().host.machines.keys()]).toHaveLength(1)
    return [...site().host.machines.keys()][0]!
  }
  return { create, get, put, names, onlyMachine }
}
