/** Custom domains on the wire. Loose: clients send back whole objects. */
import { z } from 'zod'

export const domainInputSchema = z.lazy(() =>
  z.looseObject({
    metadata: z
      .looseObject({
        name: z.string().nullish(),
        displayName: z.string().nullish(),
        labels: z.record(z.string(), z.union([z.string(), z.number(), z.boolean()])).nullish(),
      })
      .nullish(),
    spec: z
      .looseObject({
        domainType: z.string().nullish(),
        /** As some clients call the same. */
        type: z.string().nullish(),
        region: z.string().nullish(),
      })
      .nullish(),
  }),
)
export type DomainInput = z.output<typeof domainInputSchema>

export const domainStatuses = ['pending', 'verified', 'failed'] as const

export const domainSchema = z.lazy(() =>
  z.object({
    metadata: z.object({
      name: z.string(),
      displayName: z.string().optional(),
      labels: z.record(z.string(), z.string()).optional(),
      workspace: z.string(),
      createdAt: z.string(),
      updatedAt: z.string(),
      createdBy: z.string(),
      updatedBy: z.string(),
    }),
    spec: z.object({
      domainType: z.literal('applications'),
      /** Of the application that the domain itself is of; absent: applications name it among their urls. */
      application: z.string().optional(),
      region: z.string().optional(),
      status: z.enum(domainStatuses),
      /** Name to value, of what shows that the domain is its owner's. */
      txtRecords: z.record(z.string(), z.string()),
      /** What the domain is to lead to; absent where this platform is known by no name outside. */
      cnameRecords: z.string().optional(),
      lastVerifiedAt: z.string().optional(),
      verificationError: z.string().optional(),
    }),
  }),
)
export type DomainView = z.output<typeof domainSchema>
