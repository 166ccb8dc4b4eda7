export { Codegen, type CodegenOptions, type Edited } from './codegen.ts'
export type { CodegenProvider, RankedFile } from './providers.ts'
