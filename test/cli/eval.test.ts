import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { answerOf, parseTasks } from '../../lib/cli/tasks.js'
import { cli } from '../helpers/fake-cli.js'
import { encodeText } from '../helpers/fake-context.js'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'nibblet-eval-'))
})
afterAll(() => rm(folder, { recursive: true }))

const line = (kind: string, thinking: boolean, answer: string) =>
  JSON.stringify({
    kind,
    thinking,
    messages: [],
    tools: null,
    prompt: thinking ? 'q<think>\n' : 'q<think></think>',
    completion: '',
    answer,
  })
const says = (text: string) => ({ ids: encodeText(text) })

async function evaluate(lines: string[], completions: string[], ...flags: string[]) {
  const file = join(folder, 'tasks.jsonl')
  await writeFile(file, lines.join('\n'))
  return cli({ argv: ['eval', 'tiny', '--tasks', file, ...flags], scripts: completions.map(says) })
}

describe('answerOf', () => {
  const call = '<tool_call>\n<function=f>\n</function>\n</tool_call>'
  test.each([
    ['6 - 3 = 3\n</think>\n253', true, '253'],
    [`I should\n</think>\n${call}`, true, call],
    ['253', false, '253'],
    [`${call}\n`, false, call],
    ['six </think> x </think>\n7 ', true, '7'],
    ['never ends', true, undefined],
    [`hm ${call}`, true, call],
    ['```ts\nlet a = 1\n```', false, '```ts\nlet a = 1\n```'],
  ])('%o', (completion, thinking, answer) => {
    expect(answerOf(completion, thinking)).toBe(answer)
  })
})

describe('parseTasks', () => {
  const good = line('add', true, '3')
  test('takes the four fields and skips blank lines', () => {
    expect(parseTasks(`${good}\n\n${good}\n`, 'f')).toHaveLength(2)
    expect(parseTasks(good, 'f')[0]).toEqual({ kind: 'add', thinking: true, prompt: 'q<think>\n', answer: '3' })
    expect(parseTasks(`${good}\nbroken`, 'f', 1)).toHaveLength(1)
  })

  test.each([
    ['{', /tasks\.jsonl, line 3: this is no JSON/],
    ['[]', /line 3: expected an object/],
    ['{"kind": "a"}', /line 3: expected a boolean for "thinking" but got nothing/],
    ['{"kind": "a", "thinking": "yes", "prompt": "p", "answer": "x"}', /for "thinking" but got "yes"/],
    ['{"kind": "a", "thinking": true, "prompt": "", "answer": "x"}', /line 3: "prompt" is empty/],
    ['{"kind": "a", "thinking": true, "prompt": "p", "answer": 3}', /for "answer" but got 3/],
  ])('a malformed line %o', (bad, message) => {
    const parse = () => parseTasks(`${good}\n${good}\n${bad}`, 'tasks.jsonl')
    expect(parse).toThrow(expect.objectContaining({ code: 'INVALID_OPTION', details: { option: 'tasks', line: 3 } }))
    expect(parse).toThrow(message)
  })

  test('no tasks at all', () => {
    expect(() => parseTasks('\n', 'f')).toThrow('f holds no tasks.')
  })
})

describe('eval', () => {
  const lines = [line('add', true, '3'), line('add', false, '4'), line('sort', true, '1, 2'), line('add', true, '5')]
  const completions = ['1 + 2\n</think>\n3', '4', 'take 1\n</think>\n1, 2', 'x</think>\n6']

  test('counts exact answers, thinking and direct apart', async () => {
    const { code, out, err, engine, calls } = await evaluate(lines, completions, '--json')
    expect({ code, err }).toEqual({ code: 0, err: '' })
    expect(JSON.parse(out)).toEqual({
      thinking: { n: 3, exact: 2 / 3 },
      direct: { n: 1, exact: 1 },
      kinds: {
        add: { n: 3, exact: 2 / 3, thinking: { n: 2, exact: 0.5 }, direct: { n: 1, exact: 1 } },
        sort: { n: 1, exact: 1, thinking: { n: 1, exact: 1 } },
      },
    })
    expect(engine.requests[0]?.prompt).toEqual(Uint32Array.from(encodeText('q<think>\n')))
    expect(engine.requests[0]?.sampling.temperature).toBe(0)
    expect(calls.loads[0]?.[1].maxBatch).toBe(16)
  })

  test('--limit, --batch and the table', async () => {
    const { out, calls } = await evaluate(lines, completions, '--limit', '2', '--batch', '1')
    expect(calls.loads[0]?.[1].maxBatch).toBe(1)
    expect(out).toMatch(/^add +100\.00% of 1 +100\.00% of 1$/m)
    expect(out).toMatch(/^all +100\.00% of 1 +100\.00% of 1$/m)
  })

  test('a malformed line fails before the model is loaded', async () => {
    const { code, err, calls } = await evaluate([...lines, 'oops'], [])
    expect(code).toBe(1)
    expect(err).toMatch(/tasks\.jsonl, line 5: this is no JSON .*\(INVALID_OPTION\)/)
    expect(calls.loads).toEqual([])
  })

  test('a failing task ends the others', async () => {
    const file = join(folder, 'many.jsonl')
    await writeFile(file, Array.from({ length: 50 }, () => line('add', false, '1')).join('\n'))
    const failure = new Error('device lost')
    const scripts = Array.from({ length: 50 }, (_, i) =>
      i === 3 ? { ids: [], error: failure } : { ids: encodeText('1'), hang: true },
    )
    const { code, err, engine } = await cli({ argv: ['eval', 'tiny', '--tasks', file, '--batch', '8'], scripts })
    expect({ code, err }).toEqual({ code: 1, err: 'nibblet: device lost\n' })
    expect(engine.requests).toHaveLength(8)
    expect(engine.running).toBe(0)
  })
})
