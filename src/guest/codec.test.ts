import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { readEntries, readEntry, readError, readGuestState, readOutputNotice, readProcess } from './codec.ts'
import {
  type Frame,
  FrameReader,
  FrameTooLargeError,
  FrameType,
  FrameWriter,
  frameHeader,
  frameHeaderBytes,
  framePayloadBytesMax,
  ProtocolError,
  receivedLimits,
} from './frame.ts'
import { PayloadReader } from './payload.ts'

const anyFrames = Object.fromEntries(Object.values(FrameType).map((type) => [type, framePayloadBytesMax]))
const anyType = fc.constantFrom(...Object.values(FrameType))
const u32 = fc.integer({ min: 0, max: 0xffff_ffff })
const u64 = fc.nat({ max: Number.MAX_SAFE_INTEGER })
const anyText = fc.string({ unit: 'binary' }).map((text) => text.replaceAll('\0', '').toWellFormed())

/** Cuts bytes at the given places. */
function cut(bytes: Uint8Array, places: number[]): Uint8Array[] {
  const at = [...new Set(places.map((place) => place % (bytes.length + 1)))].sort((a, b) => a - b)
  return [0, ...at].map((start, index) => bytes.slice(start, at[index] ?? bytes.length))
}

function collect(reader: FrameReader, chunks: Uint8Array[]): Frame[] {
  const frames: Frame[] = []
  for (const chunk of chunks) {
    for (const { type, id, payload } of reader.push(chunk))
      frames.push({ type, id, payload: payload.slice() })
  }
  return frames
}

/** What a decoder of untrusted bytes may do: answer, or throw a ProtocolError. */
function throwsOnlyProtocolErrors(decode: () => unknown) {
  try {
    decode()
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error
  }
}

describe('frames', () => {
  test('come out as they went in, wherever the stream is cut', () => {
    const frame = fc.record({ type: anyType, id: u32, payload: fc.uint8Array({ maxLength: 300 }) })
    fc.assert(
      fc.property(
        fc.array(frame, { maxLength: 8 }),
        fc.array(fc.nat(), { maxLength: 20 }),
        (frames, places) => {
          const bytes = Buffer.concat(
            frames.map(({ type, id, payload }) => new FrameWriter(type, id).raw(payload).finish()),
          )
          expect(collect(new FrameReader(anyFrames), cut(bytes, places))).toEqual(frames)
        },
      ),
    )
  })

  test('frames in pieces give the same bytes, and hold none of them', () => {
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ minLength: 1, maxLength: 300 }), { minLength: 1, maxLength: 8 }),
        fc.array(fc.nat(3000)),
        (payloads, places) => {
          const frames = payloads.map((payload, at) =>
            new FrameWriter(FrameType.data, at).raw(payload).finish(),
          )
          const reader = new FrameReader(anyFrames, FrameType.data)
          const got: Uint8Array[][] = payloads.map(() => [])
          for (const chunk of cut(Buffer.concat([...frames, frameHeader(FrameType.end, 0, 0)]), places)) {
            for (const { type, id, payload } of reader.push(chunk))
              if (type === FrameType.data) got[id]?.push(payload)
            expect(reader.heldBytes).toBeLessThanOrEqual(frameHeaderBytes)
          }
          expect(got.map((pieces) => Uint8Array.from(Buffer.concat(pieces)))).toEqual(payloads)
        },
      ),
    )
  })

  test('a payload that lies whole in its chunk is not copied', () => {
    const chunk = new Uint8Array(new FrameWriter(FrameType.data, 1).raw(new Uint8Array(1000)).finish())
    const [frame] = [...new FrameReader(anyFrames).push(chunk)]
    expect(frame?.payload.buffer).toBe(chunk.buffer)
  })

  test('arbitrary bytes are a protocol error or incomplete, and never held beyond one frame', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...Object.values(receivedLimits)),
        fc.array(fc.uint8Array({ maxLength: 64 }), { maxLength: 10 }),
        (limits, chunks) => {
          const reader = new FrameReader(limits)
          throwsOnlyProtocolErrors(() => collect(reader, chunks))
          expect(reader.heldBytes).toBeLessThanOrEqual(frameHeaderBytes + framePayloadBytesMax)
        },
      ),
      { numRuns: 500 },
    )
  })

  test('a frame that announces too much is refused at its header', () => {
    const reader = new FrameReader(receivedLimits.control)
    expect(() => collect(reader, [frameHeader(FrameType.exit, 1, 38)])).toThrow(ProtocolError)
    expect(() =>
      collect(new FrameReader(anyFrames), [frameHeader(FrameType.data, 1, framePayloadBytesMax + 1)]),
    ).toThrow(ProtocolError)
  })

  test('a type that has no place on a connection is refused', () => {
    for (const [limits, type] of [
      [receivedLimits.control, FrameType.data],
      [receivedLimits.files, FrameType.exit],
      [receivedLimits.keeper, FrameType.spawn],
      [receivedLimits.files, 255],
    ] as const) {
      expect(() => collect(new FrameReader(limits), [frameHeader(type as FrameType, 1, 0)])).toThrow(
        ProtocolError,
      )
    }
  })

  test('reserved bytes have to be zero', () => {
    for (const at of [5, 6, 7]) {
      const header = frameHeader(FrameType.ok, 1, 0)
      header[at] = 1
      expect(() => collect(new FrameReader(anyFrames), [header])).toThrow(ProtocolError)
    }
  })

  test('what does not fit a frame is refused when it is made', () => {
    const bytes = new Uint8Array(framePayloadBytesMax)
    expect(new FrameWriter(FrameType.data, 1).raw(bytes).finish().length).toBe(
      frameHeaderBytes + bytes.length,
    )
    expect(() => new FrameWriter(FrameType.data, 1).raw(bytes).u8(1)).toThrow(FrameTooLargeError)
  })
})

