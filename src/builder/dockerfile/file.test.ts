import { expect, test } from 'bun:test'
import { imagesOf } from './file.ts'

const names = (dockerfile: string, buildArgs: Record<string, string> = {}) =>
  imagesOf(dockerfile, buildArgs).map(({ text }) => text)

test('the images of a Dockerfile are those that are no stages of its own', () => {
  const text = `# syntax=docker/dockerfile:1
FROM --platform=linux/amd64 node:22-alpine AS Build
RUN npm ci
FROM build as test
FROM gcr.io/distroless/nodejs
COPY --from=build /app /app
COPY --chown=1:1 --from=0 /a /b
COPY --from=ghcr.io/blaxel-ai/sandbox:latest /sandbox-api /usr/local/bin/sandbox-api
RUN --mount=type=cache,target=/root --mount=type=bind,from=busybox:1,target=/b true --mount=from=no
FROM scratch
`
  expect(names(text)).toEqual([
    'node:22-alpine',
    'gcr.io/distroless/nodejs',
    'ghcr.io/blaxel-ai/sandbox:latest',
    'busybox:1',
  ])
  expect(imagesOf(text, {}).map(({ line }) => line)).toEqual([2, 5, 8, 9])
})

test('variables of images come from ARGs before the first stage, and from what the build is given', () => {
  const text = `ARG BASE=python VERSION
ARG FULL=\${BASE}:\${VERSION:-3.12}-slim
FROM $FULL
ARG BASE=inside
FROM \${BASE}:\${VERSION:+pinned-}$VERSION
`
  expect(names(text, { VERSION: '3.13' })).toEqual(['python:3.13-slim', 'python:pinned-3.13'])
  expect(names(`ARG A="quoted:1"\nFROM \${A}`)).toEqual(['quoted:1'])
  expect(() => names('FROM $NOTHING')).toThrow('line 1 of the Dockerfile: FROM "$NOTHING" names no image')
  expect(() => names('RUN true')).toThrow('no FROM')
})

test('continued lines, comments in them and here-documents are read as the tools read them', () => {
  expect(names('FROM one AS \\\n# a comment\n\n  stage\nFROM stage')).toEqual(['one'])
  expect(names('# escape=`\nFROM `\n  two\nRUN echo \\\nFROM three')).toEqual(['two', 'three'])
  expect(names('FROM a\nRUN <<EOF\nFROM b\nEOF\nRUN cat <<-"END" > x\n\tFROM c\n\tEND\nFROM d\r\n')).toEqual([
    'a',
    'd',
  ])
})

test('a Dockerfile names a bounded number of images', () => {
  const text = Array.from({ length: 51 }, (_, at) => `FROM image:${at}`).join('\n')
  expect(() => names(text)).toThrow('more than 50 images')
})

test('variables made of variables do not grow without end', () => {
  const doubled = Array.from({ length: 40 }, () => 'ARG A=$A$A').join('\n')
  expect(() => names(`ARG A=ab\n${doubled}\nFROM $A`)).toThrow('more than 4096 characters')
  const nested = `ARG A=${'x'.repeat(4000)}\nFROM ${'$A'.repeat(100)}`
  expect(() => names(nested)).toThrow('more than 4096 characters')
})

test('a file made to be slow to read is read in no time to speak of', () => {
  const long = 1024 * 1024 - 100
  for (const line of [
    `COPY ${'--a '.repeat(long / 4)}`,
    `COPY --a${' '.repeat(long)}b`,
    `RUN ${'--mount=a '.repeat(long / 10)}`,
    `ARG ${'A= '.repeat(long / 3)}`,
    `RUN ${'<<A '.repeat(long / 4)}`,
    `RUN ${'x\\\n#\n'.repeat(long / 6)}`,
    `RUN ${' \\\n'.repeat(long / 3)}`,
    `FROM ${'x '.repeat(long / 2)}`,
    `FROM b:${'${A'.repeat(long / 3)}`,
  ])
    expect(() => names(`FROM a\n${line}`)).not.toThrow()
})
