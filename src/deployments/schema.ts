/** The wire shapes of what is deployed. Loose: clients send back whole objects. */
import { z } from 'zod'
import { deploymentStatuses } from './kinds.ts'

/** YAML writes numbers and booleans where text is meant. */
const labelValue = z.lazy(() => z.union([z.string(), z.number(), z.boolean()]))

const metadataInput = z.lazy(() =>
  z.looseObject({
    name: z.string().nullish(),
    displayName: z.string().nullish(),
    externalId: z.string().nullish(),
    labels: z.record(z.string(), labelValue).nullish(),
  }),
)

const envInput = z.lazy(() =>
  z.looseObject({
    name: z.string(),
    value: z.union([z.string(), z.number(), z.boolean()]).nullish(),
    secret: z.boolean().nullish(),
  }),
)

const portInput = z.lazy(() =>
  z.looseObject({
    name: z.string().nullish(),
    target: z.number().int(),
    protocol: z.string().nullish(),
  }),
)

export const triggerInputSchema = z.lazy(() =>
  z.looseObject({
    id: z.string().nullish(),
    type: z.string().nullish(),
    enabled: z.boolean().nullish(),
    configuration: z.record(z.string(), z.unknown()).nullish(),
  }),
)

const routingInput = z.lazy(() =>
  z.looseObject({
    active: z.string().nullish(),
    canary: z.string().nullish(),
    canaryPercent: z.number().nullish(),
    stickySessionTtl: z.number().nullish(),
    traffic: z.number().nullish(),
  }),
)
export type RoutingInput = z.output<typeof routingInput>

const texts = z.array(z.string()).nullish()
const whole = z.number().int().nullish()

const runtimeInput = z.lazy(() =>
  z.looseObject({
    image: z.string().nullish(),
    memory: whole,
    envs: z.array(envInput).nullish(),
    minScale: whole,
    maxScale: whole,
    generation: z.string().nullish(),
    transport: z.string().nullish(),
    ports: z.array(portInput).nullish(),
    /** Docker's config.json, for this pull only; kept sealed until it is over, and not answered. */
    dockerConfig: z.string().nullish(),
    /** The image is taken as it is here, without another look at its registry. */
    skipBuild: z.union([z.boolean(), z.string()]).nullish(),
  }),
)

/** Of agents and functions. */
export const workloadInputSchema = z.lazy(() =>
  z.looseObject({
    metadata: metadataInput.nullish(),
    spec: z
      .looseObject({
        enabled: z.boolean().nullish(),
        public: z.boolean().nullish(),
        region: z.string().nullish(),
        policies: texts,
        integrationConnections: texts,
        repository: z.looseObject({ type: z.string().nullish(), url: z.string().nullish() }).nullish(),
        revision: routingInput.nullish(),
        runtime: runtimeInput.nullish(),
        triggers: z.array(triggerInputSchema).nullish(),
        volumes: z.array(z.unknown()).nullish(),
      })
      .nullish(),
  }),
)
export type WorkloadInput = z.output<typeof workloadInputSchema>

/** Each a directory of its own for every task. */
const volumeInput = z.lazy(() =>
  z.looseObject({
    name: z.string().nullish(),
    mountPath: z.string().nullish(),
    type: z.string().nullish(),
    sizeMb: whole,
    readOnly: z.boolean().nullish(),
  }),
)

export const jobInputSchema = z.lazy(() =>
  z.looseObject({
    metadata: metadataInput.nullish(),
    spec: z
      .looseObject({
        enabled: z.boolean().nullish(),
        region: z.string().nullish(),
        policies: texts,
        revision: routingInput.nullish(),
        runtime: runtimeInput
          .unwrap()
          .extend({
            /** Seconds, of one task. */
            timeout: whole,
            /** Of one task. */
            maxRetries: whole,
            maxConcurrentTasks: whole,
            diskPercent: whole,
          })
          .nullish(),
        triggers: z.array(triggerInputSchema).nullish(),
        volumes: z.array(volumeInput).nullish(),
        githubRunner: z.looseObject({ repositories: texts }).nullish(),
      })
      .nullish(),
  }),
)
export type JobInput = z.output<typeof jobInputSchema>

export const applicationInputSchema = z.lazy(() =>
  z.looseObject({
    metadata: metadataInput.nullish(),
    spec: z
      .looseObject({
        enabled: z.boolean().nullish(),
        region: z.string().nullish(),
        image: z.string().nullish(),
        memory: whole,
        port: whole,
        envs: z.array(envInput).nullish(),
        extensions: z.record(z.string(), z.unknown()).nullish(),
        proxy: z.boolean().nullish(),
        revision: routingInput.nullish(),
        /** With an id: as they were read. Without one: what the next is to be, as some clients write it. */
        revisions: z
          .array(
            z.looseObject({
              id: z.string().nullish(),
              image: z.string().nullish(),
              memory: whole,
              port: whole,
              envs: z.array(envInput).nullish(),
            }),
          )
          .nullish(),
        urls: z.array(z.looseObject({ domain: z.string(), subdomain: z.string().nullish() })).nullish(),
      })
      .nullish(),
  }),
)
export type ApplicationInput = z.output<typeof applicationInputSchema>