describe('payloads', () => {
  const payloadOf = (fill: (writer: FrameWriter) => FrameWriter) =>
    fill(new FrameWriter(FrameType.data, 0)).finish().subarray(frameHeaderBytes)

  test('fields come out as they went in', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 255 }),
        fc.integer({ min: 0, max: 65_535 }),
        u32,
        u64,
        anyText,
        fc.array(anyText, { maxLength: 5 }),
        fc.uint8Array({ maxLength: 20 }),
        (a, b, c, d, text, list, rest) => {
          const payload = payloadOf((writer) =>
            writer.u8(a).u16(b).u32(c).u64(d).str(text).strings(list).raw(rest),
          )
          const reader = new PayloadReader(payload)
          expect([reader.u8(), reader.u16(), reader.u32(), reader.u64(), reader.str()]).toEqual([
            a,
            b,
            c,
            d,
            text,
          ])
          expect(reader.list(4, (item) => item.str())).toEqual(list)
          expect(reader.rest()).toEqual(rest)
          reader.end()
        },
      ),
    )
  })

  test('arbitrary bytes never make a decoder throw anything else, or read beyond them', () => {
    const decoders = [readProcess, readEntry, readEntries, readError, readOutputNotice, readGuestState]
    fc.assert(
      fc.property(fc.constantFrom(...decoders), fc.uint8Array({ maxLength: 120 }), (decode, bytes) => {
        throwsOnlyProtocolErrors(() => decode(bytes))
        // In the middle of a larger buffer the answer is the same: nothing behind the payload counts.
        const larger = new Uint8Array(bytes.length + 64).fill(0xaa)
        larger.set(bytes, 32)
        const answer = (payload: Uint8Array) => {
          try {
            return JSON.stringify(decode(payload))
          } catch (error) {
            return String(error)
          }
        }
        expect(answer(larger.subarray(32, 32 + bytes.length))).toBe(answer(bytes))
      }),
      { numRuns: 2000 },
    )
  })

  test('every cut of a good payload, and every byte too many, is refused', () => {
    const payload = payloadOf((writer) => writer.u32(1).u32(2).u8(2).u32(0).u64(3).u64(4).u64(5))
    expect(readProcess(payload)).toMatchObject({ id: 1, pid: 2, state: 'exited', endOffset: 5 })
    for (let length = 0; length < payload.length; length++) {
      expect(() => readProcess(payload.subarray(0, length))).toThrow(ProtocolError)
    }
    expect(() => readProcess(Buffer.concat([payload, new Uint8Array(1)]))).toThrow(ProtocolError)
  })

  test('a list cannot announce more items than its bytes can hold', () => {
    expect(() => readEntries(payloadOf((writer) => writer.u32(0xffff_ffff)))).toThrow(ProtocolError)
  })

  const entry = (
    name: string,
    more: { type?: string; mode?: number; size?: bigint; modified?: bigint } = {},
  ) =>
    payloadOf((writer) =>
      writer
        .u32(1)
        .u8((more.type ?? 'f').charCodeAt(0))
        .u32(more.mode ?? 0o644)
        .u32(0)
        .u32(0)
        .u64(more.size ?? 0n)
        .u64(more.modified ?? 0n)
        .u32(1)
        .str(name)
        .str(''),
    )

  test('a directory entry cannot have a name that leads elsewhere', () => {
    expect(readEntries(entry('fine'))[0]?.name).toBe('fine')
    for (const name of ['', '.', '..', 'a/b', '../etc'])
      expect(() => readEntries(entry(name))).toThrow(ProtocolError)
  })

  test('a type or a mode that does not exist is refused', () => {
    expect(() => readEntries(entry('x', { type: 'z' }))).toThrow(ProtocolError)
    expect(() => readEntries(entry('x', { mode: 0o100644 }))).toThrow(ProtocolError)
  })

  test('a size or a time that no number holds is cut, for a sandbox may set it', () => {
    const [read] = readEntries(entry('x', { size: 2n ** 64n - 1n, modified: 2n ** 62n }))
    expect(read?.size).toBe(Number.MAX_SAFE_INTEGER)
    expect(new Date(read?.modifiedMs ?? Number.NaN).toISOString()).toBeString()
  })

  test('a string with NUL is refused', () => {
    expect(() => new PayloadReader(payloadOf((writer) => writer.u32(2).u16(0))).str()).toThrow(ProtocolError)
  })
})
