/** A deterministic generator of numbers in [0, 1): mulberry32. */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** A source of numbers in [0, 1). */
export type Random = () => number

/** A whole number from 0 to `count` - 1. */
export const below = (random: Random, count: number): number => Math.floor(random() * count)

/** One of the items. */
export const pick = <T>(random: Random, items: readonly T[]): T => items[below(random, items.length)] as T

const awkwardNumbers = ['0', '-1', '1', '3', '1.5', '1e9', '1e400', '-0', '9007199254740993', '18446744073709551616']
const awkwardValues = [...awkwardNumbers, 'null', 'true', '""', '"x"', '[]', '{}', 'NaN', '[[]]', '{"__float__":"NaN"}']
const fragments = ['{', '}', '[', ']', '"', ',', ':', '\\', '\u0000', '\ufffd', '__proto__', 'Infinity', '"a":1,', ' ']

/** Mutations of JSON text that mostly keep it well-formed: numbers, values and keys change, entries go or come twice. */
const textMutations: readonly ((text: string, random: Random) => string)[] = [
  (text, random) => replaceOne(text, /-?\d+(?:\.\d+)?/g, random, () => pick(random, awkwardNumbers)),
  (text, random) =>
    replaceOne(text, /-?\d+(?:\.\d+)?/g, random, (found) => String(Number(found) + pick(random, [-1, 1, 8]))),
  (text, random) =>
    replaceOne(text, /(?<=:\s*)(?:"[^"]*"|[-\w.]+|\[[^[\]]*\])/g, random, () => pick(random, awkwardValues)),
  (text, random) => replaceOne(text, /"[^"]*"/g, random, () => pick(random, text.match(/"[^"]*"/g) ?? ['""'])),
  (text, random) => replaceOne(text, /"[^"]*"\s*:\s*(?:"[^"]*"|[-\w.]+|\[[^[\]]*\]),/g, random, () => ''),
  (text, random) =>
    replaceOne(text, /"[^"]*"\s*:\s*(?:"[^"]*"|[-\w.]+|\[[^[\]]*\]),/g, random, (found) => found + found),
  (text, random) => insert(text, below(random, text.length + 1), pick(random, fragments)),
  (text, random) => text.slice(0, below(random, text.length)),
  (text, random) => {
    const start = below(random, text.length)
    return text.slice(0, start) + text.slice(start + 1 + below(random, 40))
  },
]

function replaceOne(text: string, expression: RegExp, random: Random, change: (found: string) => string): string {
  const found = [...text.matchAll(expression)]
  if (found.length === 0) return text
  const match = pick(random, found)
  return text.slice(0, match.index) + change(match[0]) + text.slice(match.index + match[0].length)
}

const insert = (text: string, at: number, part: string) => text.slice(0, at) + part + text.slice(at)

/** The text with one to three mutations. */
export function mutateText(text: string, random: Random): string {
  let mutant = text
  for (let count = 1 + below(random, 3); count > 0; count--) mutant = pick(random, textMutations)(mutant, random)
  return mutant
}

/** The bytes with one to four of them flipped, replaced, inserted or removed, or with the end cut off. */
export function mutateBytes(bytes: Uint8Array, random: Random, within = bytes.length): Uint8Array {
  const mutant = [...bytes]
  for (let count = 1 + below(random, 4); count > 0; count--) {
    const at = below(random, Math.min(within, mutant.length))
    const kind = below(random, 12)
    if (kind < 5) mutant[at] = (mutant[at] ?? 0) ^ (1 << below(random, 8))
    else if (kind < 8) mutant[at] = pick(random, [0, 0x22, 0x2c, 0x30, 0x39, 0x5d, 0x7b, 0x7d, 0x80, 0xff])
    else if (kind < 9) mutant.splice(at, 1 + below(random, 4))
    else if (kind < 11) mutant.splice(at, 0, below(random, 256))
    else mutant.length = at
  }
  return Uint8Array.from(mutant)
}
