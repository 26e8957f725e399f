import { below, pick, type Random } from '../helpers/mutate.js'

/** A mutated value, and in words what was done to it. */
export interface Mutated<T> {
  readonly value: T
  readonly what: string
}

const numbers = [
  ...[0, -1, 1, 2, 3, 7, 15, 16, 17, 1.5, -0.5, 1e-320, 1e-46, 1e-40, 3.5e38, 1e300, Number.MAX_VALUE],
  ...[
    255,
    256,
    65_535,
    65_536,
    2 ** 20,
    2 ** 31 - 1,
    2 ** 31,
    2 ** 32,
    2 ** 53 - 1,
    2 ** 53,
    2 ** 63,
    Number.POSITIVE_INFINITY,
    Number.NEGATIVE_INFINITY,
  ],
]
const strings = [
  ...[
    '',
    ' ',
    '\u0000',
    '\ud800',
    '\ufdd0',
    '\u{1f600}',
    '__proto__',
    'constructor',
    'toString',
    '../x',
    '/etc/passwd',
  ],
  ...[
    'null',
    'NaN',
    '1',
    'a'.repeat(5_000),
    '*',
    '[',
    '**',
    're:',
    're:(a+)+$',
    're:[',
    're:.*',
    `re:${'(.*)*'.repeat(90)}x`,
  ],
  ...['Linear', 'lm_head', 'backbone', 'backbone.layers.0', 'model.layers.*', 'NVFP4', 'FP8', 'INT4', 'float', 'int'],
  ...['M', 'MEM*E', 'E', '-', 'X', 'mamba', 'attention', 'moe', 'mlp', 'relu', 'silu', 'gelu', 'bfloat16', 'ByteLevel'],
  ...['Split', 'Sequence', 'NFC', 'NFKC', 'Lowercase', 'BPE', 'Unigram', 'WordPiece', '{{ messages }}', '{% for %}'],
]

/** JSON text of anything, `null` where JSON has no spelling; numbers as Python's json writes them. */
export function jsonText(value: unknown): string {
  if (typeof value === 'number') return Number.isNaN(value) ? 'NaN' : String(value)
  if (Array.isArray(value)) return `[${value.map(jsonText).join(',')}]`
  if (typeof value === 'object' && value !== null) {
    return `{${Object.entries(value)
      .map(([key, item]) => `${JSON.stringify(key)}:${jsonText(item)}`)
      .join(',')}}`
  }
  return JSON.stringify(value) ?? 'null'
}

/** Parses JSON with bare `Infinity`. */
export function parseLoosely(text: string): unknown {
  return JSON.parse(text.replaceAll(/(?<=[:[,]\s*)Infinity\b/g, '{"__float__":"Infinity"}'))
}

function awkward(random: Random): unknown {
  const kind = below(random, 10)
  if (kind < 4) return pick(random, numbers)
  if (kind < 7) return pick(random, strings)
  if (kind === 7) return deep(random)
  return pick(random, [null, true, false, [], {}, [[]], [null], [1, 2], { a: 1 }, { __float__: 'NaN' }])
}

/** Nested further than any recursion should go. */
function deep(random: Random): unknown {
  let value: unknown = 1
  const array = random() < 0.5
  for (let depth = pick(random, [10, 150, 900]); depth > 0; depth--) value = array ? [value] : { a: value }
  return value
}

function changed(value: unknown, random: Random): unknown {
  if (typeof value === 'number' && random() < 0.6) {
    return pick(random, [value + 1, value - 1, value * 2, value / 2, -value, value * 16, value + 0.5, value * 1e6])
  }
  if (typeof value === 'string' && random() < 0.5) {
    const at = below(random, value.length + 1)
    return value.slice(0, at) + pick(random, strings) + value.slice(at + below(random, 4))
  }
  if (typeof value === 'boolean' && random() < 0.7) return !value
  if (Array.isArray(value) && value.length > 0 && random() < 0.6) {
    const at = below(random, value.length)
    return pick(random, [value.toSpliced(at, 1), [...value, value[at]], value.toReversed(), value.slice(0, at)])
  }
  return awkward(random)
}

/** A place in a JSON value: what holds it, and under which key. */
type Place = [holder: Record<string, unknown>, key: string]

function place(root: Record<string, unknown>, random: Random): Place {
  let holder = root
  for (;;) {
    const keys = Object.keys(holder)
    const key = keys.length === 0 ? 'a' : pick(random, keys)
    const inner = holder[key]
    if (typeof inner !== 'object' || inner === null || Object.keys(inner).length === 0 || random() < 0.15) {
      return [holder, key]
    }
    holder = inner as Record<string, unknown>
  }
}

const show = (value: unknown) => {
  const text = jsonText(value)
  return text.length > 60 ? `${text.slice(0, 57)}…` : text
}

/** The value with one to three places changed, removed, added, renamed or swapped. The value given stays as it is. */
export function mutateJson(value: unknown, random: Random): Mutated<unknown> {
  const root = { '': structuredClone(value) } as Record<string, unknown>
  const whats: string[] = []
  for (let count = 1 + below(random, 2) * below(random, 3); count > 0; count--) {
    const [holder, key] = place(root, random)
    const kind = below(random, 10)
    if (kind < 6 || key === '') {
      const next = changed(holder[key], random)
      whats.push(`${key}: ${show(holder[key])} → ${show(next)}`)
      holder[key] = next
    } else if (kind === 6) {
      whats.push(`${key} removed`)
      if (Array.isArray(holder)) holder.splice(Number(key), 1)
      else delete holder[key]
    } else if (kind === 7) {
      const name = pick(random, strings)
      whats.push(`${show(name)} added`)
      Object.defineProperty(holder, name, {
        value: awkward(random),
        enumerable: true,
        configurable: true,
        writable: true,
      })
    } else if (kind === 8) {
      const name = key + pick(random, ['_', 's', '.weight', '2'])
      whats.push(`${key} renamed to ${show(name)}`)
      holder[name] = holder[key]
      if (!Array.isArray(holder)) delete holder[key]
    } else {
      const [other, otherKey] = place(root, random)
      whats.push(`${key} and ${otherKey} swapped`)
      const kept = structuredClone(holder[key])
      holder[key] = structuredClone(other[otherKey])
      other[otherKey] = kept
    }
  }
  return { value: root[''], what: whats.join('; ') }
}
