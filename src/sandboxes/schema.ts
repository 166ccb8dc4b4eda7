/** The wire shapes of sandboxes. Loose: clients send back whole objects, with fields that are read-only or unknown. */
import { z } from 'zod'

export const portSchema = z.lazy(() =>
  z.looseObject({
    name: z.string().nullish(),
    target: z.number().int(),
    protocol: z.enum(['HTTP', 'TCP', 'UDP', 'TLS', 'http', 'tcp', 'udp', 'tls']).nullish(),
  }),
)

export const envSchema = z.lazy(() =>
  z.looseObject({
    name: z.string(),
    value: z.string().nullish(),
    secret: z.boolean().nullish(),
  }),
)

const volumeAttachmentSchema = z.lazy(() =>
  z.looseObject({
    name: z.string().nullish(),
    mountPath: z.string().nullish(),
    readOnly: z.boolean().nullish(),
    type: z.enum(['persistent', 'ephemeral']).nullish(),
    sizeMb: z.number().nullish(),
  }),
)

const expirationPolicySchema = z.lazy(() =>
  z.looseObject({
    type: z.enum(['ttl-idle', 'ttl-max-age', 'date']),
    value: z.string(),
    action: z.enum(['delete']).nullish(),
  }),
)

const lifecycleSchema = z.lazy(() =>
  z.looseObject({
    expirationPolicies: z.array(expirationPolicySchema).nullish(),
    terminatedRetention: z.string().nullish(),
  }),
)

const texts = z.array(z.string()).nullish()
const textMap = z.lazy(() => z.record(z.string(), z.string()).nullish())

const networkSchema = z.lazy(() =>
  z.looseObject({
    subnet: z.string().nullish(),
    allowedDomains: texts,
    forbiddenDomains: texts,
    egress: z.looseObject({ gateway: z.string().nullish(), mode: z.string().nullish() }).nullish(),
    firewall: z.looseObject({ rulesets: texts }).nullish(),
    proxy: z
      .looseObject({
        allowedDomains: texts,
        forbiddenDomains: texts,
        bypass: texts,
        routing: z
          .array(z.looseObject({ destinations: texts, headers: textMap, body: textMap, secrets: textMap }))
          .nullish(),
      })
      .nullish(),
  }),
)

/** YAML writes numbers and booleans where text is meant. */
const labelValue = z.lazy(() => z.union([z.string(), z.number(), z.boolean()]))

export const sandboxInputSchema = z.lazy(() =>
  z.looseObject({
    metadata: z
      .looseObject({
        name: z.string().nullish(),
        displayName: z.string().nullish(),
        externalId: z.string().nullish(),
        labels: z.record(z.string(), labelValue).nullish(),
      })
      .nullish(),
    /** Some client versions put it here. */
    externalId: z.string().nullish(),
    spec: z
      .looseObject({
        enabled: z.boolean().nullish(),
        region: z.string().nullish(),
        vpc: z.string().nullish(),
        runtime: z
          .looseObject({
            image: z.string().nullish(),
            /** Docker's config.json, for this pull only; neither kept nor answered. */
            dockerConfig: z.string().nullish(),
            memory: z.number().int().nullish(),
            storageMb: z.number().int().nullish(),
            ports: z.array(portSchema).nullish(),
            envs: z.array(envSchema).nullish(),
            ttl: z.string().nullish(),
            expires: z.string().nullish(),
            generation: z.string().nullish(),
            snapshotEnabled: z.boolean().nullish(),
            extraArgs: z.record(z.string(), z.string()).nullish(),
            terminationGracePeriodSeconds: z.number().int().min(0).nullish(),
          })
          .nullish(),
        volumes: z.array(volumeAttachmentSchema).nullish(),
        lifecycle: lifecycleSchema.nullish(),
        network: networkSchema.nullish(),
      })
      .nullish(),
  }),
)

export type SandboxInput = z.input<typeof sandboxInputSchema>
export type SandboxNetwork = z.output<typeof networkSchema>

export const sandboxStatuses = [
  'DELETING',
  'TERMINATED',
  'FAILED',
  'DEACTIVATED',
  'DEACTIVATING',
  'UPLOADING',
  'BUILDING',
  'DEPLOYING',
  'DEPLOYED',
  'BUILT',
  'ARCHIVING',
  'ARCHIVED',
  'UNARCHIVING',
] as const
export type SandboxStatus = (typeof sandboxStatuses)[number]

const eventSchema = z.lazy(() =>
  z.object({
    time: z.string(),
    type: z.string(),
    status: z.string(),
    message: z.string(),
  }),
)
export type SandboxEvent = z.output<typeof eventSchema>

/** A sandbox as it is answered. */
export const sandboxSchema = z.lazy(() =>
  z.object({
    metadata: z.object({
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
    spec: z.object({
      enabled: z.boolean().optional(),
      region: z.string().optional(),
      vpc: z.string().optional(),
      runtime: z.object({
        image: z.string(),
        memory: z.number(),
        storageMb: z.number().optional(),
        ports: z
          .array(z.object({ name: z.string().optional(), target: z.number(), protocol: z.string() }))
          .optional(),
        envs: z
          .array(z.object({ name: z.string(), value: z.string(), secret: z.boolean().optional() }))
          .optional(),
        ttl: z.string().optional(),
        expires: z.string().optional(),
        generation: z.string().optional(),
        snapshotEnabled: z.boolean().optional(),
        extraArgs: z.record(z.string(), z.string()).optional(),
        terminationGracePeriodSeconds: z.number().optional(),
      }),
      lifecycle: z
        .object({
          expirationPolicies: z
            .array(z.object({ type: z.string(), value: z.string(), action: z.string() }))
            .optional(),
          terminatedRetention: z.string().optional(),
        })
        .optional(),
      network: networkSchema.optional(),
    }),
    status: z.enum(sandboxStatuses),
    state: z.enum(['RUNNING', 'STANDBY']).optional(),
    /** While it is archived, or on the way there or back. */
    archive: z
      .object({
        key: z.string().optional(),
        startedAt: z.string().optional(),
        createdAt: z.string().optional(),
        /** Bytes. */
        size: z.number().optional(),
        restoreStartedAt: z.string().optional(),
        restore: z.object({ state: z.literal('extracting'), totalBytes: z.number().optional() }).optional(),
      })
      .optional(),
    /** Absent in lists. */
    events: z.array(eventSchema).optional(),
    lastUsedAt: z.string().optional(),
    /** Seconds until the sandbox is terminated; only where it will be. */
    expiresIn: z.number().int().optional(),
  }),
)
export type SandboxView = z.output<typeof sandboxSchema>
