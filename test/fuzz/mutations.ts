import { below, mutateBytes, mutateText, pick, type Random } from '../helpers/mutate.js'
import { jsonText, type Mutated, mutateJson, parseLoosely } from './mutate-json.js'
import { mutateSafetensors } from './mutate-safetensors.js'
import type { Subject } from './subjects.js'

/** What stands in the place of a file: other bytes, or no plain file at all. */
export type Content = Uint8Array | 'missing' | 'folder' | 'pipe' | 'loop' | 'huge'

/** One damaged folder. */
export interface Mutation {
  readonly file: string
  readonly content: Content
  readonly what: string
}

const templateParts = [
  ...[
    '{%',
    '%}',
    '{{',
    '}}',
    '{#',
    '#}',
    '{%-',
    '-%}',
    '{% for x in messages %}',
    '{% endfor %}',
    '{% if',
    '{% endif %}',
  ],
  ...[
    '{% for i in range(1000000000) %}{% endfor %}',
    '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
  ],
  ...[
    '{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}',
    '{{ range(10 ** 10) }}',
    '{{ "a" * 1000000000 }}',
    '{{ [1] * 1000000000 }}',
  ],
  ...[
    '{% set x = namespace(v="aaaaaaaaaaaaaaaa") %}{% for i in range(60) %}{% set x.v = x.v ~ x.v %}{% endfor %}{{ x.v }}',
  ],
  ...['{% set x = namespace(v=[1, 1, 1, 1]) %}{% for i in range(60) %}{% set x.v = x.v + x.v %}{% endfor %}{{ x.v }}'],
  ...[
    '{{ raise_exception("no") }}',
    '{{ messages[99].content }}',
    '{{ none.a.b }}',
    '{{ messages | tojson(indent=1000000000) }}',
  ],
  ...[
    '{{ messages.__class__.__mro__ }}',
    '{{ ({}).constructor.constructor("return process")() }}',
    '{{ strftime_now("%Q%") }}',
  ],
  ...[
    '{{ 1 / 0 }}',
    '{{ 2 ** 2000 }}',
    '{{ "x" | unknown }}',
    '{{ messages | map("x") | list }}',
    '{{ undefined_thing() }}',
  ],
  ...[`{{ ${'('.repeat(3_000)}1${')'.repeat(3_000)} }}`, `{{ ${'not '.repeat(3_000)}1 }}`, `{% if 1 %}`.repeat(2_000)],
  ...[
    '{{ "a".replace("", "b" * 1000) }}',
    '{{ "%s" | format(1) }}',
    '\u0000',
    '\ufdd0',
    '<|im_start|>',
    '{% break %}',
    '{{ [[]] * 3 }}',
  ],
]

function mutateTemplate(text: string, random: Random): Mutated<string> {
  if (random() < 0.3) return { value: mutateText(text, random), what: 'other text' }
  const at = below(random, text.length + 1)
  const part = pick(random, templateParts)
  const cut = random() < 0.3 ? below(random, 60) : 0
  const what = `${JSON.stringify(part.length > 60 ? `${part.slice(0, 57)}…` : part)} at ${at}, ${cut} removed`
  // Tags at the ends and between lines parse more often.
  const line = text.lastIndexOf('\n', at) + 1
  const place = random() < 0.6 ? pick(random, [0, line, text.length]) : at
  return { value: text.slice(0, place) + part + text.slice(place + cut), what }
}

/** A regular expression that backtracks for ever, or is none. */
const splitPatterns = [
  '(a+)+$',
  '(?:\\p{L}+)+!',
  '(.*)*x',
  '[',
  '(?<=a)b',
  '',
  '\\p{Nope}',
  '(?i:a)',
  '(?:a|a)*b',
  '\\s+|',
]

function mutateTokenizer(root: unknown, random: Random): Mutated<unknown> {
  const copy = structuredClone(root) as { pre_tokenizer: { pretokenizers: { pattern?: unknown }[] } }
  const [first] = copy.pre_tokenizer?.pretokenizers ?? []
  const pattern = pick(random, splitPatterns)
  if (first === undefined) return mutateJson(root, random)
  first.pattern = { Regex: pattern }
  return { value: copy, what: `the pattern ${pattern}` }
}

function mutateJsonFile(file: string, bytes: Uint8Array, random: Random): Mutated<Uint8Array> {
  const text = new TextDecoder().decode(bytes)
  const utf8 = ({ value, what }: Mutated<string>) => ({ value: new TextEncoder().encode(value), what })
  if (random() < 0.25) return utf8({ value: mutateText(text, random), what: 'other text' })
  const root = parseLoosely(text)
  if (file === 'tokenizer.json' && random() < 0.15) {
    const { value, what } = mutateTokenizer(root, random)
    return utf8({ value: jsonText(value), what })
  }
  const template = (root as { chat_template?: unknown }).chat_template
  if (typeof template === 'string' && random() < 0.5) {
    const { value, what } = mutateTemplate(template, random)
    return utf8({ value: jsonText({ ...(root as object), chat_template: value }), what })
  }
  const { value, what } = mutateJson(root, random)
  return utf8({ value: jsonText(value), what })
}

function mutateContent(file: string, bytes: Uint8Array, random: Random): Mutated<Content> {
  const kind = below(random, 100)
  if (kind < 3) return pick(random, places)
  if (kind < 8) return { value: mutateBytes(bytes, random), what: 'other bytes' }
  if (kind < 10) {
    const end = below(random, bytes.length)
    return { value: bytes.slice(0, end), what: `cut at ${end}` }
  }
  if (file.endsWith('.safetensors')) return mutateSafetensors(bytes, random)
  if (file.endsWith('.json')) return mutateJsonFile(file, bytes, random)
  const { value, what } = mutateTemplate(new TextDecoder().decode(bytes), random)
  return { value: new TextEncoder().encode(value), what }
}

const places = (['missing', 'folder', 'pipe', 'loop', 'huge'] as const).map((value) => ({ value, what: value }))

/** Weights, configs and what belongs to text get about a third of the mutations each. */
function chooseFile(files: readonly string[], random: Random): string {
  const kinds = [/\.safetensors$/, /^(?:config|hf_quant_config|model\.safetensors\.index)\.json$/, /./]
  const some = kinds.map((kind) => files.filter((file) => kind.test(file))).filter((list) => list.length > 0)
  return pick(random, pick(random, some))
}

/** One file of the subject damaged, sometimes a second one. */
export function mutate(subject: Subject, random: Random): Mutation[] {
  const mutations: Mutation[] = []
  const files = Object.keys(subject.files)
  for (let count = random() < 0.1 ? 2 : 1; count > 0; count--) {
    const file = chooseFile(files, random)
    const { value, what } = mutateContent(file, subject.files[file] as Uint8Array, random)
    if (!mutations.some((other) => other.file === file)) mutations.push({ file, content: value, what })
  }
  return mutations
}
