/** Requests of HTTP/1 to servers of this host, whoever wrote them. */
export { type AnswerHead, BadAnswer } from './answer-head.ts'
export type { Call, OutgoingRequest } from './call.ts'
export { Connections, type SendOptions } from './connections.ts'
