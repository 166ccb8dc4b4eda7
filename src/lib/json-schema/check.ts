import { z } from 'zod'
import type { Matcher } from '../patterns/index.ts'

/** Of one check: a schema and a value that are looked at more often than that were made for it. */
const stepsMax = 2_000_000
/** What a step of a pattern's program over one byte counts. */
const patternStepsEach = 1 / 16

/** Of references that lead to references. */
const refsMax = 256
export const shownCharsMax = 60

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json }
export type SchemaObject = { [keyword: string]: Json }

export const types = ['null', 'boolean', 'object', 'array', 'number', 'string', 'integer'] as const
export type TypeName = (typeof types)[number]

/** Of a pattern; `size`: what its program has in instructions. */
export interface PatternMatcher {
  matcher: Matcher
  size: number
}

const formats: Record<string, z.ZodType> = {
  'date-time': z.iso.datetime({ offset: true }),
  date: z.iso.date(),
  email: z.email(),
  uuid: z.guid(),
  uri: z.url(),
  ipv4: z.ipv4(),
  ipv6: z.ipv6(),
}

/** One value held against a schema that was read. */
export class Check {
  readonly #root: SchemaObject | boolean
  readonly #matcherOf: (pattern: string) => PatternMatcher
  #stepsLeft = stepsMax
  /** `$ref`s that were followed without a step into the value: a schema that refers to itself has no end. */
  #refs = 0

  constructor(root: SchemaObject | boolean, matcherOf: (pattern: string) => PatternMatcher) {
    this.#root = root
    this.#matcherOf = matcherOf
  }

  /** What is wrong at `at`; null: nothing. @throws RangeError for what takes too many steps */
  check(schema: Json, value: Json, at: string): string | null {
    this.#step(1)
    if (typeof schema === 'boolean') return schema ? null : `${named(at)} must not be there`
    const rules = schema as SchemaObject
    return (
      this.#reference(rules, value, at) ??
      typeOf(rules, value, at) ??
      this.#choice(rules, value, at) ??
      this.#combined(rules, value, at) ??
      (typeof value === 'string'
        ? this.#text(rules, value, at)
        : typeof value === 'number'
          ? numberRules(rules, value, at)
          : Array.isArray(value)
            ? this.#list(rules, value, at)
            : isObject(value)
              ? this.#object(rules, value, at)
              : null)
    )
  }

  #step(count: number): void {
    this.#stepsLeft -= count
    if (this.#stepsLeft < 0) throw new RangeError('steps')
  }

