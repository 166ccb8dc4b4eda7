import fc from 'fast-check'

// Loaded before every test file (bunfig.toml): whether properties hold is found out on the same cases everywhere.

/** HUTCH_TEST_SEED looks at others. */
const seed = Number(process.env.HUTCH_TEST_SEED ?? 20_261_122)

fc.configureGlobal({ seed })
