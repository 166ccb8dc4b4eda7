export { StdioProbes } from './probe.ts'
export { messageBytesMax, StdioServer } from './server.ts'