  #fits(schema: Json, value: Json, at: string): boolean {
    return this.check(schema, value, at) === null
  }

  #reference({ $ref }: SchemaObject, value: Json, at: string): string | null {
    if (typeof $ref !== 'string') return null
    this.#refs++
    if (this.#refs > refsMax) throw new RangeError('references')
    const problem = this.check(resolve(this.#root, $ref) ?? true, value, at)
    this.#refs--
    return problem
  }

  #choice(rules: SchemaObject, value: Json, at: string): string | null {
    if (Array.isArray(rules.enum)) {
      if (!rules.enum.some((one) => this.#equal(one, value))) {
        return `${named(at)} must be one of ${shown(rules.enum)}`
      }
    }
    if (rules.const !== undefined && !this.#equal(rules.const, value)) {
      return `${named(at)} must be ${shown(rules.const)}`
    }
    return null
  }

  #combined(rules: SchemaObject, value: Json, at: string): string | null {
    for (const one of (rules.allOf as Json[] | undefined) ?? []) {
      const problem = this.check(one, value, at)
      if (problem !== null) return problem
    }
    if (rules.anyOf !== undefined) {
      const problems: string[] = []
      for (const one of rules.anyOf as Json[]) {
        const problem = this.check(one, value, at)
        if (problem === null) {
          problems.length = 0
          break
        }
        problems.push(problem)
      }
      // One that came further into the value says more.
      const [first] = problems
      if (first !== undefined) return problems.find((one) => !one.startsWith(`${named(at)} `)) ?? first
    }
    if (rules.oneOf !== undefined) {
      const fitting = (rules.oneOf as Json[]).filter((one) => this.#fits(one, value, at)).length
      if (fitting !== 1) {
        return `${named(at)} must fit exactly one of ${(rules.oneOf as Json[]).length} schemas, and fits ${fitting}`
      }
    }
    if (rules.not !== undefined && this.#fits(rules.not, value, at)) {
      return `${named(at)} must not fit what the schema excludes`
    }
    if (rules.if === undefined) return null
    const next = this.#fits(rules.if, value, at) ? rules.then : rules.else
    return next === undefined ? null : this.check(next, value, at)
  }

  #text(rules: SchemaObject, value: string, at: string): string | null {
    const { minLength, maxLength, pattern, format } = rules
    this.#step(value.length / 256)
    const length = minLength === undefined && maxLength === undefined ? 0 : [...value].length
    if (typeof minLength === 'number' && length < minLength) {
      return `${named(at)} must have at least ${minLength} characters`
    }
    if (typeof maxLength === 'number' && length > maxLength) {
      return `${named(at)} must have at most ${maxLength} characters`
    }
    if (typeof pattern === 'string' && !this.#matches(pattern, value)) {
      return `${named(at)} must match ${pattern.slice(0, shownCharsMax)}`
    }
    const known = typeof format === 'string' && Object.hasOwn(formats, format) ? formats[format] : undefined
    if (known === undefined || value.length > 4096) return null
    return known.safeParse(value).success ? null : `${named(at)} must be a ${format as string}`
  }

  #matches(pattern: string, text: string): boolean {
    const { matcher, size } = this.#matcherOf(pattern)
    this.#step(size * text.length * patternStepsEach)
    return matcher.test(text)
  }

  #list(rules: SchemaObject, value: Json[], at: string): string | null {
    const { minItems, maxItems, uniqueItems, contains } = rules
    if (typeof minItems === 'number' && value.length < minItems) {
      return `${named(at)} must have at least ${minItems} entries`
    }
    if (typeof maxItems === 'number' && value.length > maxItems) {
      return `${named(at)} must have at most ${maxItems} entries`
    }
    const places = (rules.prefixItems ?? (Array.isArray(rules.items) ? rules.items : [])) as Json[]
    const others = Array.isArray(rules.items) ? rules.additionalItems : rules.items
    for (const [index, entry] of value.entries()) {
      const schema = index < places.length ? places[index] : others
      const problem = schema === undefined ? null : this.#inside(schema, entry, `${at}[${index}]`)
      if (problem !== null) return problem
    }
    if (uniqueItems === true) {
      const keys = value.map((entry) => this.#canonical(entry))
      if (new Set(keys).size < keys.length) return `${named(at)} must not have an entry twice`
    }
    if (contains === undefined) return null
    const { minContains = 1, maxContains } = rules
    const count = value.filter((entry) => this.#inside(contains, entry, at) === null).length
    if (count < (minContains as number) || (typeof maxContains === 'number' && count > maxContains)) {
      return `${named(at)} must have ${minContains as number}${maxContains === undefined ? '' : ` to ${maxContains as number}`} entries of a kind, and has ${count}`
    }
    return null
  }

  #object(rules: SchemaObject, value: { [key: string]: Json }, at: string): string | null {
    const names = Object.keys(value)
    const { minProperties, maxProperties, propertyNames, additionalProperties } = rules
    for (const name of isNames(rules.required) ? rules.required : []) {
      if (!Object.hasOwn(value, name)) return `${below(at, name)} must be there`
    }
    if (typeof minProperties === 'number' && names.length < minProperties) {
      return `${named(at)} must have at least ${minProperties} keys`
    }
    if (typeof maxProperties === 'number' && names.length > maxProperties) {
      return `${named(at)} must have at most ${maxProperties} keys`
    }
    const known = (rules.properties ?? {}) as { [name: string]: Json }
    const patterns = Object.entries((rules.patternProperties ?? {}) as { [pattern: string]: Json })
    for (const name of names) {
      const entry = value[name] as Json
      const schemas = patterns.filter(([pattern]) => this.#matches(pattern, name)).map(([, schema]) => schema)
      if (Object.hasOwn(known, name)) schemas.push(known[name] as Json)
      if (schemas.length === 0 && additionalProperties !== undefined) schemas.push(additionalProperties)
      if (propertyNames !== undefined) {
        const problem = this.#inside(propertyNames, name, at)
        if (problem !== null) return `${named(at)} has a key ${shown(name)} that is not allowed`
      }
      for (const schema of schemas) {
        const problem = this.#inside(schema, entry, below(at, name))
        if (problem !== null) return problem
      }
    }
    return this.#dependent(rules, value, at)
  }

  #dependent(rules: SchemaObject, value: { [key: string]: Json }, at: string): string | null {
    const required = isObject(rules.dependentRequired) ? Object.entries(rules.dependentRequired) : []
    for (const [name, others] of required) {
      if (!Object.hasOwn(value, name) || !isNames(others)) continue
      const missing = others.find((other) => !Object.hasOwn(value, other))
      if (missing !== undefined) return `${below(at, missing)} must be there beside ${shown(name)}`
    }
    const schemas = isObject(rules.dependentSchemas) ? Object.entries(rules.dependentSchemas) : []
    for (const [name, schema] of schemas) {
      const problem = Object.hasOwn(value, name) ? this.check(schema, value, at) : null
      if (problem !== null) return problem
    }
    return null
  }

  /** A step into the value: references begin anew. */
  #inside(schema: Json, value: Json, at: string): string | null {
    const refs = this.#refs
    this.#refs = 0
    const problem = this.check(schema, value, at)
    this.#refs = refs
    return problem
  }

  #equal(left: Json, right: Json): boolean {
    if (left === right) return true
    if (typeof left !== 'object' || typeof right !== 'object') return false
    return this.#canonical(left) === this.#canonical(right)
  }

  /** The same text for the same value, whatever the order of its keys. */
  #canonical(value: Json): string {
    this.#step(1)
    if (Array.isArray(value)) return `[${value.map((one) => this.#canonical(one)).join(',')}]`
    if (!isObject(value)) return JSON.stringify(value)
    const keys = Object.keys(value).sort()
    return `{${keys.map((key) => `${JSON.stringify(key)}:${this.#canonical(value[key] as Json)}`).join(',')}}`
  }
}