const env = z.lazy(() => z.object({ name: z.string(), value: z.string(), secret: z.boolean().optional() }))

const metadata = z.lazy(() =>
  z.object({
    name: z.string(),
    displayName: z.string().optional(),
    externalId: z.string().optional(),
    labels: z.record(z.string(), z.string()).optional(),
    workspace: z.string(),
    url: z.string(),
    plan: z.string(),
    createdAt: z.string(),
    updatedAt: z.string(),
    createdBy: z.string(),
    updatedBy: z.string(),
  }),
)

const event = z.lazy(() =>
  z.object({
    time: z.string(),
    type: z.string(),
    status: z.string(),
    message: z.string(),
    revision: z.string().optional(),
    canaryRevision: z.string().optional(),
  }),
)

const routing = z.lazy(() =>
  z.object({
    active: z.string().optional(),
    /** Of the active revision, which after a rollback is not what the spec names. */
    activeImage: z.string().optional(),
    canary: z.string().optional(),
    canaryPercent: z.number().optional(),
    stickySessionTtl: z.number().optional(),
  }),
)

const status = z.enum(deploymentStatuses)

export const triggerSchema = z.lazy(() =>
  z.object({
    id: z.string(),
    type: z.string(),
    enabled: z.boolean().optional(),
    configuration: z.record(z.string(), z.unknown()).optional(),
  }),
)
export type TriggerView = z.output<typeof triggerSchema>

/** Of agents and functions. */
export const workloadSchema = z.lazy(() =>
  z.object({
    metadata,
    spec: z.object({
      enabled: z.boolean(),
      public: z.boolean(),
      region: z.string().optional(),
      policies: z.array(z.string()).optional(),
      repository: z.object({ type: z.string().optional(), url: z.string().optional() }).optional(),
      revision: routing.optional(),
      runtime: z.object({
        image: z.string().optional(),
        memory: z.number(),
        envs: z.array(env).optional(),
        minScale: z.number(),
        maxScale: z.number(),
        generation: z.string(),
        transport: z.string().optional(),
        ports: z
          .array(z.object({ name: z.string().optional(), target: z.number(), protocol: z.string() }))
          .optional(),
      }),
      triggers: z.array(triggerSchema).optional(),
    }),
    status,
    events: z.array(event).optional(),
  }),
)
export type WorkloadView = z.output<typeof workloadSchema>

export const jobSchema = z.lazy(() =>
  z.object({
    metadata,
    spec: z.object({
      enabled: z.boolean(),
      region: z.string().optional(),
      policies: z.array(z.string()).optional(),
      revision: routing.optional(),
      runtime: z.object({
        image: z.string().optional(),
        memory: z.number(),
        envs: z.array(env).optional(),
        generation: z.string(),
        timeout: z.number(),
        maxRetries: z.number(),
        maxConcurrentTasks: z.number().optional(),
        diskPercent: z.number().optional(),
        ports: workloadSchema.unwrap().shape.spec.shape.runtime.shape.ports,
      }),
      triggers: workloadSchema.unwrap().shape.spec.shape.triggers,
      volumes: z
        .array(z.object({ name: z.string(), mountPath: z.string(), type: z.string(), sizeMb: z.number() }))
        .optional(),
    }),
    status,
    events: z.array(event).optional(),
  }),
)
export type JobView = z.output<typeof jobSchema>

/** Of an application. */
export const applicationRevisionSchema = z.lazy(() =>
  z.object({
    id: z.string(),
    image: z.string(),
    memory: z.number(),
    port: z.number().optional(),
    envs: z.array(env).optional(),
    snapshot: z.string().optional(),
    createdAt: z.string(),
    createdBy: z.string(),
  }),
)
export type ApplicationRevisionView = z.output<typeof applicationRevisionSchema>

export const applicationSchema = z.lazy(() =>
  z.object({
    metadata,
    spec: z.object({
      enabled: z.boolean(),
      region: z.string().optional(),
      image: z.string().optional(),
      memory: z.number(),
      port: z.number().optional(),
      envs: z.array(env).optional(),
      revision: routing.optional(),
      revisions: z.array(applicationRevisionSchema).optional(),
      urls: z.array(z.object({ domain: z.string(), subdomain: z.string().optional() })).optional(),
    }),
    nodeGeneration: z.string(),
    status,
    events: z.array(event).optional(),
  }),
)
export type ApplicationView = z.output<typeof applicationSchema>

/** Of all but applications. */
export const revisionSchema = z.lazy(() =>
  z.object({
    id: z.string(),
    active: z.boolean(),
    canary: z.boolean(),
    previousActive: z.boolean(),
    trafficPercent: z.number(),
    status,
    createdAt: z.string(),
    createdBy: z.string(),
  }),
)
export type RevisionView = z.output<typeof revisionSchema>
