import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** A folder to damage, by file name. */
export interface Subject {
  readonly name: string
  readonly files: Readonly<Record<string, Uint8Array>>
  /** Whether there are weights, and whether they can be quantized. */
  readonly weights: boolean
  readonly plain: boolean
}

const fixtures = fileURLToPath(new URL('../fixtures/', import.meta.url))
const utf8 = (value: string | object) =>
  new TextEncoder().encode(typeof value === 'string' ? value : JSON.stringify(value))

const control = ['<unk>', '<s>', '</s>', '<|im_start|>', '<|im_end|>']
const markup = ['<think>', '</think>', '<tool_call>', '</tool_call>']

/** A byte-level tokenizer with at most as many tokens as the model has. */
function microTokenizer(size: number): object {
  const added = [...control, ...markup]
  const letters = ['Ġ', 'Ċ', ...'abcdefghijklmnopqrstuvwxyz012?!']
  const merges = ['t h', 'th e', 'a n', 'an d', 'Ġ the', 'u s', '1 2'].slice(0, size - added.length - letters.length)
  const tokens = [...added, ...letters, ...merges.map((pair) => pair.replace(' ', ''))]
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added.map((content, id) => ({
      ...{ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false },
      special: control.includes(content),
    })),
    normalizer: { type: 'Sequence', normalizers: [{ type: 'NFC' }] },
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        {
          type: 'Split',
          pattern: { Regex: ' ?\\p{L}+|\\p{N}|\\s+(?!\\S)|\\s+|[^\\s\\p{L}\\p{N}]+' },
          behavior: 'Isolated',
        },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: '<unk>',
      byte_fallback: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
  }
}

const microTemplate = `{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message.content | trim }}{% if message.tool_calls is defined %}{% for call in message.tool_calls %}{{ call | tojson }}{% endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{{ '<think>\\n' if enable_thinking else '<think></think>' }}{% endif %}`

const tokens = { bos_token: '<s>', eos_token: { content: '<|im_end|>', lstrip: false }, unk_token: '<unk>' }
const generation = { bos_token_id: 1, eos_token_id: [2, 11], do_sample: true, temperature: 0.6, top_p: 0.95, top_k: 20 }

function microSubject(name: string, index: number): Subject {
  const folder = join(fixtures, 'micro', name)
  const [, vocabulary] = /"vocab_size": (\d+)/.exec(readFileSync(join(folder, 'config.json'), 'utf8')) ?? []
  const files: Record<string, Uint8Array> = {
    'generation_config.json': utf8(generation),
    'tokenizer.json': utf8(microTokenizer(Number(vocabulary))),
    'tokenizer_config.json': utf8(index % 2 === 0 ? tokens : { ...tokens, chat_template: microTemplate }),
    ...(index % 2 === 0 && { 'chat_template.jinja': utf8(microTemplate) }),
  }
  for (const file of readdirSync(folder)) {
    // The goldens are no part of the model.
    if (file !== 'goldens.safetensors') files[file] = Uint8Array.from(readFileSync(join(folder, file)))
  }
  return { name, files, weights: true, plain: /^(?:bf16|tf5)/.test(name) }
}

function textSubject(): Subject {
  const read = (name: string) => Uint8Array.from(readFileSync(join(fixtures, 'text', name)))
  const files = {
    'tokenizer.json': read('nano-tokenizer.json'),
    'tokenizer_config.json': utf8(tokens),
    'chat_template.jinja': read('nano-style.jinja'),
  }
  return { name: 'text', files, weights: false, plain: false }
}

/** Every micro checkpoint with a tokenizer and a template, and the larger tokenizer and template of the text tests. */
export const subjects: readonly Subject[] = [
  ...readdirSync(join(fixtures, 'micro')).sort().map(microSubject),
  textSubject(),
]
