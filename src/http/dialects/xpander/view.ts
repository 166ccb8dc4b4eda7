/** Tasks, threads and agents as clients of xpander read them. */
import type { Agent, Entry, Json, JsonObject, Thread, Worker } from '../../../threads/index.ts'

const titleCharsMax = 120

/** `2026-11-23T01:02:03.004000Z`; null stays null. */
export function timeText(ms: number | null): string | null {
  return ms === null ? null : new Date(ms).toISOString().replace('Z', '000Z')
}

/** All of a task: how its newest turn stands. `tokens`: credentials, for the program that does it alone. */
export function taskView(thread: Thread, tokens: JsonObject = {}): JsonObject {
  const { name: id, workspace, createdAt, updatedAt, body } = thread
  const { options, reported, input } = body
  const either = (name: string, otherwise: Json = null): Json => reported[name] ?? options[name] ?? otherwise
  return {
    id,
    agent_id: body.agentId,
    organization_id: workspace,
    input: { text: input.text, files: input.files, user: userView(input.user), ...input.more },
    created_at: timeText(createdAt),
    updated_at: timeText(updatedAt),
    status: body.status,
    internal_status: body.internalStatus,
    last_executed_node_id: either('last_executed_node_id'),
    agent_version: reported.agent_version ?? body.version,
    started_at: timeText(body.startedAt),
    paused_at: timeText(body.pausedAt),
    finished_at: timeText(body.finishedAt),
    result: body.result,
    parent_execution: options.parent_execution_id ?? null,
    conversation_id: id,
    sub_executions: either('sub_executions', []),
    finished_sub_executions: [],
    should_update_parent: false,
    is_manually_stopped: body.isManuallyStopped,
    is_background: false,
    payload_extension: either('payload_extension'),
    hitl_request: either('hitl_request'),
    pending_eca_request: either('pending_eca_request'),
    source: reported.source ?? body.source,
    source_node_type: options.source_node_type ?? body.source,
    worker_id: either('worker_id'),
    additional_context: either('additional_context'),
    instructions_override: either('instructions_override'),
    expected_output: either('expected_output'),
    test_run_node_id: either('test_run_node_id'),
    is_orchestration: false,
    is_gateway: false,
    output_format: either('output_format', 'text'),
    voice_id: null,
    output_schema: either('output_schema'),
    events_streaming: either('events_streaming', false),
    used_mutating_tools: either('used_mutating_tools', false),
    is_continuous: body.turn > 1,
    mcp_servers: either('mcp_servers', []),
    triggering_agent_id: either('triggering_agent_id'),
    title: body.title,
    think_mode: either('think_mode', 'default'),
    disable_attachment_injection: either('disable_attachment_injection', false),
    deep_planning: either('deep_planning', noPlan),
    execution_attempts: Math.max(1, body.leases),
    user_tokens: tokens.user_tokens ?? null,
    user_oidc_token: tokens.user_oidc_token ?? null,
    return_metrics: either('return_metrics', false),
    tokens: either('tokens'),
    used_tools: either('used_tools', []),
    duration: either('duration', 0),
    llm_model_provider: either('llm_model_provider'),
    llm_model_name: either('llm_model_name'),
    llm_reasoning_effort: either('llm_reasoning_effort'),
    tool_call_limit: either('tool_call_limit'),
    harness_cli: either('harness_cli'),
    permission_mode: either('permission_mode'),
  }
}

const noPlan: JsonObject = {
  enabled: false,
  enforce: false,
  started: false,
  question_raised: false,
  tasks: [],
}

/** As lists have it. */
export function taskItem({ name: id, workspace, createdAt, updatedAt, body }: Thread): JsonObject {
  const { options, reported, input } = body
  return {
    id,
    agent_id: body.agentId,
    organization_id: workspace,
    user_id: input.user?.id ?? null,
    parent_task_id: options.parent_execution_id ?? null,
    triggering_agent_id: options.triggering_agent_id ?? null,
    status: body.status,
    internal_status: body.internalStatus,
    created_at: timeText(createdAt),
    updated_at: timeText(updatedAt),
    source_node_type: options.source_node_type ?? reported.source ?? body.source,
    result: body.result,
    title: body.title ?? titleOf(input.text),
  }
}

/** The library of the SDK wants an address of each. */
function userView(user: JsonObject | null): JsonObject | null {
  return user === null ? null : { ...user, email: user.email ?? '' }
}

/** What it is about, in a line. */
function titleOf(text: string): string {
  const [line = ''] = text.trim().split('\n')
  return line.length <= titleCharsMax ? line : `${line.slice(0, titleCharsMax - 3)}...`
}

