import { tags } from './markup.js'
import type { ToolSpec } from './messages.js'
import { beginsToolCall, parseToolCall } from './tool-call-syntax.js'

/** A piece of an answer. Pieces of one kind in a row are one text. */
export type StreamPart =
  | { readonly type: 'reasoning'; readonly text: string }
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'tool-call'; readonly id: string; readonly name: string; readonly input: Record<string, unknown> }

type Tag = keyof typeof tags

/** What a parser knows of the answer that it will see. */
export interface StreamParserOptions {
  /** Whether the prompt ends inside a think block (`RenderedPrompt.opensThinking`). */
  readonly thinking: boolean
  /** What the model was offered: their schemas convert the arguments. */
  readonly tools?: readonly ToolSpec[]
  /** Tags that are tokens of their own in its vocabulary count as tags by id only; the others are looked for in the text. */
  readonly tokenizer?: { idOf(token: string): number | undefined }
  /** Calls that the reply has already made, in earlier rounds: ids go on from there. */
  readonly previousCalls?: number
}

/**
 * Sorts an answer into reasoning, text and tool calls while it comes. How tokens are cut into pieces changes nothing.
 *
 * - It starts inside reasoning when the prompt opened a think block; otherwise everything is text until a tag says else.
 * - A tool call ends reasoning that was not closed. A `</think>` with nothing to close is dropped.
 * - Newlines next to tags belong to the tags and are dropped.
 * - A call that is malformed or never closed comes out as text, with its tags.
 *
 * @example
 * const parser = new StreamParser({ thinking: prompt.opensThinking, tools, tokenizer })
 * for (const id of ids) for (const part of parser.push(id, detokenizer.push(id))) show(part)
 * for (const part of parser.finish()) show(part)
 */
export class StreamParser {
  readonly #tools: readonly ToolSpec[]
  readonly #tagById = new Map<number, Tag>()
  readonly #textTags: Tag[] = []
  #state: 'reasoning' | 'text' | 'call'
  #parts: StreamPart[] = []
  /** Text that may be the beginning of a tag. */
  #partialTag = ''
  /** Newlines that the next tag would take with it. */
  #newlines = ''
  /** Whether the current stretch of text or reasoning has none yet, and whether it has only blanks. */
  #empty = true
  #blank = true
  /** The body of the call so far, whether it has begun like one, and what to go back to if it does not. */
  #call = ''
  #callBegan = false
  #beforeCall: 'reasoning' | 'text' = 'text'
  #calls: number

  constructor({ thinking, tools = [], tokenizer, previousCalls = 0 }: StreamParserOptions) {
    this.#tools = tools
    this.#state = thinking ? 'reasoning' : 'text'
    this.#calls = previousCalls
    for (const tag of Object.keys(tags) as Tag[]) {
      const id = tokenizer?.idOf(tags[tag])
      if (id === undefined) this.#textTags.push(tag)
      else this.#tagById.set(id, tag)
    }
  }

  /**
   * Takes the next token.
   *
   * @param text what `detokenizer.push(id)` gave
   */
  push(id: number, text: string): StreamPart[] {
    const tag = this.#tagById.get(id)
    if (tag === undefined) {
      this.#scan(text)
    } else {
      // The detokenizer may have put U+FFFD for an unfinished character in front.
      this.#scan(text.slice(0, -tags[tag].length))
      this.#releasePartialTag()
      this.#onTag(tag, true)
    }
    return this.#take()
  }

