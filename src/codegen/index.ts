export { Codegen } from './codegen.ts'
