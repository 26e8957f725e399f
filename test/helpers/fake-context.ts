import type { Engine } from '../../lib/engine/types.js'
import type { ChatContext } from '../../lib/generate/index.js'
import { ChatTemplate, type RenderedPrompt } from '../../lib/text/chat-template.js'
import type { Tokenizer } from '../../lib/text/tokenizer.js'

const names = [
  '<unk>',
  '<s>',
  '</s>',
  '<|im_start|>',
  '<|im_end|>',
  '<think>',
  '</think>',
  '<tool_call>',
  '</tool_call>',
]
const control = 5

/** Ids of the tokens that are not bytes. */
export const ids = { eos: 2, imEnd: 4, thinkOpen: 5, thinkClose: 6 } as const

/** A tokenizer with one token a byte, after a few added ones: a stand-in that needs no file. */
class ByteTokenizer {
  readonly vocabularySize = names.length + 256
  /** Called before each encode; a test can wait or fail here. */
  before: () => Promise<void> = async () => undefined

  async encode(text: string, { special }: { special: boolean }): Promise<Uint32Array> {
    await this.before()
    return Uint32Array.from(encodeText(text, special))
  }

  async encodePrompt({ text }: RenderedPrompt): Promise<Uint32Array> {
    return this.encode(text, { special: true })
  }

  decode(tokens: ArrayLike<number>): string {
    const detokenizer = this.detokenizer()
    return (
      Array.from(tokens, (id) => (id < control ? (names[id] ?? '') : detokenizer.push(id))).join('') +
      detokenizer.flush()
    )
  }

  detokenizer() {
    const decoder = new TextDecoder()
    return {
      push: (id: number) => {
        if (id < control) return ''
        if (id < names.length) return decoder.decode() + names[id]
        return decoder.decode(Uint8Array.of(id - names.length), { stream: true })
      },
      flush: () => decoder.decode(),
    }
  }

  idOf(token: string): number | undefined {
    const id = names.indexOf(token)
    return id < 0 ? undefined : id
  }

  tokenOf(id: number): string | undefined {
    return id < this.vocabularySize ? String(id) : undefined
  }
}

/** The ids of a text; with `special`, spelled tags are their tokens. */
export function encodeText(text: string, special = true): number[] {
  const parts = special ? text.split(/(<unk>|<\/?s>|<\|im_start\|>|<\|im_end\|>|<\/?think>|<\/?tool_call>)/) : [text]
  return parts.flatMap((part) => {
    const id = special ? names.indexOf(part) : -1
    return id >= 0 ? [id] : [...Buffer.from(part)].map((byte) => names.length + byte)
  })
}

/** In the manner of the family: a tools list, turns, and a think block that the prompt opens or closes. */
const template = `{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool.function.name }} {% endfor %}<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}
{%- if message.tool_calls %}{% for call in message.tool_calls %}<tool_call>{{ call.function.name }}</tool_call>{% endfor %}{% endif -%}
<|im_end|>
{% endfor -%}
<|im_start|>assistant
{{ '<think>\\n' if enable_thinking else '<think></think>' }}`

/** A context around an engine; `guards` counts the requests that hold the model. */
export function fakeContext(engine: Engine, changes: Partial<ChatContext> = {}) {
  const tokenizer = new ByteTokenizer()
  const state = { guards: 0 }
  const disposal = new AbortController()
  const context: ChatContext = {
    engine,
    tokenizer: tokenizer as unknown as Tokenizer,
    template: ChatTemplate.fromSource(template),
    contextLength: 1000,
    vocabularySize: tokenizer.vocabularySize,
    generation: { stopIds: [ids.imEnd, ids.eos], sample: true, temperature: 0.6, topP: 0.95 },
    guard: () => {
      state.guards++
      return () => {
        state.guards--
      }
    },
    disposal: disposal.signal,
    ...changes,
  }
  return { context, tokenizer, state, disposal }
}
