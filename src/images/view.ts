import { z } from 'zod'
import { buildEventTypes } from '../lib/build-event-types.ts'
import type { ImageTag, StoredImage } from './records.ts'

const imageStatuses = ['BUILDING', 'BUILT', 'FAILED'] as const
export type ImageStatus = (typeof imageStatuses)[number]

export const tagSchema = z.lazy(() =>
  z.object({
    name: z.string(),
    size: z.number(),
    createdAt: z.string(),
    updatedAt: z.string(),
  }),
)

export const imageViewSchema = z.lazy(() =>
  z.object({
    metadata: z.object({
      name: z.string(),
      displayName: z.string(),
      resourceType: z.string(),
      workspace: z.string(),
      createdAt: z.string().optional(),
      updatedAt: z.string().optional(),
      /** Of an image that is another workspace's, and shared with this one. */
      sourceWorkspace: z.string().optional(),
      status: z.enum(imageStatuses),
      events: z
        .array(
          z.object({
            time: z.string(),
            type: z.string(),
            status: z.string(),
            message: z.string(),
            /** Which one it is about, where that is known. */
            tag: z.string().optional(),
          }),
        )
        .optional(),
    }),
    spec: z.object({ size: z.number(), tagCount: z.number(), tags: z.array(tagSchema) }),
  }),
)
export type ImageView = z.output<typeof imageViewSchema>

/** What goes on with an image, or went on last. */
export interface ImageTransfer {
  status: ImageStatus
  message: string
  tag: string
  at: number
}

export interface ImageName {
  workspace: string
  type: string
  name: string
}

/** An image as it is answered: `image` null while its first pull is under way. */
export function imageView(
  { workspace, type, name }: ImageName,
  image: StoredImage | null,
  transfer: ImageTransfer | null,
): ImageView {
  const tags = image?.body.tags ?? []
  const from = tags.every((tag) => tag.sharedFrom) ? tags[0]?.sharedFrom?.workspace : undefined
  return {
    metadata: {
      name,
      displayName: `${workspace}/${type}/${name}`,
      resourceType: type,
      workspace,
      ...(image ? { createdAt: iso(image.createdAt), updatedAt: iso(image.updatedAt) } : {}),
      ...(from === undefined ? {} : { sourceWorkspace: from }),
      status: transfer?.status ?? 'BUILT',
      ...(transfer
        ? {
            events: [
              {
                time: iso(transfer.at),
                type: transfer.status === 'FAILED' ? buildEventTypes.failed : 'pull',
                status: transfer.status,
                message: transfer.message,
                tag: transfer.tag,
              },
            ],
          }
        : {}),
    },
    spec: {
      size: tags.reduce((sum, tag) => sum + tag.bytes, 0),
      tagCount: tags.length,
      tags: tags.map(tagView),
    },
  }
}

function tagView(tag: ImageTag) {
  return { name: tag.name, size: tag.bytes, createdAt: iso(tag.createdAt), updatedAt: iso(tag.updatedAt) }
}

function iso(ms: number): string {
  return new Date(ms).toISOString()
}
