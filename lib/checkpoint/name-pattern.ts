import { PatternError, type PatternNode } from './name-expression.js'

const lengthLimit = 1_000
const repeatLimit = 1_000

type Accepts = (character: string) => boolean

const classes: Readonly<Record<string, Accepts>> = {
  d: (character) => /^\d$/.test(character),
  w: (character) => /^\w$/.test(character),
  s: (character) => /^\s$/.test(character),
}
const controls: Readonly<Record<string, string>> = { t: '\t', n: '\n', r: '\r', f: '\f', v: '\v', a: '\x07', 0: '\0' }

const character = (accepts: Accepts): PatternNode => ({ type: 'character', accepts })
const exactly = (wanted: string): PatternNode => character((given) => given === wanted)
const any = character(() => true)
const anything: PatternNode = { type: 'repeat', node: any, least: 0, most: Number.POSITIVE_INFINITY }

function classOf(letter: string): Accepts | undefined {
  const accepts = Object.hasOwn(classes, letter.toLowerCase()) ? classes[letter.toLowerCase()] : undefined
  return accepts && letter !== letter.toLowerCase() ? (given) => !accepts(given) : accepts
}

/** Reads a regular expression in Python's syntax: all of it but flags, backreferences and looking behind. */
class Parser {
  readonly #text: string
  #at = 0
  #ahead = false

  constructor(text: string) {
    if (text.length > lengthLimit) throw new PatternError('syntax', `it is longer than ${lengthLimit} characters`)
    this.#text = text
  }

  pattern(): PatternNode {
    const node = this.#choice()
    if (this.#at < this.#text.length) throw new PatternError('syntax', 'a ")" closes nothing')
    return node
  }

  #take(wanted: string): boolean {
    if (!this.#text.startsWith(wanted, this.#at)) return false
    this.#at += wanted.length
    return true
  }

  #next(): string {
    const next = this.#text[this.#at++]
    if (next === undefined) throw new PatternError('syntax', 'it ends too early')
    return next
  }

