import { Environment, type TemplateValue } from './jinja.js'

type Make<T> = new (value: T) => TemplateValue
const classOf = <T>(value: unknown) => new Environment().set('value', value).constructor as Make<T>

const StringValue = classOf<string>('')
const ArrayValue = classOf<TemplateValue[]>([])
const BooleanValue = classOf<boolean>(true)
const IntegerValue = classOf<number>(0)
const UndefinedValue = classOf<undefined>(undefined)

/** Makers of template values. */
export const make = {
  string: (value: string): TemplateValue => new StringValue(value),
  array: (value: TemplateValue[]): TemplateValue => new ArrayValue(value),
  boolean: (value: boolean): TemplateValue => new BooleanValue(value),
  integer: (value: number): TemplateValue => new IntegerValue(value),
  undefined: (): TemplateValue => new UndefinedValue(undefined),
}

/** Whether a value is a str. */
export function isString(value: TemplateValue): value is TemplateValue & { readonly value: string } {
  return value.type === 'StringValue'
}

/** Whether a value is a list or a tuple. */
export function isList(value: TemplateValue): value is TemplateValue & { readonly value: TemplateValue[] } {
  return value.type === 'ArrayValue' || value.type === 'TupleValue'
}

/** Whether a value is a dict. */
export function isMapping(
  value: TemplateValue,
): value is TemplateValue & { readonly value: Map<string, TemplateValue> } {
  return value.type === 'ObjectValue' || value.type === 'KeywordArgumentsValue'
}

/**
 * Python's `str()`, in which Jinja2 prints values and joins them with `~`: `True`, `None`, `['a', 1.0]`, `{'k': True}`.
 *
 * @param mark a character that `repr` must not escape (see literals.ts)
 */
export function pythonStr(value: TemplateValue, mark: string): string {
  if (isString(value)) return value.value
  if (value.type === 'UndefinedValue') return ''
  return pythonRepr(value, mark)
}

function pythonRepr(value: TemplateValue, mark: string): string {
  if (isString(value)) return reprOfString(value.value, mark)
  if (isList(value)) {
    const items = value.value.map((item) => pythonRepr(item, mark))
    if (value.type === 'ArrayValue') return `[${items.join(', ')}]`
    return items.length === 1 ? `(${items[0]},)` : `(${items.join(', ')})`
  }
  if (isMapping(value)) {
    const entries = [...value.value].map(([key, item]) => `${reprOfString(key, mark)}: ${pythonRepr(item, mark)}`)
    return `{${entries.join(', ')}}`
  }
  switch (value.type) {
    case 'BooleanValue':
      return value.value ? 'True' : 'False'
    case 'NullValue':
      return 'None'
    case 'UndefinedValue':
      return 'Undefined'
    case 'IntegerValue':
      return integer(value.value as number)
    case 'FloatValue':
      return pythonFloat(value.value as number)
    default:
      throw new TypeError(`${value.type} has no text form`)
  }
}

// Every separator and every control, format, unassigned or surrogate code point is escaped by Python, save the space.
const unprintable = /[\p{C}\p{Z}]/u

function reprOfString(text: string, mark: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'"
  let out = quote
  for (const character of text) {
    if (character === '\\' || character === quote) out += `\\${character}`
    else if (character === '\n') out += '\\n'
    else if (character === '\r') out += '\\r'
    else if (character === '\t') out += '\\t'
    else if (character === ' ' || character === mark || !unprintable.test(character)) out += character
    else out += escapedCodePoint(character.codePointAt(0) as number)
  }
  return out + quote
}

function escapedCodePoint(code: number): string {
  const hex = code.toString(16)
  if (code < 0x100) return `\\x${hex.padStart(2, '0')}`
  return code < 0x10000 ? `\\u${hex.padStart(4, '0')}` : `\\U${hex.padStart(8, '0')}`
}

// JSON.parse has already merged Python's int and float: a whole number prints as an int where its digits are exact enough.
function integer(value: number): string {
  return Math.abs(value) < 1e21 ? BigInt(value).toString() : pythonFloat(value)
}

/** Python's `repr` of a float: the shortest digits that round-trip, with an exponent below 1e-4 and from 1e16 on. */
export function pythonFloat(value: number): string {
  if (Number.isNaN(value)) return 'nan'
  if (!Number.isFinite(value)) return value > 0 ? 'inf' : '-inf'
  const [mantissa = '', exponentText = '0'] = Math.abs(value).toExponential().split('e')
  const exponent = Number(exponentText)
  const sign = value < 0 || Object.is(value, -0) ? '-' : ''
  if (exponent < -4 || exponent >= 16) {
    const digits = Math.abs(exponent).toString().padStart(2, '0')
    return `${sign}${mantissa}e${exponent < 0 ? '-' : '+'}${digits}`
  }
  const digits = mantissa.replace('.', '')
  if (exponent < 0) return `${sign}0.${'0'.repeat(-exponent - 1)}${digits}`
  const whole = digits.slice(0, exponent + 1).padEnd(exponent + 1, '0')
  return `${sign}${whole}.${digits.slice(exponent + 1) || '0'}`
}

