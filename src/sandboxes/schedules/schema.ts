/** The wire shapes of schedules. Loose: clients send back whole entries, with fields that are read-only or unknown. */
import { z } from 'zod'

const commandBytesMax = 128 * 1024 - 1
/** Executions that are kept of one schedule. */
export const executionsKeptDefault = 100
const executionsKeptMax = 1000
export const timeoutSecondsDefault = 600
const timeoutSecondsMax = 365 * 24 * 3600
const variablesMax = 1000

const scheduleTypes = ['cron', 'at', 'sleep'] as const

export const scheduleInputSchema = z.lazy(() =>
  z.looseObject({
    id: z
      .string()
      .regex(
        /^$|^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/,
        'must be 1 to 63 letters, digits, dots, dashes or underscores',
      )
      .nullish(),
    type: z.enum(scheduleTypes),
    value: z.string().min(1).max(1024),
    maxExecutions: z.number().int().min(1).max(executionsKeptMax).nullish(),
    input: z.looseObject({
      command: z
        .string()
        .min(1)
        .refine(
          (text) => Buffer.byteLength(text) <= commandBytesMax,
          `must have at most ${commandBytesMax} bytes`,
        )
        .refine((text) => !text.includes('\0'), 'must not contain NUL'),
      name: z
        .string()
        .max(256)
        .regex(/^[^/\0]*$/, "must not contain '/' or NUL")
        .nullish(),
      workingDir: z
        .string()
        .max(4096)
        .refine((text) => !text.includes('\0'), 'must not contain NUL')
        .nullish(),
      env: z
        .record(
          z.string().regex(/^[^=\0]+$/, "must not be empty, nor contain '=' or NUL"),
          z.string().refine((text) => !text.includes('\0'), 'must not contain NUL'),
        )
        .refine(
          (env) => Object.keys(env).length <= variablesMax,
          `must have at most ${variablesMax} variables`,
        )
        .nullish(),
      keepAlive: z.boolean().nullish(),
      timeout: z.number().int().min(0).max(timeoutSecondsMax).nullish(),
    }),
  }),
)
export type ScheduleInput = z.output<typeof scheduleInputSchema>

/** A schedule as it is answered; `sleep` has become `at` by then. */
export const scheduleSchema = z.lazy(() =>
  z.object({
    id: z.string(),
    sandbox: z.string(),
    type: z.enum(['cron', 'at']),
    value: z.string(),
    input: z.object({
      command: z.string(),
      name: z.string().optional(),
      workingDir: z.string().optional(),
      env: z.record(z.string(), z.string()).optional(),
      keepAlive: z.boolean(),
      timeout: z.number(),
    }),
    maxExecutions: z.number(),
    createdAt: z.string(),
  }),
)
export type ScheduleView = z.output<typeof scheduleSchema>

export const executionStatuses = ['succeeded', 'failed'] as const

/** One run of a schedule. Status and code tell whether the command was accepted, never how it ended. */
export const executionSchema = z.lazy(() =>
  z.object({
    id: z.string(),
    scheduleId: z.string(),
    sandbox: z.string(),
    status: z.enum(executionStatuses),
    /** As submitting the command over HTTP would answer; 0: the sandbox could not be reached. */
    statusCode: z.number(),
    error: z.string().optional(),
    executedAt: z.string(),
    processName: z.string(),
    /** Seconds; 0: none. */
    timeout: z.number(),
    createdAt: z.string(),
  }),
)
export type ExecutionView = z.output<typeof executionSchema>

export const scheduleMetricsSchema = z.lazy(() =>
  z.object({
    executions: z.number(),
    executionsByStatus: z.object({ succeeded: z.number(), failed: z.number() }),
    sandboxes: z.number(),
    schedules: z.number(),
    since: z.string(),
    until: z.string(),
  }),
)
export type ScheduleMetrics = z.output<typeof scheduleMetricsSchema>