  #choice(): PatternNode {
    const nodes = [this.#sequence()]
    while (this.#take('|')) nodes.push(this.#sequence())
    return nodes.length === 1 ? (nodes[0] as PatternNode) : { type: 'choice', nodes }
  }

  #sequence(): PatternNode {
    const nodes: PatternNode[] = []
    while (this.#at < this.#text.length && !'|)'.includes(this.#text[this.#at] as string)) nodes.push(this.#repeated())
    return { type: 'sequence', nodes }
  }

  #repeated(): PatternNode {
    const node = this.#atom()
    const counts = this.#counts()
    if (counts === undefined) return node
    const fixed = node.type === 'start' || node.type === 'end' || node.type === 'boundary' || node.type === 'ahead'
    if (fixed) throw new PatternError('unsupported', 'it repeats what has no length')
    // Lazy or not makes no difference to whether it matches.
    if (!this.#take('?') && this.#take('+')) throw new PatternError('unsupported', 'it has a possessive quantifier')
    if (this.#counts() !== undefined) throw new PatternError('syntax', 'it repeats a repetition')
    return { type: 'repeat', node, ...counts }
  }

  #counts(): { least: number; most: number } | undefined {
    if (this.#take('*')) return { least: 0, most: Number.POSITIVE_INFINITY }
    if (this.#take('+')) return { least: 1, most: Number.POSITIVE_INFINITY }
    if (this.#take('?')) return { least: 0, most: 1 }
    const [whole, first = '', comma, last = ''] = /^\{(\d*)(,?)(\d*)\}/.exec(this.#text.slice(this.#at)) ?? []
    // As in Python, other braces stand for themselves.
    if (whole === undefined || (first === '' && comma === '')) return undefined
    this.#at += whole.length
    const least = Number(first)
    const most = comma === '' ? least : last === '' ? Number.POSITIVE_INFINITY : Number(last)
    if (least > most) throw new PatternError('syntax', `${whole} has more at least than at most`)
    if (Math.max(least, Number(last)) > repeatLimit) throw new PatternError('syntax', `${whole} repeats too often`)
    return { least, most }
  }

  #atom(): PatternNode {
    const next = this.#next()
    if (next === '.') return any
    if (next === '^') return { type: 'start' }
    if (next === '$') return { type: 'end' }
    if (next === '(') return this.#group()
    if (next === '[') return character(this.#set())
    if (next === '\\') return this.#escape()
    if ('*+?'.includes(next)) throw new PatternError('syntax', `"${next}" repeats nothing`)
    return exactly(next)
  }

  #group(): PatternNode {
    const negated = this.#take('?!')
    if (negated || this.#take('?=')) return this.#lookahead(negated)
    if (!this.#take('?:') && this.#take('?')) {
      const named = /^P<[A-Za-z_]\w*>/.exec(this.#text.slice(this.#at))?.[0]
      if (named === undefined) {
        throw new PatternError('unsupported', 'groups are plain, (?:…), (?P<name>…), (?=…) or (?!…)')
      }
      this.#at += named.length
    }
    return this.#closed(this.#choice())
  }

  #lookahead(negated: boolean): PatternNode {
    // Each level would multiply the time by the length of the name.
    if (this.#ahead) throw new PatternError('unsupported', 'it looks ahead while looking ahead')
    this.#ahead = true
    const node = this.#closed(this.#choice())
    this.#ahead = false
    return { type: 'ahead', negated, node }
  }

  #closed(node: PatternNode): PatternNode {
    if (!this.#take(')')) throw new PatternError('syntax', 'a "(" is not closed')
    return node
  }

  #escape(): PatternNode {
    const letter = this.#next()
    if (letter === 'A') return { type: 'start' }
    if (letter === 'Z') return { type: 'end' }
    if (letter === 'b' || letter === 'B') return { type: 'boundary', negated: letter === 'B' }
    const accepts = classOf(letter)
    return accepts ? character(accepts) : exactly(this.#literal(letter))
  }

  /** The character that an escape stands for. */
  #literal(letter: string): string {
    if (Object.hasOwn(controls, letter)) return controls[letter] as string
    if (/[1-9]/.test(letter)) throw new PatternError('unsupported', 'it refers back to a group')
    if (letter === 'x' || letter === 'u') {
      const digits = this.#text.slice(this.#at, this.#at + (letter === 'x' ? 2 : 4))
      if (!/^(?:[0-9a-fA-F]{2}){1,2}$/.test(digits) || digits.length !== (letter === 'x' ? 2 : 4)) {
        throw new PatternError('syntax', `\\${letter}${digits} is no character`)
      }
      this.#at += digits.length
      return String.fromCharCode(Number.parseInt(digits, 16))
    }
    if (/[A-Za-z]/.test(letter)) throw new PatternError('syntax', `\\${letter} means nothing`)
    return letter
  }

  #set(): Accepts {
    const negated = this.#take('^')
    const parts: Accepts[] = []
    for (let first = true; first || !this.#take(']'); first = false) {
      const low = this.#setItem()
      if (typeof low === 'function') {
        parts.push(low)
        continue
      }
      const range = this.#text[this.#at] === '-' && this.#text[this.#at + 1] !== ']'
      if (range) this.#at++
      const high = range ? this.#setItem() : low
      if (typeof high === 'function' || high < low) throw new PatternError('syntax', 'a set has no such range')
      parts.push((given) => given >= low && given <= high)
    }
    return (given) => parts.some((accepts) => accepts(given)) !== negated
  }

  #setItem(): string | Accepts {
    const next = this.#next()
    if (next !== '\\') return next
    const letter = this.#next()
    return letter === 'b' ? '\b' : (classOf(letter) ?? this.#literal(letter))
  }
}

/** A regular expression as compressed-tensors configs write it, for Python's `re.match`. @throws {PatternError} */
export function parseRegex(source: string): PatternNode {
  return new Parser(source).pattern()
}

/** A wildcard of Python's `fnmatch`: `*` any text, `?` one character, `[abc]`, `[!abc]` sets. @throws {PatternError} */
export function parseWildcard(source: string): PatternNode {
  if (source.length > lengthLimit) throw new PatternError('syntax', `it is longer than ${lengthLimit} characters`)
  const nodes: PatternNode[] = []
  for (const [part, negated, members] of source.matchAll(/\[(!?)(\]?[^\]]*)\]|[\s\S]/g)) {
    if (members !== undefined && members !== '') nodes.push(character(wildcardSet(members, negated === '!')))
    else if (part === '*') nodes.push(anything)
    else if (part === '?') nodes.push(any)
    else nodes.push(...[...part].map(exactly))
  }
  return { type: 'sequence', nodes: [...nodes, { type: 'end' }] }
}

function wildcardSet(members: string, negated: boolean): Accepts {
  const ranges = [...members.matchAll(/([\s\S])-([\s\S])|[\s\S]/g)].map(([one, low = one, high = one]) => {
    if (high < low) throw new PatternError('syntax', `a set has no range ${one}`)
    return [low, high]
  })
  return (given) => ranges.some(([low = '', high = '']) => given >= low && given <= high) !== negated
}
