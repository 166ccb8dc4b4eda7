/**
 * The layers seam: directory trees of image layers on the host's disk. Their names, links and modes come from strangers'
 * archives, so the platform's own process never follows a path of one; the driver writes and removes them confined.
 *
 * Names are bytes on Linux, of no particular encoding. Paths and link targets here are strings of one byte a
 * character (latin1), relative to the tree, without `.`, `..` and empty names; '' is the tree itself.
 */
export interface Layers {
  /** Starts to write a tree into an empty directory of the host. @throws unavailable when the host cannot confine it */
  open(directory: string): Promise<LayerSink>

  /** Takes everything out of a directory, which stays. Idempotent. */
  empty(directory: string): Promise<void>
}

export interface LayerAttributes {
  /** Permission bits, 0..07777. */
  mode: number
  uid: number
  gid: number
  modifiedNs: bigint
}

export type LayerEntry =
  | ({ type: 'directory' | 'fifo'; path: string } & LayerAttributes)
  /** Its bytes follow as `data`; where there are none it has zeros. */
  | ({ type: 'file'; path: string; size: number } & LayerAttributes)
  | ({ type: 'symlink'; path: string; target: string } & LayerAttributes)
  /** Another name of what stands at `target` in this layer. */
  | { type: 'link'; path: string; target: string }
  /** `path` of the layers below is not there. */
  | { type: 'whiteout'; path: string }
  /** Nothing that the layers below have in this directory is there. */
  | { type: 'opaque'; path: string }

/** Entries come in the archive's order; a later one of the same path wins. Missing parents are made, 0755. */
export interface LayerSink extends AsyncDisposable {
  entry(entry: LayerEntry): void
  /** Of the last file. */
  data(offset: number, bytes: Uint8Array): void
  /** Of the last file or directory: its attributes, which writing changes, and its extended attributes. */
  complete(attributes: LayerAttributes, xattrs: readonly (readonly [name: string, value: Uint8Array])[]): void
  /** Of a directory, after everything was made in it. */
  modified(path: string, modifiedNs: bigint): void
  /** Resolves when more can be taken. @throws unprocessable for an entry that cannot be, insufficient_storage, unavailable */
  drained(): Promise<void>
  /** Resolves when the tree is durable. Without it, disposing leaves a part. */
  finish(): Promise<void>
}

export const layerPathBytesMax = 3072
export const layerNameBytesMax = 255
export const layerLinkBytesMax = 4095
export const layerXattrBytesMax = 64 * 1024
