import { join } from 'node:path'
import { ModelError, RequestError } from '../errors.js'
import { readPlainFile } from '../plain-file.js'
import { Environment, parseJinja, type TemplateNode } from './jinja.js'
import { AddedSpellings, LiteralMarker } from './literals.js'
import { type Message, type ToolSpec, toTemplateMessages, toTemplateTools } from './messages.js'
import { PythonInterpreter, preparePrinting } from './python-interpreter.js'
import { strftime } from './strftime.js'
import { withTimeLimit } from './time-limit.js'
import { readTokenizerConfig, type TokenizerConfig } from './tokenizer-config.js'

/** A prompt made by a chat template. Encode it with `tokenizer.encodePrompt()`. */
export interface RenderedPrompt {
  readonly text: string
  /** Ascending indices of characters (UTF-16 units) of messages that no added token may contain. */
  readonly literals: Uint32Array
  /** Whether the prompt ends inside a think block, so that the answer starts with reasoning. */
  readonly opensThinking: boolean
}

/** How to render a conversation. */
export interface RenderOptions {
  readonly tools?: readonly ToolSpec[]
  readonly thinking: boolean
  /** More variables for the template (`chat_template_kwargs` elsewhere), say `{ reasoning_budget: 100 }`. */
  readonly extra?: Readonly<Record<string, unknown>>
}

class Refusal extends Error {}

const fileLimit = 1 << 24
/** Milliseconds that a template may take: a thousand messages take about 100. */
const timeLimit = 2_000
/** As in the sandbox that transformers renders templates in. */
const rangeLimit = 100_000

/**
 * The chat template of a checkpoint: Jinja, rendered as transformers renders it (`trim_blocks`, `lstrip_blocks`, values in
 * the form of Python's `str()`), and with special tokens that stand inside messages marked as plain text.
 *
 * @example
 * const template = await ChatTemplate.load('models/tiny', tokenizer)
 * const prompt = template.render([{ role: 'user', content: 'Hi' }], { thinking: true })
 * const ids = await tokenizer.encodePrompt(prompt)
 */
export class ChatTemplate {
  readonly #path: string
  readonly #program: TemplateNode | undefined
  readonly #source: string
  readonly #tokens: Readonly<Record<string, string>>
  readonly #spellings: AddedSpellings

  private constructor(
    path: string,
    source: string | undefined,
    config: TokenizerConfig,
    addedTokens: readonly string[],
  ) {
    this.#path = path
    this.#source = source ?? ''
    this.#tokens = config.tokens
    this.#spellings = new AddedSpellings(addedTokens)
    this.#program = source === undefined ? undefined : parseTemplate(source, path)
  }

  /**
   * Reads `chat_template.jinja`, or else `chat_template` of `tokenizer_config.json` (of several, the one named `default`), in a
   * checkpoint's folder. A checkpoint without one loads; `render` then says so.
   *
   * @param tokenizer the checkpoint's, whose added tokens are plain text inside messages
   * @throws ModelError `BAD_FORMAT` for a malformed file
   */
  static async load(folder: string, tokenizer: { readonly addedTokens: readonly string[] }): Promise<ChatTemplate> {
    const [config, file] = await Promise.all([
      readTokenizerConfig(folder),
      readOptional(join(folder, 'chat_template.jinja')),
    ])
    const path = join(folder, file === undefined ? 'tokenizer_config.json' : 'chat_template.jinja')
    return new ChatTemplate(path, file ?? config.template, config, tokenizer.addedTokens)
  }

  /**
   * A template from its source, for tests and tools.
   *
   * @param tokens variables such as `bos_token`
   * @param addedTokens the spellings that are plain text inside messages
   */
  static fromSource(
    source: string,
    options: { tokens?: Readonly<Record<string, string>>; addedTokens?: readonly string[] } = {},
  ): ChatTemplate {
    return new ChatTemplate('the chat template', source, { tokens: options.tokens ?? {} }, options.addedTokens ?? [])
  }

  /** Whether the checkpoint has a chat template. */
  get exists(): boolean {
    return this.#program !== undefined
  }