  /**
   * What was held back, at the end of the answer.
   *
   * @param text what `detokenizer.flush()` gave
   */
  finish(text = ''): StreamPart[] {
    this.#scan(text)
    this.#releasePartialTag()
    if (this.#state === 'call') this.#giveUpCall('', 'text')
    if (!this.#empty && this.#newlines !== '') this.#emit(this.#newlines)
    this.#newlines = ''
    return this.#take()
  }

  #take(): StreamPart[] {
    const parts = this.#parts
    this.#parts = []
    return parts
  }

  #scan(text: string): void {
    if (this.#textTags.length === 0) {
      this.#onText(text)
      return
    }
    let rest = this.#partialTag + text
    for (;;) {
      const found = firstTag(rest, this.#textTags)
      if (found === undefined) break
      this.#onText(rest.slice(0, found.at))
      this.#onTag(found.tag, false)
      rest = rest.slice(found.at + tags[found.tag].length)
    }
    const kept = partialTagLength(rest, this.#textTags)
    this.#partialTag = rest.slice(rest.length - kept)
    this.#onText(rest.slice(0, rest.length - kept))
  }

  #releasePartialTag(): void {
    const text = this.#partialTag
    this.#partialTag = ''
    this.#onText(text)
  }

  /** @param certain whether the tag was a token of its own; a spelled one counts only where a tag can stand */
  #onTag(tag: Tag, certain: boolean): void {
    const structural = certain || this.#blank
    if (this.#state === 'call') {
      if (tag === 'toolCallClose') this.#finishCall()
      else if (tag === 'toolCallOpen' && certain) this.#restartCall()
      else this.#onText(tags[tag])
    } else if (tag === 'toolCallOpen') {
      this.#beforeCall = this.#state
      this.#state = 'call'
    } else if (tag === 'thinkClose' && this.#state === 'reasoning') {
      this.#startBlock('text')
    } else if (tag === 'thinkClose' && structural) {
      // Nothing to close: the prompt had closed it already.
    } else if (tag === 'thinkOpen' && this.#state === 'text' && structural) {
      this.#startBlock('reasoning')
    } else if (tag === 'thinkOpen' && this.#state === 'reasoning' && this.#blank) {
      // The model repeats the tag that the prompt ends with.
    } else {
      this.#onText(tags[tag])
    }
  }

  #startBlock(state: 'reasoning' | 'text'): void {
    this.#state = state
    this.#newlines = ''
    this.#empty = true
    this.#blank = true
  }

  #onText(text: string): void {
    if (this.#state === 'call') {
      this.#onCallText(text)
      return
    }
    let start = 0
    if (this.#empty) while (isNewline(text[start])) start++
    let end = text.length
    while (end > start && isNewline(text[end - 1])) end--
    if (end > start) this.#emit(this.#newlines + text.slice(start, end))
    if (!this.#empty) this.#newlines = end > start ? text.slice(end) : this.#newlines + text.slice(end)
  }

  #emit(text: string): void {
    this.#empty = false
    if (this.#blank) this.#blank = text.trim() === ''
    this.#parts.push({ type: this.#state === 'reasoning' ? 'reasoning' : 'text', text })
  }

  #onCallText(text: string): void {
    this.#call += text
    if (this.#callBegan || text === '') return
    const begins = beginsToolCall(this.#call)
    if (begins === false) this.#giveUpCall('', this.#beforeCall)
    if (begins !== true) return
    this.#callBegan = true
    if (this.#beforeCall === 'reasoning') this.#startBlock('text')
    this.#state = 'call'
  }

  #finishCall(): void {
    const calls = this.#callBegan ? parseToolCall(this.#call, this.#tools) : undefined
    if (calls === undefined) {
      this.#giveUpCall(tags.toolCallClose, this.#callBegan ? 'text' : this.#beforeCall)
      return
    }
    for (const { name, input } of calls)
      this.#parts.push({ type: 'tool-call', id: `call_${++this.#calls}`, name, input })
    this.#call = ''
    this.#callBegan = false
    this.#startBlock('text')
  }

  #restartCall(): void {
    this.#giveUpCall('', this.#callBegan ? 'text' : this.#beforeCall)
    this.#onTag('toolCallOpen', true)
  }

  /** What looked like a call was none, or not a whole one: its raw text is what the model wrote. */
  #giveUpCall(close: string, state: 'reasoning' | 'text'): void {
    const raw = tags.toolCallOpen + this.#call + close
    if (!this.#callBegan && this.#beforeCall !== state) this.#startBlock(state)
    this.#call = ''
    this.#callBegan = false
    this.#state = state
    this.#onText(raw)
  }
}

function isNewline(character: string | undefined): boolean {
  return character === '\n' || character === '\r'
}

function firstTag(text: string, candidates: readonly Tag[]): { tag: Tag; at: number } | undefined {
  let first: { tag: Tag; at: number } | undefined
  for (const tag of candidates) {
    const at = text.indexOf(tags[tag])
    if (at >= 0 && (first === undefined || at < first.at)) first = { tag, at }
  }
  return first
}

/** The length of the longest end of a text that a tag begins with. */
function partialTagLength(text: string, candidates: readonly Tag[]): number {
  let longest = 0
  for (const tag of candidates) {
    const spelling = tags[tag]
    for (let length = Math.min(spelling.length - 1, text.length); length > longest; length--) {
      if (text.endsWith(spelling.slice(0, length))) longest = length
    }
  }
  return longest
}
