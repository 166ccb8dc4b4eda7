import { expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { refusalCodeOf } from '../lib/test-refusal.ts'
import { type ContractContext, collect } from './runtime.contract-context.ts'

/** What every driver can do with files one by one. */
export function filesContract(context: ContractContext): void {
  const { path, run } = context

  test('a file is written whole and read back, with its parents', async () => {
    const file = `${path()}/deep/er/file.txt`
    const written = await context.instance.guest.files.write(file, Buffer.from('content'))
    expect(written).toMatchObject({ type: 'file', size: 7, mode: 0o644 })
    const read = await context.instance.guest.files.read(file)
    expect(read.entry.size).toBe(7)
    expect(await new Response(read.body).text()).toBe('content')
    const part = await context.instance.guest.files.read(file, { offset: 3, length: 2 })
    expect(await new Response(part.body).text()).toBe('te')
    expect((await run(['cat', file])).stdout).toBe('content')
  })

  test('a large body is streamed both ways', async () => {
    const file = path()
    const chunk = new Uint8Array(100_000).map((_, at) => at % 251)
    let left = 50
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        if (left-- > 0) controller.enqueue(chunk)
        else controller.close()
      },
    })
    expect((await context.instance.guest.files.write(file, body)).size).toBe(5_000_000)
    const back = new Uint8Array(
      await new Response((await context.instance.guest.files.read(file)).body).arrayBuffer(),
    )
    expect(back.length).toBe(5_000_000)
    expect(Buffer.from(back.subarray(4_900_000)).equals(chunk)).toBe(true)
  })

  test('a file is put together of others in their order, whole or not at all', async () => {
    const { files } = context.instance.guest
    const dir = path()
    const large = new Uint8Array(300_000).map((_, at) => at % 251)
    await files.write(`${dir}/large`, large)
    await files.write(`${dir}/end`, Buffer.from('the end'))
    await files.write(`${dir}/none`, new Uint8Array())
    const parts = ['large', 'none', 'end', 'large'].map((name) => `${dir}/${name}`)
    const made = await files.concatenate(parts, `${dir}/new/whole`, { newFileMode: 0o640 })
    expect(made).toMatchObject({ name: 'whole', type: 'file', size: 600_007, mode: 0o640 })
    const content = async (file: string) =>
      Buffer.from(await new Response((await files.read(file)).body).bytes())
    const expected = Buffer.concat([large, Buffer.from('the end'), large])
    expect((await content(`${dir}/new/whole`)).equals(expected)).toBe(true)
    for (const [part, code] of [
      [`${dir}/missing`, 'not_found'],
      [dir, 'conflict'],
    ] as const) {
      const refused = files.concatenate([...parts, part, ...parts], `${dir}/new/whole`)
      expect(await refusalCodeOf(refused)).toBe(code)
    }
    expect((await content(`${dir}/new/whole`)).equals(expected)).toBe(true)
    // Also into one of its own parts.
    expect(await files.concatenate([`${dir}/end`, `${dir}/end`], `${dir}/end`)).toMatchObject({ size: 14 })
    expect((await content(`${dir}/end`)).toString()).toBe('the endthe end')
    const namesIn = async (directory: string) => {
      const names: string[] = []
      for await (const batch of files.list(directory)) names.push(...batch.map(({ name }) => name))
      return names.sort()
    }
    expect(await namesIn(`${dir}/new`)).toEqual(['whole'])
    // And of what is not needed any more.
    expect(
      await files.concatenate([`${dir}/large`, `${dir}/end`], `${dir}/new/whole`, { spend: true }),
    ).toMatchObject({ size: 300_014 })
    expect(await namesIn(dir)).toEqual(['new', 'none'])
    expect(await namesIn(`${dir}/new`)).toEqual(['whole'])
  })

  test("a body may use its memory again for each chunk, and what is read is its reader's", async () => {
    const file = path()
    const expected = Buffer.alloc(20 * 70_000)
    const memory = new Uint8Array(70_000)
    let chunks = 0
    const body = new ReadableStream<Uint8Array>(
      {
        pull(controller) {
          if (chunks === 20) return controller.close()
          expected.set(memory.fill(++chunks), (chunks - 1) * memory.length)
          controller.enqueue(memory)
        },
      },
      { highWaterMark: 0 },
    )
    await context.instance.guest.files.write(file, body)
    for (let round = 0; round < 2; round++) {
      const { body: back } = await context.instance.guest.files.read(file)
      const hash = new Bun.CryptoHasher('sha1')
      for await (const chunk of back) {
        hash.update(chunk)
        chunk.fill(0)
      }
      expect(hash.digest('hex')).toBe(new Bun.CryptoHasher('sha1').update(expected).digest('hex'))
    }
  })

  test('a file that is opened to be sent is the one that was there then, until it is let go of', async () => {
    const { files } = context.instance.guest
    const file = path()
    for (const bytes of [7, 300_000, 20_000_000]) {
      const content = Buffer.alloc(bytes, 'content ')
      await files.write(file, content)
      const opened = (await files.open?.(file)) ?? (await files.read(file))
      await files.write(file, Buffer.from('other'))
      expect(opened.entry).toMatchObject({ type: 'file', size: bytes })
      if ('body' in opened) {
        const read = Buffer.from(await new Response(opened.body).arrayBuffer())
        expect(read.equals(content)).toBe(true)
      } else {
        using handed = opened.file
        expect(handed).toMatchObject({ bytes, revoked: false })
        expect(readFileSync(handed.descriptor).equals(content)).toBe(true)
      }
    }
    expect(await refusalCodeOf(files.open?.(`${file}.none`) ?? files.read(`${file}.none`))).toBe('not_found')
  })

  test('a write that fails midway leaves the old file', async () => {
    const file = path()
    await context.instance.guest.files.write(file, Buffer.from('old'))
    let sent = 0
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        if (sent++ < 3) controller.enqueue(new Uint8Array(300_000))
        else controller.error(new Error('the client went away'))
      },
    })
    await expect(context.instance.guest.files.write(file, body)).rejects.toThrow('the client went away')
    const { body: kept } = await context.instance.guest.files.read(file)
    expect(await new Response(kept).text()).toBe('old')
  })

  test('a read that is cancelled leaves room for the next', async () => {
    const file = path()
    await context.instance.guest.files.write(file, new Uint8Array(8 * 1024 * 1024))
    for (let round = 0; round < 40; round++) {
      const { body } = await context.instance.guest.files.read(file)
      const reader = body.getReader()
      await reader.read()
      await reader.cancel()
    }
    expect((await context.instance.guest.files.stat(file)).size).toBe(8 * 1024 * 1024)
  })

  test('directories are made, listed and removed', async () => {
    const dir = path()
    await context.instance.guest.files.makeDirectory(`${dir}/a/b`, { parents: true })
    await context.instance.guest.files.makeDirectory(`${dir}/a/b`, { parents: true })
    expect(await refusalCodeOf(context.instance.guest.files.makeDirectory(`${dir}/a`))).toBe('already_exists')
    for (let i = 0; i < 300; i++)
      await context.instance.guest.files.write(`${dir}/a/file-${i}`, Buffer.from('x'))
    const names: string[] = []
    for await (const entries of context.instance.guest.files.list(`${dir}/a`))
      names.push(...entries.map(({ name }) => name))
    expect(names.length).toBe(301)
    expect(new Set(names)).toContain('file-299')
    expect(await refusalCodeOf(context.instance.guest.files.remove(dir))).toBe('conflict')
    await context.instance.guest.files.remove(dir, { recursive: true })
    expect(await refusalCodeOf(context.instance.guest.files.stat(dir))).toBe('not_found')
  })

  test('links are told from what they point to, and written through', async () => {
    const [file, link] = [path(), path()]
    await context.instance.guest.files.write(file, Buffer.from('1'))
    await run(['ln', '-s', file, link])
    expect(await context.instance.guest.files.stat(link, { follow: false })).toMatchObject({
      type: 'symlink',
      linkTarget: file,
    })
    expect((await context.instance.guest.files.stat(link)).type).toBe('file')
    await context.instance.guest.files.write(link, Buffer.from('22'))
    expect((await context.instance.guest.files.stat(file)).size).toBe(2)
    expect(await context.instance.guest.files.realPath(link)).toBe(file)
    await context.instance.guest.files.remove(link)
    expect((await context.instance.guest.files.stat(file)).size).toBe(2)
  })

  test('files are renamed and change their mode, which a write keeps', async () => {
    const [from, to] = [path(), path()]
    await context.instance.guest.files.write(from, Buffer.from('x'), { mode: 0o600 })
    await context.instance.guest.files.rename(from, to)
    await context.instance.guest.files.setMode(to, 0o750)
    await context.instance.guest.files.write(to, Buffer.from('y'), { newFileMode: 0o640 })
    expect((await context.instance.guest.files.stat(to)).mode).toBe(0o750)
    expect(await refusalCodeOf(context.instance.guest.files.stat(from))).toBe('not_found')
  })

  test('what cannot be done with a file has its code', async () => {
    const { files } = context.instance.guest
    const dir = path()
    await files.makeDirectory(dir)
    const missing = `${dir}/missing`
    expect(await refusalCodeOf(files.read(missing))).toBe('not_found')
    expect(await refusalCodeOf(files.read(dir))).toBe('conflict')
    expect(await refusalCodeOf(files.write(dir, Buffer.from('x')))).toBe('conflict')
    expect(await refusalCodeOf(files.remove(missing))).toBe('not_found')
    expect(await refusalCodeOf(files.setMode(missing, 0o600))).toBe('not_found')
    expect(await refusalCodeOf(files.realPath(missing))).toBe('not_found')
    expect(await refusalCodeOf(files.stat(`${dir}/nul\0`))).toBe('bad_request')
    expect(await refusalCodeOf(files.stat('relative'))).toBe('bad_request')
    expect(await refusalCodeOf(collect(files.list(missing)))).toBe('not_found')
    await files.write(`${dir}/file`, Buffer.from('x'))
    expect(await refusalCodeOf(files.stat(`${dir}/file/below`))).toBe('conflict')
    expect(await refusalCodeOf(collect(files.list(`${dir}/file`)))).toBe('conflict')
  })

  test('many file operations at once all end', async () => {
    const dir = path()
    const names = Array.from({ length: 200 }, (_, at) => `${dir}/${at}`)
    await Promise.all(names.map((name) => context.instance.guest.files.write(name, Buffer.from(name))))
    const sizes = await Promise.all(
      names.map(async (name) => (await context.instance.guest.files.stat(name)).size),
    )
    expect(sizes).toEqual(names.map((name) => name.length))
  })
}
