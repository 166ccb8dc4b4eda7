/** The library door: a platform in one's own process. */
export type { Config } from './config.ts'
export { type ErrorCode, errorTable, PlatformError } from './errors.ts'
export type { Clock } from './lib/clock.ts'
export type { Logger } from './lib/log.ts'
export { createPlatform, type Platform, type PlatformOptions } from './platform.ts'
export type * from './spec/runtime.ts'
export type * from './spec/store.ts'
