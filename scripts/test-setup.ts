import fc from 'fast-check'

// Loaded before every test file (bunfig.toml): what a test finds is not to depend on who runs it, or on luck.

/** HUTCH_TEST_SEED tries properties on other cases. */
const seed = Number(process.env.HUTCH_TEST_SEED ?? 20_261_122)

fc.configureGlobal({ seed })
// Files that tests make can be read by everybody where they do not say otherwise.
process.umask(0o022)
