import type { TokenEvent } from '../engine/types.js'
import type { Detokenizer } from '../text/detokenizer.js'
import { tags } from '../text/markup.js'
import type { ToolCall } from '../text/messages.js'
import type { StreamParser } from '../text/stream-parser.js'
import type { Tokenizer } from '../text/tokenizer.js'
import type { ChatPart, TokenLogprob } from './reply.js'
import { StopStrings } from './stop-strings.js'

type ContentPart = Extract<ChatPart, { type: 'reasoning' | 'text' | 'tool-call' }>

/** What a collector needs to turn tokens into parts. */
export interface CollectorOptions {
  tokenizer: Tokenizer
  /** Splits the text into reasoning, answer and tool calls; without one all of it is answer. */
  parser: StreamParser | undefined
  /** Whether the prompt ends inside a think block. */
  opensThinking: boolean
  stop: readonly string[]
  logprobs: boolean
  emit: (part: ContentPart) => void
}

/** Turns the tokens of one round into parts as they come, and keeps what the reply is made of. */
export class Collector {
  readonly ids: number[] = []
  readonly logprobs: TokenLogprob[] = []
  readonly toolCalls: ToolCall[] = []
  text = ''
  reasoning = ''
  reasoningTokens = 0
  firstTokenAt: number | undefined
  lastTokenAt: number | undefined

  readonly #options: CollectorOptions
  readonly #detokenizer: Detokenizer
  readonly #stops: StopStrings
  readonly #tags: Readonly<Record<'open' | 'close' | 'call', number | undefined>>
  #thinking: boolean
  #ended = false

  constructor(options: CollectorOptions) {
    const { tokenizer } = options
    this.#options = options
    this.#detokenizer = tokenizer.detokenizer()
    this.#stops = new StopStrings(options.stop)
    this.#thinking = options.opensThinking
    this.#tags = {
      open: tokenizer.idOf(tags.thinkOpen),
      close: tokenizer.idOf(tags.thinkClose),
      call: tokenizer.idOf(tags.toolCallOpen),
    }
  }

  /** Takes the next token; says 'stop' when it ended the reply. Tokens after the end are ignored. */
  push(event: TokenEvent): 'continue' | 'stop' {
    if (this.#ended) return 'stop'
    this.lastTokenAt = performance.now()
    this.firstTokenAt ??= this.lastTokenAt
    this.ids.push(event.id)
    if (this.#options.logprobs && event.logprob !== undefined) this.#keepLogprob(event, event.logprob)
    if (event.stop) return 'stop'
    this.#countReasoning(event.id)
    const text = this.#detokenizer.push(event.id)
    const { parser } = this.#options
    this.#take(parser === undefined ? [{ type: 'text', text }] : parser.push(event.id, text))
    return this.#ended ? 'stop' : 'continue'
  }

  /** Releases what was held back, after the last token. */
  finish(): void {
    if (this.#ended) return
    const rest = this.#detokenizer.flush()
    const { parser } = this.#options
    this.#take(parser === undefined ? [{ type: 'text', text: rest }] : parser.finish(rest))
    if (!this.#ended) this.#addText(this.#stops.flush())
    this.#ended = true
  }

  #countReasoning(id: number): void {
    const { open, close, call } = this.#tags
    if (this.#options.parser === undefined) return
    // As in the parser: a think block begins where the answer has not.
    if (!this.#thinking && id === open && this.text.trim() === '') this.#thinking = true
    if (this.#thinking && id === call) this.#thinking = false
    if (this.#thinking) this.reasoningTokens++
    if (id === close) this.#thinking = false
  }

  #keepLogprob({ id, top }: TokenEvent, logprob: number): void {
    const { tokenizer } = this.#options
    // The head of a model may have more rows than its tokenizer has tokens.
    const token = (id: number) => (tokenizer.tokenOf(id) === undefined ? '' : tokenizer.decode([id]))
    this.logprobs.push({
      id,
      token: token(id),
      logprob,
      top: (top ?? []).map((entry) => ({ id: entry.id, token: token(entry.id), logprob: entry.logprob })),
    })
  }

  #take(parts: Iterable<ContentPart>): void {
    for (const part of parts) {
      if (part.type === 'text') {
        const { text, stop } = this.#stops.push(part.text)
        this.#addText(text)
        if (stop !== undefined) {
          this.#ended = true
          return
        }
        continue
      }
      // A stop string does not reach across reasoning or a tool call.
      this.#addText(this.#stops.flush())
      if (part.type === 'reasoning') {
        this.reasoning += part.text
        if (part.text !== '') this.#options.emit(part)
      } else {
        this.toolCalls.push({ id: part.id, name: part.name, input: part.input })
        this.#options.emit(part)
      }
    }
  }

  #addText(text: string): void {
    if (text === '') return
    this.text += text
    this.#options.emit({ type: 'text', text })
  }
}
