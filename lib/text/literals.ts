import { RequestError } from '../errors.js'
import { markupTokens } from './markup.js'
import { SpellingTrie } from './spelling-trie.js'

// A template sees message contents as plain strings, so an added token spelled inside a message would look like the
// template's own in the rendered text. Each such spelling therefore gets a mark after its first character, a Unicode
// noncharacter that nothing else in the request contains; the marks are taken out of the rendered text again, and the
// characters before them are what no added token may contain. Trimming, splitting and JSON leave a mark where it is.

const noncharacters = Array.from({ length: 32 }, (_, i) => String.fromCharCode(0xfdd0 + i))
const depthLimit = 100

/** The spellings that matter in messages: of every added token, and of those that are control. */
export class AddedSpellings {
  readonly all: SpellingTrie<true>
  readonly control: SpellingTrie<true>

  constructor(spellings: readonly string[]) {
    const trie = (list: readonly string[]) => new SpellingTrie<true>(list.map((spelling) => [spelling, true]))
    this.all = trie(spellings)
    this.control = trie(spellings.filter((spelling) => !markupTokens.has(spelling)))
  }
}

/** Marks spellings of added tokens in values that go into a template. */
export class LiteralMarker {
  /** The mark; templates must treat it as any other letter. */
  readonly mark: string
  readonly #spellings: AddedSpellings

  /** @param inputs everything that the template will see, to choose a mark that is not in there */
  constructor(spellings: AddedSpellings, inputs: unknown) {
    this.#spellings = spellings
    this.mark = chooseMark(inputs)
  }

  /** A copy of a value where every added token is plain text: system, user and tool messages, tools, reasoning, arguments. */
  text<T>(value: T, depth = 0): T {
    return this.#deep(value, this.#spellings.all, depth) as T
  }

  /** The same for an assistant's content, in which `<think>`, `<tool_call>` and their like keep their meaning. */
  assistantContent(value: string): string {
    return this.#string(value, this.#spellings.control)
  }

  /** Takes the marks out of a rendered prompt. */
  remove(rendered: string): { text: string; literals: Uint32Array } {
    const pieces = rendered.split(this.mark)
    const literals = new Uint32Array(pieces.length - 1)
    let length = 0
    for (let i = 0; i < literals.length; i++) {
      length += (pieces[i] as string).length
      literals[i] = length - 1
    }
    return { text: pieces.join(''), literals }
  }

  #deep(value: unknown, spellings: SpellingTrie<true>, depth: number): unknown {
    if (typeof value === 'string') return this.#string(value, spellings)
    if (typeof value !== 'object' || value === null) return value
    if (depth > depthLimit) {
      throw new RequestError(
        'INVALID_OPTION',
        'Expected at most 100 levels in `tools` and tool calls. Flatten the data.',
        {
          details: { option: 'tools' },
        },
      )
    }
    if (Array.isArray(value)) return value.map((item) => this.#deep(item, spellings, depth + 1))
    return Object.fromEntries(
      Object.entries(value)
        .filter(([, item]) => item !== undefined)
        .map(([key, item]) => [this.#string(key, spellings), this.#deep(item, spellings, depth + 1)]),
    )
  }

  #string(text: string, spellings: SpellingTrie<true>): string {
    let marked = ''
    let done = 0
    for (let i = 0; i < text.length; i++) {
      // A spelling that breaks off at the end counts: what the template prints next could complete it.
      if (!spellings.mayStart(text, i)) continue
      marked += text.slice(done, i + 1) + this.mark
      done = i + 1
    }
    return marked + text.slice(done)
  }
}

function chooseMark(inputs: unknown): string {
  let text: string
  try {
    text = JSON.stringify(inputs)
  } catch (cause) {
    const what = `Expected plain data in \`messages\` and \`tools\`, got a value that JSON cannot hold (${(cause as Error).message}).`
    throw new RequestError('INVALID_OPTION', `${what} Pass strings, numbers, booleans, null, arrays and objects.`, {
      cause,
      details: { option: 'messages' },
    })
  }
  const mark = noncharacters.find((character) => !text.includes(character))
  if (mark !== undefined) return mark
  throw new RequestError('INVALID_OPTION', 'Expected text in `messages`, got all Unicode noncharacters. Remove them.', {
    details: { option: 'messages' },
  })
}
