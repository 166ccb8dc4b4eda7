/** The second door: what tests of programs on this library, and of drivers, need. Never part of the executable. */
export { FakeClock } from './lib/test-clock.ts'
export { type FakeRuntime, type FakeRuntimeOptions, fakeRuntime } from './runtimes/fake/index.ts'
export { runtimeContract } from './spec/runtime.contract.ts'
export { storeContract } from './spec/store.contract.ts'
