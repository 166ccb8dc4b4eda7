import { z } from 'zod'
import {
  type DeploymentKind,
  type DeploymentOf,
  type Deployments,
  deploymentKinds,
  kindFacts,
  type StoredDeployment,
  type StoredTrigger,
  type TriggerInput,
  triggerInputSchema,
  triggerSchema,
  triggerView,
} from '../../deployments/index.ts'
import { PlatformError } from '../../errors.ts'
import { badRequest, quoted } from '../../lib/checks.ts'
import type { Logger } from '../../lib/log.ts'
import { flag } from '../flag.ts'
import { type Route, type RouteContext, route } from '../route.ts'
import { actorOf, mayReadSecrets } from './sandboxes.ts'

const overlapSecondsDefault = 24 * 60 * 60
const overlapSecondsMax = 7 * overlapSecondsDefault

interface TriggerRouteOptions {
  deployments: Pick<Deployments, 'get' | 'viewOptions' | 'triggers'>
  log: Logger
}

/** What triggers a deployment, changed while it runs, without a new revision. */
export function triggerRoutes(options: TriggerRouteOptions): Route[] {
  return deploymentKinds
    .filter((kind) => kind !== 'application')
    .flatMap((kind) => routesOf(kind, kind === 'job' ? '{jobId}' : `{${kind}Name}`, options))
}

function routesOf(
  kind: DeploymentKind,
  parameter: string,
  { deployments, log }: TriggerRouteOptions,
): Route[] {
  const { plural } = kindFacts[kind]
  const article = kind === 'agent' ? 'an agent' : `a ${kind}`
  const shared = { errors: 'control', tag: plural } as const
  const collection = `/v0/${plural}/${parameter}/triggers`
  const item = `${collection}/{triggerId}`
  const nameOf = ({ params }: { params: unknown }) =>
    (params as Record<string, string>)[parameter.slice(1, -1)] ?? ''
  const idOf = ({ params }: { params: unknown }) => (params as { triggerId: string }).triggerId
  const of = (context: RouteContext<unknown, unknown, unknown>): DeploymentOf & { actor: string } => ({
    workspace: context.workspace,
    kind,
    name: nameOf(context),
    actor: actorOf(context),
  })
  const viewsOf = (
    deployment: StoredDeployment,
    origin: string,
    shown: { showSecrets?: boolean; revealed?: readonly string[] },
  ) => {
    const { body } = deployment
    const view = deployments.viewOptions(deployment, origin, shown)
    return (body.spec.triggers ?? []).map((trigger) => triggerView(body, trigger, view))
  }
  const one = <View extends { id: string }>(views: readonly View[], id: string): View => {
    const found = views.find((view) => view.id === id)
    if (found === undefined) throw missing(kind, id)
    return found
  }
  // Only what agents do later is told to an address.
  const rotation = route({
    ...shared,
    method: 'POST',
    path: `${item}/rotate`,
    access: 'write',
    summary: `Give the callbacks of a trigger of ${article} a new secret, which the answer alone tells; the one before holds for overlapSeconds more`,
    body: z
      .looseObject({ overlapSeconds: z.number().int().min(0).max(overlapSecondsMax).optional() })
      .optional(),
    answer: triggerSchema,
    async handle(context) {
      const { overlapSeconds = overlapSecondsDefault } =
        (context.body as { overlapSeconds?: number } | undefined) ?? {}
      const id = idOf(context)
      const { deployment, revealed } = await deployments.triggers.rotate(
        of(context),
        id,
        overlapSeconds * 1000,
      )
      log.info('audit: a callback secret was rotated', {
        actor: actorOf(context),
        workspace: context.workspace,
        [kind]: nameOf(context),
        trigger: id,
      })
      return one(viewsOf(deployment, context.origin, { revealed }), id)
    },
  })
  return [
    route({
      ...shared,
      method: 'GET',
      path: collection,
      access: 'read',
      summary: `List what triggers ${article}; show_secrets (admins only) unmasks the secrets of callbacks`,
      query: z.object({ show_secrets: flag }),
      answer: z.array(triggerSchema),
      async handle(context) {
        const name = nameOf(context)
        const showSecrets = mayReadSecrets(context, log, { [kind]: name })
        const deployment = await deployments.get(context.workspace, kind, name)
        return viewsOf(deployment, context.origin, { showSecrets })
      },
    }),
    route({
      ...shared,
      method: 'POST',
      path: collection,
      access: 'write',
      summary: `Add a trigger to ${article}; the answer alone tells the secret that its callbacks are signed with`,
      body: triggerInputSchema,
      answer: triggerSchema,
      async handle(context) {
        const given = context.body as TriggerInput
        let id = ''
        const { deployment, revealed } = await deployments.triggers.change(of(context), (triggers) => {
          const taken = new Set(triggers.map((trigger) => trigger.id))
          if (given.id && taken.has(given.id))
            throw new PlatformError('already_exists', `there is a trigger ${quoted(given.id)} already`)
          id = given.id || freeId(given.type || 'http', taken)
          return [...triggers, { ...given, id }]
        })
        return one(viewsOf(deployment, context.origin, { revealed }), id)
      },
    }),
    route({
      ...shared,
      method: 'GET',
      path: item,
      access: 'read',
      summary: `Get a trigger of ${article}; show_secrets (admins only) unmasks the secret of its callbacks`,
      query: z.object({ show_secrets: flag }),
      answer: triggerSchema,
      async handle(context) {
        const name = nameOf(context)
        const showSecrets = mayReadSecrets(context, log, { [kind]: name, trigger: idOf(context) })
        const deployment = await deployments.get(context.workspace, kind, name)
        return one(viewsOf(deployment, context.origin, { showSecrets }), idOf(context))
      },
    }),
    route({
      ...shared,
      method: 'PUT',
      path: item,
      access: 'write',
      summary: `Change a trigger of ${article}, enable or disable it; its secret stays`,
      body: triggerInputSchema,
      answer: triggerSchema,
      async handle(context) {
        const given = context.body as TriggerInput
        const id = idOf(context)
        if (given.id && given.id !== id)
          throw badRequest(`id: a trigger cannot be renamed; send ${quoted(id)} or leave it out`)
        const { deployment, revealed } = await deployments.triggers.change(of(context), (triggers) => {
          const before = one(triggers, id)
          const after = { type: before.type, ...given, id }
          return triggers.map((trigger) => (trigger.id === id ? after : trigger))
        })
        return one(viewsOf(deployment, context.origin, { revealed }), id)
      },
    }),
    route({
      ...shared,
      method: 'DELETE',
      path: item,
      access: 'write',
      summary: `Delete a trigger of ${article}; what it accepted goes on`,
      answer: triggerSchema,
      async handle(context) {
        const id = idOf(context)
        let removed: StoredTrigger | null = null
        await deployments.triggers.change(of(context), (triggers) => {
          removed = one(triggers, id)
          return triggers.filter((trigger) => trigger.id !== id)
        })
        return removed ?? { id }
      },
    }),
    ...(kind === 'agent' ? [rotation] : []),
  ]
}

function freeId(wanted: string, taken: ReadonlySet<string>): string {
  let id = wanted
  for (let count = 2; taken.has(id); count++) id = `${wanted}-${count}`
  return id
}

function missing(kind: DeploymentKind, id: string): PlatformError {
  return new PlatformError('not_found', `this ${kind} has no trigger ${quoted(id)}`)
}
