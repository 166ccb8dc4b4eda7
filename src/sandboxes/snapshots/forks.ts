import { badRequest, checkName } from '../../lib/checks.ts'
import { type EnvInput, envsOf } from '../../lib/environment.ts'
import { portsOf, type SandboxDraft } from '../draft.ts'
import type { ForkInput } from './schema.ts'

/** What a fork is to be: its name, and what it gets on top of what the snapshot gives. @throws bad_request */
export function forkOf(input: ForkInput): { name: string; more: (draft: SandboxDraft) => SandboxDraft } {
  const type = input.targetType || input.type || 'sandbox'
  if (type !== 'sandbox') {
    throw badRequest(`targetType: ${JSON.stringify(type.slice(0, 80))} is not "sandbox" or "application"`)
  }
  const name = input.targetName || input.target_name
  if (!name) throw badRequest('targetName is missing: how the new sandbox is to be called')
  for (const field of ['traffic', 'customDomain', 'prefix'] as const) {
    if (input[field] !== undefined && input[field] !== null)
      throw badRequest(`${field}: applications alone have one; leave it out`)
  }
  return {
    name: checkName(name),
    more: (draft) => withEnvs(withPort(draft, input.port ?? null), input.envs ?? []),
  }
}

function withPort(draft: SandboxDraft, port: number | null): SandboxDraft {
  const ports = draft.spec.ports ?? []
  if (port === null || ports.some(({ target }) => target === port)) return draft
  return { ...draft, spec: { ...draft.spec, ports: portsOf([...ports, { target: port }]) } }
}

/** Over what the sandbox had: another value, or one more. Programs that run keep what they have, and so are started anew. */
function withEnvs(draft: SandboxDraft, envs: EnvInput): SandboxDraft {
  if (envs.length === 0) return draft
  const named = new Set(envs.map(({ name }) => name))
  const before = draft.spec.envs
    .filter(({ name }) => !named.has(name))
    .map((env) => ({ ...env, value: draft.env[env.name] ?? '' }))
  const all = envsOf('envs', [...before, ...envs], draft.env)
  const { seed } = draft
  return {
    ...{ ...draft, spec: { ...draft.spec, envs: all.envs }, env: all.env },
    ...(seed ? { seed: { ...seed, anew: true as const } } : {}),
  }
}
