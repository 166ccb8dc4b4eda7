import { z } from 'zod'

/** JSON-RPC 2.0 as the Model Context Protocol uses it. */

export const rpcCodes = {
  parseError: -32700,
  invalidRequest: -32600,
  methodNotFound: -32601,
  invalidParams: -32602,
  internalError: -32603,
} as const

export type RpcId = string | number

export interface RpcRequest {
  kind: 'request'
  id: RpcId
  method: string
  params: Record<string, unknown>
}

export interface RpcNotification {
  kind: 'notification'
  method: string
  params: Record<string, unknown>
}

/** An answer of the client's: the server asks nothing, so that nobody waits for it. */
export interface RpcAnswer {
  kind: 'answer'
}

export type RpcMessage = RpcRequest | RpcNotification | RpcAnswer

/** A failure of the protocol, not of a tool. */
export class RpcError extends Error {
  constructor(
    readonly code: number,
    message: string,
    readonly data?: unknown,
  ) {
    super(message)
  }
}

const idCharsMax = 256
const methodCharsMax = 128

const idSchema = z.union([z.string().max(idCharsMax), z.number()])
const messageSchema = z.object({
  jsonrpc: z.literal('2.0'),
  id: idSchema.optional(),
  method: z.string().min(1).max(methodCharsMax).optional(),
  params: z.record(z.string(), z.unknown()).optional(),
})

/** @throws RpcError invalidRequest */
export function readMessage(value: unknown): RpcMessage {
  const parsed = messageSchema.safeParse(value)
  if (!parsed.success) {
    throw new RpcError(rpcCodes.invalidRequest, 'Not a JSON-RPC 2.0 request: jsonrpc, method, id or params')
  }
  const { id, method, params = {} } = parsed.data
  if (method === undefined) {
    const answers = typeof value === 'object' && value !== null && ('result' in value || 'error' in value)
    if (id !== undefined && answers) return { kind: 'answer' }
    throw new RpcError(rpcCodes.invalidRequest, 'Not a JSON-RPC 2.0 request: it has no method')
  }
  return id === undefined ? { kind: 'notification', method, params } : { kind: 'request', id, method, params }
}

export function resultMessage(id: RpcId, result: object): object {
  return { jsonrpc: '2.0', id, result }
}

export function errorMessage(id: RpcId | null, error: RpcError): object {
  const { code, message, data } = error
  return { jsonrpc: '2.0', id, error: { code, message, ...(data === undefined ? {} : { data }) } }
}

export function notificationMessage(method: string, params: object): object {
  return { jsonrpc: '2.0', method, params }
}

/** What the client wants to be told of progress by. */
export function progressTokenOf({ params }: RpcRequest): RpcId | null {
  const meta = params._meta
  if (typeof meta !== 'object' || meta === null) return null
  const token = (meta as Record<string, unknown>).progressToken
  return typeof token === 'string' || typeof token === 'number' ? token : null
}