  /**
   * Renders a conversation, up to where the model's answer begins.
   *
   * @throws RequestError `INVALID_OPTION` when the template refuses the conversation; ModelError `UNSUPPORTED_MODEL` when there
   * is no template or it needs what nibblet does not have
   */
  render(messages: readonly Message[], options: RenderOptions): RenderedPrompt {
    if (this.#program === undefined) {
      const message = `The model has no chat template (looked in chat_template.jinja and ${this.#path}). Generate from a raw prompt instead.`
      throw new ModelError('UNSUPPORTED_MODEL', message, { details: { file: this.#path } })
    }
    const { tools = [], thinking, extra = {} } = options
    const marker = new LiteralMarker(this.#spellings, [this.#source, messages, tools, extra])
    const switches = { enable_thinking: thinking, ...extra }
    const variables = {
      ...this.#tokens,
      ...switches,
      chat_template_kwargs: switches,
      messages: toTemplateMessages(messages).map((message) => markMessage(message, marker)),
      tools: tools.length === 0 ? null : marker.text(toTemplateTools(tools)),
      add_generation_prompt: true,
    }
    const rendered = this.#run(variables, marker.mark)
    return { ...marker.remove(rendered), opensThinking: /<think>\s*$/.test(rendered) }
  }

  #run(variables: Readonly<Record<string, unknown>>, mark: string): string {
    const environment = new Environment()
    const all = { ...variables, ...globals }
    try {
      for (const [name, value] of Object.entries(all)) {
        if (value !== undefined) environment.set(name, value)
      }
      const interpreter = new PythonInterpreter(environment, mark)
      return withTimeLimit(timeLimit, () => String(interpreter.run(this.#program as TemplateNode).value))
    } catch (cause) {
      if (cause instanceof Refusal) {
        const message = `The chat template refuses these messages: ${cause.message.replaceAll(mark, '')}. Change them as it says.`
        throw new RequestError('INVALID_OPTION', message, { cause, details: { option: 'messages' } })
      }
      const reason = String((cause as Error)?.message ?? cause).replaceAll(mark, '')
      throw new ModelError(
        'UNSUPPORTED_MODEL',
        `${this.#path}: rendering failed (${reason}). If transformers renders it, report it to nibblet.`,
        { cause, details: { file: this.#path } },
      )
    }
  }
}

function markMessage(message: Record<string, unknown>, marker: LiteralMarker): Record<string, unknown> {
  const marked = marker.text(message)
  if (message.role === 'assistant') marked.content = marker.assistantContent(message.content as string)
  return marked
}

function parseTemplate(source: string, path: string): TemplateNode {
  try {
    return withTimeLimit(timeLimit, () => {
      const program = parseJinja(source)
      preparePrinting(program)
      return program
    })
  } catch (cause) {
    const message = `${path}: the chat template cannot be parsed (${(cause as Error).message}). Restore the file that belongs to the checkpoint.`
    throw new ModelError('BAD_FORMAT', message, { cause, details: { file: path } })
  }
}

async function readOptional(path: string): Promise<string | undefined> {
  try {
    return Buffer.from(await readPlainFile(path, fileLimit)).toString('utf8')
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    const message = `Cannot read ${path} (${(cause as Error).message}). Make it readable, or remove it.`
    throw new ModelError('BAD_FORMAT', message, { cause, details: { file: path } })
  }
}

// What transformers puts into every template's environment, and Jinja2's constants.
const globals = {
  true: true,
  True: true,
  false: false,
  False: false,
  none: null,
  None: null,
  range,
  raise_exception: (message: unknown) => {
    throw new Refusal(String(message))
  },
  strftime_now: (format: unknown) => strftime(new Date(), String(format)),
}

function range(start: number, stop?: number, step = 1): number[] {
  const [from, to] = stop === undefined ? [0, start] : [start, stop]
  const length = Math.max(0, Math.ceil((to - from) / step))
  if (!(length <= rangeLimit)) throw new RangeError(`a range of more than ${rangeLimit}`)
  return Array.from({ length }, (_, i) => from + i * step)
}