/** What was said, without what was done for it. */
export function messageViews(entries: Entry[], thread: Thread): JsonObject[] {
  return entries.filter(({ role }) => role !== 'event').map((entry) => messageView(entry, thread))
}

/** With calls of tools, beside the answer they led to. */
export function fullMessageViews(entries: Entry[], thread: Thread): JsonObject[] {
  const views: JsonObject[] = []
  let calls: JsonObject[] = []
  for (const entry of entries) {
    if (entry.role === 'event') {
      if (entry.type?.startsWith('tool_call')) calls.push({ type: entry.type, data: entry.data ?? null })
      continue
    }
    views.push({
      ...messageView(entry, thread),
      ...(entry.role === 'assistant' ? { tool_calls: calls } : {}),
    })
    if (entry.role === 'assistant') calls = []
  }
  if (calls.length > 0) views.push({ role: 'tool', content: '', tool_calls: calls })
  return views
}

function messageView({ id, role, text, at, turn, files }: Entry, { body }: Thread): JsonObject {
  const tokens = (
    role === 'assistant' && turn === body.turn ? body.reported.tokens : null
  ) as JsonObject | null
  return {
    id,
    role,
    content: text,
    ...(files === undefined ? {} : { files }),
    metrics: {
      input_tokens: tokens?.prompt_tokens ?? 0,
      output_tokens: tokens?.completion_tokens ?? 0,
      total_tokens: tokens?.total_tokens ?? 0,
    },
    created_at: Math.floor(at / 1000),
  }
}

/** The log of a task, as the SDK reads it. */
export function activityView(thread: Thread, entries: Entry[]): JsonObject {
  return {
    id: thread.name,
    created_at: timeText(thread.createdAt),
    messages: entries.map((entry) => activityEntry(entry)),
    user: userView(thread.body.input.user),
  }
}

function activityEntry({ id, role, at, text, files, user, type, data }: Entry): JsonObject {
  const common = { id, created_at: timeText(at) }
  if (role === 'event') {
    const said: JsonObject =
      typeof data === 'object' && data !== null && !Array.isArray(data) ? data : { data: data ?? null }
    return { ...said, ...common, ...(type?.startsWith('tool_call') ? {} : { type: type ?? '' }) }
  }
  return {
    ...common,
    role: role === 'user' ? 'user' : 'agent',
    content: { text, files: files ?? [] },
    ...(user == null ? {} : { user: userView(user) }),
  }
}

export function agentItem(agent: Agent, workspace: string): JsonObject {
  const { deployment } = agent
  const active = deployment === null || deployment.body.state === 'active'
  return {
    id: agent.id,
    name: deployment?.body.displayName ?? agent.id,
    unique_name: agent.id,
    description: descriptionOf(agent),
    icon: '',
    status: active ? 'ACTIVE' : 'INACTIVE',
    organization_id: workspace,
    deployment_type: 'container',
    created_at: timeText(agent.createdAt),
    created_by: agent.createdBy,
    access_scope: 'organizational',
    instructions: { role: [], goal: [], general: descriptionOf(agent) },
    type: 'regular',
    // Which model it asks is the program's own affair.
    model_provider: '',
    model_name: '',
    llm_api_base: null,
    framework: 'agno',
    has_pending_changes: false,
  }
}

export function agentView(
  agent: Agent,
  workspace: string,
  { origin, version }: { origin: string; version: number },
): JsonObject {
  return {
    ...agentItem(agent, workspace),
    environment_id: workspace,
    version,
    is_latest: true,
    tools: [],
    graph: [],
    source_nodes: [],
    source_node_types: ['sdk', 'api', 'webhook'],
    knowledge_bases: [],
    knowledge_base_ids: [],
    output_format: 'text',
    output_schema: null,
    expected_output: '',
    webhook_url: `${origin}/?agent_id=${encodeURIComponent(agent.id)}&asynchronous=false`,
  }
}

function descriptionOf({ deployment }: Agent): string {
  return deployment?.body.labels.description ?? ''
}

/** What a worker is told of itself. */
export function workerView(worker: Worker): JsonObject {
  return {
    id: worker.id,
    name: worker.name,
    organization_id: worker.workspace,
    type: 'worker',
    created_at: timeText(worker.connectedAt),
    created_by: worker.principalId,
    last_heartbeat: timeText(worker.heardAt),
    configuration: null,
    dedicated_agent_id: worker.agentId,
    parent_asset_id: null,
    is_busy: worker.isBusy,
    metadata: null,
  }
}

/** What is told of a task while it goes on. `data` of the events about the task itself is the task. */
export function eventView(thread: Thread, type: string, at: number, data: Json): JsonObject {
  return { type, task_id: thread.name, organization_id: thread.workspace, time: timeText(at), data }
}
