import { execFileSync } from 'node:child_process'
import { rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { loadModel } from '../../lib/index.js'
import { quantizeCheckpoint } from '../../lib/quantize/quantize.js'
import { ChatTemplate } from '../../lib/text/chat-template.js'
import { Tokenizer } from '../../lib/text/tokenizer.js'
import { subjects } from '../fuzz/subjects.js'
import { rounds } from '../helpers/child.js'
import { expectError } from '../helpers/expect-error.js'
import { folderWith } from '../helpers/safetensors.js'

// Files that are no mistake but made to do harm, and what else no random change finds.

const micro = subjects.find(({ name }) => name === 'bf16-attention-bias')?.files ?? {}
const small = { contextLength: 128, maxBatch: 1, threads: 1 }
const text = (value: unknown) => (typeof value === 'string' ? value : JSON.stringify(value))
const tokenizerOf = (change: (file: { pre_tokenizer: { pretokenizers: { pattern: object }[] } }) => void) => {
  const file = JSON.parse(new TextDecoder().decode(micro['tokenizer.json']))
  change(file)
  return { ...micro, 'tokenizer.json': text(file) }
}
const user = [{ role: 'user', content: 'the sun' }] as const

describe('a file that is no plain file', () => {
  const files = Object.keys(micro)
  test('the folder has every kind of file', () => expect(files).toHaveLength(6))

  test.each(files)('%s as a pipe, a device or a folder', async (file) => {
    const folder = await folderWith(micro)
    const path = join(folder, file)
    const kinds: (() => unknown)[] = [
      () => execFileSync('mkfifo', [path]),
      () => symlinkSync('/dev/zero', path),
      () => mkdir(path),
    ]
    for (const make of kinds) {
      rmSync(path, { recursive: true })
      await make()
      // The file beside it counts only when there is no template of its own.
      const code = file === 'tokenizer.json' ? 'MODEL_NOT_FOUND' : 'BAD_FORMAT'
      await expectError(() => loadModel(folder, small), code, path, 'no plain file')
    }
  })

  test.each(files.filter((file) => file !== 'model.safetensors'))('%s of eight gigabytes', async (file) => {
    const folder = await folderWith(micro)
    truncateSync(join(folder, file), 2 ** 33)
    await expectError(() => loadModel(folder, small), 'BAD_FORMAT', join(folder, file), String(2 ** 33))
  })

  test('quantize does not wait for a pipe either', async () => {
    const folder = await folderWith(micro)
    rmSync(join(folder, 'tokenizer.json'))
    execFileSync('mkfifo', [join(folder, 'tokenizer.json')])
    const out = join(await folderWith(), 'out')
    const run = () => quantizeCheckpoint(folder, out, { format: 'nvfp4', threads: 1 })
    await expectError(run, 'BAD_FORMAT', join(folder, 'tokenizer.json'), 'no plain file')
  })
})

describe('a tokenizer', () => {
  const patterns = ['(a+)+$', '(?:\\p{L}+)+!', '(?:a|a)*b']
  test.each(patterns.slice(0, rounds(3, 1)))('whose pattern is %s', { timeout: 120_000 }, async (Regex) => {
    const folder = await folderWith(
      tokenizerOf((file) => {
        Object.assign(file.pre_tokenizer.pretokenizers[0] as object, { pattern: { Regex } })
      }),
    )
    await using tokenizer = await Tokenizer.load(folder)
    expect([...(await tokenizer.encode('an', { special: true }))]).toHaveLength(1)
    const long = `${'a'.repeat(60)}1`
    await expectError(() => tokenizer.encode(long, { special: true }), 'BAD_FORMAT', folder, 'took longer than 1.0 s')
    // Nothing stays broken.
    expect([...(await tokenizer.encode('an', { special: true }))]).toHaveLength(1)
  })

  test('that knows more tokens than the model', async () => {
    const folder = await folderWith(
      tokenizerOf((file) => {
        Object.assign(file, {
          added_tokens: [...(file as unknown as { added_tokens: object[] }).added_tokens, { id: 90, content: '<far>' }],
        })
      }),
    )
    await using model = await loadModel(folder, small)
    const [near, far] = await Promise.allSettled([
      model.complete('the sun', { maxTokens: 3 }),
      model.complete('the <far> sun', { maxTokens: 3 }),
    ])
    // It does not take those with it that it shares a batch with.
    expect(near).toMatchObject({ status: 'fulfilled' })
    expect(far).toMatchObject({ status: 'rejected', reason: { code: 'BAD_FORMAT', details: { id: 90 } } })
    await expectError(() => model.complete('<far>'), 'BAD_FORMAT', 'token id 90', 'tokenizer.json')
  })
})

describe('a template', () => {
  const folders = async (source: string) => {
    const folder = await folderWith(micro)
    writeFileSync(join(folder, 'chat_template.jinja'), source)
    return folder
  }
  const render = async (source: string) => {
    const folder = await folders(source)
    await using tokenizer = await Tokenizer.load(folder)
    return (await ChatTemplate.load(folder, tokenizer)).render(user, { thinking: false }).text
  }

  // Python's sandbox, in which transformers renders, has the same bound.
  test('may count to a hundred thousand', async () => {
    expect(await render('{{ range(100000) | length }}')).toBe('100000')
    await expectError(() => render('{{ range(100001) | length }}'), 'UNSUPPORTED_MODEL', 'a range of more than 100000')
    await expectError(() => render('{{ range(0, 9, 0) }}'), 'UNSUPPORTED_MODEL', 'range')
  })

  const loops = '{% for i in range(99999) %}{% for j in range(99999) %}'
  const ends = '{% endfor %}{% endfor %}'
  const grow = (part: string) => `{% set x = namespace(v=${part}) %}{% for i in range(60) %}${'{% set x.v = x.v '}`
  test.each([
    ['loops in loops', `${loops}${ends}`],
    ['a list that doubles', `${grow('[1, 1]')} + x.v %}{% endfor %}{{ x.v | length }}`],
    ['a text that doubles', `${grow('"aaaaaaaaaaaaaaaa"')} ~ x.v %}{% endfor %}{{ x.v | length }}`],
    ['a text that is replaced by itself', `${grow('"aaaaaaaaaaaaaaaa"')}.replace("a", x.v) %}{% endfor %}{{ x.v }}`],
    ['many long lists', `${grow('[]')} + [range(100000)] %}{% endfor %}{{ x.v | length }}`],
    ['a macro that calls itself', '{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}'],
    ['lists that hold one another', `${grow('[1]')} and [x.v, x.v] %}{% endfor %}{{ x.v }}`],
    ['an indent', '{{ messages | tojson(indent=1000000000) }}'],
  ])('with %s ends in an error', { timeout: 120_000 }, async (_, source) => {
    const error = await expectError(() => render(source), 'UNSUPPORTED_MODEL', 'chat_template.jinja')
    expect(error.message.length).toBeLessThan(500)
  })
})
