import { PlatformError } from '../errors.ts'
import { type CatalogueEntry, catalogue, wellKnown } from './catalogue.ts'
import type { ImageRecords, ImageTag } from './records.ts'
import {
  checkResourceType,
  type ImageReference,
  parseReference,
  type ResourceType,
  referenceText,
  tagDefault,
} from './reference.ts'

const field = 'spec.runtime.image'

/** What clients name in `spec.runtime.image`: a well-known name, which is the host image, or a tag that is here. */
export class NamedImages {
  readonly #records: ImageRecords
  /** Whether images of one's own can come here. */
  readonly #able: boolean

  constructor(options: { records: ImageRecords; able: boolean }) {
    this.#records = options.records
    this.#able = options.able
  }

  /** @throws bad_request for a reference that is malformed */
  parse(reference: string): ImageReference {
    return parseReference(reference, field)
  }

  /** The well-known image that is meant; null: another one. @throws bad_request for a tag that none of them has */
  wellKnown(reference: string, parsed: ImageReference): CatalogueEntry | null {
    const entry = parsed.kind === 'catalogue' ? wellKnown(parsed.name) : null
    if (entry === null || parsed.tag === tagDefault) return entry
    throw new PlatformError(
      'bad_request',
      `${field} ${JSON.stringify(reference)}: ${entry.name} has no tag ${JSON.stringify(parsed.tag)}, only "latest"`,
    )
  }

  /** Null when it is not here. */
  async find(workspace: string, reference: ImageReference): Promise<ImageTag | null> {
    if (reference.kind === 'registry') {
      return (await this.#records.findSource(workspace, referenceText(reference)))?.tag ?? null
    }
    const { type, name } = catalogueName(reference.name)
    if (type === null) return null
    const image = await this.#records.get(workspace, type, name)
    return image?.body.tags.find((tag) => tag.name === reference.tag) ?? null
  }

  /** What to tell who names one that is not here: what there is instead, and how others come. */
  async missing(workspace: string, reference: string, parsed: ImageReference): Promise<PlatformError> {
    const shown = JSON.stringify(reference)
    const invalid = (supported: string[]) => ({
      details: {
        code: 'INVALID_IMAGE',
        details: { requested_image: reference, supported_images: supported },
      },
    })
    if (parsed.kind === 'registry') {
      return new PlatformError(
        'not_found',
        `${field} ${shown} was not pulled yet: hutch images pull ${reference}`,
        invalid([]),
      )
    }
    const { type, name } = catalogueName(parsed.name)
    const others = type === null ? [] : ((await this.#records.get(workspace, type, name))?.body.tags ?? [])
    if (others.length > 0) {
      const tags = others.map((tag) => tag.name).join(', ')
      return new PlatformError(
        'bad_request',
        `${field} ${shown} is unknown here. Its tags here: ${tags}`,
        invalid(others.map((tag) => `${type}/${name}:${tag.name}`)),
      )
    }
    const known = catalogue.map((entry) => entry.name).join(', ')
    const hint =
      parsed.name.startsWith('blaxel/') || !this.#able
        ? ''
        : `. Images of one's own come by hutch images import, those of registries by their full name, e.g. docker.io/${parsed.name.includes('/') ? '' : 'library/'}${parsed.name}:${parsed.tag}`
    return new PlatformError(
      'bad_request',
      `${field} ${shown} is unknown here. Known: ${known}${hint}`,
      invalid(catalogue.map((entry) => `${entry.name}:latest`)),
    )
  }
}

/** `sandbox/mine` and, for short, `mine`. */
function catalogueName(name: string): { type: ResourceType | null; name: string } {
  const slash = name.indexOf('/')
  if (slash < 0) return { type: 'sandbox', name }
  try {
    return { type: checkResourceType(name.slice(0, slash), field), name: name.slice(slash + 1) }
  } catch {
    return { type: null, name }
  }
}
