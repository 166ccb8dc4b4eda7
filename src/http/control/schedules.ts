import { z } from 'zod'
import { PlatformError } from '../../errors.ts'
import type { Clock } from '../../lib/clock.ts'
import { parseDateMs } from '../../lib/date.ts'
import type { Logger } from '../../lib/log.ts'
import {
  executionSchema,
  executionStatuses,
  executionView,
  type Schedules,
  scheduleInputSchema,
  scheduleMetricsSchema,
  scheduleSchema,
  scheduleView,
} from '../../sandboxes/index.ts'
import { flag } from '../flag.ts'
import { listAnswer, listQuery, listSchema } from '../list.ts'
import { type Route, route } from '../route.ts'
import { mayReadSecrets } from './sandboxes.ts'

const tag = 'schedules'
const scheduleList = listSchema(scheduleSchema)
const executionList = listSchema(executionSchema)
const minuteMs = 60_000
const dayMs = 24 * 60 * minuteMs
const metricsDaysMax = 7
const type = z.string().max(20).optional()
const moment = z.string().max(64).optional()

/** Commands that run in sandboxes at their times. */
export function schedulesRoutes(options: { schedules: Schedules; clock: Clock; log: Logger }): Route[] {
  const { schedules, clock, log } = options
  return [
    route({
      method: 'GET',
      path: '/v0/sandboxes/{sandboxName}/schedules',
      access: 'read',
      errors: 'control',
      summary: 'List the schedules of a sandbox',
      tag,
      query: listQuery.extend({ type }),
      answer: scheduleList,
      handle: (context) => {
        const { workspace, params, query } = context
        const filters = { sandbox: params.sandboxName, ...(query.type ? { type: query.type } : {}) }
        return listAnswer(
          context,
          (page) => schedules.list(workspace, { ...page, ...filters }),
          (found) => scheduleView(found),
        )
      },
    }),
    route({
      method: 'POST',
      path: '/v0/sandboxes/{sandboxName}/schedules',
      access: 'deployed',
      errors: 'control',
      summary: 'Create a schedule: cron (five fields, UTC), at (a moment) or sleep (a duration from now)',
      tag,
      body: scheduleInputSchema,
      answer: scheduleSchema,
      handle: async ({ workspace, params, body }) =>
        scheduleView(await schedules.create(workspace, params.sandboxName, body)),
    }),
    route({
      method: 'GET',
      path: '/v0/sandboxes/{sandboxName}/schedules/{scheduleId}',
      access: 'read',
      errors: 'control',
      summary: 'Get a schedule; show_secrets (admins only) unmasks its environment',
      tag,
      query: z.object({ show_secrets: flag }),
      answer: scheduleSchema,
      handle: async (context) => {
        const { workspace, params } = context
        const found = await schedules.get(workspace, params.sandboxName, params.scheduleId)
        const secrets = mayReadSecrets(context, log, {
          sandbox: params.sandboxName,
          schedule: params.scheduleId,
        })
        return scheduleView(found, secrets ? schedules.env(found) : undefined)
      },
    }),
    route({
      method: 'PUT',
      path: '/v0/sandboxes/{sandboxName}/schedules/{scheduleId}',
      access: 'deployed',
      errors: 'control',
      summary: 'Replace a schedule',
      tag,
      body: scheduleInputSchema,
      answer: scheduleSchema,
      handle: async ({ workspace, params, body }) =>
        scheduleView(await schedules.update(workspace, params.sandboxName, params.scheduleId, body)),
    }),
    route({
      method: 'DELETE',
      path: '/v0/sandboxes/{sandboxName}/schedules/{scheduleId}',
      access: 'deployed',
      errors: 'control',
      summary: 'Delete a schedule; its executions stay listed',
      tag,
      answer: scheduleSchema,
      handle: async ({ workspace, params }) =>
        scheduleView(await schedules.remove(workspace, params.sandboxName, params.scheduleId)),
    }),
    route({
      method: 'GET',
      path: '/v0/sandboxes/{sandboxName}/schedule-executions',
      access: 'read',
      errors: 'control',
      summary: 'List the executions of all schedules of a sandbox, newest first',
      tag,
      query: listQuery,
      answer: executionList,
      handle: (context) =>
        listAnswer(
          context,
          (page) => schedules.executions(context.workspace, { ...page, sandbox: context.params.sandboxName }),
          executionView,
        ),
    }),
    route({
      method: 'GET',
      path: '/v0/schedules',
      access: 'read',
      errors: 'control',
      summary: 'List the schedules of the workspace',
      tag,
      query: listQuery.extend({ sandbox: z.string().optional(), type }),
      answer: scheduleList,
      handle: (context) => {
        const { workspace, query } = context
        const filters = {
          ...(query.sandbox ? { sandbox: query.sandbox } : {}),
          ...(query.type ? { type: query.type } : {}),
        }
        return listAnswer(
          context,
          (page) => schedules.list(workspace, { ...page, ...filters }),
          (found) => scheduleView(found),
        )
      },
    }),
    route({
      method: 'GET',
      path: '/v0/schedules/metrics',
      access: 'read',
      errors: 'control',
      summary: 'Counts of schedules and of executions within a window of minutes',
      tag,
      query: z.object({ since: moment, until: moment }),
      answer: scheduleMetricsSchema,
      handle: ({ workspace, query }) => {
        const now = clock.now()
        const until = wholeMinute(momentOf('until', query.until) ?? now)
        const since = wholeMinute(momentOf('since', query.since) ?? until - dayMs)
        if (since < wholeMinute(now) - metricsDaysMax * dayMs) {
          throw new PlatformError('bad_request', `since must lie within the last ${metricsDaysMax} days`)
        }
        return schedules.metrics(workspace, since, until)
      },
    }),
    route({
      method: 'GET',
      path: '/v0/schedule-executions',
      access: 'read',
      errors: 'control',
      summary: 'List the executions of all schedules of the workspace, newest first',
      tag,
      query: listQuery.extend({
        status: z.enum(executionStatuses).optional(),
        sandbox: z.string().optional(),
        schedule: z.string().optional(),
        since: moment,
        until: moment,
      }),
      answer: executionList,
      handle: (context) => {
        const { workspace, query } = context
        const sinceMs = momentOf('since', query.since)
        const untilMs = momentOf('until', query.until)
        const filters = {
          ...(query.sandbox ? { sandbox: query.sandbox } : {}),
          ...(query.schedule ? { scheduleId: query.schedule } : {}),
          ...(query.status ? { status: query.status } : {}),
          ...(sinceMs === null ? {} : { sinceMs }),
          ...(untilMs === null ? {} : { untilMs }),
        }
        return listAnswer(
          context,
          (page) => schedules.executions(workspace, { ...page, ...filters }),
          executionView,
        )
      },
    }),
  ]
}

function momentOf(field: string, text: string | undefined): number | null {
  if (!text) return null
  const ms = parseDateMs(text)
  if (ms !== null) return ms
  throw new PlatformError(
    'bad_request',
    `${field} must be a date and time such as 2030-07-01T09:00:00Z, got ${JSON.stringify(text)}`,
  )
}

function wholeMinute(ms: number): number {
  return Math.floor(ms / minuteMs) * minuteMs
}
