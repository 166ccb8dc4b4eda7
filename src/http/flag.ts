import { z } from 'zod'

/** A parameter of the query that says yes by being there: `?upload`, `?upload=true`, `?upload=1`. */
export const flag = z
  .enum(['true', 'false', '1', '0', ''])
  .transform((text) => text !== 'false' && text !== '0')
  .optional()
