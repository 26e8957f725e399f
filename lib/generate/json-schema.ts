import type { JsonSchema } from '../text/messages.js'

function kind(value: unknown): string {
  if (value === null) return 'null'
  if (Array.isArray(value)) return 'array'
  return typeof value
}

function hasType(value: unknown, type: unknown): boolean {
  if (type === 'integer') return Number.isInteger(value)
  return kind(value) === type
}

function equal(a: unknown, b: unknown): boolean {
  if (a === b) return true
  if (Array.isArray(a) && Array.isArray(b)) return a.length === b.length && a.every((item, i) => equal(item, b[i]))
  if (kind(a) !== 'object' || kind(b) !== 'object') return false
  const [left, right] = [a as Record<string, unknown>, b as Record<string, unknown>]
  const keys = Object.keys(left)
  return (
    keys.length === Object.keys(right).length &&
    keys.every((key) => Object.hasOwn(right, key) && equal(left[key], right[key]))
  )
}

function pointed(root: JsonSchema, ref: string): unknown {
  if (ref !== '#' && !ref.startsWith('#/')) return undefined
  let node: unknown = root
  for (const part of ref.split('/').slice(1)) {
    const key = decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~')
    if (typeof node !== 'object' || node === null || !Object.hasOwn(node, key)) return undefined
    node = (node as Record<string, unknown>)[key]
  }
  return node
}

/**
 * The first reason why a value does not fit a JSON Schema, or `undefined` when it fits.
 *
 * For tool inputs only: it checks `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`, `items`,
 * `prefixItems`, `minItems`, `maxItems`, `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`, `minLength`,
 * `maxLength`, `pattern`, `anyOf`, `oneOf`, `allOf`, `not` and local `$ref`. Other keywords describe the input to the
 * model and are not checked; a validator such as zod checks everything that it states.
 *
 * @example
 * schemaProblem({ type: 'object', required: ['city'] }, {}) // 'city is missing'
 */
export function schemaProblem(schema: JsonSchema, value: unknown): string | undefined {
  return check(schema, schema, value, 'input', 0)
}

function check(root: JsonSchema, node: unknown, value: unknown, path: string, depth: number): string | undefined {
  if (node === true || node === undefined) return undefined
  if (node === false) return `${path} is not allowed`
  if (typeof node !== 'object' || node === null || Array.isArray(node)) return undefined
  if (depth > 100) return `${path} is nested too deeply`
  const schema = node as Record<string, unknown>
  const next = (inner: unknown, item: unknown, at: string) => check(root, inner, item, at, depth + 1)

  if (typeof schema.$ref === 'string') {
    const problem = next(pointed(root, schema.$ref), value, path)
    if (problem !== undefined) return problem
  }
  const types = Array.isArray(schema.type) ? schema.type : schema.type === undefined ? [] : [schema.type]
  if (types.length > 0 && !types.some((type) => hasType(value, type))) {
    return `${path} must be of type ${types.join(' or ')}, not ${kind(value)}`
  }
  if (Array.isArray(schema.enum) && !schema.enum.some((item) => equal(item, value))) {
    return `${path} must be one of ${schema.enum.map((item) => JSON.stringify(item)).join(', ')}`
  }
  if ('const' in schema && !equal(schema.const, value)) return `${path} must be ${JSON.stringify(schema.const)}`
  return (
    (typeof value === 'number' ? checkNumber(schema, value, path) : undefined) ??
    (typeof value === 'string' ? checkString(schema, value, path) : undefined) ??
    (Array.isArray(value) ? checkArray(schema, value, path, next) : undefined) ??
    (kind(value) === 'object' ? checkObject(schema, value as Record<string, unknown>, path, next) : undefined) ??
    checkCombined(schema, value, path, next)
  )
}

type Next = (schema: unknown, value: unknown, path: string) => string | undefined

function checkNumber(schema: Record<string, unknown>, value: number, path: string): string | undefined {
  const { minimum, maximum, exclusiveMinimum, exclusiveMaximum } = schema
  if (typeof minimum === 'number' && value < minimum) return `${path} must be at least ${minimum}`
  if (typeof maximum === 'number' && value > maximum) return `${path} must be at most ${maximum}`
  if (typeof exclusiveMinimum === 'number' && value <= exclusiveMinimum)
    return `${path} must be above ${exclusiveMinimum}`
  if (typeof exclusiveMaximum === 'number' && value >= exclusiveMaximum)
    return `${path} must be below ${exclusiveMaximum}`
  return undefined
}

function checkString(schema: Record<string, unknown>, value: string, path: string): string | undefined {
  const { minLength, maxLength, pattern } = schema
  const length = [...value].length
  if (typeof minLength === 'number' && length < minLength) return `${path} must have at least ${minLength} characters`
  if (typeof maxLength === 'number' && length > maxLength) return `${path} must have at most ${maxLength} characters`
  if (typeof pattern === 'string' && !new RegExp(pattern, 'u').test(value)) return `${path} must match ${pattern}`
  return undefined
}

function checkArray(schema: Record<string, unknown>, value: unknown[], path: string, next: Next): string | undefined {
  const { minItems, maxItems, items } = schema
  if (typeof minItems === 'number' && value.length < minItems) return `${path} must have at least ${minItems} items`
  if (typeof maxItems === 'number' && value.length > maxItems) return `${path} must have at most ${maxItems} items`
  const prefix: unknown[] = Array.isArray(schema.prefixItems) ? schema.prefixItems : []
  for (const [i, item] of value.entries()) {
    const problem = next(i < prefix.length ? prefix[i] : items, item, `${path}[${i}]`)
    if (problem !== undefined) return problem
  }
  return undefined
}

function checkObject(
  schema: Record<string, unknown>,
  value: Record<string, unknown>,
  path: string,
  next: Next,
): string | undefined {
  const at = (key: string) => (path === 'input' ? key : `${path}.${key}`)
  const properties = kind(schema.properties) === 'object' ? (schema.properties as Record<string, unknown>) : {}
  for (const key of Array.isArray(schema.required) ? schema.required : []) {
    if (!Object.hasOwn(value, key)) return `${at(key)} is missing`
  }
  for (const [key, item] of Object.entries(value)) {
    const known = Object.hasOwn(properties, key)
    const problem = next(known ? properties[key] : schema.additionalProperties, item, at(key))
    if (problem !== undefined) return problem
  }
  return undefined
}

function checkCombined(schema: Record<string, unknown>, value: unknown, path: string, next: Next): string | undefined {
  for (const inner of Array.isArray(schema.allOf) ? schema.allOf : []) {
    const problem = next(inner, value, path)
    if (problem !== undefined) return problem
  }
  if (Array.isArray(schema.anyOf)) {
    const problems = schema.anyOf.map((inner) => next(inner, value, path))
    if (!problems.includes(undefined)) return problems[0] ?? `${path} fits none of the alternatives`
  }
  if (Array.isArray(schema.oneOf)) {
    const problems = schema.oneOf.map((inner) => next(inner, value, path))
    const fitting = problems.filter((problem) => problem === undefined).length
    if (fitting === 0) return problems[0] ?? `${path} fits none of the alternatives`
    if (fitting > 1) return `${path} fits more than one of the alternatives`
  }
  if (schema.not !== undefined && next(schema.not, value, path) === undefined) return `${path} is not allowed`
  return undefined
}
