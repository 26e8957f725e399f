/** What `parsePythonLiteral` gives for text that is no literal. */
export const notALiteral = Symbol('not a literal')

const depthLimit = 200
const number = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y
const words: readonly (readonly [string, unknown])[] = [
  ['true', true],
  ['True', true],
  ['false', false],
  ['False', false],
  ['null', null],
  ['None', null],
]
const escapes: Readonly<Record<string, string>> = {
  n: '\n',
  t: '\t',
  r: '\r',
  b: '\b',
  f: '\f',
  '0': '\0',
  '\\': '\\',
  "'": "'",
  '"': '"',
  '/': '/',
}

/**
 * Parses JSON as models write it: also with Python's `True`, `False` and `None`, single-quoted strings, tuples and a comma
 * before the closing bracket. Anything else gives `notALiteral`.
 */
export function parsePythonLiteral(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return new Reader(text).whole()
  }
}

class Reader {
  readonly #text: string
  #at = 0

  constructor(text: string) {
    this.#text = text
  }

  whole(): unknown {
    const value = this.#value(0)
    this.#space()
    return this.#at === this.#text.length ? value : notALiteral
  }

  #space(): void {
    while (/\s/.test(this.#text[this.#at] ?? '')) this.#at++
  }

  #take(token: string): boolean {
    this.#space()
    if (!this.#text.startsWith(token, this.#at)) return false
    this.#at += token.length
    return true
  }

  #value(depth: number): unknown {
    if (depth > depthLimit) return notALiteral
    this.#space()
    const quote = this.#text[this.#at]
    if (quote === '"' || quote === "'") return this.#string(quote)
    if (this.#take('[')) return this.#list(']', depth)
    if (this.#take('(')) return this.#list(')', depth)
    if (this.#take('{')) return this.#mapping(depth)
    for (const [word, value] of words) {
      if (this.#text.startsWith(word, this.#at) && !/\w/.test(this.#text[this.#at + word.length] ?? '')) {
        this.#at += word.length
        return value
      }
    }
    number.lastIndex = this.#at
    const digits = number.exec(this.#text)?.[0]
    if (digits === undefined) return notALiteral
    this.#at += digits.length
    return Number(digits)
  }

  #string(quote: string): unknown {
    let out = ''
    for (let i = this.#at + 1; i < this.#text.length; i++) {
      const character = this.#text[i] as string
      if (character === quote) {
        this.#at = i + 1
        return out
      }
      if (character !== '\\') {
        out += character
        continue
      }
      const code = /^\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))/.exec(this.#text.slice(i, i + 6))
      const escaped = escapes[this.#text[i + 1] ?? '']
      if (code === null && escaped === undefined) return notALiteral
      out += code === null ? escaped : String.fromCharCode(Number.parseInt(code[1] ?? code[2] ?? '', 16))
      i += code === null ? 1 : code[0].length - 1
    }
    return notALiteral
  }

  #list(close: string, depth: number): unknown {
    const items: unknown[] = []
    while (!this.#take(close)) {
      if (items.length > 0 && !this.#take(',')) return notALiteral
      if (items.length > 0 && this.#take(close)) break
      const item = this.#value(depth + 1)
      if (item === notALiteral) return notALiteral
      items.push(item)
    }
    return items
  }

  #mapping(depth: number): unknown {
    const entries: [string, unknown][] = []
    while (!this.#take('}')) {
      if (entries.length > 0 && !this.#take(',')) return notALiteral
      if (entries.length > 0 && this.#take('}')) break
      const key = this.#value(depth + 1)
      if (typeof key !== 'string' || !this.#take(':')) return notALiteral
      const value = this.#value(depth + 1)
      if (value === notALiteral) return notALiteral
      entries.push([key, value])
    }
    return Object.fromEntries(entries)
  }
}