function typeOf({ type, nullable }: SchemaObject, value: Json, at: string): string | null {
  if (type === undefined || (nullable === true && value === null)) return null
  const wanted = (Array.isArray(type) ? type : [type]) as TypeName[]
  const is: TypeName =
    value === null ? 'null' : Array.isArray(value) ? 'array' : (typeof value as 'object' | 'number')
  if (wanted.includes(is)) return null
  if (is === 'number' && wanted.includes('integer') && Number.isInteger(value)) return null
  return `${named(at)} must be of type ${wanted.join(' or ')}, and is ${is}`
}

function numberRules(rules: SchemaObject, value: number, at: string): string | null {
  const { minimum, maximum, exclusiveMinimum: above, exclusiveMaximum: under, multipleOf } = rules
  // Draft 4 has booleans there.
  const lowest = typeof above === 'number' ? above : above === true ? minimum : undefined
  const highest = typeof under === 'number' ? under : under === true ? maximum : undefined
  if (typeof minimum === 'number' && value < minimum) return `${named(at)} must be at least ${minimum}`
  if (typeof maximum === 'number' && value > maximum) return `${named(at)} must be at most ${maximum}`
  if (typeof lowest === 'number' && value <= lowest) return `${named(at)} must be above ${lowest}`
  if (typeof highest === 'number' && value >= highest) return `${named(at)} must be below ${highest}`
  if (typeof multipleOf === 'number' && multipleOf > 0) {
    const times = value / multipleOf
    // 0.3 is a multiple of 0.1, though not in binary.
    if (Math.abs(times - Math.round(times)) > 1e-9 * Math.max(1, Math.abs(times))) {
      return `${named(at)} must be a multiple of ${multipleOf}`
    }
  }
  return null
}

/** Undefined: there is no such part. */
export function resolve(root: Json, reference: string): Json | undefined {
  if (!reference.startsWith('#')) return undefined
  let found: Json | undefined = root
  for (const part of reference.slice(1).split('/').slice(1)) {
    let key = part
    try {
      key = decodeURIComponent(part)
    } catch {
      // As it stands.
    }
    key = key.replaceAll('~1', '/').replaceAll('~0', '~')
    if (typeof found !== 'object' || found === null || !Object.hasOwn(found, key)) return undefined
    found = (found as { [key: string]: Json })[key]
  }
  const isPointer = reference === '#' || reference.startsWith('#/')
  return isPointer && (typeof found === 'boolean' || isObject(found)) ? found : undefined
}

export function isObject(value: Json | undefined): value is { [key: string]: Json } {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

export function isNames(value: Json | undefined): value is string[] {
  return Array.isArray(value) && value.every((name) => typeof name === 'string')
}

function named(at: string): string {
  return at === '' ? 'it' : at
}

function below(at: string, name: string): string {
  const key = name.slice(0, shownCharsMax)
  return at === '' ? key : `${at}.${key}`
}

function shown(value: Json): string {
  const text = JSON.stringify(value)
  return text.length > shownCharsMax ? `${text.slice(0, shownCharsMax)}...` : text
}
