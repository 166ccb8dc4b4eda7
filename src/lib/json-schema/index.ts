/**
 * JSON Schema (2020-12, and of draft 7 what is written otherwise) over JSON values. Both may be hostile: patterns run in
 * linear time, everything counts against a budget of steps, and nothing outside the schema is fetched.
 */
import { compileLinePattern, Matcher, PatternError } from '../patterns/index.ts'
import {
  Check,
  isNames,
  isObject,
  type Json,
  type PatternMatcher,
  resolve,
  type SchemaObject,
  shownCharsMax,
  type TypeName,
  types,
} from './check.ts'

const schemaBytesMax = 256 * 1024
const schemaDepthMax = 64
const patternsMax = 256
/** With a message for whoever wrote the schema. */
export class SchemaError extends Error {}

/** Keywords whose value is a schema, a list of them, or schemas by name. */
const withSchema = [
  'additionalProperties',
  'propertyNames',
  'additionalItems',
  'contains',
  'not',
  'if',
  'then',
  'else',
]
const withSchemas = ['allOf', 'anyOf', 'oneOf', 'prefixItems']
const withNamedSchemas = ['properties', 'patternProperties', 'dependentSchemas', '$defs', 'definitions']
/** To leave them out would call values right that are wrong. */
const unsupported = ['unevaluatedProperties', 'unevaluatedItems', '$dynamicRef', '$recursiveRef']
const limits = [
  ...['minLength', 'maxLength', 'minItems', 'maxItems', 'minProperties', 'maxProperties'],
  ...['minContains', 'maxContains', 'minimum', 'maximum', 'multipleOf'],
]

export class JsonSchema {
  readonly #root: SchemaObject | boolean
  readonly #matchers = new Map<string, PatternMatcher>()

  /** @throws SchemaError for what is no schema, or cannot be checked here */
  constructor(schema: unknown) {
    if (Buffer.byteLength(JSON.stringify(schema) ?? '') > schemaBytesMax) {
      throw new SchemaError(`it is larger than ${schemaBytesMax / 1024} KiB`)
    }
    this.#root = schema as SchemaObject | boolean
    this.#read(schema as Json, '', 0)
  }

  /** The first thing that is wrong, as `items[2].name must be a string`; null: nothing is. */
  check(value: unknown): string | null {
    const run = new Check(this.#root, (pattern) => this.#matchers.get(pattern)!)
    try {
      return run.check(this.#root, value as Json, '')
    } catch (error) {
      if (error instanceof RangeError) return 'it takes too long to check'
      throw error
    }
  }

  #read(schema: Json, at: string, depth: number): void {
    const where = at === '' ? 'it' : at
    if (depth > schemaDepthMax) throw new SchemaError(`${where} nests deeper than ${schemaDepthMax} levels`)
    if (typeof schema === 'boolean') return
    if (!isObject(schema)) throw new SchemaError(`${where} must be an object or a boolean`)
    for (const keyword of unsupported) {
      if (schema[keyword] !== undefined) throw new SchemaError(`${at}/${keyword} cannot be checked here`)
    }
    this.#readKeywords(schema, at)
    for (const keyword of withSchema) {
      if (schema[keyword] !== undefined) this.#read(schema[keyword], `${at}/${keyword}`, depth + 1)
    }
    const lists = Array.isArray(schema.items) ? [...withSchemas, 'items'] : withSchemas
    if (schema.items !== undefined && !Array.isArray(schema.items)) {
      this.#read(schema.items, `${at}/items`, depth + 1)
    }
    for (const keyword of lists) {
      const list = schema[keyword]
      if (list === undefined) continue
      if (!Array.isArray(list)) throw new SchemaError(`${at}/${keyword} must be a list`)
      for (const [index, one] of list.entries()) this.#read(one, `${at}/${keyword}/${index}`, depth + 1)
    }
    for (const keyword of withNamedSchemas) {
      const named = schema[keyword]
      if (named === undefined) continue
      if (!isObject(named)) throw new SchemaError(`${at}/${keyword} must be an object`)
      for (const [name, one] of Object.entries(named)) {
        if (keyword === 'patternProperties') this.#compile(name, `${at}/${keyword}`)
        this.#read(one, `${at}/${keyword}/${name.slice(0, shownCharsMax)}`, depth + 1)
      }
    }
  }

  #readKeywords(schema: SchemaObject, at: string): void {
    const { type, $ref, pattern, required, enum: values } = schema
    if (type !== undefined) {
      for (const one of Array.isArray(type) ? type : [type]) {
        if (!types.includes(one as TypeName)) {
          throw new SchemaError(`${at}/type must be one of ${types.join(', ')}`)
        }
      }
    }
    if ($ref !== undefined) {
      if (typeof $ref !== 'string' || resolve(this.#root, $ref) === undefined) {
        throw new SchemaError(`${at}/$ref must name a part of this schema, like "#/$defs/name"`)
      }
    }
    if (pattern !== undefined) {
      if (typeof pattern !== 'string') throw new SchemaError(`${at}/pattern must be text`)
      this.#compile(pattern, `${at}/pattern`)
    }
    if (required !== undefined && !isNames(required) && typeof required !== 'boolean') {
      throw new SchemaError(`${at}/required must be a list of names`)
    }
    if (values !== undefined && !Array.isArray(values)) throw new SchemaError(`${at}/enum must be a list`)
    for (const limit of limits) {
      if (schema[limit] !== undefined && typeof schema[limit] !== 'number') {
        throw new SchemaError(`${at}/${limit} must be a number`)
      }
    }
  }

  #compile(pattern: string, at: string): void {
    if (this.#matchers.has(pattern)) return
    if (this.#matchers.size >= patternsMax) throw new SchemaError(`it has more than ${patternsMax} patterns`)
    try {
      // An empty one fits everything, and is none there.
      const { program } = compileLinePattern(pattern === '' ? '()' : pattern, {
        syntax: 'regex',
        ignoreCase: false,
      })
      this.#matchers.set(pattern, { matcher: new Matcher(program), size: program.code.length })
    } catch (error) {
      if (error instanceof PatternError) throw new SchemaError(`${at}: ${error.message}`)
      throw error
    }
  }
}
