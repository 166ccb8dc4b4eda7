import type { GuestFiles } from '../spec/guest.ts'

/** Larger ones are not what an image or the guest wrote. */
const fileBytesMax = 4096
const linePattern = /^127\.0\.1\.1\s/

/**
 * Puts the name of a new machine where the files it came with have that of another. What was changed inside stays, and
 * what cannot be read or written is left alone: a name is not worth a sandbox.
 */
export async function giveName(files: GuestFiles, names: { from: string; to: string }): Promise<void> {
  const { from, to } = names
  if (from === to) return
  await change(files, '/etc/hostname', (text) => (text === `${from}\n` ? `${to}\n` : text))
  await change(files, '/etc/hosts', (text) =>
    text
      .split('\n')
      .map((line) => (linePattern.test(line) && line.split(/\s+/)[1] === from ? `127.0.1.1 ${to}` : line))
      .join('\n'),
  )
}

async function change(files: GuestFiles, path: string, edit: (text: string) => string): Promise<void> {
  try {
    const found = await files.stat(path, { follow: false })
    if (found.type !== 'file' || found.size > fileBytesMax) return
    const { body } = await files.read(path, { length: fileBytesMax })
    const text = await new Response(body).text()
    const edited = edit(text)
    if (edited !== text) await files.write(path, Buffer.from(edited))
  } catch {
    // As it is, then.
  }
}
