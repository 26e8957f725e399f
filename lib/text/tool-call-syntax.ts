import type { JsonSchema, ToolSpec } from './messages.js'
import { notALiteral, parsePythonLiteral } from './python-literal.js'

/** A call as it stands between `<tool_call>` and `</tool_call>`, its values converted. */
export interface ParsedCall {
  readonly name: string
  readonly input: Record<string, unknown>
}

const functionOpen = '<function='
const functionClose = '</function>'
const parameterOpen = '<parameter='
const parameterClose = '</parameter>'

/** Whether a body that has begun so is a tool call's: undefined while it is too short to tell. */
export function beginsToolCall(body: string): boolean | undefined {
  const start = body.trimStart()
  if (start.startsWith(functionOpen)) return true
  return functionOpen.startsWith(start) ? undefined : false
}

/**
 * Parses the body of a tool call in the XML form of the family: `<function=NAME>`, then `<parameter=ARG>`, value and
 * `</parameter>` any number of times, then `</function>`; one newline on either side of a value belongs to the tags.
 *
 * @returns the calls, usually one, or nothing when the body is malformed
 */
export function parseToolCall(body: string, tools: readonly ToolSpec[]): ParsedCall[] | undefined {
  const calls: ParsedCall[] = []
  let at = skipSpace(body, 0)
  while (at < body.length) {
    const head = readName(body, at, functionOpen)
    if (head === undefined) return undefined
    const schema = tools.find((tool) => tool.name === head.name)?.parameters
    const input: [string, unknown][] = []
    at = skipSpace(body, head.end)
    while (!body.startsWith(functionClose, at)) {
      const parameter = readName(body, at, parameterOpen)
      const end = parameter === undefined ? -1 : endOfValue(body, parameter.end)
      if (parameter === undefined || end < 0) return undefined
      const text = body
        .slice(parameter.end, end)
        .replace(/^\r?\n/, '')
        .replace(/\r?\n$/, '')
      input.push([parameter.name, convertArgument(text, propertyOf(schema, parameter.name), schema)])
      at = skipSpace(body, end + parameterClose.length)
    }
    calls.push({ name: head.name, input: Object.fromEntries(input) })
    at = skipSpace(body, at + functionClose.length)
  }
  return calls.length === 0 ? undefined : calls
}

function skipSpace(text: string, at: number): number {
  let end = at
  while (end < text.length && /\s/.test(text[end] as string)) end++
  return end
}

function readName(text: string, at: number, open: string): { name: string; end: number } | undefined {
  if (!text.startsWith(open, at)) return undefined
  const close = text.indexOf('>', at)
  const name = close < 0 ? '' : text.slice(at + open.length, close).trim()
  return name === '' || /[\n<]/.test(name) ? undefined : { name, end: close + 1 }
}

// A value may itself speak of `</parameter>`: the one that ends it is followed by the next parameter or the end of the call.
function endOfValue(body: string, start: number): number {
  for (let end = body.indexOf(parameterClose, start); end >= 0; end = body.indexOf(parameterClose, end + 1)) {
    const next = skipSpace(body, end + parameterClose.length)
    if (body.startsWith(parameterOpen, next) || body.startsWith(functionClose, next)) return end
  }
  return -1
}

function propertyOf(schema: JsonSchema | undefined, name: string): unknown {
  const properties = schema?.properties
  if (!isObject(properties)) return undefined
  return Object.hasOwn(properties, name) ? properties[name] : schema?.additionalProperties
}

/**
 * Converts an argument by its schema. A string stays as it is; other types are read as JSON or as Python literals; what does
 * not fit any of the schema's types stays a string, for the tool's own validation to refuse. Without a type, only objects and
 * arrays are converted.
 */
export function convertArgument(text: string, schema: unknown, root: JsonSchema | undefined): unknown {
  const types = new Set<string>()
  collectTypes(schema, root, types, 0)
  if (types.has('string') && types.size === 1) return text
  const value = parsePythonLiteral(text.trim())
  if (value === notALiteral || (typeof value === 'number' && !fitsNumber(value))) return text
  const type = typeOf(value)
  const fits =
    types.size === 0
      ? type === 'object' || type === 'array'
      : types.has(type) || (type === 'integer' && types.has('number'))
  return fits ? value : text
}

// Digits beyond 2^53 would change silently.
function fitsNumber(value: number): boolean {
  return Number.isFinite(value) && (!Number.isInteger(value) || Number.isSafeInteger(value))
}

function typeOf(value: unknown): string {
  if (value === null) return 'null'
  if (Array.isArray(value)) return 'array'
  return Number.isInteger(value) ? 'integer' : typeof value
}

/** The types that a schema allows, through unions, enumerations and references; none when it does not say. */
function collectTypes(schema: unknown, root: JsonSchema | undefined, types: Set<string>, depth: number): void {
  if (!isObject(schema) || depth > 16) return
  const { type, nullable } = schema
  for (const name of Array.isArray(type) ? type : [type]) if (typeof name === 'string') types.add(name)
  if (nullable === true) types.add('null')
  if (type === undefined && Array.isArray(schema.enum)) for (const value of schema.enum) types.add(typeOf(value))
  if (type === undefined && Object.hasOwn(schema, 'const')) types.add(typeOf(schema.const))
  for (const keyword of ['anyOf', 'oneOf', 'allOf']) {
    const branches = schema[keyword]
    if (Array.isArray(branches)) for (const branch of branches) collectTypes(branch, root, types, depth + 1)
  }
  if (typeof schema.$ref === 'string') collectTypes(resolve(schema.$ref, root), root, types, depth + 1)
}

function resolve(reference: string, root: JsonSchema | undefined): unknown {
  if (!reference.startsWith('#/')) return undefined
  let value: unknown = root
  for (const part of reference.slice(2).split('/')) {
    const key = part.replaceAll('~1', '/').replaceAll('~0', '~')
    value = isObject(value) && Object.hasOwn(value, key) ? value[key] : undefined
  }
  return value
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
