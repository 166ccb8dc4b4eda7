import { expect, test } from 'bun:test'
import { interpolate } from './interpolation.ts'

const variables: Record<string, string> = { HOST: 'example.org', EMPTY: '' }
const secrets: Record<string, string> = { KEY: 's3' }
const lookup = (name: string, secret: boolean) => (secret ? secrets[name] : variables[name])

test.each([
  ['$HOST', 'example.org', []],
  [`\${HOST}`, 'example.org', []],
  [`https://\${HOST}/x`, 'https://example.org/x', []],
  ['$secrets.KEY', 's3', []],
  [`\${secrets.KEY}`, 's3', []],
  [`Bearer \${ secrets.KEY }`, 'Bearer s3', []],
  [`\${NONE:eu-lon-1}`, 'eu-lon-1', []],
  ['$secrets.NONE:a:b', 'a:b', []],
  [`\${EMPTY:x}`, '', []],
  [`\${NONE}`, `\${NONE}`, ['NONE']],
  ['$secrets.NONE', '$secrets.NONE', ['NONE']],
  ['echo $HOST', 'echo $HOST', []],
  ['a$', 'a$', []],
  ['$5', '$5', []],
])('%j is read as %j', (text, value, missing) => {
  const told: string[] = []
  expect(interpolate(text, lookup, (name) => told.push(name))).toBe(value)
  expect(told).toEqual(missing)
})
