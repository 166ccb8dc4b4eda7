import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { z } from 'zod'
import { JsonSchema, SchemaError } from './index.ts'

const problem = (schema: unknown, value: unknown) => new JsonSchema(schema).check(value)
const refusal = (schema: unknown) => {
  try {
    new JsonSchema(schema)
    return ''
  } catch (error) {
    if (error instanceof SchemaError) return error.message
    throw error
  }
}

describe('what a value must be', () => {
  const person = {
    type: 'object',
    properties: {
      name: { type: 'string', minLength: 1 },
      age: { type: 'integer', minimum: 0 },
      tags: { type: 'array', items: { type: 'string' }, uniqueItems: true },
    },
    required: ['name'],
    additionalProperties: false,
  }

  test('is said by the field that is wrong', () => {
    expect(problem(person, { name: 'Ada', age: 36, tags: ['a', 'b'] })).toBeNull()
    expect(problem(person, { age: 3 })).toBe('name must be there')
    expect(problem(person, { name: '' })).toBe('name must have at least 1 characters')
    expect(problem(person, { name: 'Ada', age: 1.5 })).toBe('age must be of type integer, and is number')
    expect(problem(person, { name: 'Ada', tags: ['a', 3] })).toBe(
      'tags[1] must be of type string, and is number',
    )
    expect(problem(person, { name: 'Ada', tags: ['a', 'a'] })).toBe('tags must not have an entry twice')
    expect(problem(person, { name: 'Ada', more: 1 })).toBe('more must not be there')
    expect(problem(person, 'Ada')).toBe('it must be of type object, and is string')
  })

  test('is said of a choice by the branch that came furthest', () => {
    const schema = { anyOf: [{ type: 'null' }, { type: 'object', properties: { at: { type: 'string' } } }] }
    expect(problem(schema, null)).toBeNull()
    expect(problem(schema, { at: 1 })).toBe('at must be of type string, and is number')
    expect(problem({ oneOf: [{ minimum: 1 }, { maximum: 3 }] }, 2)).toContain('fits 2')
    expect(problem({ not: { type: 'string' } }, 'x')).toContain('must not fit')
    expect(problem({ enum: ['a', { b: 1 }] }, { b: 1 })).toBeNull()
    expect(problem({ enum: ['a', 'b'] }, 'c')).toBe('it must be one of ["a","b"]')
  })

  test('may be of a part that is named elsewhere, also of itself', () => {
    const tree = {
      $ref: '#/$defs/node',
      $defs: {
        node: {
          type: 'object',
          properties: {
            value: { type: 'number' },
            next: { anyOf: [{ $ref: '#/$defs/node' }, { type: 'null' }] },
          },
          required: ['value'],
        },
      },
    }
    expect(problem(tree, { value: 1, next: { value: 2, next: null } })).toBeNull()
    expect(problem(tree, { value: 1, next: { value: 'x' } })).toContain('next.value must be of type number')
  })

  test('depends on the rest of it', () => {
    const schema = JSON.parse(`{
      "if": { "properties": { "kind": { "const": "circle" } } },
      "then": { "required": ["radius"] },
      "else": { "required": ["width"] },
      "dependentRequired": { "width": ["height"] }
    }`)
    expect(problem(schema, { kind: 'circle', radius: 1 })).toBeNull()
    expect(problem(schema, { kind: 'circle' })).toBe('radius must be there')
    expect(problem(schema, { kind: 'box', width: 1 })).toBe('height must be there beside "width"')
  })

  test('is a matter of formats and patterns too', () => {
    expect(problem({ type: 'string', format: 'date' }, '2026-11-23')).toBeNull()
    expect(problem({ type: 'string', format: 'date' }, 'tomorrow')).toBe('it must be a date')
    for (const format of ['of-our-own', 'constructor', '__proto__'])
      expect(problem({ type: 'string', format }, 'x')).toBeNull()
    expect(problem({ pattern: '^[a-z]+$' }, 'abc')).toBeNull()
    expect(problem({ pattern: '^[a-z]+$' }, 'ab1')).toBe('it must match ^[a-z]+$')
    expect(problem({ patternProperties: { '^x-': { type: 'number' } } }, { 'x-a': 'no' })).toContain('x-a')
    expect(
      problem({ prefixItems: [{ type: 'string' }], items: { type: 'number' } }, ['a', 1, 'b']),
    ).toContain('[2]')
    expect(problem({ contains: { const: 1 }, maxContains: 1 }, [1, 1])).toContain('has 2')
    expect(problem({ type: 'number', multipleOf: 0.1 }, 0.3)).toBeNull()
    expect(problem({ type: 'number', exclusiveMaximum: 3 }, 3)).toBe('it must be below 3')
  })
})

describe('a schema is refused', () => {
  test('with the part that is wrong', () => {
    expect(refusal({ type: 'text' })).toContain('/type must be one of')
    expect(refusal({ properties: { a: { $ref: 'https://example.com/schema' } } })).toContain(
      '/properties/a/$ref',
    )
    expect(refusal({ $ref: '#/$defs/missing' })).toContain('$ref')
    expect(refusal({ pattern: '(' })).toContain('/pattern')
    expect(refusal({ unevaluatedProperties: false })).toContain('cannot be checked')
    expect(refusal(null)).toContain('must be an object')
    expect(refusal({ minLength: 'one' })).toContain('/minLength must be a number')
  })

  test('never for being slow: what was made to take long is answered', () => {
    const text = `${'a'.repeat(5_000)}!`
    expect(problem({ pattern: '^(a+)+$' }, text)).toContain('must match')
    const doubling = {
      $ref: '#/$defs/n',
      $defs: {
        n: {
          anyOf: [
            { properties: { c: { $ref: '#/$defs/n' } }, required: ['x'] },
            { properties: { c: { $ref: '#/$defs/n' } }, required: ['y'] },
          ],
        },
      },
    }
    let deep: object = {}
    for (let level = 0; level < 60; level++) deep = { c: deep, z: 1 }
    expect(problem(doubling, deep)).not.toBeNull()
    expect(problem({ $ref: '#' }, 1)).toBe('it takes too long to check')
  })
})

test('values are found right and wrong as by the library of schemas', () => {
  const value = fc.jsonValue({ maxDepth: 3, noUnicodeString: true } as never)
  const { schema } = fc.letrec<{ schema: unknown }>((tie) => ({
    schema: fc.oneof(
      { depthSize: 'small', withCrossShrink: true },
      fc.constantFrom(
        { type: 'string' },
        { type: 'number' },
        { type: 'boolean' },
        { type: 'null' },
        { type: 'string', minLength: 2, maxLength: 4 },
        { type: 'integer', minimum: 0, maximum: 10 },
        { enum: ['a', 'b', 1] },
        { const: true },
      ),
      fc.record({ type: fc.constant('array'), items: tie('schema'), minItems: fc.nat(2) }),
      fc.record({
        type: fc.constant('object'),
        properties: fc.record({ a: tie('schema'), b: tie('schema') }),
        required: fc.constantFrom([], ['a'], ['a', 'b']),
        additionalProperties: fc.boolean(),
      }),
      fc.record({ anyOf: fc.array(tie('schema'), { minLength: 1, maxLength: 3 }) }),
    ),
  }))
  fc.assert(
    fc.property(schema, fc.oneof(value, fc.record({ a: value, b: value }), fc.array(value)), (given, one) => {
      const theirs = z.fromJSONSchema(given as never).safeParse(one).success
      expect(problem(given, one) === null).toBe(theirs)
    }),
    { numRuns: 500, seed: Number(process.env.HUTCH_TEST_SEED ?? 7) },
  )
})
