/** Below this the collector is quick enough; and nothing of this size is cut from memory that others share. */
const freedBytesMin = 16 * 1024

/**
 * Gives the memory of bytes that are done with back at once. The collector would only look after tens of megabytes of
 * them, which is what a file that passes through would cost. Whoever still holds a view of that memory finds it empty.
 * Of several views that follow each other in one buffer the last one frees it, the others nothing.
 */
export function free(bytes: Uint8Array): void {
  const { buffer, byteOffset, byteLength } = bytes
  if (!(buffer instanceof ArrayBuffer) || buffer.byteLength < freedBytesMin) return
  if (byteOffset + byteLength === buffer.byteLength) buffer.transfer(0)
}
