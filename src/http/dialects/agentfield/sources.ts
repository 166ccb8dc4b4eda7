/** Calls that were accepted here. */
export const runSource = 'agentfield'
/** Calls that programs make within themselves, and tell of. */
export const innerSource = 'agentfield-inner'