/** The options of `json.dumps` that templates can pass to `tojson`. */
export interface JsonOptions {
  readonly indent?: number | undefined
  readonly ensureAscii?: boolean | undefined
  readonly sortKeys?: boolean | undefined
  readonly separators?: readonly [string, string] | undefined
}

/** Python's `json.dumps`, which is what transformers makes of `tojson`: separators `, ` and `: `, no ASCII escaping. */
export function pythonJson(value: TemplateValue, options: JsonOptions, mark: string, depth = 0): string {
  const { indent, ensureAscii = false, sortKeys = false } = options
  const [between, colon] = options.separators ?? (indent === undefined ? [', ', ': '] : [',', ': '])
  const text = (string: string) => jsonString(string, ensureAscii, mark)
  const wrap = (open: string, items: string[], close: string) => {
    if (items.length === 0 || indent === undefined) return open + items.join(between) + close
    const line = (level: number) => `\n${' '.repeat(indent * level)}`
    return open + line(depth + 1) + items.join(between + line(depth + 1)) + line(depth) + close
  }
  if (isString(value)) return text(value.value)
  if (isList(value)) {
    const items = value.value.map((item) => pythonJson(item, options, mark, depth + 1))
    return wrap('[', items, ']')
  }
  if (isMapping(value)) {
    const entries = [...value.value]
    if (sortKeys) entries.sort(([a], [b]) => compareCodePoints(a, b))
    const items = entries.map(([key, item]) => text(key) + colon + pythonJson(item, options, mark, depth + 1))
    return wrap('{', items, '}')
  }
  switch (value.type) {
    case 'BooleanValue':
      return value.value ? 'true' : 'false'
    case 'NullValue':
      return 'null'
    case 'IntegerValue':
      return integer(value.value as number)
    case 'FloatValue':
      return pythonFloat(value.value as number)
        .replace('inf', 'Infinity')
        .replace('nan', 'NaN')
    default:
      throw new TypeError(`${value.type} is not JSON serializable`)
  }
}

function jsonString(text: string, ensureAscii: boolean, mark: string): string {
  const json = JSON.stringify(text)
  if (!ensureAscii) return json
  const escaped = (unit: string) => (unit === mark ? unit : `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
  return json.replace(/[\x7f-\uffff]/g, escaped)
}

function compareCodePoints(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b))
}

/** Python's `==`: deep for lists and mappings, `True == 1`, and never across other kinds. */
export function pythonEquals(a: TemplateValue, b: TemplateValue): boolean {
  if (isNumber(a) && isNumber(b)) return Number(a.value) === Number(b.value)
  if (isList(a) && isList(b)) {
    return (
      a.type === b.type &&
      a.value.length === b.value.length &&
      a.value.every((x, i) => pythonEquals(x, b.value[i] as TemplateValue))
    )
  }
  if (isMapping(a) && isMapping(b)) {
    if (a.value.size !== b.value.size) return false
    return [...a.value].every(([key, x]) => {
      const y = b.value.get(key)
      return y !== undefined && pythonEquals(x, y)
    })
  }
  return a.type === b.type && a.value === b.value
}

function isNumber(value: TemplateValue): boolean {
  return value.type === 'IntegerValue' || value.type === 'FloatValue' || value.type === 'BooleanValue'
}

// What Python's str.strip() takes for whitespace; JavaScript's trim() differs at U+001C to U+001F, U+0085 and U+FEFF.
const pythonSpace = new Set('\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000')
for (let code = 0x2000; code <= 0x200a; code++) pythonSpace.add(String.fromCharCode(code))

/** Python's `strip`, `lstrip` and `rstrip`, of whitespace or of the given characters. */
export function pythonStrip(text: string, side: 'both' | 'left' | 'right', characters?: string): string {
  const set = characters === undefined ? pythonSpace : new Set(characters)
  const points = characters === undefined ? text : Array.from(text)
  let start = 0
  let end = points.length
  if (side !== 'right') while (start < end && set.has(points[start] as string)) start++
  if (side !== 'left') while (end > start && set.has(points[end - 1] as string)) end--
  return typeof points === 'string' ? points.slice(start, end) : points.slice(start, end).join('')
}
